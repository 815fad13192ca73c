"""Instructions of a row, and whether a reply follows them: strictly, and loosely.

Strict: the reply as it is. Loose: one of eight variants of the reply passes, which forgives an
introduction, a closing remark and Markdown emphasis. A blank reply, or
variant, follows nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from tinker_cookbook.eval.ifeval.checkers import INSTRUCTIONS
from tinker_cookbook.exceptions import DataFormatError


@dataclass(frozen=True)
class Requirement:
    """One instruction of one prompt, with its checked arguments."""

    instruction_id: str
    arguments: Mapping[str, Any]

    def is_met(self, reply: str) -> bool:
        check = INSTRUCTIONS[self.instruction_id].check
        return bool(reply.strip()) and check(reply, **self.arguments)


class Verdict(NamedTuple):
    """How a reply does on one instruction."""

    instruction_id: str
    strict: bool
    loose: bool


def read_requirements(
    instruction_ids: Sequence[str], kwargs: Sequence[Mapping[str, Any] | None], where: str
) -> list[Requirement]:
    """The instructions of a row. kwargs: one for each id; arguments that are None count as absent,
    since tables have every column in each row. Raises DataFormatError, which starts with `where`.
    """
    if len(instruction_ids) != len(kwargs):
        raise DataFormatError(
            f"{where}: {len(instruction_ids)} instruction ids, but {len(kwargs)} kwargs"
        )
    return [_read(*pair, where) for pair in zip(instruction_ids, kwargs)]


def _read(instruction_id: str, kwargs: Mapping[str, Any] | None, where: str) -> Requirement:
    if not isinstance(instruction_id, str) or instruction_id not in INSTRUCTIONS:
        raise DataFormatError(
            f"{where}: unknown instruction {instruction_id!r}; known are"
            f" {', '.join(sorted(INSTRUCTIONS))}"
        )
    if kwargs is not None and not isinstance(kwargs, Mapping):
        raise DataFormatError(
            f"{where}: kwargs of {instruction_id} are {kwargs!r:.80}; expected an object"
        )
    readers = INSTRUCTIONS[instruction_id].arguments
    given = {key: value for key, value in (kwargs or {}).items() if value is not None}
    for key in [key for key in [*readers, *given] if key not in readers or key not in given]:
        expected = ", ".join(readers) or "none"
        raise DataFormatError(
            f"{where}: {instruction_id} {'lacks' if key in readers else 'has no'} argument {key!r};"
            f" found {', '.join(given) or 'none'}, expected {expected}"
        )
    values: dict[str, Any] = {}
    for key, reader in readers.items():
        try:
            values[key] = reader(given[key])
        except ValueError as error:
            raise DataFormatError(
                f"{where}: {instruction_id} has {key}={given[key]!r}; {error}"
            ) from None
    if values.get("nth_paragraph", 0) > values.get("num_paragraphs", float("inf")):
        raise DataFormatError(
            f"{where}: {instruction_id} has nth_paragraph={values['nth_paragraph']}, but"
            f" num_paragraphs={values['num_paragraphs']}"
        )
    return Requirement(instruction_id, values)


def verdicts(requirements: Sequence[Requirement], reply: str) -> list[Verdict]:
    """The verdict on each instruction, in their order."""
    variants = loose_variants(reply)
    found: list[Verdict] = []
    for requirement in requirements:
        strict = requirement.is_met(reply)
        loose = strict or any(map(requirement.is_met, variants))
        found.append(Verdict(requirement.instruction_id, strict, loose))
    return found


def loose_variants(reply: str) -> list[str]:
    """The different ones among: the reply, without its first line, without its last, without both,
    and each of these without asterisks."""
    lines = reply.split("\n")
    cut = [reply, *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1]))]
    return list(dict.fromkeys([*cut, *(variant.replace("*", "") for variant in cut)]))
