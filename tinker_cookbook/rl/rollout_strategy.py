"""The Tinker cookbook's path of rollouts/strategy.py."""

from tinker_cookbook.rl.rollouts.strategy import (
    FailFast,
    MinViableGroup,
    RetryOnFailure,
    RolloutFailedError,
    RolloutStrategy,
)

__all__ = ["FailFast", "MinViableGroup", "RetryOnFailure", "RolloutFailedError", "RolloutStrategy"]
