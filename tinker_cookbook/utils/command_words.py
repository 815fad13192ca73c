"""Guess what was meant by words of a command line that are not key=value."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Misread(NamedTuple):
    """shown: the words as written. value: None if there is none. without: what to leave out, a
    phrase to append to the advice."""

    shown: str
    key: str
    value: str | None
    without: str


def misread(argv: Sequence[str], number: int) -> Misread:
    """The word at `number` together with its neighbours, if they belong to it: `--lr 1e-4`, `lr =
    1e-4`, `lr 1e-4`, `lr= 1e-4`."""
    word, before, after = argv[number], list(argv[:number]), list(argv[number + 1 :])
    name, equals, value = word.lstrip("-").partition("=")
    key = name.replace("-", "_")
    if word.startswith("-"):
        if equals:
            return Misread(word, key, value, " without hyphens")
        if after and "=" not in after[0] and not after[0].startswith("--"):
            return Misread(f"{word} {after[0]}", key, after[0], "")
        return Misread(word, key, None, "")
    if word.startswith("=") and before and "=" not in before[-1]:
        before, word, after = before[:-1], before[-1], [word, *after]
        key = word.replace("-", "_")
    if after and after[0].startswith("="):  # key = value, key =value
        there = after[0][1:] or "".join(after[1:2])
        shown = " ".join([word, *after[: 1 if after[0][1:] else 2]])
        return Misread(shown, key, there, " without spaces")
    if before and before[-1].endswith("="):  # key= value
        return Misread(f"{before[-1]} {word}", before[-1][:-1], word, " without spaces")
    if not key or equals:
        return Misread(word, "", None, "")
    if after and "=" not in after[0]:
        return Misread(f"{word} {after[0]}", key, after[0], "")
    return Misread(word, key, None, "")


def model_name_from_argv(argv: Sequence[str], default: str) -> str:
    """The last `model_name=` (or `...model_name=`) of a command line, for programs that need it
    before they parse the rest. `config=` files are not read."""
    found = [word.removeprefix("...").partition("=") for word in argv]
    return next((value for key, _, value in reversed(found) if key == "model_name"), default)
