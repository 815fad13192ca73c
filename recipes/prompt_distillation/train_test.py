from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import chz
import pytest

from recipes.prompt_distillation import create_data, tasks
from recipes.prompt_distillation.reply_rule import reply_rule
from recipes.prompt_distillation.task import Task
from recipes.prompt_distillation.train import CLI, DEFAULTS, gap_line, main, resolve
from tinker_cookbook.cli_utils import parse
from tinker_cookbook.distillation.teacher_samples import TeacherSamples
from tinker_cookbook.exceptions import ConfigurationError, RunFinished
from tinker_cookbook.service import EngineConfig
from tinker_cookbook.training.resolve import resolve_defaults
from tinker_cookbook.utils import jsonl

SMALL = CLI(
    max_steps=2,
    eval_every=1,
    sample_replies=0,
    lora_rank=4,
    display="none",
    engine=EngineConfig(deterministic=True),
)


def small_task() -> Task:
    task = reply_rule()
    return replace(task, questions=task.questions[:40], held_out=task.held_out[:4])


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The runs directory; nano's task has 40 questions."""
    monkeypatch.setenv("TINKER_COOKBOOK_RUNS_DIR", str(tmp_path / "runs"))
    monkeypatch.setitem(tasks.TASKS, "reply_rule", small_task)
    return tmp_path / "runs"


def rows(directory: Path) -> list[dict[str, Any]]:
    return [line.value for line in jsonl.read_lines(directory / "metrics.jsonl")]


