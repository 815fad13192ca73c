"""The generative preference model: its format, the renderers it refuses, and win rates."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from tinker_cookbook.completers import MessageCompleter
from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.preference.comparison_policy_evaluator import ComparisonEvaluator
from tinker_cookbook.preference.types import (
    Comparison,
    ComparisonRendererFromChatRenderer,
    Label,
    LabeledComparison,
    PreferenceModel,
    PreferenceModelFromChatRenderer,
)
from tinker_cookbook.renderers import Message, get_renderer, get_text_content
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


class Longer(PreferenceModel):
    """Prefers the longer completion; a tie otherwise."""

    async def __call__(self, comparison: Comparison) -> float:
        first, second = (
            len(get_text_content(messages[0]))
            for messages in (comparison.completion_A, comparison.completion_B)
        )
        return float((second > first) - (second < first))


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
