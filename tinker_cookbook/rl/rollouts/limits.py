"""What bounds an episode: turns, tokens, and the seconds that anything in it may take."""

from __future__ import annotations

import math

import chz

from tinker_cookbook.exceptions import ConfigurationError


@chz.chz
class RolloutLimits:
    """An episode that reaches the limit of turns or tokens ends there and keeps its rewards; its
    `stop_reason` tells."""

    max_turns: int | None = chz.field(
        default=1000, doc="turns of an episode, which may never end by itself (None: no limit)"
    )
    max_trajectory_tokens: int | None = chz.field(
        default=None, doc="tokens of an episode, prompt and replies together (None: no limit)"
    )
    env_timeout: float = chz.field(
        default=600.0, doc="seconds that one call of an environment may take; then it has failed"
    )
    sample_timeout: float = chz.field(
        default=1800.0,
        doc="seconds in which no reply at all may come; then the run ends with an error",
    )

    @chz.validate
    def _ranges(self) -> None:
        for key in ("max_turns", "max_trajectory_tokens"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ConfigurationError(f"{key}={value}: expected 1 or more, or None")
        for key in ("env_timeout", "sample_timeout"):
            value = getattr(self, key)
            if math.isnan(value) or value <= 0:
                raise ConfigurationError(f"{key}={value}: expected seconds, above 0")
