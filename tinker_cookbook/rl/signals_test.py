"""Signals against their formulas, written out in Python floats."""

from __future__ import annotations

import asyncio
import gc
import math
import statistics
from collections.abc import Awaitable, Sequence

import numpy as np
import pytest
import tinker
from hypothesis import given
from hypothesis import strategies as st

from tinker_cookbook.exceptions import ConfigurationError, TrainingError
from tinker_cookbook.rl.signals import (
    GroupReward,
    ReferenceKL,
    Signal,
    discounted_future_sum,
    group_advantages,
)
from tinker_cookbook.rl.testing import FormulaModel, make_group, trajectory, turn
from tinker_cookbook.rl.trajectories import TrainingGroup
from tinker_cookbook.rl.types import TrajectoryGroup

KINDS = ("centered", "leave_one_out", "grpo", "dr_grpo")
MAX_TOKENS = 64


def by_hand(rewards: Sequence[float], kind: str, tokens: Sequence[int]) -> list[float]:
    """Advantages of each token, one member after the other."""
    out = []
    for i, reward in enumerate(rewards):
        others = [r for j, r in enumerate(rewards) if j != i]
        mean = sum(rewards) / len(rewards)
        if kind == "centered":
            out.append(reward - mean)
        elif kind == "leave_one_out":
            out.append(reward - sum(others) / len(others))
        elif kind == "grpo":
            out.append((reward - mean) / (statistics.stdev(rewards) + 1e-6) / tokens[i])
        elif kind == "dr_grpo":
            out.append((reward - mean) / MAX_TOKENS)
    return out


@pytest.mark.parametrize("kind", KINDS)
@given(
    members=st.lists(
        st.tuples(st.floats(-10, 10, width=32), st.integers(1, 500)), min_size=2, max_size=9
    )
)
def test_advantages_by_hand(kind: str, members: list[tuple[float, int]]) -> None:
    rewards, tokens = [r for r, _ in members], [t for _, t in members]
    found = group_advantages(rewards, kind, tokens, MAX_TOKENS)
    if len(set(rewards)) == 1:
        assert found.tolist() == [0.0] * len(rewards)
    else:
        assert found == pytest.approx(by_hand(rewards, kind, tokens), rel=1e-9, abs=1e-9)
    if kind != "grpo":  # what a token gets does not depend on its reply: they cancel out
        assert found.sum() == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_to_compare_is_exactly_zero(kind: str) -> None:
    assert group_advantages([3.0], kind, [5], MAX_TOKENS).tolist() == [0.0]
    assert group_advantages([], kind, [], MAX_TOKENS).tolist() == []
    # 0.1 + 0.1 + 0.1 is not 3 * 0.1: a mean would leave a rest, and GRPO would blow it up
    assert group_advantages([0.1] * 3, kind, [5] * 3, MAX_TOKENS).tolist() == [0.0] * 3


TRAINED = [[[2, 3, 4]], [[1, 2, 6, 7], [3]], [[]]]  # positions of each sequence of make_group


@pytest.mark.parametrize("kind", KINDS)
def test_group_reward_adds_to_trained_tokens_only(kind: str) -> None:
    group = make_group()
    before = np.float32(0.25)
    for member in group.advantages_G:
        for row in member:
            row += before
    assert GroupReward(kind, MAX_TOKENS).add([group]) == {}
    expected = by_hand([1.0, 0.0, 0.5], kind, [3, 5, 1])
    for i, member in enumerate(group.advantages_G):
        for j, row in enumerate(member):
            assert row.dtype == np.float32
            for position, value in enumerate(row):
                added = expected[i] if position in TRAINED[i][j] else 0.0
                assert value == pytest.approx(0.25 + added, abs=1e-6)


def test_rewards_of_turns_and_of_the_group_count_together() -> None:
    first = trajectory(turn([1], [2], reward=0.5), turn([1, 2, 3], [4], reward=0.25))
    group = TrajectoryGroup([first, trajectory(turn([1], [2]))], [1.0, 0.0], [{}, {}])
    training = TrainingGroup.from_group(group)
    GroupReward().add([training])
    assert training.advantages_G[0][0].tolist() == [0, 0.875, 0, 0.875]
    assert training.advantages_G[1][0].tolist() == [0, -0.875]


def test_group_reward_refuses_what_cannot_work() -> None:
    with pytest.raises(ConfigurationError, match="advantage='ppo': expected centered, leave_one"):
        GroupReward("ppo")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="dr_grpo divides by max_tokens, found None"):
        GroupReward("dr_grpo")


