"""A recipe as a program that is killed, stopped and resumed."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

from safetensors.numpy import load_file

from tests.programs import Program, Programs
from tinker_cookbook.service.store import Store


class Run:
    """One command in one log directory; the runs of a directory share its store."""

    def __init__(
        self, programs: Programs, directory: Path, recipe: str, *words: str, name: str = "log"
    ) -> None:
        self._programs = programs
        self.log_path, self.store = directory / name, directory / "runs" / "store"
        self._command = (recipe, f"log_path={self.log_path}", *words)
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
        """Starts it, ends it when there are so many rows; its exit code, what is on stderr. It must
        not have finished by then."""
        process = self.start()
        deadline = time.monotonic() + 120
        while len(self.lines()) < rows:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(how)
        _, err = process.communicate(timeout=100)
        assert rows <= len(self.lines()) and '"final": true' not in self._checkpoints()
        return process.returncode, err

    def lines(self) -> list[str]:
        file = self.log_path / "metrics.jsonl"
        return file.read_text().splitlines() if file.exists() else []

    def _checkpoints(self) -> str:
        file = self.log_path / "checkpoints.jsonl"
        return file.read_text() if file.exists() else ""

    def rows(self) -> list[dict]:
        rows = [json.loads(line) for line in self.lines()]
        return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows]

    def final_weights(self) -> dict:
        last = json.loads(self._checkpoints().splitlines()[-1])
        assert last["final"] is True
        tensors = {}
        with Store(self.store).open_checkpoint(last["state_path"]) as info:
            for name in ("adapter_model", "optimizer"):
                tensors.update(load_file(info.directory / f"{name}.safetensors"))
        return tensors


def assert_stopped(ended: tuple[int, str], steps: int) -> None:
    """It was stopped by Ctrl-C before the last of `steps`, and says so."""
    code, err = ended
    assert code == 130
    assert re.search(
        rf"stopped after \d of {steps} steps; the same command resumes from there$", err
    )


def assert_same_result(one: Run, other: Run) -> None:
    """Equal metrics, times aside, and equal weights, to the last bit."""
    assert one.rows() == other.rows()
    expected, got = one.final_weights(), other.final_weights()
    assert expected.keys() == got.keys()
    assert all((expected[name] == got[name]).all() for name in expected)


def train_teacher(programs: Programs, directory: Path) -> Path:
    """A teacher in the store of the runs of this directory."""
    path = directory / "teacher"
    words = (f"log_path={path}", "max_steps=3", "lora_rank=4", "learning_rate=0.01", "eval_every=0")
    env = {**os.environ, "TINKER_COOKBOOK_RUNS_DIR": str(directory / "runs")}
    done = programs.run("recipes.sl_basic", *words, env=env)
    assert done.returncode == 0, done.stderr
    return path
