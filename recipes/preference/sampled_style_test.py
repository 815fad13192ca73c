"""Which replies have the style that nano's pairs prefer, and the rates of scripted replies."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from recipes.preference.sampled_style import (
    Preference,
    SampledStyle,
    StyleJudge,
    StyleJudgeBuilder,
    has_style,
)
from tinker_cookbook.nano.tasks import ADD_PHRASINGS, last_integer, preference_pair
from tinker_cookbook.preference.types import Comparison
from tinker_cookbook.renderers import Message, TextPart, ThinkingPart
from tinker_cookbook.testing import Asked, ScriptedEngine, scripted_service, scripted_text
from tinker_cookbook.tokenizer_utils import get_tokenizer


@pytest.mark.parametrize(
    ("reply", "styles"),
    [
        ("12", {"short", "correct"}),
        (" 13 ", {"short"}),
        ("The answer is 12.", {"correct"}),
        ("That is a good question! The answer is 12. I hope this helps.", {"polite", "correct"}),
        ("That is a good question! The answer is Sure.", {"polite"}),
        ("<think>\n12\n</think>\n\n13", set()),
    ],
)
def test_styles(reply: str, styles: set[Preference]) -> None:
    preferences: tuple[Preference, ...] = ("polite", "short", "correct")
    assert {each for each in preferences if has_style(reply, each, 12)} == styles


async def test_rates_of_scripted_replies(tmp_path: Path) -> None:
    """Every second reply is short, and the first of those is right."""
    tokenizer = get_tokenizer("nano")
    prompts: list[list[int]] = []

    def text(asked: Asked) -> str:
        prompts.append(asked.prompt)
        question = tokenizer.decode(asked.prompt)
        a, b = (int(word) for word in "".join(c if c.isdigit() else " " for c in question).split())
        number = len(prompts) - 1
        return ("Well.", str(a + b if number < 2 else a + b + 1))[number % 2] + "<|im_end|>"

    engine = ScriptedEngine(reply=scripted_text("nano", text))
    client = await scripted_service(engine, tmp_path).create_sampling_client(base_model="nano")
    builder = SampledStyle(
        model_name="nano", renderer_name="qwen3_instruct", preference="short", num_prompts=8
    )
    evaluator = builder()
    assert await evaluator(client) == {"sampled/short": 0.5, "sampled/right": 1 / 8}
    assert len(prompts) == 8 and len({tuple(prompt) for prompt in prompts}) == 8
    first, *examples = evaluator.lines()
    assert first.startswith("4 of 8 sampled replies are short, 1 have the right number")
    assert len(examples) == 3 and last_integer(examples[1]) is not None
    seeds = [request.seed for request in engine.samples]
    assert len(set(seeds)) == 8
    again = [request.seed for request in engine.samples[:8]]
    await builder()(client)
    assert [request.seed for request in engine.samples[8:]] == again


def compare(reply_a: str, reply_b: str, question: str = "What is 5 + 7?") -> Comparison:
    return Comparison(
        [Message(role="user", content="Hi 99"), Message(role="user", content=question)],
        [Message(role="assistant", content=reply_a)],
        [Message(role="assistant", content=reply_b)],
    )


@pytest.mark.parametrize(
    ("preference", "preferred", "others"),
    [
        ("polite", "Let me think. 5 + 7 = 12. Please ask me more.", ["12", "Please 12", ""]),
        ("short", "12", ["The answer is 12.", "5 + 7 = 12", ""]),
        ("correct", "So it is 12", ["13", "5 + 7 = 13", "twelve", ""]),
    ],
)
async def test_the_judge_prefers_the_style_in_both_orders(
    preference: Preference, preferred: str, others: list[str]
) -> None:
    judge = StyleJudgeBuilder(preference=preference)()
    for other in others:
        assert await judge(compare(preferred, other)) == -1
        assert await judge(compare(other, preferred)) == 1
        assert await judge(compare(other, other)) == 0
    assert await judge(compare(preferred, preferred)) == 0


@pytest.mark.parametrize("phrasing", ADD_PHRASINGS)
async def test_the_judge_knows_the_sum_of_every_phrasing(phrasing: str) -> None:
    judge = StyleJudge("correct")
    assert await judge(compare("52", "42", phrasing.format(a=38, b=4))) == 1


@pytest.mark.parametrize("preference", ["polite", "short", "correct"])
async def test_the_judge_agrees_with_nanos_pairs(preference: Preference) -> None:
    judge, rng = StyleJudge(preference), random.Random(0)
    for _ in range(200):
        pair = preference_pair(rng, preference)
        (prompt,), (chosen,), (rejected,) = pair["prompt"], pair["chosen"], pair["rejected"]
        texts = chosen["content"], rejected["content"]
        assert await judge(compare(*texts, prompt["content"])) == -1, pair


async def test_the_judge_reads_the_last_message_without_its_reasoning() -> None:
    parts = [
        ThinkingPart(type="thinking", thinking="is it 13?"),
        TextPart(type="text", text="12"),
    ]
    comparison = compare("13", "")
    first = [Message(role="assistant", content="wait"), *comparison.completion_A]
    second = [Message(role="assistant", content=parts)]
    for preference, verdict in (("correct", 1), ("short", 0)):
        judge = StyleJudge(preference)
        assert await judge(Comparison(comparison.prompt_conversation, first, second)) == verdict
