"""Decode streamed tokens to text without splitting a character that spans several tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tinker_cookbook.tokenizer_utils import Tokenizer


class TokenDecoder:
    """Decodes tokens one by one, holding back bytes that are not yet a complete character.

    New text is the difference between two decoded windows of recent tokens, with and without the
    new ones: some tokenizers decode a token differently at the start of a text, so it cannot be
    decoded alone.
    """

    def __init__(self, decode: Callable[[list[int]], str]):
        self._decode = decode
        self._tokens: list[int] = []  # of the last emitted piece, then those not emitted yet
        self._num_emitted = 0

    def feed(self, token: int) -> str:
        self._tokens.append(token)
        text = self._new_text()
        # An incomplete character decodes to U+FFFD. A real U+FFFD in the text looks the same, so it
        # is held back until the next token.
        if not text or text.endswith("\ufffd"):
            return ""
        self._tokens = self._tokens[self._num_emitted :]
        self._num_emitted = len(self._tokens)
        return text

    def finish(self) -> str:
        return self._new_text()

    def _new_text(self) -> str:
        return self._decode(self._tokens)[len(self._decode(self._tokens[: self._num_emitted])) :]


class Utf8TokenDecoder:
    """`TokenDecoder` for a tokenizer, with the Tinker cookbook's names. Special tokens are kept."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = TokenDecoder(self._decode)

    def decode(self, tokens: Sequence[int]) -> str | None:
        """The text that these tokens complete; None if they complete none."""
        return "".join(map(self._decoder.feed, tokens)) or None

    def flush(self) -> str:
        """The text held back at the end, with U+FFFD for incomplete characters. The next `decode`
        starts a new text."""
        rest = self._decoder.finish()
        self._decoder = TokenDecoder(self._decode)
        return rest

    def _decode(self, tokens: list[int]) -> str:
        text = self._tokenizer.decode(
            tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        assert isinstance(text, str)  # transformers returns a list only for a batch
        return text
