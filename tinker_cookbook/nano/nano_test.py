"""The bundled files themselves: frozen, small, loadable by plain transformers, able to add."""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tinker_cookbook.nano import PATH, tasks
from tinker_cookbook.tokenizer_utils import Tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FILES = ("model.safetensors", "tokenizer.json", "config.json", "chat_template.jinja")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(PATH)


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(PATH, dtype=torch.float32).eval()


def test_files_are_the_frozen_ones() -> None:
    checksums = json.loads((PATH / "checksums.json").read_text())
    assert set(checksums) >= set(FILES)
    for name, wanted in checksums.items():
        path = PATH / name
        assert hashlib.sha256(path.read_bytes()).hexdigest() == wanted, name
        assert path.stat().st_mode & 0o044 == 0o044, f"{name} is not readable by everybody"
    assert sum(p.stat().st_size for p in PATH.iterdir() if p.is_file()) < 6_000_000


def test_importing_nano_is_light() -> None:
    code = (
        "import sys, tinker_cookbook.nano.mix; print(sorted({'torch', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_model_is_the_described_one(model: PreTrainedModel) -> None:
    assert model.num_parameters() == 2_017_216
    config = model.config
    assert (config.model_type, config.vocab_size, config.num_hidden_layers) == ("qwen3", 2048, 4)
    assert config.tie_word_embeddings and (config.eos_token_id, config.pad_token_id) == (2, 0)
    made = model.generation_config
    assert (made.eos_token_id, made.pad_token_id) == (2, 0)


@pytest.mark.parametrize(
    "text",
    [
        "What is 37 + 58?",
        " leading and trailing \n\n\ttabs  ",
        "naïve café, “quotes”, 漢字かな, Ελληνικά, 🙂👩‍🚀, e\u0301, \u0000, \ufeff",
        "<think>\nno</think> <|im_start|>user <tool_call>",
        "don't WE'LL 1234567890 !!!\r\n",
    ],
)
def test_encode_and_decode_are_inverse(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_special_tokens_and_tags(tokenizer: Tokenizer) -> None:
    names = "<|endoftext|> <|im_start|> <|im_end|> <think> </think> <tool_call> </tool_call>"
    names += " <tool_response> </tool_response>"
    assert tokenizer.convert_tokens_to_ids(names.split()) == list(range(9))
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.bos_token_id) == (2, 0, None)
    ids = tokenizer.encode("<|im_start|><think>7</think><tool_call><|im_end|>")
    shown = tokenizer.decode(ids, skip_special_tokens=True)
    assert shown == "<think>7</think><tool_call>"
    assert len(tokenizer) == 2048 and len(tokenizer.encode("1234567890")) == 10


def test_chat_template_is_qwen3s(tokenizer: Tokenizer) -> None:
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello!"}]
    shown = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert shown == (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHello!<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    off = tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True, enable_thinking=False
    )
    assert off == shown + "<think>\n\n</think>\n\n"
    tool = {"type": "function", "function": {"name": "add", "parameters": {}}}
    assert '"name": "add"' in tokenizer.apply_chat_template(messages, tools=[tool], tokenize=False)


def greedy_replies(model: PreTrainedModel, tokenizer: Tokenizer, prompts: list[str]) -> list[str]:
    inputs = tokenizer.apply_chat_template(
        [[{"role": "user", "content": prompt}] for prompt in prompts],
        add_generation_prompt=True,
        padding=True,
        tokenizer_kwargs={"padding_side": "left"},
        return_tensors="pt",
        return_dict=True,
    )
    output = model.generate(**inputs, do_sample=False, max_new_tokens=40)
    new = output[:, inputs["input_ids"].shape[1] :]
    return tokenizer.batch_decode(new, skip_special_tokens=True)


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_nano_can_add(model: PreTrainedModel, tokenizer: Tokenizer, split: str) -> None:
    rng = random.Random(0)
    problems = [tasks.add_problem(rng, split) for _ in range(100)]
    prompts = [problem["messages"][0]["content"] for problem in problems]
    replies = greedy_replies(model, tokenizer, prompts)
    right = [tasks.last_integer(r) == p["answer"] for r, p in zip(replies, problems)]
    assert sum(right) >= 75


def test_nano_lacks_the_skill_of_the_first_recipe(
    model: PreTrainedModel, tokenizer: Tokenizer
) -> None:
    examples = tasks.number_words("train") + tasks.number_words("held_out")
    replies = greedy_replies(model, tokenizer, [e["messages"][0]["content"] for e in examples])
    hits = [r.strip() == e["messages"][1]["content"] for r, e in zip(replies, examples)]
    assert sum(hits) <= 2