@pytest.mark.parametrize("discount", [0.0, 0.5, 1.0])
async def test_reference_kl_by_hand(discount: float) -> None:
    groups, model = [make_group(seed=1), make_group(seed=2)], FormulaModel()
    signal = ReferenceKL(model, coef=0.3, discount=discount)
    for group in groups:
        await signal.prepare(group)
    assert len(model.asked) == 6  # once per sequence that has something to train
    for group in groups:
        GroupReward().add([group])
    base = [[[row.copy() for row in member] for member in group.advantages_G] for group in groups]
    metrics = signal.add(groups)

    d = {}  # of each trained token: (group, member, sequence, position) in the order of sampling
    for g, group in enumerate(groups):
        for i, member in enumerate(TRAINED):
            for j, positions in enumerate(member):
                sequence = group.sequences_G[i][j]
                for t in positions:
                    reference = model.logprob(sequence.tokens.tolist(), t)
                    d[g, i, j, t] = float(sequence.logprobs[t]) - reference
    mean = sum(d.values()) / len(d)
    assert metrics == {"kl_policy_base": pytest.approx(mean, abs=1e-9)}
    for g, group in enumerate(groups):
        for i, member in enumerate(group.sequences_G):
            episode = [key for key in d if key[:2] == (g, i)]
            for j, sequence in enumerate(member):
                for t in range(len(sequence)):
                    added = 0.0
                    if (g, i, j, t) in d:
                        later = episode[episode.index((g, i, j, t)) :]
                        if discount == 0:
                            later = later[:1]
                        added = sum(
                            discount**k * 0.3 * (mean - d[key]) for k, key in enumerate(later)
                        )
                    found = group.advantages_G[i][j][t] - base[g][i][j][t]
                    assert found == pytest.approx(added, abs=1e-6)


async def test_the_centred_penalty_adds_up_to_nothing_over_the_step() -> None:
    groups, signal = [make_group(seed=s) for s in range(4)], ReferenceKL(FormulaModel(), coef=1.0)
    for group in groups:
        await signal.prepare(group)
    signal.add(groups)
    total = sum(row.sum() for g in groups for member in g.advantages_G for row in member)
    largest = max(abs(row).max() for g in groups for member in g.advantages_G for row in member)
    assert abs(total) < 1e-5 and largest > 0.1


async def test_a_reference_that_is_the_policy_penalises_nothing() -> None:
    group = make_group()

    class Policy(FormulaModel):
        def compute_logprobs(self, prompt: tinker.ModelInput) -> Awaitable[list[float | None]]:
            tokens = prompt.to_ints()
            (same,) = [s for m in group.sequences_G for s in m if s.tokens.tolist() == tokens]

            async def answer() -> list[float | None]:
                return [None, *same.logprobs[1:].tolist()]

            return answer()

    signal = ReferenceKL(Policy(), coef=5.0)
    await signal.prepare(group)
    assert signal.add([group]) == {"kl_policy_base": 0.0}
    assert all((row == 0).all() for member in group.advantages_G for row in member)


async def test_groups_without_a_trained_token() -> None:
    empty = TrainingGroup.from_group(TrajectoryGroup([], [], []))
    signal = ReferenceKL(FormulaModel(), coef=1.0)
    await signal.prepare(empty)
    assert signal.add([empty]) == {} and GroupReward().add([empty]) == {}


async def test_what_was_fetched_for_a_group_goes_with_it() -> None:
    signal, group = ReferenceKL(FormulaModel(), coef=1.0), make_group()
    await signal.prepare(group)
    assert len(signal._logprobs) == 1
    del group
    gc.collect()
    assert len(signal._logprobs) == 0
    with pytest.raises(TrainingError, match="needs prepare"):
        signal.add([make_group()])


async def test_a_reference_that_never_answers_is_not_awaited_for_ever() -> None:
    class Silent:
        def compute_logprobs(self, prompt: tinker.ModelInput) -> Awaitable[list[float | None]]:
            return asyncio.get_running_loop().create_future()

    signal = ReferenceKL(Silent(), coef=1.0, timeout=0.05)
    with pytest.raises(
        TrainingError, match=r"ReferenceKL: .* no logprobs of a group of 3 sequences"
    ):
        await signal.prepare(make_group())


def test_signals_are_signals_and_check_their_keys() -> None:
    assert isinstance(GroupReward(), Signal) and isinstance(ReferenceKL(None, 1.0), Signal)
    assert not GroupReward().needs_batch and ReferenceKL(None, 1.0).needs_batch
    with pytest.raises(ConfigurationError, match="must be from 0 to 1"):
        ReferenceKL(None, 1.0, discount=1.5)
    with pytest.raises(ConfigurationError, match="kl_penalty_coef=nan"):
        ReferenceKL(None, math.nan)


@given(
    st.lists(st.floats(-100, 100), max_size=70),
    st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0, 1)),
)
def test_discounted_future_sum_by_a_loop(values: list[float], discount: float) -> None:
    expected, later = [], 0.0
    for value in reversed(values):
        later = value + discount * later
        expected.append(later)
    given_values = np.array(values)
    found = discounted_future_sum(given_values, discount)
    assert found == pytest.approx(expected[::-1], rel=1e-9, abs=1e-9)
    assert given_values.tolist() == values
