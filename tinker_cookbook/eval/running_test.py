"""Running tasks and evaluators: metrics, failed samples, cancellation, one evaluation at a time."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import pytest
from inspect_ai import Task, task
from inspect_ai.dataset import Sample
from inspect_ai.model import GenerateConfig
from inspect_ai.scorer import (
    Metric,
    SampleScore,
    Score,
    Scorer,
    Target,
    exact,
    includes,
    mean,
    metric,
    scorer,
)
from inspect_ai.solver import TaskState, generate

from tinker_cookbook.eval import inspect_model
from tinker_cookbook.eval.inspect_evaluators import InspectEvaluatorBuilder
from tinker_cookbook.eval.results import results_lines
from tinker_cookbook.eval.running import (
    EvaluationSettings,
    evaluate,
    evaluation_metrics,
    failures_line,
)
from tinker_cookbook.eval.testing import scripted_model, sums
from tinker_cookbook.exceptions import ConfigurationError, EvalError
from tinker_cookbook.testing import Asked, ScriptedEngine, scripted_service, scripted_text
from tinker_cookbook.tokenizer_utils import get_tokenizer
from tinker_cookbook.training.run_directory import in_run_directory

SUMS = "tinker_cookbook.eval.testing:sums"


def right_sometimes(asked: Asked) -> str:
    """The first sum is right in every epoch, the second in one of four, the others never."""
    prompt = get_tokenizer("nano").decode(asked.prompt)
    if "0 + 1" in prompt or ("1 + 2" in prompt and asked.time == 2):
        return "It is 1 or 3.<|im_end|>"
    return "No.<|im_end|>"


async def test_pass_at_k_and_its_standard_error(tmp_path: Path) -> None:
    model, _ = scripted_model(tmp_path / "store", right_sometimes)
    settings = EvaluationSettings(epochs=4, ks=(1, 2, 4))
    metrics = evaluation_metrics(await evaluate([sums(4)], model, tmp_path, settings))

    def standard_error(values: list[float]) -> float:
        mean = sum(values) / len(values)
        return (sum((v - mean) ** 2 for v in values) / (len(values) - 1) / len(values)) ** 0.5

    # of c = 4, 1, 0, 0 right replies in n = 4: 1 - C(n - c, k) / C(n, k)
    by_k = {1: [1, 1 / 4, 0, 0], 2: [1, 1 / 2, 0, 0], 4: [1, 1, 0, 0]}
    for k, values in by_k.items():
        assert metrics[f"sums/pass@{k}"] == pytest.approx(sum(values) / 4)
        assert metrics[f"sums/pass@{k}_stderr"] == pytest.approx(standard_error(values))
    assert metrics["sums/accuracy"] == pytest.approx(metrics["sums/pass@1"])
    assert metrics["sums/num_samples"] == 16 and metrics["sums/failed"] == 0


@task
def two_scores() -> Task:
    return Task(
        dataset=[Sample(input="?", target="yes")], solver=generate(), scorer=[includes(), exact()]
    )


async def test_scores_of_one_task_have_their_names(tmp_path: Path) -> None:
    model, _ = scripted_model(tmp_path / "store", lambda asked: "oh yes, I do think so<|im_end|>")
    settings = EvaluationSettings(generate={"max_tokens": 4})
    logs = await evaluate([two_scores(), sums(2)], model, tmp_path, settings)
    metrics = evaluation_metrics(logs)
    assert metrics["two_scores/includes/accuracy"] == 1
    assert metrics["two_scores/exact/mean"] == 0
    assert metrics["two_scores/truncated"] == 1 and metrics["sums/truncated"] == 2
    assert metrics["two_scores/output_tokens"] == 4
    text = "\n".join(results_lines(logs))
    assert "includes/accuracy" in text and "sums" in text


def fails_on_the_second(asked: Asked) -> str:
    if "1 + 2" in get_tokenizer("nano").decode(asked.prompt):
        raise RuntimeError("out of luck")
    return "1<|im_end|>"


async def test_failed_samples_are_counted_and_the_others_are_scored(tmp_path: Path) -> None:
    model, engine = scripted_model(tmp_path / "store", fails_on_the_second)
    (log,) = await evaluate([sums(4)], model, tmp_path, EvaluationSettings())
    metrics = evaluation_metrics([log])
    assert metrics["sums/failed"] == 1 and metrics["sums/num_samples"] == 4
    line = failures_line(log)
    assert line is not None and line.startswith("sums: 1 of 4 samples failed")
    assert "out of luck" in line and "\n" not in line
    assert len(engine.samples) == 4  # none is tried twice
    with pytest.raises(EvalError, match=r"only_the_second: .*out of luck"):
        model, _ = scripted_model(tmp_path / "store", fails_on_the_second)
        await evaluate([only_the_second()], model, tmp_path, EvaluationSettings())


@task
def only_the_second() -> Task:
    return Task(dataset=[Sample(input="1 + 2")], solver=generate())


async def test_settings_of_a_task_that_are_not_supported_stop_before_sampling(
    tmp_path: Path,
) -> None:
    model, engine = scripted_model(tmp_path / "store", lambda asked: "1<|im_end|>")
    bad = Task(dataset=[Sample(input="?")], config=GenerateConfig(best_of=4))
    with pytest.raises(ConfigurationError, match="best_of=4 is not supported"):
        await evaluate([bad], model, tmp_path, EvaluationSettings())
    assert engine.samples == []


async def test_cancelling_an_evaluation_raises(tmp_path: Path) -> None:
    model, engine = scripted_model(tmp_path / "store", lambda asked: "1<|im_end|>")
    engine.hold()
    run = asyncio.ensure_future(evaluate([sums(3)], model, tmp_path, EvaluationSettings()))
    while len(engine.samples) < 3:
        await asyncio.sleep(0.01)
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    engine.release()
    # and the next evaluation in this process runs
    model, _ = scripted_model(tmp_path / "store", lambda asked: "1<|im_end|>")
    (log,) = await evaluate([sums(3)], model, tmp_path, EvaluationSettings())
    assert log.status == "success"


async def test_nothing_is_loaded_again_and_logging_stays_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    loads = []
    monkeypatch.setattr(inspect_model, "_load", lambda *args: loads.append(args))
    model, _ = scripted_model(tmp_path / "store", lambda asked: "1<|im_end|>")
    root = logging.getLogger()
    with caplog.at_level(logging.INFO):
        before = root.level, list(root.handlers)
        await evaluate([sums(3)], model, tmp_path, EvaluationSettings())
        assert (root.level, root.handlers) == before
    assert loads == []


async def test_evaluators_share_the_process_one_after_the_other(tmp_path: Path) -> None:
    engine = ScriptedEngine(reply=scripted_text("nano", lambda asked: "1 and 3<|im_end|>"))
    client = (
        scripted_service(engine, tmp_path / "store").create_sampling_client(base_model="nano")
    ).result()
    first = InspectEvaluatorBuilder(tasks=[SUMS], temperature=0.5, max_tokens=9, limit=4)()
    second = InspectEvaluatorBuilder(tasks=[SUMS], log_dir=str(tmp_path / "other"), seed=None)()
    with in_run_directory(tmp_path):
        results = await asyncio.gather(first(client), second(client))
        # a second evaluation by the same evaluator, as in training
        again = await first(client)
    assert results[0]["sums/accuracy"] == 0.5 and results[1]["sums/accuracy"] == 2 / 6
    assert again["sums/accuracy"] == 0.5
    assert len(list((tmp_path / "inspect").iterdir())) == 2
    assert len(list((tmp_path / "other").iterdir())) == 1
    assert "sums" in "\n".join(first.lines())
    assert {(r.temperature, r.max_tokens) for r in engine.samples} == {(0.5, 9), (1.0, 1000)}
    assert {r.seed is None for r in engine.samples} == {True, False}


def test_a_builder_checks_its_tasks_at_once() -> None:
    with pytest.raises(ConfigurationError, match="tasks=nothing is unknown"):
        InspectEvaluatorBuilder(tasks=["nothing"])()
    with pytest.raises(ConfigurationError, match=r"'cuont' \(did you mean count\?\)"):
        InspectEvaluatorBuilder(tasks=[SUMS], task_args={"cuont": "3"})()


@task
def cached() -> Task:
    return Task(dataset=sums(2).dataset, solver=generate(cache=True), scorer=includes())


@task
def caches_by_config() -> Task:
    config = GenerateConfig(cache=True)
    return Task(dataset=sums(2).dataset, config=config, solver=generate(), scorer=includes())


@pytest.mark.parametrize("task", [cached, caches_by_config])
async def test_the_cache_of_inspect_is_refused(tmp_path: Path, task: Any) -> None:
    """It has one entry for all checkpoints of a model."""
    model, engine = scripted_model(tmp_path / "store", lambda asked: "1<|im_end|>")
    with pytest.raises((EvalError, ConfigurationError), match=r"cache=[tT]rue is not supported"):
        await evaluate([task()], model, tmp_path, EvaluationSettings())
    assert not engine.samples


@metric
def broken_metric() -> Metric:
    def compute(scores: list[SampleScore]) -> float:
        raise ValueError("the metric is broken")

    return compute


@scorer(metrics=[broken_metric()])
def scores_anything() -> Scorer:
    async def score(state: TaskState, target: Target) -> Score:
        return Score(value=1)

    return score


@task
def without_metric() -> Task:
    return Task(dataset=sums(2).dataset, solver=generate(), scorer=scores_anything())


async def test_a_task_that_fails_although_its_samples_do_not(tmp_path: Path) -> None:
    model, _ = scripted_model(tmp_path / "store", lambda asked: "1<|im_end|>")
    with pytest.raises(EvalError, match="without_metric: the metric is broken"):
        await evaluate([without_metric()], model, tmp_path, EvaluationSettings())


@scorer(metrics=[mean()])
def half() -> Scorer:
    async def score(state: TaskState, target: Target) -> Score:
        return Score(value=0.5)

    return score


@task
def halves() -> Task:
    return Task(dataset=sums(2).dataset, solver=generate(), scorer=[half(), includes()])


async def test_pass_at_k_is_for_right_and_wrong_alone(tmp_path: Path) -> None:
    model, _ = scripted_model(tmp_path / "store", lambda asked: "1<|im_end|>")
    settings = EvaluationSettings(epochs=2, ks=(1, 2))
    metrics = evaluation_metrics(await evaluate([halves()], model, tmp_path, settings))
    assert metrics["halves/half/mean"] == 0.5 and "halves/half/pass@2" not in metrics
    assert metrics["halves/includes/pass@2"] == metrics["halves/includes/accuracy"] == 0.5
