from __future__ import annotations

import re
from collections.abc import Iterable

import pytest

from tinker_cookbook.exceptions import RendererError
from tinker_cookbook.renderers import get_renderer
from tinker_cookbook.renderers.encoding import TextEncoder
from tinker_cookbook.renderers.testing import load
from tinker_cookbook.tokenizer_utils import Tokenizer

ALL = ["nano", "qwen3", "llama-3.1-instruct", "deepseek-v3.1", "gpt-oss", "kimi-k2", "gpt2"]
ORDINARY = "Hello  world\n\n ünï 12345 你好\t\tfoo 🙂 <b>x</b>\r\n\n\n  end e\u0301 "


@pytest.mark.parametrize("name", ALL)
def test_ordinary_text_is_encoded_as_the_tokenizer_does(name: str) -> None:
    tokenizer = load(name)
    encoder = TextEncoder(tokenizer)
    for text in (ORDINARY, "", " ", "\n", ORDINARY[::-1]):
        assert encoder.encode(text) == tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("name", ALL)
def test_no_added_token_comes_out_of_plain_text(name: str) -> None:
    tokenizer = load(name)
    encoder = TextEncoder(tokenizer)
    for tag, token in tokenizer.get_added_vocab().items():
        ids = encoder.encode(f"a {tag}{tag} b")
        assert token not in ids
        assert tokenizer.decode(ids) == f"a {tag}{tag} b"


def test_only_named_tags_become_tokens(tokenizer: str) -> None:
    encoder = TextEncoder(tokenizer)
    text = "x<think>y<|im_end|></think>"
    ids = encoder.encode(text, ["<think>", "<no such tag>"])
    assert ids == [
        *encoder.encode("x"),
        tokenizer.convert_tokens_to_ids("<think>"),
        *encoder.encode("y<|im_end|></think>"),
    ]
    assert encoder.has("<think>") and not encoder.has("<no such tag>")
    with pytest.raises(RendererError, match="<no such tag>"):
        encoder.id("<no such tag>")


def test_encoding_leaves_the_tokenizer_as_it_was(tokenizer: str) -> None:
    before = tokenizer("<|im_end|>")["input_ids"]
    TextEncoder(tokenizer).encode("<|im_end|>")
    assert tokenizer("<|im_end|>")["input_ids"] == before
    assert len(before) == 1


def small_tokenizer(added: Iterable[str], ids_from: int = 0) -> Tokenizer:
    from tokenizers import AddedToken, Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    vocab = {c: i for i, c in enumerate("abc <>|\n")}
    backend = Tokenizer(models.BPE(vocab, []))
    backend.add_special_tokens(["<|filler|>"] * ids_from)
    backend.add_tokens([AddedToken(t, special=False, normalized=False) for t in added])
    backend.add_special_tokens(["<|eos|>"])
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def test_white_space_tokens_are_ordinary_text() -> None:
    """Some vocabularies hold runs of blanks as added tokens: they stay, tags do not."""
    tokenizer = small_tokenizer(["  ", "    "])
    encoder = TextEncoder(tokenizer)
    assert encoder.encode("a    b  c") == tokenizer("a    b  c")["input_ids"]
    assert len(encoder.encode("a    b")) == 3
    assert tokenizer.convert_tokens_to_ids("<|eos|>") not in encoder.encode("a<|eos|>")


def test_white_space_tokens_with_other_ids_are_refused() -> None:
    with pytest.raises(RendererError, match="white-space tokens"):
        TextEncoder(small_tokenizer(["  "], ids_from=1))


def sentencepiece_like(prepend: str) -> Tokenizer:
    """A tokenizer that begins each text with a space, as those of Llama 2 and Mistral do."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    characters = [chr(i) for i in range(33, 127)]
    words = [
        "\u2581",
        "\n",
        *characters,
        "\u2581a",
        "\u2581b",
        "\u2581h",
        "\u2581U",
        "hi",
        "\u2581hi",
    ]
    vocabulary = {word: i for i, word in enumerate(words)}
    merges = [(word[0], word[1:]) for word in words if len(word) > 1 and word != "\u2581hi"]
    backend = Tokenizer(models.BPE(vocabulary, [*merges, ("\u2581", "hi")], fuse_unk=True))
    if prepend == "normalizer":
        backend.normalizer = normalizers.Sequence(
            [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
        )
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend, split=False)
    backend.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens([AddedToken("<s>", special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>")


@pytest.mark.parametrize("prepend", ["normalizer", "always", "first"])
def test_pieces_do_not_begin_with_a_space_of_the_tokenizers_own(prepend: str) -> None:
    tokenizer = sentencepiece_like(prepend)
    assert tokenizer.decode([*tokenizer("x")["input_ids"], *tokenizer("y")["input_ids"]]) == "x y"
    encoder = TextEncoder(tokenizer)
    for text in ("ab", "hi there\n\nUser:", " a", "\n", " "):
        for cut in range(len(text)):
            pieces = encoder.encode(text[:cut]) + encoder.encode(text[cut:])
            assert tokenizer.decode([*encoder.encode("x"), *pieces]) == "x" + text
    renderer = get_renderer("role_colon", tokenizer)
    question = {"role": "user", "content": "q"}
    reply = {"role": "assistant", "content": "hi there"}
    prompt = renderer.build_generation_prompt([question]).to_ints()
    whole, weights = renderer.build_supervised_example([question, reply])
    assert whole.to_ints()[: len(prompt)] == prompt
    assert int(weights.sum()) == whole.length - len(prompt)
    message, termination = renderer.parse_response(whole.to_ints()[len(prompt) :])
    assert (message["content"], termination.value) == ("hi there", "stop_sequence")


def test_a_tokenizer_that_reads_tags_all_the_same_gets_them_in_pieces() -> None:
    """Some that are written in Python do, whatever they are asked."""

    class Python:
        def get_added_vocab(self) -> dict[str, int]:
            return {"<|x|>": 7, "<|y|>": 8}

        def __call__(
            self, text: str, add_special_tokens: bool, split_special_tokens: bool
        ) -> dict[str, list[int]]:
            found = re.findall(r"<\|[xy]\|>|.", text)
            return {"input_ids": [{"<|x|>": 7, "<|y|>": 8}.get(p, 100 + ord(p[0])) for p in found]}

    encoder = TextEncoder(Python())
    ids = encoder.encode("a<|x|>b<|y|><|x|>", ["<|y|>"])
    assert [i for i in ids if i < 100] == [8]
    shown = "".join("Y" if i == 8 else chr(i - 100) for i in ids)
    assert shown == "a<|x|>bY<|x|>"

    class Worse(Python):
        def __call__(
            self, text: str, add_special_tokens: bool, split_special_tokens: bool
        ) -> dict[str, list[int]]:
            return {"input_ids": [7]}

    with pytest.raises(RendererError, match="a message contains a special-token string"):
        TextEncoder(Worse()).encode("a<|x|>b")


def test_a_tokenizer_without_a_backend_is_asked_to_split() -> None:
    class Slow:
        def get_added_vocab(self) -> dict[str, int]:
            return {"<|x|>": 7}

        def __call__(
            self, text: str, add_special_tokens: bool, split_special_tokens: bool
        ) -> dict[str, list[int]]:
            assert split_special_tokens and not add_special_tokens
            return {"input_ids": [len(text)]}

    assert TextEncoder(Slow()).encode("ab<|x|>c", ["<|x|>"]) == [2, 7, 1]
