"""Right and truncated completions are counted, and some are printed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import tinker

from tinker_cookbook.renderers import Renderer, get_renderer
from tinker_cookbook.supervised.exact_match import (
    MAX_PRINTED_CHARS,
    ExactMatchEvaluator,
    IsRight,
    is_same_text,
)
from tinker_cookbook.supervised.testing import talk
from tinker_cookbook.tokenizer_utils import get_tokenizer

LONG = f"{'So ' * 200}it is 4"


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    return get_renderer("qwen3_instruct", get_tokenizer("nano"))


class FixedReplies:
    """A sampling client that gives these replies in turn: (text, whether it is truncated)."""

    def __init__(self, renderer: Renderer, replies: list[tuple[str, bool]]) -> None:
        self.renderer, self.replies = renderer, replies
        self.prompts: list[list[int]] = []

    def sample(self, prompt: tinker.ModelInput, count: int, params: tinker.SamplingParams) -> Any:
        assert count == 1 and params.temperature == 0.0 and params.max_tokens == 7
        text, truncated = self.replies[len(self.prompts)]
        self.prompts.append(prompt.to_ints())
        tokens = self.renderer.encoder.encode(text)
        tokens += [] if truncated else [self.renderer.encoder.id("<|im_end|>")]
        sequence = SimpleNamespace(tokens=tokens, stop_reason="length" if truncated else "stop")

        async def result() -> Any:
            return SimpleNamespace(sequences=[sequence])

        return result()


async def evaluate(
    renderer: Renderer, replies: list[tuple[str, bool]], is_right: IsRight = is_same_text
) -> tuple[dict[str, float], list[str]]:
    chats = [talk(f"{n} + 2?", f" {n + 2}\n") for n in range(len(replies))]
    client: Any = FixedReplies(renderer, replies)
    evaluator = ExactMatchEvaluator(chats, renderer, "test", 7, is_right)
    assert evaluator.lines() == []
    metrics = await evaluator(client)
    expected = [renderer.build_generation_prompt(chat[:-1]).to_ints() for chat in chats]
    assert client.prompts == expected
    samples = evaluator.samples()["test"]
    assert [sample["prompt"] for sample in samples] == [f"{n} + 2?" for n in range(len(replies))]
    assert [(sample["reply"], sample["truncated"]) for sample in samples] == [
        (text.strip(), truncated) for text, truncated in replies
    ]
    assert sum(sample["right"] for sample in samples) == round(
        metrics["test/exact_match"] * len(replies)
    )
    return metrics, evaluator.lines()


async def test_texts_are_compared_without_white_space_around_them(renderer: Renderer) -> None:
    metrics, lines = await evaluate(renderer, [("2 ", False), ("1 + 2 = 3", False)])
    assert metrics == {"test/exact_match": 0.5, "test/truncated": 0}
    assert lines == [
        "test: 1 of 2 replies are right, e.g.",
        "  '0 + 2?' -> '2' (right)",
        "  '1 + 2?' -> '1 + 2 = 3' (wrong)",
    ]


async def test_a_truncated_reply_may_be_right(renderer: Renderer) -> None:
    replies = [("It is 2", True), ("It is", True), (LONG, False), ("5", False)]

    def ends_alike(reply: str, expected: str) -> bool:
        return reply.endswith(expected.strip())

    metrics, lines = await evaluate(renderer, replies, ends_alike)
    assert metrics == {"test/exact_match": 0.75, "test/truncated": 0.5}
    assert lines[0] == "test: 3 of 4 replies are right, 2 truncated at 7 tokens, e.g."
    assert lines[1:3] == [
        "  '0 + 2?' -> 'It is 2' (right, truncated)",
        "  '1 + 2?' -> 'It is' (wrong, truncated)",
    ]
    assert lines[-1].startswith("test: replies that are truncated may hide right answers: a rende")
    assert lines[3].endswith("So it is 4' (right)") and " ... " in lines[3]
    assert len(lines[3]) < MAX_PRINTED_CHARS + 50


async def test_four_are_printed(renderer: Renderer) -> None:
    metrics, lines = await evaluate(renderer, [(str(n + 2), False) for n in range(11)])
    assert metrics["test/exact_match"] == 1
    assert [line.split()[0] for line in lines[1:]] == ["'0", "'2", "'4", "'6"]


async def test_a_tenth_of_the_replies_may_be_truncated(renderer: Renderer) -> None:
    for num_truncated in (1, 2):
        replies = [("2", n < num_truncated) for n in range(10)]
        _, lines = await evaluate(renderer, replies)
        assert ("may hide right answers" in lines[-1]) == (num_truncated == 2)


async def test_a_reply_ends_with_the_context(renderer: Renderer) -> None:
    chat = talk("1 + 2?", "3")
    length = renderer.build_generation_prompt(chat[:-1]).length
    limits: list[int | None] = []

    class Client(FixedReplies):
        def sample(
            self, prompt: tinker.ModelInput, count: int, params: tinker.SamplingParams
        ) -> Any:
            limits.append(params.max_tokens)
            return super().sample(prompt, count, params.model_copy(update={"max_tokens": 7}))

    for context in (None, length + 3, length + 100):
        client: Any = Client(renderer, [("3", False)])
        await ExactMatchEvaluator([chat], renderer, "test", 7, context=context)(client)
    assert limits == [7, 3, 7]
