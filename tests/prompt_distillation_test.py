"""Prompt distillation as a user runs it: both programs, killed in the middle of each."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from recipes.prompt_distillation import train
from tests.programs import Programs
from tinker_cookbook.utils import jsonl

STEPS = 8
SAMPLING = ("num_questions=24", "num_samples=6", "engine.deterministic=True", "max_tokens=24")
TRAINING = (
    *(f"max_steps={STEPS}", "batch_size=8", "save_every=2", "eval_every=5", "lora_rank=4"),
    "engine.deterministic=True",
)
# The 100 held-out questions of the task would take most of the time in evaluations.
FEW_QUESTIONS = """
import runpy, sys
from recipes.prompt_distillation import reply_rule
reply_rule.NUM_HELD_OUT = 10
name = "recipes.prompt_distillation." + sys.argv.pop(1)
runpy.run_module(name, run_name="__main__", alter_sys=True)
"""


class Distillation:
    """Both programs in one directory, with a store of its own, on a task of 10 held-out questions
    (`FEW_QUESTIONS`)."""

    def __init__(self, programs: Programs, directory: Path) -> None:
        self._programs, self.log_path = programs, directory / "log"
        self.replies, self._program = directory / "replies.jsonl", directory / "program.py"
        directory.mkdir(exist_ok=True)
        self._program.write_text(FEW_QUESTIONS)
        self._env = {**os.environ, "TINKER_COOKBOOK_RUNS_DIR": str(directory / "runs")}
        self.sampling = ("create_data", f"output_file={self.replies}", *SAMPLING)
        self.training = (
            *("train", f"dataset_path={self.replies}", f"log_path={self.log_path}"),
            *TRAINING,
        )

    def run(self, name: str, *words: str, expected: int = 0) -> str:
        """What it printed, or its error."""
        done = self._programs.run(str(self._program), name, *words, env=self._env, timeout=200)
        assert done.returncode == expected, done.stderr
        return done.stderr if expected else done.stdout

    def kill(self, name: str, *words: str, when: Callable[[], bool]) -> None:
        process = self._programs.start(str(self._program), name, *words, env=self._env)
        deadline = time.monotonic() + 120
        while not when():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=100)
        assert process.returncode == -signal.SIGKILL

    def rows(self) -> list[dict[str, Any]]:
        rows = [line.value for line in jsonl.read_lines(self.log_path / "metrics.jsonl")]
        return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows]


def test_killed_in_sampling_and_in_training_equals_uninterrupted(
    programs: Programs, tmp_path: Path
) -> None:
    whole, broken = (Distillation(programs, tmp_path / name) for name in ("whole", "broken"))
    command = whole.run(*whole.sampling).splitlines()[-1]
    assert f"recipes.prompt_distillation.train model_name=nano dataset_path={whole.replies}" in (
        command
    )
    out = whole.run(*whole.training, "task=reply_rule")
    assert f"the student is {whole.log_path}" in out and "of the gap is closed" in out

    broken.kill(*broken.sampling, when=lambda: len(jsonl.read_lines(broken.replies)) >= 20)
    done = len(jsonl.read_lines(broken.replies))
    assert 20 <= done < 144
    assert f"resuming at {done} of 144" in broken.run(*broken.sampling)
    assert broken.replies.read_bytes() == whole.replies.read_bytes()

    training = (*broken.training, "task=reply_rule")
    broken.kill(*training, when=lambda: len(broken.rows()) >= 3)
    assert len(broken.rows()) < STEPS
    assert "from checkpoint 00000" in broken.run(*training)
    assert broken.rows() == whole.rows()
    assert [row["step"] for row in whole.rows()] == list(range(STEPS + 1))


def test_mistakes_are_told_in_one_line(programs: Programs, tmp_path: Path) -> None:
    program = Distillation(programs, tmp_path)
    for words, message in (
        (("create_data", "prompt=no.txt"), "error: prompt=no.txt: no such file"),
        (("create_data", "temprature=1"), "temprature"),
        (("train", "dataset_path=no.jsonl"), "error: dataset_path=no.jsonl: no such file"),
        (("train", "task=all"), "error: task='all' is unknown"),
    ):
        error = program.run(*words, expected=2)
        assert message in error and len(error.splitlines()) == 1


@pytest.mark.slow
async def test_nano_learns_the_rule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The default run: at least 80 % of the gap is closed on held-out questions."""
    monkeypatch.setenv("TINKER_COOKBOOK_RUNS_DIR", str(tmp_path))
    await train.main(train.CLI(log_path=str(tmp_path / "run"), eval_every=0, display="none"))
    rows = [line.value for line in jsonl.read_lines(tmp_path / "run" / "metrics.jsonl")]
    without, ceiling = rows[0]["test/exact_match"], rows[0]["with_prompt/exact_match"]
    assert without == 0 and ceiling >= 0.8
    assert rows[-1]["test/exact_match"] >= 0.8 * ceiling
