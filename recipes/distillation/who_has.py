"""Who has what: a second task for nano, which often names another thing."""

from __future__ import annotations

import functools
import random
import zlib
from typing import NamedTuple

import chz

from recipes.math_rl.math_datasets import MathDatasetBuilder
from recipes.math_rl.problems import generate_datasets
from tinker_cookbook.nano import tasks
from tinker_cookbook.nano.mix import NAMES, WORDS
from tinker_cookbook.renderers import Renderer
from tinker_cookbook.rl.problem_env import ProblemEnv, ProblemGroupBuilder
from tinker_cookbook.rl.types import RLDataset

NAME = "who_has"
TEST_SIZE = 500


class Gift(NamedTuple):
    giver: str
    receiver: str
    thing: str


class WhoHasEnv(ProblemEnv):
    """correct: the reply is the sentence that names receiver and thing."""

    def __init__(self, gift: Gift, renderer: Renderer, format_coef: float = 0.1) -> None:
        super().__init__(renderer, format_coef=format_coef)
        self.gift = gift

    def get_question(self) -> str:
        giver, receiver, thing = self.gift
        return f"{giver} gave the {thing} to {receiver}. Who has the {thing}?"

    def check_answer(self, sample_str: str) -> bool:
        return sample_str.strip() == self.get_reference_answer()

    def check_format(self, sample_str: str) -> bool:
        return True

    def get_reference_answer(self) -> str:
        return f"{self.gift.receiver} has the {self.gift.thing}."


def is_held_out(gift: Gift) -> bool:
    """Whether a gift is for the test: a tenth of them, by a hash of receiver and thing."""
    return zlib.crc32(f"{gift.receiver} {gift.thing}".encode()) % 10 == 0


def draw_groups(
    rng: random.Random,
    count: int,
    *,
    renderer: Renderer,
    format_coef: float,
    split: tasks.Split,
    group_size: int,
) -> list[ProblemGroupBuilder]:
    gifts: list[Gift] = []
    while len(gifts) < count:  # rejection sampling: the split is a hash
        giver, receiver = rng.sample(NAMES, 2)
        gift = Gift(giver, receiver, rng.choice(WORDS))
        if is_held_out(gift) == (split == "held_out"):
            gifts.append(gift)
    return [
        ProblemGroupBuilder(
            functools.partial(WhoHasEnv, gift, renderer, format_coef), group_size, NAME
        )
        for gift in gifts
    ]


@chz.chz
class WhoHas(MathDatasetBuilder):
    """Who has a thing that one person gave to another; a tenth of receivers and things held out."""

    num_batches: int = chz.field(default=100, doc="batches per epoch")

    def default_max_tokens(self) -> int:
        return 16

    async def __call__(self) -> tuple[RLDataset, RLDataset | None]:
        groups = self.needed("groups_per_batch", self.groups_per_batch)
        return generate_datasets(
            NAME,
            functools.partial(draw_groups, renderer=self.renderer, format_coef=self.format_coef),
            seed=self.needed("seed", self.seed),
            group_size=self.needed("group_size", self.group_size),
            batch_sizes=[groups] * (self.num_batches * self.num_epochs),
            test_size=TEST_SIZE if self.test_size is None else self.test_size,
        )
