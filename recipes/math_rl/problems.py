"""Batches of problems for RL: read from data (`math_problems.problem_rows`) or generated."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from tinker_cookbook.exceptions import DataValidationError
from tinker_cookbook.math_problems.problem_rows import Problem
from tinker_cookbook.nano.tasks import Split
from tinker_cookbook.rl.problem_env import ProblemGroupBuilder
from tinker_cookbook.rl.shuffled_dataset import ShuffledRLDataset
from tinker_cookbook.rl.types import Env, EnvGroupBuilder, RLDataset


def drop_held_out(problems: Sequence[Problem], held_out: Sequence[Problem]) -> list[Problem]:
    """Drop the problems whose question, white space aside, is one of `held_out`."""
    excluded = {"".join(problem.question.split()) for problem in held_out}
    return [problem for problem in problems if "".join(problem.question.split()) not in excluded]


def sample_problems(problems: Sequence[Problem], count: int | None) -> list[Problem]:
    """Return a fixed random subset of at most `count` problems in their order (None: all).

    Random, because files are often sorted by subject.
    """
    if count is None or count >= len(problems):
        return list(problems)
    chosen = np.random.default_rng(0).permutation(len(problems))[:count]
    return [problems[i] for i in sorted(chosen.tolist())]


@dataclass(frozen=True)
class GeneratedDataset(RLDataset):
    """Groups drawn for each batch from (name, index), so that a resumed run gets the same batches.

    name: data set, split and seed. batch_sizes: number of groups in each batch.
    """

    name: str
    draw_groups: Callable[[random.Random, int], Sequence[EnvGroupBuilder]]
    batch_sizes: Sequence[int]

    def __len__(self) -> int:
        return len(self.batch_sizes)

    def get_batch(self, index: int) -> Sequence[EnvGroupBuilder]:
        if not 0 <= index < len(self):
            raise IndexError(f"batch {index} of {len(self)}")
        rng = random.Random(f"{self.name} {index}")
        return self.draw_groups(rng, self.batch_sizes[index])


class DrawGroups(Protocol):
    """Draws problems of a split and returns the groups that attempt them."""

    def __call__(
        self, rng: random.Random, count: int, *, split: Split, group_size: int
    ) -> Sequence[EnvGroupBuilder]: ...


def generate_datasets(
    name: str,
    draw: DrawGroups,
    *,
    seed: int,
    group_size: int,
    batch_sizes: list[int],
    test_size: int,
) -> tuple[RLDataset, RLDataset | None]:
    """Training batches, and a test set of held-out problems, one rollout each (size 0: none)."""

    def dataset(split: Split, seed: int, group_size: int, sizes: list[int]) -> GeneratedDataset:
        draw_groups = functools.partial(draw, split=split, group_size=group_size)
        return GeneratedDataset(f"{name} {split} {seed}", draw_groups, sizes)

    train = dataset("train", seed, group_size, batch_sizes)
    # the same test set for all runs, whatever their seed
    return train, dataset("held_out", 0, 1, [test_size]) if test_size else None


class ProblemDataset(ShuffledRLDataset):
    """Batches of groups; the members of a group attempt the same problem."""

    def __init__(
        self,
        problems: Sequence[Problem],
        make_env: Callable[[str, str], Env],
        *,
        group_size: int,
        groups_per_batch: int,
        name: str,
        seed: int | None = None,
        num_epochs: int = 1,
    ) -> None:
        if not problems:
            raise DataValidationError(f"{name}: there are no problems")
        self.problems, self.name = list(problems), name
        self._make_env, self.group_size = make_env, group_size
        super().__init__(
            len(self.problems),
            lambda index: self.group(self.problems[index]),
            groups_per_batch=groups_per_batch,
            seed=seed,
            num_epochs=num_epochs,
        )

    def group(self, problem: Problem) -> ProblemGroupBuilder:
        return ProblemGroupBuilder(
            functools.partial(self._make_env, *problem), self.group_size, self.name
        )
