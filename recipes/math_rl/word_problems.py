"""Word problems of one or two steps: generated, so that difficulty is a key and no hub is needed.

A problem is a template with names, things and numbers; every template is equally likely. All
numbers in it, those in between and the answer are from 2 to `largest`. A fifth of the problems, by
a hash of template and numbers, is held out for the test.
"""

from __future__ import annotations

import functools
import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import chz

from recipes.math_rl.math_datasets import MathDatasetBuilder
from recipes.math_rl.problems import generate_datasets
from recipes.math_rl.word_problem_templates import (
    SMALLEST,
    TEMPLATES,
    Template,
    is_allowed,
    operands,
)
from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.math_problems.last_number import last_number
from tinker_cookbook.nano.tasks import Split
from tinker_cookbook.renderers import Message, Renderer
from tinker_cookbook.rl.problem_env import ProblemEnv, ProblemGroupBuilder
from tinker_cookbook.rl.types import RLDataset
from tinker_cookbook.training.fields import COUNT, NON_NEGATIVE

TEST_SIZE = 200
LARGEST = (20, 500)  # what `largest` may be: below, some templates have hardly any problem
DISTINCT_DRAWS = 20
SOLVED = {  # examples by the number of operations of the problems; models copy their form
    1: (
        ("Kim has 4 shells and finds 5 more. How many shells does Kim have?", "4 + 5 = 9"),
        ("Kim has 8 shells and breaks 3. How many shells are left?", "8 - 3 = 5"),
        ("Kim buys 3 boxes of 4 shells. How many shells does Kim buy?", "3 * 4 = 12"),
        ("Kim divides 12 shells among 3 friends. How many does each get?", "12 / 3 = 4"),
    ),
    2: (
        (
            "Kim has 4 shells, finds 5 more and breaks 3. How many shells does Kim have?",
            "4 + 5 = 9, 9 - 3 = 6",
        ),
        (
            "Kim buys 3 boxes of 4 shells and loses 2. How many shells does Kim have left?",
            "3 * 4 = 12, 12 - 2 = 10",
        ),
        (
            "Kim divides 12 shells among 3 friends. Lee is one of them and had 2 before. How many"
            " shells does Lee have now?",
            "12 / 3 = 4, 4 + 2 = 6",
        ),
        (
            "Kim has 10 shells, gives 4 away and packs the others in bags of 2. How many bags does"
            " Kim fill?",
            "10 - 4 = 6, 6 / 2 = 3",
        ),
    ),
}
NUM_EXAMPLES = {1: 1, 2: 4}  # default, by the number of operations
NAMES = ("Anna", "Ben", "Clara", "David", "Elena", "Felix", "Grace", "Hugo", "Iris", "Jonas")
THINGS = ("apples", "books", "buttons", "coins", "marbles", "pencils", "shells", "stickers")


class WordProblem(NamedTuple):
    question: str
    answer: int
    tag: str  # operations, e.g. "multiply_subtract"


def is_held_out(template: Template, numbers: Sequence[int]) -> bool:
    """Whether a problem belongs to the test; names and things do not matter."""
    key = f"{template.text} {list(numbers)}".encode()
    return hashlib.sha256(key).digest()[0] < 51  # a fifth of 256


def draw_problem(rng: random.Random, split: Split, steps: int, largest: int) -> WordProblem:
    """Draw a problem of `split` whose numbers and results are from SMALLEST to `largest`."""
    template = rng.choice(TEMPLATES[steps])
    numbers = draw_numbers(rng, template, largest)
    while (split == "held_out") != is_held_out(template, numbers):
        numbers = draw_numbers(rng, template, largest)
    answer = int(template.values(numbers)[-1])
    name, other = rng.sample(NAMES, 2)
    words = {"name": name, "other": other, "things": rng.choice(THINGS)}
    text = template.text.format(**words, **dict(zip("abc", numbers)))
    return WordProblem(text, answer, template.tag)


