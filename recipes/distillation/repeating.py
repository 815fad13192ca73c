"""Repeating a word: a second task for nano, which it does in four of five cases."""

from __future__ import annotations

import zlib

import chz

from recipes.math_rl.math_datasets import MathDatasetBuilder
from recipes.math_rl.problems import Problem
from tinker_cookbook.nano.mix import WORDS
from tinker_cookbook.renderers import Renderer
from tinker_cookbook.rl.problem_env import ProblemEnv
from tinker_cookbook.rl.types import RLDataset

NAME = "repeating"
_ATTEMPTS = 10  # at each held-out word, since there are few


class RepeatEnv(ProblemEnv):
    """correct: the reply is the word."""

    def __init__(self, word: str, renderer: Renderer, format_coef: float) -> None:
        super().__init__(renderer, format_coef=format_coef)
        self.word = word

    def get_question(self) -> str:
        return f"Repeat the word {self.word}."

    def check_answer(self, sample_str: str) -> bool:
        return sample_str.strip() == self.word

    def check_format(self, sample_str: str) -> bool:
        return True

    def get_reference_answer(self) -> str:
        return self.word


def is_held_out(word: str) -> bool:
    """Whether a word is for the test: a fifth of them, by a hash."""
    return zlib.crc32(word.encode()) % 5 == 0


@chz.chz
class Repeating(MathDatasetBuilder):
    """The words that nano knows; a fifth of them is held out, with ten attempts each."""

    num_epochs: int = chz.field(default=100, doc="passes over the words")

    def default_max_tokens(self) -> int:
        return 16

    async def __call__(self) -> tuple[RLDataset, RLDataset | None]:
        problems = [Problem(word, word) for word in WORDS]
        train = [problem for problem in problems if not is_held_out(problem.question)]
        test = [problem for problem in problems if is_held_out(problem.question)] * _ATTEMPTS
        test = test if self.test_size is None else test[: self.test_size]

        def make_env(word: str, answer: str) -> RepeatEnv:
            return RepeatEnv(word, self.renderer, self.format_coef)

        return (
            self.batches(train, make_env, NAME),
            self.batches(test, make_env, NAME, test=True) if test else None,
        )
