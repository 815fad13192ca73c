"""Tokens in a terminal, coloured by their loss weights."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Protocol

_GREEN, _YELLOW, _RED = "\x1b[32m", "\x1b[33m", "\x1b[31m"
_RESET = "\x1b[0m"


class Decoder(Protocol):
    """The part of a tokenizer that is needed here."""

    def decode(self, token_ids: list[int], /) -> str | list[str]: ...


def format_colorized(
    tokens: Sequence[int],
    weights: Sequence[float],
    tokenizer: Decoder,
    draw_newline_arrow: bool = False,
) -> str:
    """Colour the text of tokens with ANSI codes: green for weights above 0, yellow for 0, red
    below. draw_newline_arrow: put an arrow before every line break."""
    if len(tokens) != len(weights):
        raise ValueError(f"{len(tokens)} tokens and {len(weights)} weights: expected equal numbers")
    text = ""
    for colour, run in groupby(zip(tokens, weights), lambda each: _colour(each[1])):
        piece = tokenizer.decode([token for token, _ in run])
        text += f"{colour}{piece}{_RESET}"
    return text.replace("\n", "↵\n") if draw_newline_arrow else text


def _colour(weight: float) -> str:
    return _GREEN if weight > 0 else _YELLOW if weight == 0 else _RED
