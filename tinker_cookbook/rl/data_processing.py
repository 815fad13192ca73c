"""Convert groups of episodes into datums: the Tinker cookbook's functions, thin wrappers over
trajectories.py and signals.py, which the training loop uses directly."""

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
    """The origin of a datum: indices of its group and of the trajectory in the group."""

    group_idx: int
    traj_idx: int


def compute_advantages(trajectory_groups_P: Sequence[TrajectoryGroup]) -> list[np.ndarray]:
    """Return total reward minus the group's mean reward, float64 [G] per group."""
    return [
        group_advantages(group.get_total_rewards(), "centered", [1] * len(group.trajectories_G))
        for group in trajectory_groups_P
    ]


def trajectory_to_data(traj: Trajectory, traj_advantage: float) -> list[tinker.Datum]:
    """Return an episode's datums, including `mask`, with the advantage on every trained token.

    Sequences without a trained token are left out.
    """
    sequences = [seq for seq in trajectory_to_sequences(traj) if seq.num_loss_tokens]
    return [
        to_datum(replace(seq, advantages=float(traj_advantage) * seq.loss_mask))
        for seq in sequences
    ]


def assemble_training_data(
    trajectory_groups_P: Sequence[TrajectoryGroup],
    advantages_P: Sequence[Sequence[float] | np.ndarray],
) -> tuple[list[tinker.Datum], list[DatumMetadata]]:
    """Return the datums of all groups, in order, and the origin of each."""
    data_D: list[tinker.Datum] = []
    metadata_D: list[DatumMetadata] = []
    for group_idx, (group, advantages_G) in enumerate(safezip(trajectory_groups_P, advantages_P)):
        for traj_idx, (traj, advantage) in enumerate(safezip(group.trajectories_G, advantages_G)):
            datums = trajectory_to_data(traj, advantage)
            data_D += datums
            metadata_D += [DatumMetadata(group_idx=group_idx, traj_idx=traj_idx) for _ in datums]
    return data_D, metadata_D


def is_constant(group: TrajectoryGroup) -> bool:
    """Whether all members have the same total reward, so that every advantage is zero."""
    return all_same(group.get_total_rewards())


def remove_constant_reward_groups(
    trajectory_groups_P: Sequence[TrajectoryGroup],
) -> list[TrajectoryGroup]:
    """Return the groups with differing rewards; if there are none, the first group, so that a batch
    is never empty. Filter lists parallel to the groups with `is_constant`, too."""
    mixed = [group for group in trajectory_groups_P if not is_constant(group)]
    if not mixed and trajectory_groups_P:
        logger.warning(
            "the rewards within every group are all equal: one group is kept; its rewards give no"
            " advantage"
        )
    return mixed or list(trajectory_groups_P[:1])
