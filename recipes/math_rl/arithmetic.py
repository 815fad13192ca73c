"""Sums of two numbers: a task on which a small model visibly learns within a minute.

nano gets the sums of `nano.tasks`, from 0 to 99; a tenth of the pairs was held out of its
pre-training and is the test set. Other models get 0 to 100, with one solved sum before the
question; here, too, a tenth of the pairs is held out for the test.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from typing import NamedTuple

import chz

from recipes.math_rl.math_datasets import MathDatasetBuilder
from recipes.math_rl.problems import generate_datasets
from tinker_cookbook.nano import tasks
from tinker_cookbook.renderers import Message, Renderer
from tinker_cookbook.rl.problem_env import ProblemEnv, ProblemGroupBuilder
from tinker_cookbook.rl.types import RLDataset

TEST_SIZE = 500
LARGEST = 100
ONE_SHOT = [
    Message(role="user", content="What is 4 + 5?"),
    Message(role="assistant", content="9"),
]


class Sum(NamedTuple):
    a: int
    b: int


class SumEnv(ProblemEnv):
    """correct: the last integer of the reply, after its reasoning, is the sum. format: the reply
    ended with a stop sequence."""

    def __init__(
        self,
        numbers: Sum,
        renderer: Renderer,
        convo_prefix: list[Message] | None = None,
        format_coef: float = 0.1,
    ) -> None:
        super().__init__(renderer, convo_prefix, format_coef)
        self.numbers = numbers

    def get_question(self) -> str:
        return tasks.ADD_PHRASINGS[0].format(a=self.numbers.a, b=self.numbers.b)

    def check_answer(self, sample_str: str) -> bool:
        return tasks.last_integer(sample_str) == sum(self.numbers)

    def check_format(self, sample_str: str) -> bool:
        return True

    def get_reference_answer(self) -> str:
        return str(sum(self.numbers))


def draw_numbers(rng: random.Random, split: tasks.Split, largest: int) -> Sum:
    """Draw two numbers from 0 to `largest` whose sum belongs to `split`."""
    while True:  # rejection sampling: the split is a hash of the pair
        numbers = Sum(rng.randint(0, largest), rng.randint(0, largest))
        if tasks.held_out_pair(*numbers) == (split == "held_out"):
            return numbers


def draw_groups(
    rng: random.Random,
    count: int,
    *,
    make_env: Callable[[Sum], SumEnv],
    split: tasks.Split,
    largest: int,
    group_size: int,
    name: str = "arithmetic",
) -> list[ProblemGroupBuilder]:
    """Groups of two drawn numbers each; name: their tag in the metrics."""
    drawn = [draw_numbers(rng, split, largest) for _ in range(count)]
    return [
        ProblemGroupBuilder(functools.partial(make_env, numbers), group_size, name)
        for numbers in drawn
    ]


@chz.chz
class Arithmetic(MathDatasetBuilder):
    """Sums of two numbers below 100 (nano) or up to 100."""

    num_batches: int = chz.field(default=100, doc="batches per epoch")
    test_size: int | None = chz.field(default=TEST_SIZE, doc="sums in the test set (0: no test)")
    one_shot: bool | None = chz.field(
        default=None, doc="show one solved sum before each question (None: yes, except for nano)"
    )

    def default_max_tokens(self) -> int:
        return 16

    async def __call__(self) -> tuple[RLDataset, RLDataset | None]:
        nano = self.model_name_for_tokenizer == "nano"
        one_shot = not nano if self.one_shot is None else self.one_shot
        groups = self.needed("groups_per_batch", self.groups_per_batch)
        make_env = functools.partial(
            SumEnv,
            renderer=self.renderer,
            convo_prefix=ONE_SHOT if one_shot else [],
            format_coef=self.format_coef,
        )
        return generate_datasets(
            "sums",
            functools.partial(draw_groups, make_env=make_env, largest=99 if nano else LARGEST),
            seed=self.needed("seed", self.seed),
            group_size=self.needed("group_size", self.group_size),
            batch_sizes=[groups] * (self.num_batches * self.num_epochs),
            test_size=TEST_SIZE if self.test_size is None else self.test_size,
        )
