"""The evaluation schedule, and the remaining evaluations in the ETA."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.training.evaluations import Evaluations, run_evals
from tinker_cookbook.training.evaluators import TrainingClientEvaluator
from tinker_cookbook.training.journal import Journal
from tinker_cookbook.utils import ml_log
from tinker_cookbook.utils.ml_log import Sample


class Clock:
    now = 0.0

    def perf_counter(self) -> float:
        return self.now


class Slow(TrainingClientEvaluator):
    """An evaluation that takes `seconds`."""

    def __init__(self, clock: Clock, seconds: float, name: str = "test/score") -> None:
        self._clock, self._seconds, self._name = clock, seconds, name

    async def __call__(self, client: Any, /) -> dict[str, float]:
        self._clock.now += self._seconds
        return {self._name: 1.0}


async def test_the_eta_counts_the_evaluations_ahead_at_what_they_took(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock()
    monkeypatch.setattr("tinker_cookbook.utils.display.time", clock)
    monkeypatch.setattr("tinker_cookbook.utils.misc_utils.time", clock)
    with Journal({"log_path": str(tmp_path)}, recipe="r", total_steps=10) as journal:
        due = [(4, [Slow(clock, 3.0)]), (0, [Slow(clock, 7.0, "test/long")])]
        evaluations = Evaluations(due, journal)
        for step in range(10):
            with journal.step(step) as row:
                row.update(await evaluations.run(None, step))
                clock.now += 60.0 if step == 0 else 2.0
    lines = capsys.readouterr().out.splitlines()
    etas = {line.split("  ")[0]: line.partition("ETA ")[2][:4] for line in lines if "ETA" in line}
    # remaining after step 1: 8 steps of 2 s, the evaluations before steps 4 and 8, and both groups
    # (10 s) after the last; until group 0 has run alone, it is estimated at those 10 s, too
    assert etas["step 1/10"] == "0:46"
    assert etas["step 4/10"] == "0:23"
    assert etas["step 9/10"] == "0:10"
    assert [line for line in lines if "evaluating" in line] == [
        f"step {step}/10  evaluating" for step in (0, 4, 8)
    ]
    log = (tmp_path / "logs.log").read_text()
    assert "step 4/10  test/score 1  ETA 0:23" in log


async def test_no_metric_replaces_another() -> None:
    clock = Clock()
    with pytest.raises(ConfigurationError, match="two evaluators report 'test/score'"):
        await run_evals([Slow(clock, 3.0), Slow(clock, 7.0, "b"), Slow(clock, 3.0)], Any)


async def test_a_block_that_may_be_dropped_is_left_alone_without_a_signal(tmp_path: Path) -> None:
    with Journal({"log_path": str(tmp_path)}, recipe="r", total_steps=1) as journal:
        with journal.interruptible():
            assert not journal.stopping
        assert await Evaluations([], journal).run(None, 0) == {}


async def test_samples_of_an_evaluation_go_to_the_loggers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Sampled(Slow):
        def samples(self) -> dict[str, list[Sample]]:
            return {"replies": [{"prompt": "2 + 2?", "reply": "4"}]}

    def log_samples(_: object, name: str, rows: list[Sample], step: int) -> None:
        logged.append((name, rows, step))

    logged: list[tuple[str, list[Sample], int]] = []
    monkeypatch.setattr(ml_log.JsonLogger, "log_samples", log_samples)
    with Journal({"log_path": str(tmp_path)}, recipe="r", total_steps=5) as journal:
        evaluations = Evaluations([(1, [Sampled(Clock(), 0.0)])], journal)
        await evaluations.run(None, 2)
        await evaluations.run(None, None)
    rows = [{"prompt": "2 + 2?", "reply": "4"}]
    assert logged == [("replies", rows, 2), ("replies", rows, 5)]
