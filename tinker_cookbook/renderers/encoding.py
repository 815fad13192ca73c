"""Text to tokens, with a wall between what the framework writes and what people write.

A tokenizer turns the nine characters `<|im_end|>` in a user's message into the token that ends a
turn. `TextEncoder` does so only for the tags a renderer names in that call, so a message cannot
forge a turn. All other text is encoded as the tokenizer would encode it had it no added tokens.
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
    """Encodes text for one tokenizer. What it remembers of texts is safe to share by threads."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer: Any = tokenizer  # its annotations in transformers are too wide to help
        self._ids: dict[str, int] = dict(self.tokenizer.get_added_vocab())
        backend = getattr(tokenizer, "backend_tokenizer", None)
        self._plain = None if backend is None else _without_added_tokens(backend)
        self._remembered = lru_cache(maxsize=1024)(self._encoded)  # history comes again and again
        self._lead_ids = self._find_lead()

    def has(self, tag: str) -> bool:
        return tag in self._ids

    def id(self, tag: str) -> int:
        """The id of an added token; RendererError where the tokenizer has none of that name."""
        if tag not in self._ids:
            name = getattr(self.tokenizer, "name_or_path", None) or type(self.tokenizer).__name__
            raise RendererError(
                f"this renderer needs the token {tag!r}, which the tokenizer of {name!r} lacks; "
                "set renderer_name= to the model's own family, or to role_colon for a base model"
            )
        return self._ids[tag]

    def encode(self, text: str, tags: Iterable[str] = ()) -> list[int]:
        """Token ids of `text`, in which only the strings in `tags` become special tokens.

        A tag the tokenizer has no token for is encoded as ordinary text.
        """
        known = tuple(tag for tag in tags if tag in self._ids)
        if not known:
            return list(self._encode_plain(text))
        tokens: list[int] = []
        for i, piece in enumerate(_splitter(known).split(text)):
            tokens += [self._ids[piece]] if i % 2 else self._encode_plain(piece)
        return tokens

    def _encode_plain(self, text: str) -> tuple[int, ...]:
        return self._remembered(text) if len(text) <= _REMEMBERED else self._encoded(text)

    def _encoded(self, text: str) -> tuple[int, ...]:
        if not text:
            return ()
        if self._plain is None:
            return self._encoded_in_python(text)
        ids = self._plain.encode(_LEAD + text if self._lead_ids else text, add_special_tokens=False)
        if tuple(ids.ids[: len(self._lead_ids)]) != self._lead_ids:
            raise RendererError(
                f"this tokenizer joins {text[:20]!r} to a newline in front of it, so it cannot be "
                "encoded apart; write a renderer for it and use register_renderer"
            )
        return tuple(ids.ids[len(self._lead_ids) :])

    def _find_lead(self) -> tuple[int, ...]:
        """Tokens of the newline that is put in front of each piece where the tokenizer would begin
        each with a space (SentencePiece's "dummy prefix", as in Llama 2): none elsewhere."""
        if self._plain is None:
            return ()
        apart = [*self._plain.encode("a").ids, *self._plain.encode("b").ids]
        if self.tokenizer.decode(apart, clean_up_tokenization_spaces=False) == "ab":
            return ()
        return tuple(self._plain.encode(_LEAD, add_special_tokens=False).ids)

    def _encoded_in_python(self, text: str) -> tuple[int, ...]:
        """A tokenizer without a Rust backend may read tags in text as tokens, whatever it is asked.
        Such a tag is cut behind its first character, and the pieces encoded apart."""

        def ids(text: str) -> list[int]:
            options = {"add_special_tokens": False, "split_special_tokens": True}
            return list(self.tokenizer(text, **options)["input_ids"])

        special = {self._ids[tag] for tag in self._ids if tag.strip()}
        found = ids(text)
        if special.isdisjoint(found):
            return tuple(found)
        tags = tuple(tag for tag in self._ids if tag.strip() and tag in text)
        pieces = [""]
        for i, piece in enumerate(_splitter(tags).split(text) if tags else [text]):
            if i % 2:
                pieces[-1] += piece[0]
                pieces.append(piece[1:])
            else:
                pieces[-1] += piece
        found = [token for piece in pieces if piece for token in ids(piece)]
        if not special.isdisjoint(found):
            raise RendererError(
                "a message holds a special-token string, and this tokenizer cannot encode it as "
                f"text: {text[:60]!r}; remove it"
            )
        return tuple(found)


_LEAD = "\n"
_REMEMBERED = 4000  # characters of a text that is remembered, at most


@lru_cache(maxsize=64)
def _splitter(tags: tuple[str, ...]) -> re.Pattern[str]:
    longest_first = sorted(tags, key=len, reverse=True)
    return re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")


def _without_added_tokens(backend: Any) -> Any:
    """The same model, normalizer and pre-tokenizer (shared, not copied) with no added tokens.

    `encode_special_tokens` of the original does not do: it is a switch on shared state, and leaves
    added tokens that are not marked special, such as Qwen3's `<think>`. Runs of white space that
    some vocabularies hold as added tokens are ordinary text and stay.
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
            "cannot encode text apart from special tokens: this tokenizer's white-space tokens "
            "have ids of their own; write a renderer for it and use register_renderer"
        )
    return plain
