"""The first recipe as a user runs it: learning, killing, resuming, mistakes."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from safetensors.numpy import load_file

from tests.programs import Programs
from tinker_cookbook.nano import PATH as NANO

pytestmark = pytest.mark.skipif(
    not (NANO / "model.safetensors").exists(), reason="nano is being built"
)


RECIPE = "recipes.sl_basic"
Run = Callable[..., CompletedProcess[str]]


@pytest.fixture
def run(programs: Programs) -> Run:
    def run(runs: Path, *words: str, cwd: Path | None = None) -> CompletedProcess[str]:
        return programs.run(RECIPE, *words, env=environment(runs), cwd=cwd)

    return run


def environment(runs: Path) -> dict[str, str]:
    return {**os.environ, "TINKER_COOKBOOK_RUNS_DIR": str(runs)}


def rows(log_path: Path) -> list[dict]:
    lines = (log_path / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def without_time(log_path: Path) -> list[dict]:
    return [{k: v for k, v in r.items() if not k.startswith("time/")} for r in rows(log_path)]


def final_weights(runs: Path, log_path: Path) -> dict:
    from tinker_cookbook.service.store import Store

    last = json.loads((log_path / "checkpoints.jsonl").read_text().splitlines()[-1])
    assert last["final"] is True
    tensors = {}
    with Store(runs / "store").open_checkpoint(last["state_path"]) as info:
        for name in ("adapter_model", "optimizer"):
            tensors.update(load_file(info.directory / f"{name}.safetensors"))
    return tensors


def test_nano_learns_number_words(run: Run, tmp_path: Path) -> None:
    """The default run but for the evaluations on the way."""
    done = run(tmp_path, f"log_path={tmp_path}/log", "eval_every=0")
    assert done.returncode == 0, done.stderr
    metrics = rows(tmp_path / "log")
    assert [row["step"] for row in metrics] == list(range(61))
    first, last = metrics[0], metrics[-1]
    assert first["seen/exact_match"] == 0 and last["seen/exact_match"] >= 0.95
    assert first["held_out/exact_match"] == 0 and last["held_out/exact_match"] >= 0.6
    assert metrics[59]["train_mean_nll"] < first["train_mean_nll"] / 10
    assert last["test/nll"] < first["test/nll"] / 2
    assert "held_out: " in done.stdout and "Write 25 in words." in done.stdout


def test_killed_and_resumed_equals_uninterrupted(
    programs: Programs, run: Run, tmp_path: Path
) -> None:
    words = ("num_epochs=8", "save_every=4", "eval_every=8")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert run(tmp_path / "a", f"log_path={whole}", *words).returncode == 0
    process = programs.start(RECIPE, f"log_path={killed}", *words, env=environment(tmp_path / "b"))
    deadline = time.monotonic() + 120
    while not ((killed / "metrics.jsonl").exists() and len(rows_so_far(killed)) >= 7):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(rows_so_far(killed)) < 16
    again = run(tmp_path / "b", f"log_path={killed}", *words)
    assert again.returncode == 0, again.stderr
    assert re.search("resuming .* at step (4|8|12) of 16", again.stdout)
    assert without_time(killed) == without_time(whole)
    expected, got = final_weights(tmp_path / "a", whole), final_weights(tmp_path / "b", killed)
    assert expected.keys() == got.keys()
    assert all((expected[name] == got[name]).all() for name in expected)


def rows_so_far(log_path: Path) -> list[str]:
    return (log_path / "metrics.jsonl").read_text().splitlines()


def test_ctrl_c_and_a_second_run(programs: Programs, run: Run, tmp_path: Path) -> None:
    log_path = tmp_path / "log"
    words = (f"log_path={log_path}", "num_epochs=2000", "eval_every=0", "save_every=2")
    process = programs.start(RECIPE, *words, env=environment(tmp_path))
    deadline = time.monotonic() + 120
    while not ((log_path / "checkpoints.jsonl").exists() and len(rows_so_far(log_path)) >= 3):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    second = run(tmp_path, *words)  # while the first one is in it
    assert second.returncode == 2
    assert len(second.stderr.splitlines()) == 1 and str(process.pid) in second.stderr
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    first, last = stderr.splitlines()
    assert first.startswith("SIGINT: finishing ")
    assert re.fullmatch(
        r"stopped after \d+ of 4000 steps; the same command resumes from there", last
    )
    other = run(tmp_path, f"log_path={log_path}", "learning_rate=1e-4")
    assert other.returncode == 2 and "learning_rate" in other.stderr
    assert "a different config" in other.stderr and len(other.stderr.splitlines()) == 1


GOOD = '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}'


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["lerning_rate=1"], "unknown key 'lerning_rate'; did you mean 'learning_rate'?"),
        (["learning_rate=fast"], "learning_rate"),
        (["model_name=nanno"], "nano"),
        (["model_name=Qwen/Qwen3-8BB"], "Qwen/Qwen3-8B"),
        (["dataset_path=missing.jsonl"], "error: dataset_path=missing.jsonl: no such file"),
        (["max_length=4096"], "max_length=4096: nano has a context of 2048 tokens"),
        (["batch_size=0"], "batch_size=0"),
        (["dataset_path=bad.jsonl"], "bad.jsonl"),
        (["dataset_path=empty.jsonl"], "empty.jsonl"),
        (["dataset_path=untrained.jsonl"], "untrained.jsonl"),
        (["data=NoRobots", "dataset_path=bad.jsonl"], "drop either"),
        (["config=nowhere.yaml"], "nowhere.yaml"),
        (["max_steps=0"], "max_steps=0"),
        (["load_checkpoint_path=tinker://x/weights/y"], "no run x in the store"),
        (["engine.tokens_per_pass=0"], "engine.tokens_per_pass=0"),
        (["base_url=http://127.0.0.1:9", "engine.dtype=float32"], "have no effect with base_url"),
    ],
)
def test_a_mistake_is_one_line(run: Run, tmp_path: Path, words: list[str], message: str) -> None:
    (tmp_path / "bad.jsonl").write_text(GOOD + "\n{not json\n")
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "untrained.jsonl").write_text('{"messages": [{"role": "user", "content": "a"}]}\n')
    done = run(tmp_path / "runs", *words, cwd=tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
