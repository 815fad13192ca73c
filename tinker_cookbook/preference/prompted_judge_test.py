import asyncio
import logging
import math
from pathlib import Path

import pytest

from tinker_cookbook.exceptions import CheckpointError, ConfigurationError
from tinker_cookbook.preference.prompted_judge import (
    PromptedPreferenceModel,
    PromptedPreferenceModelBuilder,
    judge_conversation,
)
from tinker_cookbook.preference.types import Comparison
from tinker_cookbook.renderers import Message, Renderer, get_renderer
from tinker_cookbook.testing import (
    SampleRequest,
    SampleResult,
    ScriptedEngine,
    scripted_service,
)
from tinker_cookbook.tokenizer_utils import get_tokenizer

CRITERIA = "The better reply is polite."


def reply(text: str) -> list[Message]:
    return [Message(role="assistant", content=text)]


COMPARISON = Comparison(
    [Message(role="system", content="You add."), Message(role="user", content="What is 1 + 2?")],
    reply("3"),
    reply("Sure, it is 3."),
)


def nano_renderer(name: str = "qwen3_instruct") -> Renderer:
    return get_renderer(name, get_tokenizer("nano"), model_name="nano")


class Judge(ScriptedEngine):
    """Log p of "A" and "B", by whether the polite reply comes first."""

    def __init__(self, polite_first: tuple[float, float], polite_second: tuple[float, float]):
        super().__init__()
        self.tokenizer = get_tokenizer("nano")
        self.by_order = {True: polite_first, False: polite_second}

    def sample(self, request: SampleRequest) -> SampleResult:
        *prompt, label = (int(token) for token in request.prompt)
        text = self.tokenizer.decode(prompt)
        index = ["A", "B"].index(str(self.tokenizer.decode([label])).strip())
        value = self.by_order["[Reply A]\nSure" in text][index]
        self.logprob_of = lambda token: value
        return super().sample(request)


async def judge(engine: ScriptedEngine, store: Path, window: int | None = None) -> float:
    client = await scripted_service(engine, store).create_sampling_client(base_model="nano")
    model = PromptedPreferenceModel(client, nano_renderer(), CRITERIA, window)
    return await model(COMPARISON)


def test_the_prompt() -> None:
    (message,) = judge_conversation(COMPARISON, CRITERIA)
    assert message == {
        "role": "user",
        "content": "Compare two replies to the conversation below.\n\n"
        "[Conversation]\nsystem: You add.\nuser: What is 1 + 2?\n\n"
        "[Reply A]\n3\n\n[Reply B]\nSure, it is 3.\n\n"
        "[Criteria]\nThe better reply is polite.\n\n"
        "Which reply meets the criteria better? Answer with one letter, A or B.",
    }


async def test_the_mean_of_both_orders_by_hand(tmp_path: Path) -> None:
    """p(A), p(B) = 0.6, 0.2 with the polite reply first, and 0.1, 0.3 with it second."""
    engine = Judge((math.log(0.6), math.log(0.2)), (math.log(0.1), math.log(0.3)))
    expected = ((0.3 - 0.1) / 0.4 - (0.2 - 0.6) / 0.8) / 2
    assert expected == pytest.approx(0.5)
    assert await judge(engine, tmp_path) == pytest.approx(expected, abs=1e-6)
    assert len(engine.samples) == 4
    engine.by_order = {order: engine.by_order[not order] for order in (True, False)}
    assert await judge(engine, tmp_path) == pytest.approx(-expected, abs=1e-6)


async def test_a_judge_that_prefers_a_position_has_no_preference(tmp_path: Path) -> None:
    always_first = (math.log(0.9), math.log(0.05))
    assert await judge(Judge(always_first, always_first), tmp_path) == 0.0
    certain = Judge((-0.001, -200.0), (-200.0, -0.001))
    assert await judge(certain, tmp_path) == pytest.approx(1.0)


async def test_a_comparison_that_does_not_fit_is_a_tie(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    engine = Judge((-0.1, -3.0), (-3.0, -0.1))
    renderer = nano_renderer()
    length = len(
        renderer.build_generation_prompt(judge_conversation(COMPARISON, CRITERIA)).to_ints()
    )
    assert await judge(engine, tmp_path, length + 1) > 0.8
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        assert await judge(engine, tmp_path, length) == 0.0
    assert f"{length + 1} tokens does not fit into the judge's context of {length}" in caplog.text
    assert len(engine.samples) == 4


def test_the_builder_gives_the_model_of_a_hand_computation() -> None:
    """nano's own verdict against the softmax over its vocabulary by transformers."""
    import torch
    from transformers import AutoModelForCausalLM

    from tinker_cookbook import models

    model = PromptedPreferenceModelBuilder(model_name="nano", criteria=CRITERIA)()
    score = asyncio.run(model(COMPARISON))
    network = AutoModelForCausalLM.from_pretrained(models.load_path("nano"), dtype=torch.float64)
    verdicts = []
    for comparison in (COMPARISON, COMPARISON.swap()):
        prompt = model.labels.prompt(judge_conversation(comparison, CRITERIA))
        probabilities = network(torch.tensor([prompt])).logits[0, -1].softmax(-1).detach()
        a, b = (float(probabilities[token]) for token in model.labels.tokens)
        verdicts.append((b - a) / (a + b))
    assert score == pytest.approx((verdicts[0] - verdicts[1]) / 2, abs=2e-5)
    assert model.context_window == models.context_length("nano")


@pytest.mark.parametrize(
    ("keys", "error", "message"),
    [
        ({"criteria": " "}, ConfigurationError, "criteria=' ' is empty"),
        ({"renderer_name": "qwen3"}, ConfigurationError, "'A', 'B' with '<think>'"),
        ({"model_path": "no/such"}, CheckpointError, "model_path=no/such: no such directory"),
    ],
)
def test_bad_keys(keys: dict[str, str], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        PromptedPreferenceModelBuilder(model_name="nano", **keys)()
