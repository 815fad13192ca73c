"""Win rates against a baseline: scripted replies, and nano against itself."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chz
import pytest
import tinker

from tinker_cookbook.exceptions import CheckpointError, ConfigurationError
from tinker_cookbook.preference import win_rate
from tinker_cookbook.preference.preference_datasets import ComparisonBuilderFromJsonl
from tinker_cookbook.preference.testing import Longer
from tinker_cookbook.preference.types import Comparison, PreferenceModel, PreferenceModelBuilder
from tinker_cookbook.preference.win_rate import WinRate
from tinker_cookbook.sequences import Sequence, to_datum
from tinker_cookbook.service import connect
from tinker_cookbook.testing import Asked, ScriptedEngine, scripted_service, scripted_text

BUILT_IN: list[str] = []  # names of the threads that judges were built in


class AlwaysFirst(PreferenceModel):
    async def __call__(self, comparison: Comparison) -> float:
        return -1.0


@chz.chz
class LongerBuilder(PreferenceModelBuilder):
    def __call__(self) -> Longer:
        BUILT_IN.append(threading.current_thread().name)
        return Longer()


@chz.chz
class AlwaysFirstBuilder(PreferenceModelBuilder):
    def __call__(self) -> AlwaysFirst:
        return AlwaysFirst()


JUDGES = {"longer": LongerBuilder(), "first": AlwaysFirstBuilder()}


def config(directory: Path, prompts: list[str] | None, **keys: Any) -> WinRate:
    train, test = directory / "train.jsonl", directory / "test.jsonl"
    for path, questions in ((train, ["Hello"]), (test, prompts or [])):
        rows = [{"prompt": each, "chosen": "good", "rejected": "bad"} for each in questions]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    comparisons = ComparisonBuilderFromJsonl(
        train_path=str(train), test_path=None if prompts is None else str(test)
    )
    settings: dict[str, Any] = {"judges": JUDGES, "comparison_builder": comparisons, **keys}
    return WinRate(model_name="nano", renderer_name="qwen3_instruct", **settings)


@pytest.fixture
def engine() -> ScriptedEngine:
    """The engine of the policy."""
    return ScriptedEngine(reply=reply_with(lambda question: "long" if question != "d" else "s"))


@pytest.fixture
def baseline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ScriptedEngine:
    """The engine that the baseline is loaded into."""
    engine = ScriptedEngine(reply=reply_with(lambda question: "short"[: 5 - ord(question) + 97]))
    service = scripted_service(engine, tmp_path / "store")
    monkeypatch.setattr(win_rate, "connect", lambda base_url: service)
    return engine


def reply_with(reply: Callable[[str], str]) -> Callable[[Asked], Any]:
    """A scripted reply to a question of one letter."""
    tokenizer = win_rate.get_tokenizer("nano")

    def text(asked: Asked) -> str:
        question = str(tokenizer.decode(asked.prompt)).split("user\n")[-1][0]
        return reply(question) + "<|im_end|>"

    return scripted_text("nano", text)


async def test_judged_in_both_orders_with_its_standard_error(
    tmp_path: Path, engine: ScriptedEngine, baseline: ScriptedEngine
) -> None:
    """Lengths of the policy's replies 4, 4, 4, 1, of the baseline's 5, 4, 3, 2."""
    client = await scripted_service(engine, tmp_path).create_sampling_client(base_model="nano")
    evaluator = config(tmp_path, ["a", "b", "c", "d"])()
    assert await evaluator(client) == {
        "win_rate/longer": (0 + 0.5 + 1 + 0) / 4,
        "win_rate/longer/stderr": pytest.approx((0.171875 / 4) ** 0.5),
        "win_rate/first": 0.5,
        "win_rate/first/stderr": 0.0,
    }
    assert evaluator.lines() == [
        "win rate against nano on 4 prompts: 0.375 ± 0.207 (longer), 0.500 ± 0.000 (first)",
        "  'a' -> 'long' (baseline: 'short')",
        "  'b' -> 'long' (baseline: 'shor')",
    ]


async def test_judges_do_not_see_the_reasoning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in training; a judge's renderer need not know reasoning at all."""
    text = "<think>\nmuch longer than the reply\n</think>\n\nyes<|im_end|>"
    service = scripted_service(
        ScriptedEngine(reply=scripted_text("nano", lambda _: text)), tmp_path
    )
    monkeypatch.setattr(win_rate, "connect", lambda base_url: service)
    seen: list[Any] = []

    async def judge(self: Longer, comparison: Comparison) -> float:
        seen.extend([*comparison.completion_A, *comparison.completion_B])
        return 0.0

    monkeypatch.setattr(Longer, "__call__", judge)
    evaluator = chz.replace(config(tmp_path, ["a"]), renderer_name="qwen3")()
    await evaluator(await service.create_sampling_client(base_model="nano"))
    assert seen == [{"role": "assistant", "content": "yes"}] * 4


