"""The principles of a constitution: instructions for good replies, one per line of a text file."""

from __future__ import annotations

from collections.abc import Sequence

from tinker_cookbook.completers import derive_seed
from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.utils.files import existing_file

DEFAULT_PRINCIPLES = (
    "Be polite and friendly, and do not flatter.",
    "Answer what was asked, clearly and in few words.",
    "Be honest: do not invent facts, and admit what you are not sure of.",
    "Do not help anyone to hurt people or animals, to steal, to deceive or to break in; if you have"
    " to decline, kindly say why.",
    "Do not insult, mock or stereotype any person or group.",
    "Do not reveal private facts about people, nor help to find them out.",
)


def load_principles(path: str | None, key: str) -> tuple[str, ...]:
    """The lines of a text file without blank lines and those that begin with `#`; None: the
    default principles. Raises ConfigurationError if there is no such file or no principle in it."""
    if path is None:
        return DEFAULT_PRINCIPLES
    lines = map(str.strip, existing_file(path, key).read_text(encoding="utf-8").splitlines())
    principles = tuple(line for line in lines if line and not line.startswith("#"))
    if not principles:
        raise ConfigurationError(
            f"{key}={path}: the file has no principle; write one instruction for good replies per"
            ' line, e.g. "Be polite."'
        )
    return principles


def draw_principle(principles: Sequence[str], *seeds: int) -> str:
    """One of the principles at random, a function of the seeds alone."""
    return principles[derive_seed(*seeds) % len(principles)]
