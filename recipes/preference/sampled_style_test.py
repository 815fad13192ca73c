"""Which replies have the style that nano's pairs prefer, and the rates of scripted replies."""

from __future__ import annotations

from pathlib import Path

import pytest

from recipes.preference.sampled_style import Preference, SampledStyle, has_style
from tinker_cookbook.nano.tasks import last_integer
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
