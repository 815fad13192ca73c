"""Evaluations as programs of their own: killed, stopped, and by Inspect's own command."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from inspect_ai.log import read_eval_log_sample_summaries

from tests.programs import Program, Programs

TASK = '''
"""Sums of two neighbours."""
from inspect_ai import Task, task
from inspect_ai.dataset import Sample
from inspect_ai.scorer import includes
from inspect_ai.solver import generate


@task
def neighbours(count: int = 60) -> Task:
    samples = [
        Sample(id=i, input=f"How much is {i} + {i + 1}?", target=str(2 * i + 1))
        for i in range(count)
    ]
    return Task(dataset=samples, solver=generate(), scorer=includes())


@task
def who() -> Task:
    return Task(dataset=[Sample(input="Who are you?", target="nano")], scorer=includes())
'''
EVALUATE = "tinker_cookbook.eval.run_inspect_evals"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "neighbours.py").write_text(TASK)
    return tmp_path


def environment(place: Path) -> dict[str, str]:
    # Inspect keeps what a killed process has done below XDG_DATA_HOME
    return {
        **os.environ,
        "TINKER_COOKBOOK_RUNS_DIR": str(place / "runs"),
        "XDG_DATA_HOME": str(place / "data"),
        "INSPECT_DISPLAY": "plain",
    }


def wait_until(condition: Callable[[], bool], program: Program) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert program.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)


def rows(directory: Path) -> list[dict]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def without_times(row: dict) -> dict:
    return {key: value for key, value in row.items() if not key.startswith("time/")}


def test_inspects_own_command_line(programs: Programs, place: Path) -> None:
    words = ("eval", "neighbours.py@neighbours", "-T", "count=4", "--model", "tinker-cookbook/nano")
    more = ("-M", "dtype=float32", "--seed", "3", "--epochs", "2", "--log-dir", "logs")
    env = environment(place)
    done = programs.run("inspect_ai", *words, *more, "--display", "plain", cwd=place, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Samples:   8/  8" in done.stdout
    listed = programs.run(
        "inspect_ai", "log", "list", "--json", "--log-dir", "logs", cwd=place, env=env
    )
    (log,) = json.loads(listed.stdout)
    assert log["task"] == "neighbours"
    dumped = programs.run("inspect_ai", "log", "dump", log["name"], cwd=place, env=env)
    content = json.loads(dumped.stdout)
    assert content["eval"]["model"] == "tinker-cookbook/nano"
    assert content["eval"]["model_args"] == {"dtype": "float32"}
    assert content["status"] == "success" and len(content["samples"]) == 8
    refused = programs.run(*("inspect_ai", *words, "-M", "dtipe=float32"), cwd=place, env=env)
    assert refused.returncode == 1 and "Traceback" not in refused.stdout + refused.stderr
    assert "did you mean dtype?" in " ".join((refused.stdout + refused.stderr).split())


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_an_evaluation_that_is_ended_goes_on(
    programs: Programs, place: Path, how: signal.Signals
) -> None:
    env = environment(place)
    words = ("tasks=neighbours.py@neighbours", "max_tokens=8", "display=plain")
    # few at once, so that some are finished long before the others
    words = (*words, "engine.max_rows=4", "engine.deterministic=true")
    program = programs.start(EVALUATE, *words, f"log_path={place / 'run'}", cwd=place, env=env)

    def some_are_done() -> bool:
        """What is in the log file; the newest samples are in Inspect's buffer besides."""
        logs = list((place / "run" / "inspect").glob("*.eval"))
        return bool(logs) and len(read_eval_log_sample_summaries(str(logs[0]))) >= 12

    wait_until(some_are_done, program)
    program.send_signal(how)
    _, err = program.communicate(timeout=60)
    assert program.returncode == (-how if how == signal.SIGKILL else 128 + how)
    if how == signal.SIGTERM:
        last = "stopped within the first task; the same command continues it"
        assert err.splitlines()[-1] == last
    done = programs.run(EVALUATE, *words, f"log_path={place / 'run'}", cwd=place, env=env)
    assert done.returncode == 0, done.stderr
    assert "of an earlier start kept (0 of 1 task complete): running what" in done.stdout
    assert "inspect_ai view --log-dir" in done.stdout
    whole = programs.run(EVALUATE, *words, f"log_path={place / 'whole'}", cwd=place, env=env)
    assert whole.returncode == 0, whole.stderr
    resumed, uninterrupted = rows(place / "run"), rows(place / "whole")
    assert [without_times(row) for row in resumed] == [without_times(row) for row in uninterrupted]
    assert resumed[-1]["neighbours/num_samples"] == 60


@pytest.mark.slow
def test_training_that_is_stopped_in_an_evaluation_goes_on(programs: Programs, place: Path) -> None:
    env = environment(place)
    builder = "tinker_cookbook.eval.inspect_evaluators:InspectEvaluatorBuilder"
    words = (
        *(
            "inline_evals=inspect",
            "inspect_tasks=neighbours.py@neighbours",
            "infrequent_eval_every=2",
        ),
        # a second evaluator in the same run
        *(f"evaluator_builders.0={builder}", "evaluator_builders.0.tasks=neighbours.py@who"),
        *("evaluator_builders.0.limit=3", "evaluator_builders.0.log_dir=other"),
        *("max_steps=4", "eval_every=0", "lora_rank=4", "engine.deterministic=true"),
        *("save_every=0", "display=plain"),
    )
    program = programs.start(
        "recipes.chat_sl.train", *words, f"log_path={place / 'run'}", cwd=place, env=env
    )
    # the log of the evaluation before step 2
    wait_until(lambda: len(list((place / "run").glob("inspect/*.eval"))) >= 2, program)
    program.send_signal(signal.SIGTERM)
    program.communicate(timeout=60)
    assert program.returncode == 128 + signal.SIGTERM
    assert [row["step"] for row in rows(place / "run")] == [0, 1]
    done = programs.run(
        "recipes.chat_sl.train", *words, f"log_path={place / 'run'}", cwd=place, env=env
    )
    assert (done.returncode, done.stderr) == (0, "")
    whole = programs.run(
        "recipes.chat_sl.train", *words, f"log_path={place / 'whole'}", cwd=place, env=env
    )
    assert whole.returncode == 0, whole.stderr
    resumed, uninterrupted = rows(place / "run"), rows(place / "whole")
    assert [without_times(row) for row in resumed] == [without_times(row) for row in uninterrupted]
    assert [row["step"] for row in resumed if "neighbours/accuracy" in row] == [0, 2, 4]
    assert [row["step"] for row in resumed if "who/accuracy" in row] == [0, 4]
