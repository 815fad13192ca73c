"""Tokens to text as they come, without cutting a character that several tokens make up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tinker_cookbook.tokenizer_utils import Tokenizer


class TokenDecoder:
    """Tokens to text as they come, holding back bytes that are not yet a whole character.

    Two windows of recent tokens are decoded and compared, because some tokenizers decode a token
    differently at the start of a text.
    """

    def __init__(self, decode: Callable[[list[int]], str]):
        self._decode = decode
        self._tokens: list[int] = []  # the last piece given out, then what is not given out yet
        self._given = 0

    def feed(self, token: int) -> str:
        self._tokens.append(token)
        text = self._new_text()
        # A character cut in two decodes to this sign. So does a true one: it waits for company.
        if not text or text.endswith("\ufffd"):
            return ""
        self._tokens = self._tokens[self._given :]
        self._given = len(self._tokens)
        return text

    def finish(self) -> str:
        return self._new_text()

    def _new_text(self) -> str:
        return self._decode(self._tokens)[len(self._decode(self._tokens[: self._given])) :]


class Utf8TokenDecoder:
    """`TokenDecoder` for a tokenizer, with the Tinker cookbook's names. Special tokens are text."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = TokenDecoder(self._decode)

    def decode(self, tokens: Sequence[int]) -> str | None:
        """The text that these tokens complete, behind those before; None where there is none."""
        return "".join(map(self._decoder.feed, tokens)) or None

    def flush(self) -> str:
        """What is held back at the end, U+FFFD for bytes that are no character. The next `decode`
        begins another text."""
        rest = self._decoder.finish()
        self._decoder = TokenDecoder(self._decode)
        return rest

    def _decode(self, tokens: list[int]) -> str:
        text = self._tokenizer.decode(
            tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        assert isinstance(text, str)  # a list only for a list of texts
        return text
