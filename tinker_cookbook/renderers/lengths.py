"""How long a conversation may be, in tokens, where nobody says."""

from __future__ import annotations

from tinker_cookbook import models

MAX_LENGTH = 32_768
NANO_MAX_LENGTH = 512


def within_context(length: int, model_name: str) -> int:
    """At most the model's context. ConfigurationError where nothing is known of the model."""
    return min(length, models.lookup(model_name).context_length or length)


def usual_length(model_name: str) -> int:
    """What supervised recipes take."""
    if models.is_nano(model_name):
        return NANO_MAX_LENGTH
    return within_context(MAX_LENGTH, model_name)
