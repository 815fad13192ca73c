"""Playing episodes: one (episode.py), a group (group.py), batches ahead of training
(rollout_queue.py); what bounds them (limits.py) and what becomes of failures (strategy.py)."""

from tinker_cookbook.rl.rollouts.group import (
    do_group_rollout,
    do_single_rollout,
    set_rollout_executor,
)
from tinker_cookbook.rl.rollouts.limits import RolloutLimits
from tinker_cookbook.rl.rollouts.progress import RolloutProgress
from tinker_cookbook.rl.rollouts.strategy import RolloutFailedError

__all__ = [
    "RolloutFailedError",
    "RolloutLimits",
    "RolloutProgress",
    "do_group_rollout",
    "do_single_rollout",
    "set_rollout_executor",
]
