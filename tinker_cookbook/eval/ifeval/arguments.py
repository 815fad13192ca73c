"""The arguments of instructions: what each may be. A reader returns the value to use, or raises
ValueError that says what was expected."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from tinker_cookbook.eval.ifeval import language
from tinker_cookbook.utils.misc_utils import is_whole

Relation = Literal["at least", "less than"]
Reader = Callable[[Any], Any]


def count(value: Any) -> int:
    """A number from 1; tables may have turned integers into floats."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not is_whole(value) or value < 1:
        raise ValueError("expected a number from 1")
    return int(value)


def relation(value: Any) -> Relation:
    if value not in ("at least", "less than"):
        raise ValueError("expected 'at least' or 'less than'")
    return value


def text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError("expected a text")
    return value


def texts(value: Any) -> list[str]:
    if not isinstance(value, list) or not value:
        raise ValueError("expected a list of texts")
    return [text(item) for item in value]


def character(value: Any) -> str:
    """One character: `letter` is also "#" or "!" in two rows of the data."""
    if not isinstance(value, str) or len(value.strip()) != 1:
        raise ValueError("expected one character")
    return value.strip()


def language_code(value: Any) -> str:
    known = language.languages()
    if value not in known:
        raise ValueError(f"expected one of {', '.join(known)}")
    return value


def holds(number: int, relation: Relation, bound: int) -> bool:
    """Whether a count is in the relation: "at least" includes the bound, "less than" does not."""
    return number >= bound if relation == "at least" else number < bound
