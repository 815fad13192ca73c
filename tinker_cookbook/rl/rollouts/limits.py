"""Limits on an episode: turns, tokens, and seconds per call."""

from __future__ import annotations

import chz

from tinker_cookbook.training.fields import MAY_CHANGE, CheckedConfig, in_range

_COUNT_OR_NONE = in_range(lambda value: value >= 1, "1 or more, or None")
_SECONDS = in_range(lambda value: value > 0, "seconds, above 0")


@chz.chz
class RolloutLimits(CheckedConfig):
    """Limits on an episode. One that reaches its limit of turns or tokens ends there, keeps its
    rewards and records the limit as its `stop_reason`; a timeout is a failure."""

    max_turns: int | None = chz.field(
        default=1000,
        doc="maximum turns per episode (None: no limit)",
        metadata=_COUNT_OR_NONE,
    )
    max_trajectory_tokens: int | None = chz.field(
        default=None,
        doc="tokens of an episode, prompt and replies together (None: no limit)",
        metadata=_COUNT_OR_NONE,
    )
    env_timeout: float = chz.field(
        default=600.0,
        doc="seconds that one call of an environment may take; then it has failed",
        metadata=_SECONDS | MAY_CHANGE,
    )
    sample_timeout: float = chz.field(
        default=1800.0,
        doc="end the run with an error after this many seconds without any reply",
        metadata=_SECONDS | MAY_CHANGE,
    )
