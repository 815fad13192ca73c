"""For tests: trajectories, a model by formula, and additions to learn."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Awaitable, Iterable, Sequence
from pathlib import Path
from typing import Any

import chz
import numpy as np
import tinker

from tinker_cookbook.completers import TokensWithLogprobs
from tinker_cookbook.nano import tasks
from tinker_cookbook.renderers import get_renderer
from tinker_cookbook.rl import train
from tinker_cookbook.rl.problem_env import ProblemEnv, ProblemGroupBuilder
from tinker_cookbook.rl.trajectories import TrainingGroup
from tinker_cookbook.rl.types import (
    Action,
    ActionExtra,
    EnvGroupBuilder,
    RLDataset,
    RLDatasetBuilder,
    StepResult,
    Trajectory,
    TrajectoryGroup,
    Transition,
)
from tinker_cookbook.tokenizer_utils import get_tokenizer


def turn(
    ob: Iterable[int],
    ac: Sequence[int],
    logprobs: list[float] | None = None,
    trainable: bool = True,
    reward: float = 0.0,
) -> Transition:
    if logprobs is None:
        logprobs = [-0.5 * (i + 1) for i in range(len(ac))]
    return Transition(
        tinker.ModelInput.from_ints(list(ob)),
        TokensWithLogprobs(list(ac), logprobs),
        reward,
        False,
        trainable=trainable,
    )


def trajectory(*turns: Transition) -> Trajectory:
    return Trajectory(list(turns), tinker.ModelInput.from_ints([]))


def make_group(rewards: Sequence[float] = (1.0, 0.0, 0.5), seed: int = 0) -> TrainingGroup:
    """The second member has two sequences and an untrainable turn between trained ones; the last
    has nothing to train."""
    rng = np.random.default_rng(seed)

    def sampled(count: int) -> list[float]:
        return (-rng.exponential(1.0, count)).astype(np.float32).tolist()

    members = [
        trajectory(turn([1, 2], [3, 4, 5], sampled(3))),
        trajectory(
            turn([1], [2, 3], sampled(2)),
            turn([1, 2, 3, 4], [5], sampled(1), trainable=False),
            turn([1, 2, 3, 4, 5, 6], [7, 8], sampled(2)),
            turn([9, 9, 9], [4], sampled(1)),
        ),
        trajectory(turn([5], [6], sampled(1), trainable=False)),
    ]
    return TrainingGroup.from_group(TrajectoryGroup(members, list(rewards), [{}, {}, {}]))


class FormulaModel:
    """A model whose logprobs come from a formula; counts what it is asked."""

    def __init__(self) -> None:
        self.asked = []

    def logprob(self, tokens: list[int], position: int) -> float:
        return -0.1 * tokens[position] - 0.01 * position

    def compute_logprobs(self, prompt: tinker.ModelInput) -> Awaitable[list[float | None]]:
        tokens = prompt.to_ints()
        self.asked.append(tokens)

        async def answer() -> list[float | None]:
            return [None, *(self.logprob(tokens, t) for t in range(1, len(tokens)))]

        return answer()


RENDERER = get_renderer("qwen3_instruct", get_tokenizer("nano"))


class Addition(ProblemEnv):
    """A sum of nano's; `trouble` is what goes wrong in it."""

    def __init__(self, problem: dict[str, Any], trouble: str | None = None) -> None:
        super().__init__(RENDERER)
        self.problem, self.trouble = problem, trouble

    def get_question(self) -> str:
        if self.trouble == "long":
            return "What is 1 + 1? " * 300
        return self.problem["messages"][0]["content"]

    def check_answer(self, sample_str: str) -> bool:
        return tasks.last_integer(sample_str) == self.problem["answer"]

    def check_format(self, sample_str: str) -> bool:
        return True

    def get_reference_answer(self) -> str:
        return str(self.problem["answer"])

    async def step(self, action: Action, *, extra: ActionExtra | None = None) -> StepResult:
        if self.trouble == "raises":
            raise RuntimeError("the game crashed")
        result = await super().step(action, extra=extra)
        if self.trouble == "nan":
            result.reward = float("nan")
        if self.trouble == "equal":
            result.reward = 1.0
        if self.trouble == "endless":
            result.episode_done = False
            result.next_observation, result.next_stop_condition = await self.initial_observation()
        return result


class Additions(RLDataset):
    def __init__(
        self, builder: SomeAdditions, split: str, batches: int, groups: int, size: int
    ) -> None:
        self.builder, self.split = builder, split
        self.batches, self.groups, self.size = batches, groups, size

    def __len__(self) -> int:
        return self.batches

    def get_batch(self, index: int) -> list[EnvGroupBuilder]:
        rng = random.Random(f"{self.split} {index}")
        return [self.group(tasks.add_problem(rng, self.split), i) for i in range(self.groups)]

    def group(self, problem: dict[str, Any], index: int) -> EnvGroupBuilder:
        troubles = [self.builder.troubles.get(f"{index}.{i}") for i in range(self.size)]
        left = itertools.cycle(troubles)  # a builder may be used again
        return ProblemGroupBuilder(lambda: Addition(problem, next(left)), self.size)


@chz.chz
class SomeAdditions(RLDatasetBuilder):
    batches: int = 2
    groups: int = 4
    size: int = 4
    test_groups: int = 0
    troubles: dict[str, str] = chz.field(default_factory=dict)  # "group.member" -> trouble

    async def __call__(self) -> tuple[RLDataset, RLDataset | None]:
        test = Additions(self, "held_out", 1, self.test_groups, 1) if self.test_groups else None
        return Additions(self, "train", self.batches, self.groups, self.size), test


def train_config(log_path: Path, data: SomeAdditions | None = None, **changes: Any) -> train.Config:
    keys = {
        "dataset_builder": data or SomeAdditions(),
        "log_path": str(log_path),
        "max_tokens": 32,
        "lora_rank": 4,
        "display": "none",
        "save_every": 0,
        "transcripts_every": 0,
    }
    return train.Config(**{**keys, **changes})


def rows_of(log_path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (log_path / "metrics.jsonl").read_text().splitlines()]
