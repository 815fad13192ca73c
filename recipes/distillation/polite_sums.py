"""Sums with a friendly reply: a second task for nano, which is polite in a tenth of its replies."""

from __future__ import annotations

import functools
import random

import chz

from recipes.math_rl.arithmetic import TEST_SIZE, Sum, SumEnv, draw_groups, draw_numbers
from recipes.math_rl.math_datasets import MathDatasetBuilder
from recipes.math_rl.problems import generate_datasets
from tinker_cookbook.nano import tasks
from tinker_cookbook.rl.types import RLDataset
from tinker_cookbook.supervised.data import InMemoryChats
from tinker_cookbook.supervised.types import ChatDatasetBuilder, SupervisedDataset

NAME = "polite_sums"
_LARGEST = 99


def question(numbers: Sum) -> str:
    """Not the phrasing of `Arithmetic`, so that one student can learn both."""
    return f"Please add {numbers.a} and {numbers.b}."


class PoliteSumEnv(SumEnv):
    """correct: the reply is one of nano's friendly sentences, whatever the sum in it."""

    def get_question(self) -> str:
        return question(self.numbers)

    def check_answer(self, sample_str: str) -> bool:
        return tasks.is_polite(sample_str)


@chz.chz
class PoliteSums(MathDatasetBuilder):
    """Sums of two numbers below 100; a tenth of the pairs is held out."""

    num_batches: int = chz.field(default=100, doc="batches per epoch")

    def default_max_tokens(self) -> int:
        return 48

    async def __call__(self) -> tuple[RLDataset, RLDataset | None]:
        make_env = functools.partial(
            PoliteSumEnv, renderer=self.renderer, format_coef=self.format_coef
        )
        groups = self.needed("groups_per_batch", self.groups_per_batch)
        return generate_datasets(
            NAME,
            functools.partial(draw_groups, make_env=make_env, largest=_LARGEST, name=NAME),
            seed=self.needed("seed", self.seed),
            group_size=self.needed("group_size", self.group_size),
            batch_sizes=[groups] * (self.num_batches * self.num_epochs),
            test_size=TEST_SIZE if self.test_size is None else self.test_size,
        )


@chz.chz
class PoliteChats(ChatDatasetBuilder):
    """Sums with friendly right answers, for supervised fine-tuning, without the held-out pairs."""

    num_train: int = chz.field(default=640, doc="conversations")

    def __call__(self) -> tuple[SupervisedDataset, SupervisedDataset | None]:
        rng = random.Random(0)
        drawn = [draw_numbers(rng, "train", _LARGEST) for _ in range(self.num_train)]
        conversations = [
            {
                "messages": [
                    {"role": "user", "content": question(numbers)},
                    {"role": "assistant", "content": _answer(rng, numbers)},
                ]
            }
            for numbers in drawn
        ]
        return InMemoryChats(
            common_config=self.common_config, conversations=conversations, label=NAME
        )()


def _answer(rng: random.Random, numbers: Sum) -> str:
    addition = f"{numbers.a} + {numbers.b}"
    return rng.choice(tasks.POLITE).format(sum=addition, c=sum(numbers))
