"""Default maximum lengths of conversations, in tokens."""

from __future__ import annotations

from tinker_cookbook import models

MAX_LENGTH = 32_768
NANO_MAX_LENGTH = 512


def within_context(length: int, model_name: str) -> int:
    """`length`, capped at the model's context. Raises ConfigurationError for an unknown model."""
    return min(length, models.lookup(model_name).context_length or length)


def default_max_length(model_name: str) -> int:
    """The default `max_length` of the supervised recipes."""
    if models.is_nano(model_name):
        return NANO_MAX_LENGTH
    return within_context(MAX_LENGTH, model_name)
