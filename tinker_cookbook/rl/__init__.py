"""Reinforcement learning: environments, rollouts, advantages and the one loop. See train.py."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tinker_cookbook.utils.misc_utils import import_of

if TYPE_CHECKING:
    from tinker_cookbook.rl.rollouts.strategy import FailFast, RetryOnFailure, RolloutStrategy
    from tinker_cookbook.rl.types import (
        Action,
        Env,
        EnvGroupBuilder,
        Logs,
        Metrics,
        Observation,
        RLDataset,
        RLDatasetBuilder,
        RolloutError,
        StepResult,
        Trajectory,
        TrajectoryGroup,
        Transition,
    )

__all__ = [
    "Action",
    "Env",
    "EnvGroupBuilder",
    "FailFast",
    "Logs",
    "Metrics",
    "Observation",
    "RLDataset",
    "RLDatasetBuilder",
    "RetryOnFailure",
    "RolloutError",
    "RolloutStrategy",
    "StepResult",
    "Trajectory",
    "TrajectoryGroup",
    "Transition",
]
_MODULES = {
    "FailFast": "rl.rollouts.strategy",
    "RetryOnFailure": "rl.rollouts.strategy",
    "RolloutStrategy": "rl.rollouts.strategy",
    "Action": "rl.types",
    "Env": "rl.types",
    "EnvGroupBuilder": "rl.types",
    "Logs": "rl.types",
    "Metrics": "rl.types",
    "Observation": "rl.types",
    "RLDataset": "rl.types",
    "RLDatasetBuilder": "rl.types",
    "RolloutError": "rl.types",
    "StepResult": "rl.types",
    "Trajectory": "rl.types",
    "TrajectoryGroup": "rl.types",
    "Transition": "rl.types",
}


def __getattr__(name: str) -> Any:
    """Import the names above on first use: some of their modules take seconds to load."""
    return import_of(name, __name__, _MODULES)
