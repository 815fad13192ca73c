"""The pointwise reward model: its format, its preferences, its cache, and its training data."""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import re
from collections import Counter
from pathlib import Path

import pytest

from tinker_cookbook.exceptions import ConfigurationError, DataValidationError, TrainingError
from tinker_cookbook.preference import reward_model
from tinker_cookbook.preference.preference_datasets import ComparisonBuilderFromJsonl
from tinker_cookbook.preference.reward_model import (
    RewardDatasetBuilderFromComparisons,
    RewardModel,
    RewardRenderer,
    render_reward_pair,
)
from tinker_cookbook.preference.types import Comparison, Label, LabeledComparison
from tinker_cookbook.renderers import Message, Renderer, TextPart, ThinkingPart, get_renderer
from tinker_cookbook.sequences import from_datum
from tinker_cookbook.supervised.types import ChatDatasetBuilderCommonConfig, SupervisedDataset
from tinker_cookbook.testing import SampleRequest, SampleResult, ScriptedEngine, scripted_service
from tinker_cookbook.tokenizer_utils import get_tokenizer

QUESTION = [Message(role="user", content="What is 1 + 2?")]
REWARDS = {"3": 1.5, "It is 4.": -0.25, "It is 3.": 40.0, "": -3.0}


def reply(text: str) -> list[Message]:
    return [Message(role="assistant", content=text)]


def nano_renderer(name: str = "qwen3_instruct") -> Renderer:
    return get_renderer(name, get_tokenizer("nano"), model_name="nano")


RENDERER = RewardRenderer(nano_renderer())


class Scorer(ScriptedEngine):
    """Gives each reply its reward of REWARDS; `scored` counts the requests by reply.

    failures: the number of requests that fail before the first that succeeds.
    """

    def __init__(self) -> None:
        super().__init__()
        self.scored: Counter[str] = Counter()
        self.failures = 0

    def sample(self, request: SampleRequest) -> SampleResult:
        *prompt, label = (int(token) for token in request.prompt)
        text = str(get_tokenizer("nano").decode(prompt))
        found = re.findall(r"<\|im_start\|>assistant\n(.*?)<\|im_end\|>", text)[-1]
        self.scored[found] += label == RENDERER.labels.tokens[0]
        if self.failures:
            self.failures -= 1
            raise TrainingError("the sampler failed")
        value = -60.0 + (REWARDS[found] if label == RENDERER.labels.tokens[0] else 0.0)
        self.logprob_of = lambda token: value
        return super().sample(request)


@pytest.fixture
def engine() -> Scorer:
    return Scorer()


@pytest.fixture
def model(engine: Scorer, tmp_path: Path) -> RewardModel:
    client = scripted_service(engine, tmp_path).create_sampling_client(base_model="nano")
    return RewardModel(nano_renderer(), client.result())


