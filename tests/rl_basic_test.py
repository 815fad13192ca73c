"""The first recipe of reinforcement learning as a user runs it: killing, Ctrl-C, resuming."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pytest

from tests.programs import Programs
from tests.runs import Run, assert_same_result, assert_stopped
from tinker_cookbook.nano import PATH as NANO

pytestmark = pytest.mark.skipif(
    not (NANO / "model.safetensors").exists(), reason="nano is being built"
)

STEPS = 6
KEYS = (
    *("groups_per_batch=4", "group_size=4", "max_tokens=16", "lora_rank=4", f"max_steps={STEPS}"),
    *("save_every=2", "eval_every=4", "eval_greedy=False", "engine.deterministic=True"),
    *("data=Arithmetic", "data.test_size=4"),
)


def basic(programs: Programs, directory: Path, *words: str) -> Run:
    return Run(programs, directory, "recipes.rl_basic", *KEYS, *words)


def test_killed_and_interrupted_equals_uninterrupted(programs: Programs, tmp_path: Path) -> None:
    whole, broken = basic(programs, tmp_path / "whole"), basic(programs, tmp_path / "broken")
    whole.finish(interpreter=True)
    rows = whole.rows()
    assert [row["step"] for row in rows] == list(range(STEPS + 1))
    assert [row["step"] for row in rows if "test/env/all/correct" in row] == [0, 4, STEPS]
    assert len({row["env/all/reward/total"] for row in rows[:STEPS]}) > 3  # it is no constant

    assert broken.end_at(3, signal.SIGKILL)[0] == -signal.SIGKILL
    assert_stopped(broken.end_at(5, signal.SIGINT), STEPS)
    assert re.search(f"resuming .* at step 5 of {STEPS} from checkpoint 000005", broken.finish())
    assert_same_result(whole, broken)
    folders = sorted(path.name for path in broken.log_path.glob("iteration_*"))
    assert folders == [f"iteration_{step:06d}" for step in range(STEPS + 1)]


def test_a_run_that_is_ahead_of_itself_goes_on(programs: Programs, tmp_path: Path) -> None:
    """Groups that were being played are played again: not bit by bit the same, but none is lost."""
    run = basic(programs, tmp_path, "max_lag=2", "num_minibatches=2")
    assert_stopped(run.end_at(3, signal.SIGINT), STEPS)
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
    process = basic(programs, tmp_path, *words).start()
    out, err = process.communicate(timeout=60)
    assert process.returncode == 2, out + err
    assert message in err
    assert len(err.splitlines()) == 1, err
