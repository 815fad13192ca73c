from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tinker_cookbook.renderers import Utf8TokenDecoder
from tinker_cookbook.renderers.decoding import TokenDecoder
from tinker_cookbook.tokenizer_utils import get_tokenizer


def test_decoder_waits_for_whole_characters() -> None:
    words = {0: b"a", 1: "🙂".encode()[:2], 2: "🙂".encode()[2:], 3: b"\xff", 4: "\ufffd".encode()}
    decode = lambda tokens: b"".join(words[t] for t in tokens).decode(errors="replace")  # noqa: E731
    decoder = TokenDecoder(decode)
    assert [decoder.feed(t) for t in (0, 1, 2, 3, 0, 4)] == ["a", "", "🙂", "", "\ufffda", ""]
    assert decoder.finish() == "\ufffd"


@settings(max_examples=50, deadline=None)
@given(texts=st.lists(st.text(max_size=12) | st.sampled_from(["🎉 ok", "𝒳é", "<|im_end|>"])))
def test_a_tokenizer_gives_back_every_text(texts: list[str]) -> None:
    tokenizer = get_tokenizer("nano")
    decoder = Utf8TokenDecoder(tokenizer)
    for text in texts:  # each begins anew
        tokens = tokenizer.encode(text, add_special_tokens=False)
        pieces = [decoder.decode([token]) for token in tokens]
        assert "" not in pieces
        before = "".join(piece or "" for piece in pieces)
        assert text.startswith(before)
        assert before + decoder.flush() == text
        assert (decoder.decode(tokens) or "") + decoder.flush() == text


def test_characters_are_not_cut() -> None:
    tokenizer = get_tokenizer("nano")
    tokens = tokenizer.encode("é🎉", add_special_tokens=False)
    assert len(tokens) > 2  # bytes of characters
    decoder = Utf8TokenDecoder(tokenizer)
    pieces = [decoder.decode([token]) for token in tokens]
    assert [piece for piece in pieces if piece] == ["é", "🎉"] and None in pieces
    assert decoder.decode(tokens[:-1]) == "é" and decoder.flush() == "\ufffd"
