"""Rows in the form of OpenThoughts3, streamed from a file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from recipes.distillation.open_thoughts import OpenThoughts
from tinker_cookbook.sequences import from_datum
from tinker_cookbook.supervised.types import ChatDatasetBuilderCommonConfig
from tinker_cookbook.tokenizer_utils import get_tokenizer

REASONING = "Okay, so 2 + 3. Start at 2,\nthen 3, 4, 5.\n\nYes."


@pytest.fixture
def path(tmp_path: Path) -> str:
    rows = [
        {
            "difficulty": 7,
            "source": "ai2-adapt-dev/openmath-2-math",
            "domain": "math",
            "conversations": [
                {"from": "human", "value": f"What is 2 + 3? ({number})"},
                {"from": "gpt", "value": f"<think>\n{REASONING}\n</think>\n\nThe sum is 5."},
            ],
        }
        for number in range(6)
    ]
    file = tmp_path / "traces.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


@pytest.mark.parametrize("renderer_name", ["qwen3", "qwen3_instruct"])
def test_the_whole_trace_is_trained(path: str, renderer_name: str) -> None:
    common = ChatDatasetBuilderCommonConfig(
        model_name_for_tokenizer="nano",
        renderer_name=renderer_name,
        max_length=None,
        batch_size=3,
    )
    train, test = OpenThoughts(path=path, length=6, common_config=common)()
    assert test is None and len(train) == 2
    tokenizer = get_tokenizer("nano")
    questions = []
    for sequence in map(from_datum, [*train.get_batch(0), *train.get_batch(1)]):
        trained = tokenizer.decode(sequence.tokens[sequence.loss_mask].tolist())
        assert trained == f"<think>\n{REASONING}\n</think>\n\nThe sum is 5.<|im_end|>"
        prompt = str(tokenizer.decode(sequence.tokens[~sequence.loss_mask].tolist()))
        questions.append(prompt.partition("(")[2][0])
    assert sorted(questions) == list("012345")


def test_its_place_on_the_hub() -> None:
    data = OpenThoughts()
    assert data.path == "open-thoughts/OpenThoughts3-1.2M" and data.identity() == {}
