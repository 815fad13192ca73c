"""Word problems of one or two steps: generated, so that difficulty is a key and no hub is needed.

A problem is a template with names, things and numbers. All numbers in it, those in between and the
answer are from 2 to `largest`. A tenth of the problems, by a hash of template and numbers, is held
out for the test.
"""

from __future__ import annotations

import functools
import hashlib
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import chz

from recipes.math_rl.math_datasets import MathDatasetBuilder
from recipes.math_rl.problems import generate_datasets
from recipes.math_rl.word_problem_templates import TEMPLATES, Template
from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.nano.tasks import Split
from tinker_cookbook.renderers import Message, Renderer
from tinker_cookbook.rl.problem_env import ProblemEnv, ProblemGroupBuilder
from tinker_cookbook.rl.types import RLDataset
from tinker_cookbook.training.fields import COUNT, NON_NEGATIVE

TEST_SIZE = 200
SMALLEST = 2  # so that every noun is in the plural
SMALLEST_RANGE = 12  # of `largest`: below, some templates have hardly any problem
DRAWS_PER_TEMPLATE = 2000
INSTRUCTION = "Answer with a number."
ONE_SHOT = [
    Message(
        role="user",
        content=f"Kim has 4 shells and finds 5 more. How many shells does Kim have? {INSTRUCTION}",
    ),
    Message(role="assistant", content="9"),
]
NAMES = ("Anna", "Ben", "Clara", "David", "Elena", "Felix", "Grace", "Hugo", "Iris", "Jonas")
THINGS = ("apples", "books", "buttons", "coins", "marbles", "pencils", "shells", "stickers")

# A comma groups digits only before exactly three of them: 1,200 is one number, 1,2,3 are three. A
# dot between a word and digits ends a sentence (apples.15); otherwise it is decimal (.5).
_NUMBER = re.compile(
    r"(?:(?<!\w)[-\u2212])?"
    r"(?:(?:\d{1,3}(?:,\d{3})+(?!,?\d)|\d+)(?:\.\d+)?|(?<![\w.])\.\d+)"
)


class WordProblem(NamedTuple):
    question: str
    answer: int
    tag: str  # operations, e.g. "multiply_subtract"


def last_number(reply: str) -> float | None:
    """The last number of a reply; None if it has none. 1,200 and $12.00 are 1200 and 12."""
    numbers = _NUMBER.findall(reply)
    return float(numbers[-1].replace(",", "").replace("\u2212", "-")) if numbers else None


def is_held_out(template: Template, numbers: Sequence[int]) -> bool:
    """Whether a problem belongs to the test; names and things do not matter."""
    key = f"{template.text} {list(numbers)}".encode()
    return hashlib.sha256(key).digest()[0] < 26  # a tenth of 256


def draw_problem(rng: random.Random, split: Split, steps: int, largest: int) -> WordProblem:
    """Draw a problem of `split` whose numbers and results are from SMALLEST to `largest`."""
    template, numbers = _draw_numbers(rng, split, steps, largest)
    answer = int(template.values(numbers)[-1])
    name, other = rng.sample(NAMES, 2)
    words = {"name": name, "other": other, "things": rng.choice(THINGS)}
    text = template.text.format(**words, **dict(zip("abc", numbers)))
    return WordProblem(f"{text} {INSTRUCTION}", answer, template.tag)


def _draw_numbers(
    rng: random.Random, split: Split, steps: int, largest: int
) -> tuple[Template, list[int]]:
    """By rejection sampling, because the operations restrict the numbers together."""
    while True:
        template = rng.choice(TEMPLATES[steps])
        # a limit, because a template may have no problem of this split in a small range
        for _ in range(DRAWS_PER_TEMPLATE):
            numbers = [rng.randint(SMALLEST, largest) for _ in range(steps + 1)]
            if (split == "held_out") != is_held_out(template, numbers):
                continue
            if all(v == int(v) and SMALLEST <= v <= largest for v in template.values(numbers)):
                return template, numbers


class WordProblemEnv(ProblemEnv):
    """correct: the last number of the reply is the answer. format: the reply ended with a stop
    sequence."""

    def __init__(
        self,
        problem: WordProblem,
        renderer: Renderer,
        convo_prefix: list[Message] | None = None,
        format_coef: float = 0.1,
    ) -> None:
        super().__init__(renderer, convo_prefix, format_coef)
        self.problem = problem

    def get_question(self) -> str:
        return self.problem.question

    def check_answer(self, sample_str: str) -> bool:
        return last_number(sample_str) == self.problem.answer

    def check_format(self, sample_str: str) -> bool:
        return True

    def get_reference_answer(self) -> str:
        return str(self.problem.answer)


@dataclass(frozen=True)
class WordProblemGroup(ProblemGroupBuilder):
    """As its base, with the operations as a second tag, by which metrics are split."""

    operations: str = ""

    def logging_tags(self) -> list[str]:
        return [*super().logging_tags(), self.operations]


def draw_group(
    rng: random.Random,
    *,
    make_env: Callable[[WordProblem], WordProblemEnv],
    split: Split,
    steps: int,
    largest: int,
    group_size: int,
) -> WordProblemGroup:
    problem = draw_problem(rng, split, steps, largest)
    env = functools.partial(make_env, problem)
    return WordProblemGroup(env, group_size, "word_problems", problem.tag)


@chz.chz
class WordProblems(MathDatasetBuilder):
    """Generated word problems of one or two steps."""

    steps: int = chz.field(default=1, doc="operations that a problem takes: 1 or 2")
    largest: int = chz.field(
        default=20, doc=f"largest number in a problem and its answer, at least {SMALLEST_RANGE}"
    )
    num_batches: int = chz.field(default=100, doc="batches per epoch", metadata=COUNT)
    test_size: int | None = chz.field(
        default=TEST_SIZE, doc="problems in the test set (0: no test)", metadata=NON_NEGATIVE
    )
    one_shot: bool = chz.field(default=False, doc="show one solved problem before each question")

    @chz.validate
    def _check(self) -> None:
        if self.steps not in TEMPLATES:
            raise ConfigurationError(f"data.steps={self.steps}: expected 1 or 2")
        if self.largest < SMALLEST_RANGE:
            raise ConfigurationError(
                f"data.largest={self.largest}: expected at least {SMALLEST_RANGE}"
            )

    def default_max_tokens(self) -> int:
        return 64

    async def __call__(self) -> tuple[RLDataset, RLDataset | None]:
        groups = self.needed("groups_per_batch", self.groups_per_batch)
        make_env = functools.partial(
            WordProblemEnv,
            renderer=self.renderer,
            convo_prefix=ONE_SHOT if self.one_shot else [],
            format_coef=self.format_coef,
        )
        return generate_datasets(
            "word problems",
            functools.partial(
                draw_group, make_env=make_env, steps=self.steps, largest=self.largest
            ),
            seed=self.needed("seed", self.seed),
            group_size=self.needed("group_size", self.group_size),
            batch_sizes=[groups] * (self.num_batches * self.num_epochs),
            test_size=TEST_SIZE if self.test_size is None else self.test_size,
        )
