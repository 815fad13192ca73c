"""The first recipe of reinforcement learning as a user runs it: killing, Ctrl-C, resuming."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from tests.programs import Program, Programs
from tinker_cookbook.nano import PATH as NANO
from tinker_cookbook.service.store import Store

pytestmark = pytest.mark.skipif(
    not (NANO / "model.safetensors").exists(), reason="nano is being built"
)

STEPS = 6
KEYS = (
    *("groups_per_batch=4", "group_size=4", "max_tokens=16", "lora_rank=4", f"max_steps={STEPS}"),
    *("save_every=2", "eval_every=4", "eval_greedy=False", "engine.deterministic=True"),
    *("data=Arithmetic", "data.test_size=4"),
)


class Run:
    """One command, in one log directory, with a store of its own."""

    def __init__(self, programs: Programs, directory: Path, *words: str) -> None:
        self._programs = programs
        self.log_path, self.store = directory / "log", directory / "runs" / "store"
        words = (f"log_path={self.log_path}", *KEYS, *words)
        self._command = ("recipes.rl_basic", *words)
        self._env = {**os.environ, "TINKER_COOKBOOK_RUNS_DIR": str(directory / "runs")}

    def start(self) -> Program:
        return self._programs.start(*self._command, env=self._env)

    def finish(self, interpreter: bool = False) -> str:
        """What it printed. With `interpreter` in a new one, where strings have other hashes."""
        if interpreter:
            command = [sys.executable, "-m", *self._command]
            done = subprocess.run(command, env=self._env, capture_output=True, text=True)
        else:
            done = self._programs.run(*self._command, env=self._env, timeout=120)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    def end_at(self, rows: int, how: signal.Signals) -> tuple[int, str]:
        """Starts it, ends it when there are so many rows; its exit code, what is on stderr."""
        process = self.start()
        deadline = time.monotonic() + 120
        while len(self.lines()) < rows:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(how)
        _, err = process.communicate(timeout=100)
        assert rows <= len(self.lines()) < STEPS
        return process.returncode, err

    def lines(self) -> list[str]:
        file = self.log_path / "metrics.jsonl"
        return file.read_text().splitlines() if file.exists() else []

    def rows(self) -> list[dict]:
        rows = [json.loads(line) for line in self.lines()]
        return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows]

    def final_weights(self) -> dict:
        last = json.loads((self.log_path / "checkpoints.jsonl").read_text().splitlines()[-1])
        assert last["final"] is True
        tensors = {}
        with Store(self.store).open_checkpoint(last["state_path"]) as info:
            for name in ("adapter_model", "optimizer"):
                tensors.update(load_file(info.directory / f"{name}.safetensors"))
        return tensors


def assert_stopped(ended: tuple[int, str]) -> None:
    code, err = ended
    assert code == 130
    assert re.search(
        rf"stopped after \d of {STEPS} steps; the same command resumes from there$", err
    )


def test_killed_and_interrupted_equals_uninterrupted(programs: Programs, tmp_path: Path) -> None:
    whole, broken = Run(programs, tmp_path / "whole"), Run(programs, tmp_path / "broken")
    whole.finish(interpreter=True)
    rows = whole.rows()
    assert [row["step"] for row in rows] == list(range(STEPS + 1))
    assert [row["step"] for row in rows if "test/env/all/correct" in row] == [0, 4, STEPS]
    assert len({row["env/all/reward/total"] for row in rows[:STEPS]}) > 3  # it is no constant

    assert broken.end_at(3, signal.SIGKILL)[0] == -signal.SIGKILL
    assert_stopped(broken.end_at(5, signal.SIGINT))
    assert re.search(f"resuming .* at step 5 of {STEPS} from checkpoint 000005", broken.finish())
    assert broken.rows() == rows
    expected, got = whole.final_weights(), broken.final_weights()
    assert expected.keys() == got.keys()
    assert all((expected[name] == got[name]).all() for name in expected)
    folders = sorted(path.name for path in broken.log_path.glob("iteration_*"))
    assert folders == [f"iteration_{step:06d}" for step in range(STEPS + 1)]


def test_a_run_that_is_ahead_of_itself_goes_on(programs: Programs, tmp_path: Path) -> None:
    """Groups that were being played are played again: not bit by bit the same, but none is lost."""
    run = Run(programs, tmp_path, "max_lag=2", "num_minibatches=2")
    assert_stopped(run.end_at(3, signal.SIGINT))
    assert re.search(f"resuming .* at step [3-5] of {STEPS}", run.finish())
    *rows, final = run.rows()
    assert [row["step"] for row in rows] == list(range(STEPS))
    assert [row["env/all/total_episodes"] for row in rows] == [16] * STEPS
    assert max(row["step"] - row["sampling_client/step_min"] for row in rows) in (1, 2)
    assert (final["step"], "test/env/all/correct" in final) == (STEPS, True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["group_sise=4"], "unknown key 'group_sise'; did you mean 'group_size'?"),
        (["limits.env_timeout=0"], "env_timeout=0"),
    ],
)
def test_a_mistake_is_one_line(
    programs: Programs, tmp_path: Path, words: list[str], message: str
) -> None:
    process = Run(programs, tmp_path, *words).start()
    out, err = process.communicate(timeout=60)
    assert process.returncode == 2, out + err
    assert message in err
    assert len(err.splitlines()) == 1, err
