"""The generative preference model: its format, the renderers it refuses, and win rates."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest

from tinker_cookbook.completers import MessageCompleter
from tinker_cookbook.exceptions import ConfigurationError, DataValidationError
from tinker_cookbook.preference.comparison_policy_evaluator import ComparisonEvaluator
from tinker_cookbook.preference.preference_datasets import (
    ChatDatasetBuilderFromComparisons,
    ComparisonBuilderFromJsonl,
)
from tinker_cookbook.preference.testing import Longer
from tinker_cookbook.preference.types import (
    Comparison,
    ComparisonRendererFromChatRenderer,
    Label,
    LabeledComparison,
    PreferenceModel,
    PreferenceModelFromChatRenderer,
)
from tinker_cookbook.renderers import Message, get_renderer, get_text_content
from tinker_cookbook.sequences import from_datum
from tinker_cookbook.supervised.types import ChatDatasetBuilderCommonConfig, SupervisedDataset
from tinker_cookbook.testing import ScriptedEngine, scripted_service, scripted_text
from tinker_cookbook.tokenizer_utils import get_tokenizer


def reply(text: str) -> list[Message]:
    return [Message(role="assistant", content=text)]


QUESTION = [Message(role="user", content="What is 1 + 2?")]
COMPARISON = Comparison(QUESTION, reply("3"), reply("It is 4."))
RENDERERS = ["qwen3_instruct", "qwen3_disable_thinking", "role_colon"]


@pytest.mark.parametrize("name", RENDERERS)
@pytest.mark.parametrize("label", ["A", "B"])
def test_the_label_is_the_token_after_the_prompt(name: str, label: Label) -> None:
    renderer = ComparisonRendererFromChatRenderer(get_renderer(name, get_tokenizer("nano")))
    prompt = renderer.build_generation_prompt(COMPARISON).to_ints()
    model_input, weights = renderer.to_model_input_weights(LabeledComparison(COMPARISON, label))
    tokens = model_input.to_ints()
    assert tokens[:-1] == prompt
    assert str(renderer.tokenizer.decode(tokens[-1:])).strip() == label
    assert weights.tolist() == [0.0] * len(prompt) + [1.0]


def test_the_format() -> None:
    renderer = ComparisonRendererFromChatRenderer(
        get_renderer("qwen3_instruct", get_tokenizer("nano"))
    )
    text = renderer.tokenizer.decode(renderer.build_generation_prompt(COMPARISON).to_ints())
    assert text == (
        "<|im_start|>user\nWhat is 1 + 2?<|im_end|>\n"
        "<|im_start|>system\n==== Completion A ====<|im_end|>\n"
        "<|im_start|>assistant\n3<|im_end|>\n"
        "<|im_start|>system\n==== Completion B ====<|im_end|>\n"
        "<|im_start|>assistant\nIt is 4.<|im_end|>\n"
        "<|im_start|>system\n==== Preference ====<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_a_renderer_that_begins_with_a_thought_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="begins a reply with '<think>', not with the lab"):
        ComparisonRendererFromChatRenderer(get_renderer("qwen3", get_tokenizer("nano")))


async def test_what_the_model_writes_is_the_preference(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    words = iter(["A", "B", "C"])
    engine = ScriptedEngine(reply=scripted_text("nano", lambda asked: next(words)))
    client = await scripted_service(engine, tmp_path).create_sampling_client(base_model="nano")
    model = PreferenceModelFromChatRenderer(
        get_renderer("qwen3_instruct", get_tokenizer("nano")), client
    )
    assert [await model(COMPARISON) for _ in range(2)] == [-1.0, 1.0]
    with caplog.at_level(logging.WARNING):
        assert await model(COMPARISON) == 0.0
    assert "wrote 'C', not A or B" in caplog.text
    assert {(each.max_tokens, each.temperature) for each in engine.samples} == {(1, 0.0)}


async def test_a_comparison_longer_than_the_context_is_a_tie(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    engine = ScriptedEngine(reply=scripted_text("nano", lambda asked: "B"))
    client = await scripted_service(engine, tmp_path).create_sampling_client(base_model="nano")
    model = PreferenceModelFromChatRenderer(
        get_renderer("qwen3_instruct", get_tokenizer("nano")), client
    )
    length = model.comparison_renderer.build_generation_prompt(COMPARISON).length + 1
    model.context_window = length
    assert await model(COMPARISON) == 1
    model.context_window = length - 1
    assert await model(COMPARISON) == 0 and len(engine.samples) == 1
    assert f"a comparison of {length} tokens does not fit" in caplog.text


class AlwaysSecond(PreferenceModel):
    async def __call__(self, comparison: Comparison) -> float:
        return 1.0


class Echo(MessageCompleter):
    async def __call__(self, messages: list[Message]) -> Message:
        return Message(role="assistant", content=get_text_content(messages[-1]))


def comparisons() -> list[Comparison]:
    lengths = [(3, 1), (3, 3), (3, 5), (4, 1)]  # of the policy's reply, of completion A
    return [
        Comparison([Message(role="user", content="x" * ours)], reply("y" * theirs), reply("unused"))
        for ours, theirs in lengths
    ]


async def test_win_rates_in_both_orders() -> None:
    metrics = await ComparisonEvaluator(Longer(), comparisons())(Echo())
    assert metrics["win_rate"] == (1 + 0.5 + 0 + 1) / 4
    assert metrics["stderr"] == pytest.approx((0.171875 / 4) ** 0.5)
    assert await ComparisonEvaluator(AlwaysSecond(), comparisons())(Echo()) == {
        "win_rate": 0.5,
        "stderr": 0.0,
    }
    with pytest.raises(ConfigurationError, match="no comparisons"):
        ComparisonEvaluator(Longer(), [])


def labels(
    tmp_path: Path, max_length: int = 200, **keys: Any
) -> tuple[list[str], SupervisedDataset]:
    """Label and completions of each datum of an epoch, e.g. "A: 3 | It is 4."."""
    rows = [
        {"prompt": f"What is {n} + 1?", "chosen": f"{n + 1}", "rejected": f"It is {n + 2}."}
        for n in range(16)
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    train, _ = ChatDatasetBuilderFromComparisons(
        comparison_builder=ComparisonBuilderFromJsonl(train_path=str(path)),
        common_config=ChatDatasetBuilderCommonConfig(
            model_name_for_tokenizer="nano",
            renderer_name="qwen3_instruct",
            batch_size=4,
            max_length=max_length,
        ),
        **keys,
    )()
    tokenizer = get_tokenizer("nano")
    found = []
    for index in range(len(train)):
        for datum in train.get_batch(index):
            sequence = from_datum(datum)
            assert sequence.loss_mask.nonzero()[0].tolist() == [len(sequence) - 1]
            text = tokenizer.decode(sequence.tokens.tolist())
            first, second = re.findall(r"<\|im_start\|>assistant\n(.+?)<\|im_end\|>", text)
            found.append(f"{text[-1]}: {first} | {second}")
    return found, train


def test_training_data_in_one_order_or_in_both(tmp_path: Path) -> None:
    found, _ = labels(tmp_path)
    assert len(found) == 16
    for line in found:
        label, first, second = re.split(": | \\| ", line)
        assert (first if label == "A" else second).isdecimal(), line
    assert 3 <= sum(line[0] == "A" for line in found) <= 13
    assert labels(tmp_path)[0] == found
    other, _ = labels(tmp_path, shuffle_seed=1)
    assert sorted(other) != sorted(found)
    both, _ = labels(tmp_path, swap=True)
    assert len(both) == 32 and sum(line[0] == "A" for line in both) == 16
    assert set(found) < set(both)


def test_comparisons_without_room_for_their_label_are_skipped(tmp_path: Path) -> None:
    whole = labels(tmp_path)[1].report
    assert whole is not None and whole.num_skipped == 0
    with pytest.raises(DataValidationError, match="tokens, more than max_length=20"):
        labels(tmp_path, max_length=20)