def draw_numbers(rng: random.Random, template: Template, largest: int) -> list[int]:
    """Numbers for a template, whatever their split: operands of the first step, then of the second.

    Not by rejection from all numbers, since few of them can be divided: the rare templates would
    take thousands of draws.
    """
    while True:
        numbers = list(rng.choice(operands(template.first, largest)))
        if template.second is None:
            return numbers
        candidates = [
            number
            for number in range(SMALLEST, largest + 1)
            if is_allowed(template.values([*numbers, number])[-1], largest)
        ]
        if candidates:
            return [*numbers, rng.choice(candidates)]


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


def draw_groups(
    rng: random.Random,
    count: int,
    *,
    make_env: Callable[[WordProblem], WordProblemEnv],
    split: Split,
    steps: int,
    largest: int,
    group_size: int,
) -> list[WordProblemGroup]:
    """Draw `count` problems, none twice unless there are hardly any others."""
    drawn: list[WordProblem] = []
    for _ in range(count):
        for _ in range(DISTINCT_DRAWS):
            problem = draw_problem(rng, split, steps, largest)
            if problem not in drawn:
                break
        drawn.append(problem)
    return [
        WordProblemGroup(
            functools.partial(make_env, problem), group_size, "word_problems", problem.tag
        )
        for problem in drawn
    ]


@chz.chz
class WordProblems(MathDatasetBuilder):
    """Generated word problems of one or two steps."""

    steps: int = chz.field(default=1, doc="operations that a problem takes: 1 or 2")
    largest: int = chz.field(
        default=20,
        doc=f"largest number in a problem and its answer, {LARGEST[0]} to {LARGEST[1]}",
    )
    num_batches: int = chz.field(default=100, doc="batches per epoch", metadata=COUNT)
    test_size: int | None = chz.field(
        default=TEST_SIZE, doc="problems in the test set (0: no test)", metadata=NON_NEGATIVE
    )
    num_examples: int | None = chz.field(
        default=None,
        doc="solved problems shown before each question, 0 to 4 (None: 1 if the problems take one"
        " operation, 4 if they take two)",
    )

    @chz.validate
    def _check(self) -> None:
        if self.steps not in TEMPLATES:
            raise ConfigurationError(f"data.steps={self.steps}: expected 1 or 2")
        if not LARGEST[0] <= self.largest <= LARGEST[1]:
            raise ConfigurationError(
                f"data.largest={self.largest}: expected {LARGEST[0]} to {LARGEST[1]}"
            )
        limit = len(SOLVED[self.steps])
        if self.num_examples is not None and not 0 <= self.num_examples <= limit:
            raise ConfigurationError(
                f"data.num_examples={self.num_examples}: expected 0 to {limit}"
            )

    def default_max_tokens(self) -> int:
        return 64

    def examples(self) -> list[Message]:
        """The solved problems that come before each question."""
        count = NUM_EXAMPLES[self.steps] if self.num_examples is None else self.num_examples
        return [
            message
            for question, solution in SOLVED[self.steps][:count]
            for message in (
                Message(role="user", content=question),
                Message(role="assistant", content=solution),
            )
        ]

    async def __call__(self) -> tuple[RLDataset, RLDataset | None]:
        groups = self.needed("groups_per_batch", self.groups_per_batch)
        make_env = functools.partial(
            WordProblemEnv,
            renderer=self.renderer,
            convo_prefix=self.examples(),
            format_coef=self.format_coef,
        )
        return generate_datasets(
            "word problems",
            functools.partial(
                draw_groups, make_env=make_env, steps=self.steps, largest=self.largest
            ),
            seed=self.needed("seed", self.seed),
            group_size=self.needed("group_size", self.group_size),
            batch_sizes=[groups] * (self.num_batches * self.num_epochs),
            test_size=TEST_SIZE if self.test_size is None else self.test_size,
        )
