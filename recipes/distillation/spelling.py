"""Spelling: a second task that nano knows half, and learns by reinforcement."""

from __future__ import annotations

import zlib

import chz

from recipes.math_rl.math_datasets import MathDatasetBuilder
from recipes.math_rl.problems import Problem
from tinker_cookbook.nano.mix import WORDS
from tinker_cookbook.renderers import Renderer
from tinker_cookbook.rl.problem_env import ProblemEnv
from tinker_cookbook.rl.types import RLDataset

NAME = "spelling"
_ATTEMPTS = 10  # at each held-out word, since there are few


class SpellingEnv(ProblemEnv):
    """correct: the reply is the letters of the word, separated by spaces."""

    def __init__(self, word: str, letters: str, renderer: Renderer, format_coef: float) -> None:
        super().__init__(renderer, format_coef=format_coef)
        self.word, self.letters = word, letters

    def get_question(self) -> str:
        return f"Spell the word {self.word}."

    def check_answer(self, sample_str: str) -> bool:
        return sample_str.strip() == self.letters

    def check_format(self, sample_str: str) -> bool:
        return True

    def get_reference_answer(self) -> str:
        return self.letters


def is_held_out(word: str) -> bool:
    """Whether a word is for the test: a fifth of them, by a hash."""
    return zlib.crc32(word.encode()) % 5 == 0


@chz.chz
class Spelling(MathDatasetBuilder):
    """The words that nano knows; a fifth of them is held out, with ten attempts each."""

    num_epochs: int = chz.field(default=100, doc="passes over the words")

    def default_max_tokens(self) -> int:
        return 16

    async def __call__(self) -> tuple[RLDataset, RLDataset | None]:
        problems = [Problem(word, " ".join(word)) for word in WORDS]
        train = [problem for problem in problems if not is_held_out(problem.question)]
        test = [problem for problem in problems if is_held_out(problem.question)] * _ATTEMPTS
        test = test if self.test_size is None else test[: self.test_size]

        def make_env(word: str, letters: str) -> SpellingEnv:
            return SpellingEnv(word, letters, self.renderer, self.format_coef)

        return (
            self.batches(train, make_env, NAME),
            self.batches(test, make_env, NAME, test=True) if test else None,
        )