def test_the_format() -> None:
    """Reasoning and all messages of a completion are shown, an empty reply as well."""
    completion = [
        Message(
            role="assistant",
            content=[
                ThinkingPart(type="thinking", thinking="1 and 2"),
                TextPart(type="text", text="4"),
            ],
        ),
        Message(role="user", content="Really?"),
        *reply(""),
    ]
    text = get_tokenizer("nano").decode(RENDERER.prompt(QUESTION, completion))
    assert text == (
        "<|im_start|>user\nWhat is 1 + 2?<|im_end|>\n"
        "<|im_start|>assistant\n<think>1 and 2</think>4<|im_end|>\n"
        "<|im_start|>user\nReally?<|im_end|>\n"
        "<|im_start|>assistant\n<|im_end|>\n"
        "<|im_start|>system\n==== Is this a good reply? ====<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_a_renderer_that_begins_with_a_thought_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="'Yes', 'No' with '<think>': choose one without"):
        RewardRenderer(nano_renderer("qwen3"))


@pytest.mark.parametrize("pair", list(itertools.permutations(REWARDS, 2)))
async def test_a_preference_is_the_difference_of_the_probabilities_of_winning(
    model: RewardModel, pair: tuple[str, str]
) -> None:
    """float32 logprobs around -60 are exact to about 4e-6."""
    comparison = Comparison(QUESTION, *map(reply, pair))
    margin = REWARDS[pair[1]] - REWARDS[pair[0]]
    preference = await model(comparison)
    assert preference == pytest.approx(2 / (1 + math.exp(-margin)) - 1, abs=1e-5)
    assert -1 <= preference <= 1
    assert await model(comparison.swap()) == -preference


async def test_equal_replies_tie(model: RewardModel) -> None:
    assert await model(Comparison(QUESTION, reply("3"), reply("3"))) == 0


async def test_a_comparison_longer_than_the_context_is_a_tie(
    model: RewardModel, engine: Scorer, caplog: pytest.LogCaptureFixture
) -> None:
    comparison = Comparison(QUESTION, reply("3"), reply("It is 4."))
    length = len(RENDERER.prompt(QUESTION, reply("It is 4."))) + 1
    model.context_window = length - 1
    assert await model(comparison) == 0 and not engine.scored
    assert f"a comparison of {length} tokens does not fit" in caplog.text
    model.context_window = length
    assert await model(comparison) == pytest.approx(math.tanh(-1.75 / 2), abs=1e-5)


async def test_a_tournament_scores_each_reply_once(model: RewardModel, engine: Scorer) -> None:
    engine.hold()
    pairs = itertools.permutations(map(reply, REWARDS), 2)
    tasks = [asyncio.ensure_future(model(Comparison(QUESTION, *pair))) for pair in pairs]
    await asyncio.sleep(0.01)
    engine.release()
    verdicts = await asyncio.gather(*tasks)
    assert len(verdicts) == 12 and sum(verdicts) == pytest.approx(0)
    assert engine.scored == dict.fromkeys(REWARDS, 1)
    other = [Message(role="user", content="What is 2 + 1?")]
    assert await model.reward(other, reply("3")) == pytest.approx(1.5, abs=1e-5)
    assert engine.scored["3"] == 2  # the prompt is another one


async def test_a_failure_is_not_cached(model: RewardModel, engine: Scorer) -> None:
    """The first caller sees it; a second one, who waited for the same reward, asks again."""
    engine.failures = 2  # both labels
    engine.hold()
    tasks = [asyncio.ensure_future(model.reward(QUESTION, reply("3"))) for _ in range(2)]
    await asyncio.sleep(0.01)
    engine.release()
    failed, second = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(failed, TrainingError)
    assert second == pytest.approx(1.5, abs=1e-5)
    assert await model.reward(QUESTION, reply("3")) == second
    assert engine.scored["3"] == 2


async def test_a_cancelled_caller_takes_no_other_with_it(
    model: RewardModel, engine: Scorer
) -> None:
    engine.hold()
    tasks = [asyncio.ensure_future(model.reward(QUESTION, reply("3"))) for _ in range(3)]
    await asyncio.sleep(0.01)
    tasks[0].cancel()  # the caller whose request is in flight
    tasks[1].cancel()  # one that waits
    await asyncio.sleep(0.01)
    engine.release()
    assert await asyncio.wait_for(tasks[2], 10) == pytest.approx(1.5, abs=1e-5)
    assert all(task.cancelled() for task in tasks[:2])


def test_another_event_loop_continues_with_the_same_model(
    model: RewardModel, engine: Scorer
) -> None:
    async def interrupted() -> None:
        engine.hold()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(model.reward(QUESTION, reply("3")), 0.01)

    async def score(text: str) -> float:
        return await model.reward(QUESTION, reply(text))

    asyncio.run(interrupted())
    engine.release()
    assert asyncio.run(score("3")) == asyncio.run(score("3")) == pytest.approx(1.5, abs=1e-5)
    scored = engine.scored["3"]
    asyncio.run(score("3"))
    assert engine.scored["3"] == scored


async def test_the_oldest_reward_is_dropped_from_a_full_cache(
    model: RewardModel, engine: Scorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reward_model, "_CACHE_SIZE", 2)
    for text in ("3", "It is 3.", "It is 4.", "It is 3.", "3"):
        assert await model.reward(QUESTION, reply(text)) == pytest.approx(REWARDS[text], abs=1e-5)
    assert engine.scored == {"3": 2, "It is 3.": 1, "It is 4.": 1}


# ------------------------------------------------------------------- training data


def build(
    tmp_path: Path, rows: list[dict[str, object]], batch_size: int = 2, max_length: int | None = 100
) -> SupervisedDataset:
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return RewardDatasetBuilderFromComparisons(
        comparison_builder=ComparisonBuilderFromJsonl(train_path=str(path)),
        common_config=ChatDatasetBuilderCommonConfig(
            model_name_for_tokenizer="nano",
            renderer_name="qwen3_instruct",
            batch_size=batch_size,
            max_length=max_length,
        ),
    )()[0]


def pair(number: int, chosen: str = "good", rejected: str = "bad") -> dict[str, object]:
    return {"prompt": f"{number}?", "chosen": chosen, "rejected": rejected}


def test_batches_hold_whole_pairs_and_train_the_label(tmp_path: Path) -> None:
    dataset = build(tmp_path, [pair(number) for number in range(5)])
    tokenizer = get_tokenizer("nano")
    seen = []
    for index in range(len(dataset)):
        batch = dataset.get_batch(index)
        assert len(batch) == 4
        for position, datum in enumerate(batch):
            sequence = from_datum(datum)
            assert sequence.loss_mask.nonzero()[0].tolist() == [len(sequence) - 1]
            assert sequence.tokens[-1] == RENDERER.labels.tokens[0]
            text = str(tokenizer.decode(sequence.tokens.tolist()))
            assert (f"\n{('good', 'bad')[position % 2]}<|im_end|>" in text) and "Is this a" in text
            seen.append(re.findall(r"\d", text)[0])
    assert seen[::2] == seen[1::2] and len(set(seen)) == 4


def test_pairs_that_cannot_be_used_are_reported(tmp_path: Path) -> None:
    long = pair(1, chosen="x " * 100)
    dataset = build(tmp_path, [pair(0), long, pair(2, "same", "same"), pair(3)])
    assert dataset.report is not None
    assert (dataset.report.num_conversations, dataset.report.num_examples) == (4, 4)
    lines = "\n".join(dataset.report.lines())
    assert re.search(r"jsonl:2: \d{3} tokens, more than max_length=100", lines)
    assert "jsonl:3: 'chosen' and 'rejected' are equal" in lines
    assert len(build(tmp_path, [pair(0), long], max_length=None)) == 1
    with pytest.raises(DataValidationError, match="tokens, more than max_length=100"):
        build(tmp_path, [long])


def test_max_length_counts_the_label(tmp_path: Path) -> None:
    length = len(RENDERER.prompt([Message(role="user", content="0?")], reply("longer"))) + 1
    assert len(build(tmp_path, [pair(0, "longer")], 1, max_length=length)) == 1
    with pytest.raises(DataValidationError, match=f"{length} tokens, more than max_length"):
        build(tmp_path, [pair(0, "longer")], 1, max_length=length - 1)


@pytest.mark.parametrize("label", ["A", "B", "Tie"])
def test_a_pair_is_chosen_then_rejected_whatever_its_order(label: Label) -> None:
    labeled = LabeledComparison(Comparison(QUESTION, reply("3"), reply("4")), label)
    rendered = render_reward_pair(labeled, RENDERER, None)
    prompts = [datum.model_input.to_ints() for datum in rendered.datums]
    texts = {"A": ["3", "4"], "B": ["4", "3"], "Tie": []}[label]
    assert prompts == [RENDERER.prompt(QUESTION, reply(text)) for text in texts]
    assert dict(rendered.notes) == ({("excluded", "tie"): 1} if label == "Tie" else {})


def test_replies_that_render_to_the_same_tokens_are_skipped() -> None:
    parts = [Message(role="assistant", content=[TextPart(type="text", text="3")])]
    labeled = LabeledComparison(Comparison(QUESTION, reply("3"), parts), "A")
    rendered = render_reward_pair(labeled, RENDERER, None)
    assert rendered.datums == []
    assert rendered.skipped == ["chosen and rejected have the same tokens"]
