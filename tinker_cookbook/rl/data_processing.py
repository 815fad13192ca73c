"""From groups of episodes to datums by the names that users know: thin over trajectories.py and
signals.py, which do the same for the loop."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import TypedDict

import numpy as np
import tinker

from tinker_cookbook.rl.signals import group_advantages
from tinker_cookbook.rl.trajectories import trajectory_to_sequences
from tinker_cookbook.rl.types import Trajectory, TrajectoryGroup
from tinker_cookbook.sequences import to_datum
from tinker_cookbook.utils.misc_utils import all_same, safezip

logger = logging.getLogger(__name__)


class DatumMetadata(TypedDict):
    """Where a datum comes from."""

    group_idx: int
    traj_idx: int


def compute_advantages(trajectory_groups_P: Sequence[TrajectoryGroup]) -> list[np.ndarray]:
    """Total reward minus the group's mean, float64 [G] for each group."""
    return [
        group_advantages(group.get_total_rewards(), "centered", [1] * len(group.trajectories_G))
        for group in trajectory_groups_P
    ]


def trajectory_to_data(traj: Trajectory, traj_advantage: float) -> list[tinker.Datum]:
    """Datums of an episode with the advantage on every trained token, `mask` included.

    Sequences without a trained token have none.
    """
    sequences = [each for each in trajectory_to_sequences(traj) if each.num_loss_tokens]
    return [
        to_datum(replace(each, advantages=float(traj_advantage) * each.loss_mask))
        for each in sequences
    ]


def assemble_training_data(
    trajectory_groups_P: Sequence[TrajectoryGroup],
    advantages_P: Sequence[Sequence[float] | np.ndarray],
) -> tuple[list[tinker.Datum], list[DatumMetadata]]:
    """All datums of the groups, in order, and where each comes from."""
    data_D: list[tinker.Datum] = []
    metadata_D: list[DatumMetadata] = []
    for group_idx, (group, advantages_G) in enumerate(safezip(trajectory_groups_P, advantages_P)):
        for traj_idx, (traj, advantage) in enumerate(safezip(group.trajectories_G, advantages_G)):
            datums = trajectory_to_data(traj, advantage)
            data_D += datums
            metadata_D += [DatumMetadata(group_idx=group_idx, traj_idx=traj_idx) for _ in datums]
    return data_D, metadata_D


def is_constant(group: TrajectoryGroup) -> bool:
    """Whether all members have the same total reward, so that there is nothing to compare."""
    return all_same(group.get_total_rewards())


def remove_constant_reward_groups(
    trajectory_groups_P: Sequence[TrajectoryGroup],
) -> list[TrajectoryGroup]:
    """The groups whose rewards differ; the first group where all are constant, so that a batch is
    never empty. What stands beside the groups must be filtered by `is_constant`, too."""
    mixed = [group for group in trajectory_groups_P if not is_constant(group)]
    if not mixed and trajectory_groups_P:
        logger.warning("the rewards of every group are all equal: one is kept, it trains nothing")
    return mixed or list(trajectory_groups_P[:1])
