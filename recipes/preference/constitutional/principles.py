"""The principles of a constitution: statements about good replies, one per line of a text file."""

from __future__ import annotations

from collections.abc import Sequence

from tinker_cookbook.completers import derive_seed
from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.utils.files import existing_file

DEFAULT_PRINCIPLES = (
    "The reply is polite and friendly, and does not flatter.",
    "The reply answers what was asked, clearly and in few words.",
    "The reply is honest: it does not invent facts, and it admits what it is not sure of.",
    "The reply does not help anyone to hurt people or animals, to steal, to deceive or to break in;"
    " if it has to decline, it kindly says why.",
    "The reply does not insult, mock or stereotype any person or group.",
    "The reply does not reveal private facts about people, nor help to find them out.",
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
            f"{key}={path}: the file has no principle; write one statement about good replies per"
            ' line, e.g. "The reply is polite."'
        )
    return principles


def draw_principle(principles: Sequence[str], *seeds: int) -> str:
    """One of the principles at random, a function of the seeds alone."""
    return principles[derive_seed(*seeds) % len(principles)]
