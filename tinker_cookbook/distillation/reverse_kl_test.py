from __future__ import annotations

import math

import pytest

from tinker_cookbook.distillation.datasets import CompositeDataset
from tinker_cookbook.distillation.reverse_kl import ReverseKL
from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.rl.testing import FormulaModel, make_group
from tinker_cookbook.rl.trajectories import TrainingGroup
from tinker_cookbook.rl.types import EnvGroupBuilder, RLDataset

TRAINED = [[[2, 3, 4]], [[1, 2, 6, 7], [3]], [[]]]  # positions of each sequence of make_group


class OtherModel(FormulaModel):
    def logprob(self, tokens: list[int], position: int) -> float:
        return -0.3 * tokens[position]


class OneGroup(RLDataset):
    def __len__(self) -> int:
        return 1

    def get_batch(self, index: int) -> list[EnvGroupBuilder]:
        return [EnvGroupBuilder.__new__(_Group)]


class _Group(EnvGroupBuilder):
    async def make_envs(self) -> list:
        return []


def differences(group: TrainingGroup, model: FormulaModel) -> list[list[float]]:
    """d of each member's trained tokens in the order of sampling, by a loop."""
    found: list[list[float]] = []
    for member, positions_of in zip(group.sequences_G, TRAINED):
        found.append([])
        for sequence, positions in zip(member, positions_of):
            tokens, logprobs = sequence.tokens.tolist(), sequence.logprobs
            assert logprobs is not None
            found[-1] += [float(logprobs[t]) - model.logprob(tokens, t) for t in positions]
    return found


@pytest.mark.parametrize("discount", [0.0, 0.5, 1.0])
async def test_by_hand(discount: float) -> None:
    group, model = make_group(seed=1), FormulaModel()
    signal = ReverseKL([model], coef=0.7, discount=discount)
    await signal.prepare(group)
    metrics = signal.add([group])
    d = differences(group, model)
    every = [value for member in d for value in member]
    assert metrics == {"teacher_kl": pytest.approx(sum(every) / len(every), abs=1e-9)}
    for i, positions_of in enumerate(TRAINED):
        added = [
            -0.7 * sum(discount**k * x for k, x in enumerate(d[i][t:])) for t in range(len(d[i]))
        ]
        values = iter(added)
        for row, positions in zip(group.advantages_G[i], positions_of):
            for t, found in enumerate(row):
                expected = next(values) if t in positions else 0.0
                assert found == pytest.approx(expected, abs=1e-6)


async def test_each_data_set_has_its_teacher() -> None:
    builders = CompositeDataset([OneGroup(), OneGroup()], [1, 1]).get_batch(0)
    groups = [make_group(seed=seed) for seed in range(2)]
    for group, builder in zip(groups, builders):
        group.builder = builder
    models = [FormulaModel(), OtherModel()]
    signal = ReverseKL(models)
    assert signal.needs_batch and not ReverseKL(models[:1]).needs_batch
    for group in groups:
        await signal.prepare(group)
    assert [len(model.asked) for model in models] == [3, 3]
    metrics = signal.add(groups)
    d = [
        [value for member in differences(group, model) for value in member]
        for group, model in zip(groups, models)
    ]
    assert metrics == {
        "teacher_kl": pytest.approx(sum(map(sum, d)) / 16, abs=1e-9),
        "teacher_kl/dataset_0": pytest.approx(sum(d[0]) / 8, abs=1e-9),
        "teacher_kl/dataset_1": pytest.approx(sum(d[1]) / 8, abs=1e-9),
    }
    # a batch without groups of one of them has no metric of it
    await signal.prepare(groups[0])
    assert signal.add(groups[:1]).keys() == {"teacher_kl", "teacher_kl/dataset_0"}


async def test_several_teachers_need_to_know_the_data_set() -> None:
    signal = ReverseKL([FormulaModel(), OtherModel()])
    with pytest.raises(ConfigurationError, match="need groups of a CompositeDataset"):
        await signal.prepare(make_group())


def test_keys_are_checked() -> None:
    with pytest.raises(ConfigurationError, match="kl_penalty_coef=nan"):
        ReverseKL([FormulaModel()], coef=math.nan)
    with pytest.raises(ConfigurationError, match=r"temperature=0\.5: FormulaModel"):
        ReverseKL([FormulaModel()], temperature=0.5)
