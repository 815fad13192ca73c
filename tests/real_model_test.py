"""SmolLM2-135M-Instruct, as scripts/real_model writes it: chat template, logprobs, gap.

Off by default; `./scripts/real_model` and then `./scripts/test -m real`. REAL_MODEL= names another
directory than the script's default.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tinker_cookbook import models
from tinker_cookbook.engine.base_model import BaseModel
from tinker_cookbook.engine.config import EngineConfig
from tinker_cookbook.engine.lora import LoraSpec
from tinker_cookbook.engine.requests import SampleRequest
from tinker_cookbook.engine.testing import (
    plain_logprobs,
    row_of,
    sample_all,
    trainer_logprobs,
    transformers_model,
)
from tinker_cookbook.engine.torch_sampler import TorchSampler
from tinker_cookbook.engine.trainer import AdapterTrainer
from tinker_cookbook.renderers import get_renderer
from tinker_cookbook.tokenizer_utils import get_tokenizer

pytestmark = pytest.mark.real

DEFAULT = "~/.cache/open-tinker-cookbook/SmolLM2-135M-Instruct"
Messages = list[dict[str, Any]]


@pytest.fixture(scope="module")
def real_model() -> str:
    path = Path(os.environ.get("REAL_MODEL", DEFAULT)).expanduser()
    if not (path / "config.json").is_file():
        pytest.skip("run scripts/real_model first")
    return str(path)


@pytest.fixture(scope="module")
def conversations(shared_data: Path) -> list[Messages]:
    """The first path through each of the 100 trees of oasst, up to its last reply."""
    file = shared_data / "datasets" / "oasst" / "en_100_tree.jsonl"
    trees = [json.loads(line)["prompt"] for line in file.open(encoding="utf-8")]
    return [list(_first_path(tree)) for tree in trees]


def _first_path(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    turns = [node]
    while turns[-1]["replies"]:
        turns.append(turns[-1]["replies"][0])
    turns = turns[: len(turns) - len(turns) % 2]  # ends with a reply
    for turn in turns:
        role = {"prompter": "user", "assistant": "assistant"}[turn["role"]]
        yield {"role": role, "content": turn["text"]}


def test_its_facts_are_those_of_the_table(real_model: str) -> None:
    found, row = models.lookup(real_model), models.TABLE["HuggingFaceTB/SmolLM2-135M-Instruct"]
    for fact in ("hidden_size", "context_length", "renderers", "lr_exponent", "is_chat"):
        assert getattr(found, fact) == getattr(row, fact), fact


def test_tokens_are_those_of_its_own_template(
    real_model: str, conversations: list[Messages]
) -> None:
    tokenizer: Any = get_tokenizer(real_model)
    renderer = get_renderer("template", tokenizer, model_name=real_model)
    (newline,) = tokenizer.encode("\n", add_special_tokens=False)
    assert len(conversations) == 100
    for messages in conversations:
        whole: Any = renderer.build_supervised_example(messages)
        expected = tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"]
        # the template also writes a newline after the reply, which nobody samples or trains
        assert [*whole[0].to_ints(), newline] == expected
        prompt = renderer.build_generation_prompt(messages[:-1]).to_ints()
        expected = tokenizer.apply_chat_template(
            messages[:-1], add_generation_prompt=True, return_dict=True
        )["input_ids"]
        assert prompt == expected


def test_logprobs_are_those_of_transformers(real_model: str, conversations: list[Messages]) -> None:
    """In float32, over a conversation of some hundred tokens."""
    tokenizer: Any = get_tokenizer(real_model)
    tokens = tokenizer.apply_chat_template(conversations[0], return_dict=True)["input_ids"][:400]
    row = row_of(np.array(tokens))
    (ours,) = plain_logprobs(BaseModel(real_model, EngineConfig(dtype="float32")), [row])
    with torch.no_grad():
        logits = transformers_model(real_model)(torch.tensor([tokens])).logits[0, :-1]
    theirs = logits.log_softmax(dim=-1).gather(1, torch.tensor(tokens[1:])[:, None])[:, 0]
    assert float((ours - theirs).abs().max()) < 1e-4


def test_the_sampler_agrees_with_the_trainer(real_model: str) -> None:
    """In float32; in bfloat16 the gap is what docs/real_model.md measures."""
    tokenizer: Any = get_tokenizer(real_model)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = np.array(
        tokenizer.apply_chat_template(question, add_generation_prompt=True, return_dict=True)[
            "input_ids"
        ]
    )
    base = BaseModel(real_model, EngineConfig(dtype="float32"))
    trainer = AdapterTrainer(base, LoraSpec(rank=1))
    sampler = TorchSampler(base, EngineConfig(device="cpu"))
    request = SampleRequest(prompt, num_samples=4, max_tokens=32, seed=1)
    (result,) = sample_all(sampler, [request], trainer.adapter)
    for sequence in result.sequences:
        trained = trainer_logprobs(trainer, prompt, sequence.tokens)
        assert float(np.abs(trained - np.array(sequence.logprobs)).max()) < 1e-4