async def test_without_keys_the_replies_are_made_and_then_found(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    await main(chz.replace(SMALL, log_path=str(run)))
    (data,) = runs.glob("prompt_distillation_data-nano-*")
    assert (data / "samples.jsonl").read_bytes().count(b"\n") == 40
    first, second, last = rows(run)
    assert [row["step"] for row in (first, second, last)] == [0, 1, 2]
    assert all("test/exact_match" in row and "test/nll" in row for row in (first, second, last))
    assert ["with_prompt/exact_match" in row for row in (first, second, last)] == [
        True,
        False,
        True,
    ]
    assert first["test/exact_match"] == 0 and first["with_prompt/exact_match"] >= 0.5
    assert first["num_sequences"] == 32 and first["num_tokens"] > 0
    out = capsys.readouterr().out
    assert f"the student is {run}: load_checkpoint_path=" in out
    assert "held-out questions right: " in out

    with pytest.raises(RunFinished):
        skip = chz.replace(SMALL, behavior_if_log_dir_exists="skip")
        await main(chz.replace(skip, log_path=str(run)))
    await main(chz.replace(SMALL, log_path=str(run)))  # a finished run is not overwritten
    out = capsys.readouterr().out
    assert out.count("resuming at 40 of 40") == 2
    assert f"the student is {run}-2: load_checkpoint_path=" in out
    assert rows(tmp_path / "run-2")[-1]["test/nll"] == last["test/nll"]
    # its stored config, by which another run takes the same data and the evaluators once
    config = parse(CLI, [f"config={run / 'config.json'}", f"log_path={tmp_path / 'again'}"])
    assert config.evaluator_builders == config.infrequent_evaluator_builders == []
    again = resolve(config, None).config
    assert isinstance(again.dataset_builder, TeacherSamples)
    assert again.dataset_builder.path == str(data / "samples.jsonl")
    assert len(again.evaluator_builders) == len(again.infrequent_evaluator_builders) == 1


async def test_a_file_of_replies_is_trained_without_those_that_have_a_problem(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "replies.jsonl"
    problems = (None, "truncated", None, "empty")
    path.write_text(
        "".join(
            json.dumps(
                {
                    "index": index,
                    "messages": [
                        {"role": "user", "content": "Why?"},
                        {"role": "assistant", "content": "So." if problem is None else ""},
                    ],
                    "problem": problem,
                    "num_tokens": 3,
                }
            )
            + "\n"
            for index, problem in enumerate(problems)
        )
    )
    config = chz.replace(SMALL, max_steps=1, eval_every=0, log_path=str(tmp_path / "run"))
    await main(chz.replace(config, dataset_path=str(path)))
    (row,) = rows(tmp_path / "run")
    assert row["num_sequences"] == 2
    assert f"{path}: 1 truncated sample dropped" in (tmp_path / "run" / "logs.log").read_text()
    # the right replies to questions of a user's own are not known
    config = resolve(CLI(dataset_path=str(path)), None).config
    assert config.evaluator_builders == [] and config.task is None


def test_the_evaluation_allows_as_many_tokens_as_the_data(tmp_path: Path) -> None:
    def limits(config: CLI, plan: create_data.DataPlan | None = None) -> set[int]:
        resolved = resolve(config, plan).config
        builders = [*resolved.evaluator_builders, *resolved.infrequent_evaluator_builders]
        return {each.max_tokens for each in builders if isinstance(each, tasks.HeldOutQuestions)}

    real = CLI(model_name="Qwen/Qwen3-8B", renderer_name="qwen3_disable_thinking", task="bakery")
    plan = create_data.DataPlan.prepare(create_data.CLI(model_name=real.model_name, max_tokens=70))
    assert limits(real, plan) == {70}
    path = tmp_path / "replies.jsonl"
    path.write_text("{}\n")
    real = chz.replace(real, dataset_path=str(path))
    assert limits(real) == {1000}
    (tmp_path / "replies_settings.json").write_text('{"max_tokens": 60}')
    assert limits(real) == {60}
    assert limits(CLI(task="reply_rule", dataset_path="x")) == {48}


def test_defaults() -> None:
    nano = resolve_defaults(CLI(dataset_builder=TeacherSamples(path="x.jsonl")), DEFAULTS)
    assert (nano.sizes.batch_size, nano.config.num_epochs, nano.config.eval_every) == (32, 4, 5)
    keys = {"model_name": "Qwen/Qwen3-8B", "dataset_builder": TeacherSamples(path="x.jsonl")}
    other = resolve_defaults(CLI(**keys), DEFAULTS)
    assert (other.sizes.batch_size, other.sizes.max_length) == (128, 32_768)
    assert other.learning_rate == 1e-4


def write_metrics(directory: Path, *rows: dict[str, float]) -> Path:
    (directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return directory


def test_the_closed_part_of_the_gap(tmp_path: Path) -> None:
    right, prompted = "test/exact_match", "with_prompt/exact_match"
    first = {"step": 0, right: 0.1, prompted: 0.9}
    assert gap_line(write_metrics(tmp_path, first, {"step": 5, right: 0.7, prompted: 0.2})) == (
        "held-out questions right: 0.90 with the prompt before training, 0.10 without it, 0.70"
        " without it after training: 75% of the gap is closed"
    )
    line = gap_line(write_metrics(tmp_path, {"step": 0, right: 0.5, prompted: 0.5}))
    assert line is not None and "of the gap" not in line
    assert gap_line(write_metrics(tmp_path, {"step": 0})) is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("dataset_path=missing.jsonl", r"dataset_path=missing\.jsonl: no such file"),
        ("task=bakry", "task='bakry' is unknown; set one of reply_rule,"),
        ("load_checkpoint_path=runs/a", "load_checkpoint_path=runs/a needs dataset_path=: make"),
        ("model_name=no/such", "model_name='no/such' is not a known model"),
        ("num_epoch=2", "num_epoch"),
    ],
)
async def test_bad_keys(words: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def sample(plan: create_data.DataPlan) -> None:
        raise AssertionError("the keys are checked before anything is sampled")

    monkeypatch.setattr(create_data.DataPlan, "sample", sample)
    with pytest.raises(ConfigurationError, match=message) as error:
        await main(parse(CLI, words.split()))
    assert len(str(error.value).splitlines()) == 1
