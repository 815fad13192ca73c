from __future__ import annotations

import re

import pytest

from tinker_cookbook.utils.format_colorized import format_colorized

GREEN, YELLOW, RED, RESET = "\x1b[32m", "\x1b[33m", "\x1b[31m", "\x1b[0m"


class Bytes:
    def decode(self, token_ids: list[int], /) -> str:
        return bytes(token_ids).decode()


def test_runs_of_a_colour_are_decoded_together() -> None:
    tokenizer = Bytes()
    pieces = ["What is é?\n", "42 🙂", "\nno"]
    ids = [list(piece.encode()) for piece in pieces]
    weights = [weight for weight, each in zip((0.0, 0.5, -1.0), ids) for _ in each]
    tokens = [token for each in ids for token in each]
    shown = f"{YELLOW}What is é?\n{RESET}{GREEN}42 🙂{RESET}{RED}\nno{RESET}"
    assert format_colorized(tokens, weights, tokenizer) == shown
    arrows = format_colorized(tokens, weights, tokenizer, draw_newline_arrow=True)
    assert re.sub("\x1b.*?m", "", arrows) == "What is é?↵\n42 🙂↵\nno"
    with pytest.raises(ValueError, match="2 tokens and 1 weights"):
        format_colorized(tokens[:2], [1.0], tokenizer)
