"""Encode text so that only the framework can write special tokens.

A tokenizer turns the characters `<|im_end|>` in a user's message into the token that ends a
turn. `TextEncoder` does so only for the tags that a renderer names in that call, so a message
cannot forge a turn. All other text is encoded as if the tokenizer had no added tokens.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from tinker_cookbook.exceptions import RendererError

if TYPE_CHECKING:
    from tinker_cookbook.tokenizer_utils import Tokenizer


class TextEncoder:
    """Encodes text for one tokenizer. Its cache is safe to share between threads."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer: Any = tokenizer  # its annotations in transformers are too wide to help
        self._ids: dict[str, int] = dict(self.tokenizer.get_added_vocab())
        backend = getattr(tokenizer, "backend_tokenizer", None)
        self._plain = None if backend is None else _without_added_tokens(backend)
        self._encode_cached = lru_cache(maxsize=1024)(
            self._encode_uncached
        )  # history is encoded again for every later turn
        self._lead_tokens = self._find_lead_tokens()

    def has(self, tag: str) -> bool:
        return tag in self._ids

    def id(self, tag: str) -> int:
        """The id of an added token. Raises RendererError if the tokenizer has no such token."""
        if tag not in self._ids:
            name = getattr(self.tokenizer, "name_or_path", None) or type(self.tokenizer).__name__
            raise RendererError(
                f"this renderer needs the token {tag!r}, which the tokenizer of {name!r} lacks; "
                "set renderer_name= to the model's own family, or to role_colon for a base model"
            )
        return self._ids[tag]

    def encode(self, text: str, tags: Iterable[str] = ()) -> list[int]:
        """Token ids of `text`. Only the strings in `tags` become special tokens.

        A tag for which the tokenizer has no token is encoded as ordinary text.
        """
        known = tuple(tag for tag in tags if tag in self._ids)
        if not known:
            return list(self._encode_plain(text))
        tokens: list[int] = []
        for i, piece in enumerate(_splitter(known).split(text)):
            tokens += [self._ids[piece]] if i % 2 else self._encode_plain(piece)
        return tokens

    def _encode_plain(self, text: str) -> tuple[int, ...]:
        return (
            self._encode_cached(text)
            if len(text) <= _MAX_CACHED_LENGTH
            else self._encode_uncached(text)
        )

    def _encode_uncached(self, text: str) -> tuple[int, ...]:
        if not text:
            return ()
        if self._plain is None:
            return self._encode_in_python(text)
        ids = self._plain.encode(
            _LEAD + text if self._lead_tokens else text, add_special_tokens=False
        )
        if tuple(ids.ids[: len(self._lead_tokens)]) != self._lead_tokens:
            raise RendererError(
                f"this tokenizer merges {text[:20]!r} with a preceding newline, so it cannot "
                "encode the text separately; write a renderer for it and use register_renderer"
            )
        return tuple(ids.ids[len(self._lead_tokens) :])

    def _find_lead_tokens(self) -> tuple[int, ...]:
        """Tokens of the newline that is put before each piece and then cut off again; () if the
        tokenizer needs none.

        Some tokenizers begin every text with a space (SentencePiece's "dummy prefix", as in Llama
        2). A piece in the middle of a conversation must not get one: the newline takes it instead.
        """
        if self._plain is None:
            return ()
        apart = [*self._plain.encode("a").ids, *self._plain.encode("b").ids]
        if self.tokenizer.decode(apart, clean_up_tokenization_spaces=False) == "ab":
            return ()
        return tuple(self._plain.encode(_LEAD, add_special_tokens=False).ids)

    def _encode_in_python(self, text: str) -> tuple[int, ...]:
        """Encode with a tokenizer that has no Rust backend.

        Such a tokenizer may turn tags in text into special tokens despite `split_special_tokens`.
        The text is then split after the first character of each tag, and the pieces are encoded
        separately.
        """

        def ids(text: str) -> list[int]:
            options = {"add_special_tokens": False, "split_special_tokens": True}
            return list(self.tokenizer(text, **options)["input_ids"])

        special = {self._ids[tag] for tag in self._ids if tag.strip()}
        tokens = ids(text)
        if special.isdisjoint(tokens):
            return tuple(tokens)
        tags = tuple(tag for tag in self._ids if tag.strip() and tag in text)
        pieces = [""]
        for i, piece in enumerate(_splitter(tags).split(text) if tags else [text]):
            if i % 2:
                pieces[-1] += piece[0]
                pieces.append(piece[1:])
            else:
                pieces[-1] += piece
        tokens = [token for piece in pieces if piece for token in ids(piece)]
        if not special.isdisjoint(tokens):
            raise RendererError(
                "a message contains a special-token string, and this tokenizer cannot encode it as "
                f"text: {text[:60]!r}; remove it"
            )
        return tuple(tokens)


_LEAD = "\n"
_MAX_CACHED_LENGTH = 4000  # characters of a cached text


@lru_cache(maxsize=64)
def _splitter(tags: tuple[str, ...]) -> re.Pattern[str]:
    longest_first = sorted(tags, key=len, reverse=True)
    return re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")


def _without_added_tokens(backend: Any) -> Any:
    """A tokenizer with the same model, normalizer and pre-tokenizer (shared), without added tokens.

    Setting `encode_special_tokens` on the original would not do: it changes shared state, and it
    does not affect added tokens that are not marked special, such as Qwen3's `<think>`. Added
    tokens of white space, which some vocabularies have, are ordinary text and stay.
    """
    from tokenizers import Tokenizer

    plain = Tokenizer(backend.model)
    if backend.normalizer is not None:
        plain.normalizer = backend.normalizer
    if backend.pre_tokenizer is not None:
        plain.pre_tokenizer = backend.pre_tokenizer
    added = sorted(backend.get_added_tokens_decoder().items())
    blanks = [(i, token) for i, token in added if not token.special and not token.content.strip()]
    plain.add_tokens([token for _, token in blanks])
    if any(plain.token_to_id(token.content) != i for i, token in blanks):
        raise RendererError(
            "cannot encode text without special tokens: the ids of this tokenizer's white-space "
            "tokens cannot be reproduced; write a renderer for it and use register_renderer"
        )
    return plain
