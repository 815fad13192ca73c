"""The known names, on groups worked out by hand."""

from __future__ import annotations

import pytest

from tinker_cookbook.rl.data_processing import (
    assemble_training_data,
    compute_advantages,
    is_constant,
    remove_constant_reward_groups,
    trajectory_to_data,
)
from tinker_cookbook.rl.testing import trajectory, turn
from tinker_cookbook.rl.types import TrajectoryGroup


def group_of(*rewards: float) -> TrajectoryGroup:
    members = [trajectory(turn([1, 2], [3 + i])) for i in range(len(rewards))]
    return TrajectoryGroup(members, list(rewards), [{} for _ in rewards])


def test_advantages_are_centred_in_their_group() -> None:
    found = compute_advantages([group_of(1, 0, 0.5), group_of(2.0), group_of(7, 7)])
    assert [each.tolist() for each in found] == [[0.5, -0.5, 0.0], [0.0], [0.0, 0.0]]


def test_an_episode_becomes_datums_with_one_advantage() -> None:
    episode = trajectory(
        turn([1], [2, 3]), turn([9], [4], trainable=False), turn([5, 6], [7])
    )  # the second sequence has nothing to train
    first, second = trajectory_to_data(episode, -2.0)
    assert first.model_input.to_ints() == [1, 2]
    assert {k: v.tolist() for k, v in first.loss_fn_inputs.items()} == {
        "target_tokens": [2, 3],
        "logprobs": [-0.5, -1.0],
        "advantages": [-2.0, -2.0],
        "mask": [1.0, 1.0],
    }
    assert second.loss_fn_inputs["advantages"].tolist() == [0, -2.0]


def test_data_of_a_batch_says_where_each_datum_comes_from() -> None:
    groups = [group_of(1, 0), group_of(3)]
    groups[0].trajectories_G[1].transitions.append(turn([8], [9]))
    data, metadata = assemble_training_data(groups, compute_advantages(groups))
    assert metadata == [
        {"group_idx": 0, "traj_idx": 0},
        {"group_idx": 0, "traj_idx": 1},
        {"group_idx": 0, "traj_idx": 1},
        {"group_idx": 1, "traj_idx": 0},
    ]
    advantages = [datum.loss_fn_inputs["advantages"].tolist()[-1] for datum in data]
    assert advantages == [0.5, -0.5, -0.5, 0.0]
    with pytest.raises(ValueError, match="different lengths"):
        assemble_training_data(groups, [[0.5, -0.5]])


def test_constant_groups_are_removed_but_never_all(caplog: pytest.LogCaptureFixture) -> None:
    constant, mixed = group_of(1, 1), group_of(0, 1)
    assert is_constant(constant) and is_constant(group_of(2)) and not is_constant(mixed)
    assert remove_constant_reward_groups([constant, mixed, group_of(0)]) == [mixed]
    assert not caplog.records
    assert remove_constant_reward_groups([constant, group_of(0)]) == [constant]
    assert "one group is kept" in caplog.text
    assert remove_constant_reward_groups([]) == []
