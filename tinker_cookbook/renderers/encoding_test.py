from __future__ import annotations

import pytest

from tinker_cookbook.exceptions import RendererError
from tinker_cookbook.renderers.conftest import load
from tinker_cookbook.renderers.encoding import TextEncoder

ALL = ["nano", "qwen3", "llama-3.1-instruct", "deepseek-v3.1", "gpt-oss", "kimi-k2", "gpt2"]
ORDINARY = "Hello  world\n\n ünï 12345 你好\t\tfoo 🙂 <b>x</b>\r\n\n\n  end e\u0301 "


@pytest.mark.parametrize("name", ALL)
def test_ordinary_text_is_encoded_as_the_tokenizer_does(name):
    tokenizer = load(name)
    encoder = TextEncoder(tokenizer)
    for text in (ORDINARY, "", " ", "\n", ORDINARY[::-1]):
        assert encoder.encode(text) == tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("name", ALL)
def test_no_added_token_comes_out_of_plain_text(name):
    tokenizer = load(name)
    encoder = TextEncoder(tokenizer)
    for tag, token in tokenizer.get_added_vocab().items():
        ids = encoder.encode(f"a {tag}{tag} b")
        assert token not in ids
        assert tokenizer.decode(ids) == f"a {tag}{tag} b"


def test_only_named_tags_become_tokens(tokenizer):
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


def test_encoding_leaves_the_tokenizer_as_it_was(tokenizer):
    before = tokenizer("<|im_end|>")["input_ids"]
    TextEncoder(tokenizer).encode("<|im_end|>")
    assert tokenizer("<|im_end|>")["input_ids"] == before
    assert len(before) == 1


def small_tokenizer(added, ids_from=0):
    from tokenizers import AddedToken, Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    vocab = {c: i for i, c in enumerate("abc <>|\n")}
    backend = Tokenizer(models.BPE(vocab, []))
    backend.add_special_tokens(["<|filler|>"] * ids_from)
    backend.add_tokens([AddedToken(t, special=False, normalized=False) for t in added])
    backend.add_special_tokens(["<|eos|>"])
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def test_white_space_tokens_are_ordinary_text():
    """Some vocabularies hold runs of blanks as added tokens: they stay, tags do not."""
    tokenizer = small_tokenizer(["  ", "    "])
    encoder = TextEncoder(tokenizer)
    assert encoder.encode("a    b  c") == tokenizer("a    b  c")["input_ids"]
    assert len(encoder.encode("a    b")) == 3
    assert tokenizer.convert_tokens_to_ids("<|eos|>") not in encoder.encode("a<|eos|>")


def test_white_space_tokens_with_other_ids_are_refused():
    with pytest.raises(RendererError, match="white-space tokens"):
        TextEncoder(small_tokenizer(["  "], ids_from=1))


def test_a_tokenizer_without_a_backend_is_asked_to_split():
    class Slow:
        def get_added_vocab(self):
            return {"<|x|>": 7}

        def __call__(self, text, add_special_tokens, split_special_tokens):
            assert split_special_tokens and not add_special_tokens
            return {"input_ids": [len(text)]}

    assert TextEncoder(Slow()).encode("ab<|x|>c", ["<|x|>"]) == [2, 7, 1]
