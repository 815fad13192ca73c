"""Texts of the generated word problems, with the operations that solve them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Operation = Literal["add", "subtract", "multiply", "divide"]
OPERATIONS: Mapping[Operation, Callable[[int, int], float]] = {
    "add": lambda x, y: x + y,
    "subtract": lambda x, y: x - y,
    "multiply": lambda x, y: x * y,
    "divide": lambda x, y: x / y,
}

SMALLEST = 2  # of the numbers and results in a problem, so that every noun is in the plural


@functools.lru_cache(maxsize=16)
def operands(operation: Operation, largest: int) -> Sequence[tuple[int, int]]:
    """The pairs of numbers which, with their result, are whole and from SMALLEST to `largest`."""
    numbers = range(SMALLEST, largest + 1)
    apply = OPERATIONS[operation]
    return [(x, y) for x in numbers for y in numbers if is_allowed(apply(x, y), largest)]


def is_allowed(value: float, largest: int) -> bool:
    return value == int(value) and SMALLEST <= value <= largest


@dataclass(frozen=True)
class Template:
    """text: with {name}, {other}, {things} and the numbers {a}, {b} and, for two steps, {c}.

    The answer is `a first b`, then `(a first b) second c`; reverse: `c second (a first b)`.
    """

    text: str
    first: Operation
    second: Operation | None = None
    reverse: bool = False

    @property
    def tag(self) -> str:
        return self.first if self.second is None else f"{self.first}_{self.second}"

    def values(self, numbers: Sequence[int]) -> list[float]:
        """The results of its steps; the last one is the answer."""
        results = [OPERATIONS[self.first](numbers[0], numbers[1])]
        if self.second is not None:
            pair = (numbers[2], results[0]) if self.reverse else (results[0], numbers[2])
            results.append(OPERATIONS[self.second](*pair))  # type: ignore[arg-type]
        return results


ONE_STEP = (
    Template(
        "{name} has {a} {things} and finds {b} more. How many {things} does {name} have now?",
        "add",
    ),
    Template(
        "There are {a} {things} in a box and {b} {things} on a shelf. How many {things} are "
        "there in all?",
        "add",
    ),
    Template(
        "{name} ran {a} miles on Monday and {b} miles on Tuesday. How many miles did {name} "
        "run in total?",
        "add",
    ),
    Template(
        "{name} has {a} {things} and gives {b} of them to {other}. How many {things} does "
        "{name} have left?",
        "subtract",
    ),
    Template(
        "{name} has {a} {things}. {other} has {b} fewer. How many {things} does {other} have?",
        "subtract",
    ),
    Template(
        "A bus carries {a} people. At the next stop {b} people get off. How many people are "
        "still on the bus?",
        "subtract",
    ),
    Template(
        "{name} fills {a} bags with {b} {things} each. How many {things} are in the bags?",
        "multiply",
    ),
    Template(
        "A ticket costs {a} dollars. {name} buys {b} tickets. How many dollars does {name} pay?",
        "multiply",
    ),
    Template(
        "{name} reads {a} pages a day. How many pages does {name} read in {b} days?",
        "multiply",
    ),
    Template(
        "{name} shares {a} {things} equally among {b} friends. How many {things} does each "
        "friend get?",
        "divide",
    ),
    Template(
        "{name} packs {a} {things} into boxes of {b}. How many boxes does {name} fill?",
        "divide",
    ),
    Template(
        "A rope of {a} meters is cut into {b} equal pieces. How many meters long is each piece?",
        "divide",
    ),
)
TWO_STEPS = (
    Template(
        "{name} has {a} {things} and buys {b} more. Then {name} gives {c} to {other}. How "
        "many {things} does {name} have left?",
        "add",
        "subtract",
    ),
    Template(
        "{name} has {a} {things} and loses {b} of them. Later {name} finds {c} more. How many "
        "{things} does {name} have now?",
        "subtract",
        "add",
    ),
    Template(
        "A library lends out {a} books in the morning and {b} in the afternoon. {c} of them are "
        "returned the same day. How many of the books are still out?",
        "add",
        "subtract",
    ),
    Template(
        "{name} buys {a} boxes of {b} {things} and gives {c} {things} to {other}. How many "
        "{things} does {name} keep?",
        "multiply",
        "subtract",
    ),
    Template(
        "{name} buys {a} bags of {b} {things} and already had {c} {things}. How many {things} "
        "does {name} have now?",
        "multiply",
        "add",
    ),
    Template(
        "{name} buys {a} tickets for {b} dollars each and pays with {c} dollars. How many "
        "dollars does {name} get back?",
        "multiply",
        "subtract",
        reverse=True,
    ),
    Template(
        "{name} and {other} have {a} and {b} {things}. They put them together and share them "
        "equally among {c} children. How many {things} does each child get?",
        "add",
        "divide",
    ),
    Template(
        "{name} picks {a} apples and eats {b} of them. The rest goes equally into {c} "
        "baskets. How many apples are in each basket?",
        "subtract",
        "divide",
    ),
    Template(
        "{name} shares {a} {things} equally among {b} friends. One friend already had {c} "
        "{things}. How many does that friend have now?",
        "divide",
        "add",
    ),
    Template(
        "{name} works {a} hours in the morning and {b} hours in the afternoon and earns {c} "
        "dollars an hour. How many dollars does {name} earn that day?",
        "add",
        "multiply",
    ),
    Template(
        "A class has {a} students, but {b} are ill. Each of the others gets {c} pencils. How "
        "many pencils are handed out?",
        "subtract",
        "multiply",
    ),
    Template(
        "{a} tables have {b} chairs each. The chairs are spread equally over {c} rooms. How "
        "many chairs are in each room?",
        "multiply",
        "divide",
    ),
)
TEMPLATES: Mapping[int, Sequence[Template]] = {1: ONE_STEP, 2: TWO_STEPS}