async def test_the_baseline_replies_once_and_alike_after_a_restart(
    tmp_path: Path, engine: ScriptedEngine, baseline: ScriptedEngine
) -> None:
    client = await scripted_service(engine, tmp_path).create_sampling_client(base_model="nano")
    builder = config(tmp_path, ["a", "b", "c"], max_tokens=7, temperature=0.5, seed=3)
    evaluator = builder()
    first = await evaluator(client)
    assert await evaluator(client) == first
    assert len(baseline.samples) == 3 and len(engine.samples) == 6
    assert await builder()(client) == first
    seeds = [request.seed for request in baseline.samples]
    assert len(set(seeds)) == 3 and seeds[3:] == seeds[:3]
    # policy and baseline use the same random numbers
    assert [request.seed for request in engine.samples] == seeds[:3] * 3
    for request in [*baseline.samples, *engine.samples]:
        assert (request.max_tokens, request.temperature) == (7, 0.5)
    other = config(tmp_path, ["a", "b", "c"], seed=4)()
    await other(client)
    assert not {request.seed for request in baseline.samples[6:]} & set(seeds)


async def test_judges_are_built_once_and_beside_the_event_loop(
    tmp_path: Path, engine: ScriptedEngine, baseline: ScriptedEngine
) -> None:
    BUILT_IN.clear()
    client = await scripted_service(engine, tmp_path).create_sampling_client(base_model="nano")
    evaluator = config(tmp_path, ["a"])()
    assert BUILT_IN == []  # a judge may be the result of an earlier stage
    await evaluator(client)
    await evaluator(client)
    assert len(BUILT_IN) == 1 and BUILT_IN[0] != threading.current_thread().name


async def test_prompts_that_fill_the_context_are_left_out(
    tmp_path: Path, engine: ScriptedEngine, baseline: ScriptedEngine
) -> None:
    client = await scripted_service(engine, tmp_path).create_sampling_client(base_model="nano")
    evaluator = config(tmp_path, ["a", "word " * 3000, "c", "d"], num_prompts=3)()
    assert (await evaluator(client))["win_rate/longer"] == 0.5  # a loses, c wins
    assert len(engine.samples) == 2


async def test_no_metric_without_a_test_split(tmp_path: Path, baseline: ScriptedEngine) -> None:
    client = await scripted_service(baseline, tmp_path).create_sampling_client(base_model="nano")
    evaluator = config(tmp_path, None)()
    assert await evaluator(client) == {} and evaluator.lines() == []
    assert baseline.samples == []


def test_a_win_rate_needs_a_judge(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"judges=\{\}: a win rate needs a judge"):
        config(tmp_path, ["a"], judges={})


async def test_a_baseline_that_does_not_exist_is_refused(
    tmp_path: Path, engine: ScriptedEngine
) -> None:
    client = await scripted_service(engine, tmp_path).create_sampling_client(base_model="nano")
    evaluator = config(tmp_path, ["a"], baseline_path=str(tmp_path / "sft"))()
    with pytest.raises(CheckpointError, match=f"baseline_path={tmp_path / 'sft'}: no such dir"):
        await evaluator(client)


async def test_equal_weights_have_a_win_rate_of_one_half(tmp_path: Path) -> None:
    """Exactly, because they reply with the same tokens; the base model replies with others."""
    training = await connect().create_lora_training_client("nano", rank=4, seed=0)
    datum = to_datum(Sequence(range(10, 30), [0.0] * 10 + [1.0] * 10))
    training.forward_backward([datum], "cross_entropy")
    training.optim_step(tinker.AdamParams(learning_rate=3e-3))
    saved = await training.save_weights_for_sampler("policy")
    client = await training.save_weights_and_get_sampling_client()
    questions = [f"What is {n} + 3?" for n in range(2)]
    differ = []
    for path in (saved.path, None):
        evaluator = config(tmp_path, questions, max_tokens=12, baseline_path=path)()
        metrics = await evaluator(client)
        if path is not None:
            assert metrics["win_rate/longer"] == 0.5 and metrics["win_rate/longer/stderr"] == 0
        replies = [line.split(" -> ")[1].split(" (baseline: ") for line in evaluator.lines()[1:]]
        differ.append(any(f"{reply})" != baseline for reply, baseline in replies))
    assert differ == [False, True]
