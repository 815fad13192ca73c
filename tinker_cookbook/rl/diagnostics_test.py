"""Each sign of trouble is reported once, and a run that learns reports none."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from tinker_cookbook.rl import diagnostics, train
from tinker_cookbook.rl.diagnostics import WINDOW, RunDiagnostics
from tinker_cookbook.rl.testing import SomeAdditions, rows_of, train_config
from tinker_cookbook.utils.ml_log import Metrics

# rl_basic on nano, seed 0: reward, fractions of mixed and of all-good groups, reply tokens, entropy
NANO = [
    (0.469, 0.969, 0.0, 10.2, 0.334),
    (0.5, 1.0, 0.0, 11.6, 0.3),
    (0.594, 1.0, 0.0, 11.2, 0.274),
    (0.621, 0.906, 0.0625, 12.5, 0.225),
    (0.668, 1.0, 0.0, 14.2, 0.186),
    (0.667, 0.781, 0.219, 15.3, 0.166),
    (0.808, 0.844, 0.156, 18.8, 0.1),
    (0.906, 0.531, 0.469, 22.6, 0.0583),
    (0.91, 0.406, 0.594, 23.3, 0.0467),
    (0.93, 0.469, 0.531, 25.2, 0.0317),
    (0.945, 0.25, 0.75, 24.1, 0.0238),
    (0.965, 0.25, 0.75, 26.6, 0.0153),
    (0.969, 0.25, 0.75, 26.6, 0.00874),
    (0.953, 0.219, 0.781, 26.7, 0.0158),
    (0.965, 0.188, 0.812, 26.2, 0.0178),
    (0.988, 0.0938, 0.906, 26.9, 0.00754),
    (0.961, 0.281, 0.719, 27.1, 0.0174),
    (0.968, 0.219, 0.781, 26.9, 0.0138),
    (0.918, 0.312, 0.688, 26.2, 0.0112),
    (0.957, 0.219, 0.781, 25.8, 0.00925),
    (0.965, 0.281, 0.719, 26.7, 0.0122),
    (0.992, 0.0625, 0.938, 26.5, 0.00232),
    (0.969, 0.25, 0.75, 26.6, 0.0109),
    (0.961, 0.219, 0.781, 26.4, 0.0151),
]


def row(
    reward: float = 0.5,
    mixed: float = 0.8,
    all_good: float = 0.1,
    reply_tokens: float = 40.0,
    entropy: float = 1.0,
) -> dict[str, float]:
    return {
        "env/all/reward/total": reward,
        "env/all/by_group/frac_mixed": mixed,
        "env/all/by_group/frac_all_good": all_good,
        "env/all/by_group/frac_all_bad": 1.0 - mixed - all_good,
        "env/all/ac_tokens_per_turn": reply_tokens,
        "optim/entropy": entropy,
    }


def reported(rows: Sequence[Metrics]) -> list[tuple[int, str]]:
    """(step, line) of every line."""
    watched = RunDiagnostics()
    return [(step, line) for step, each in enumerate(rows) for line in watched.lines(each)]


def wobble(step: int) -> float:
    return 0.01 * (-1) ** step  # the noise of a step's mean reward


def test_a_run_that_learns_is_silent() -> None:
    """Its entropy falls to a twentieth, and in the end its groups are all good: the aim of RL."""
    assert NANO[-1][-1] < 0.05 * NANO[0][-1]
    solved = [row(*values) for values in NANO + [NANO[-3]] * WINDOW]
    assert solved[-1]["env/all/by_group/frac_mixed"] < diagnostics.FEW_MIXED
    assert reported(solved) == []
    assert reported([row(0.5 + wobble(step)) for step in range(100)]) == []


@pytest.mark.parametrize(
    ("all_good", "numbers", "advice"),
    [
        (0.0, "5% of the groups (95% all bad, 0% all good)", "try easier problems"),
        (0.95, "5% of the groups (0% all bad, 95% all good)", "try harder problems"),
        (0.5, "5% of the groups (45% all bad, 50% all good)", "try problems of medium difficulty"),
    ],
)
def test_few_mixed_groups(all_good: float, numbers: str, advice: str) -> None:
    few = row(reward=all_good, mixed=0.05, all_good=all_good)
    ((step, line),) = reported([few] * 20)
    assert step == WINDOW - 1
    assert line.startswith("few groups have a signal: ") and numbers in line and advice in line


def test_some_steps_without_mixed_groups_are_not_few() -> None:
    assert reported([row(mixed=0.0 if step % 2 else 0.5) for step in range(20)]) == []


def test_replies_that_shorten_while_the_reward_falls() -> None:
    def falling(step: int, reward: float) -> dict[str, float]:
        return row(0.5 - reward * step + wobble(step), reply_tokens=60.0 - 2 * step)

    ((step, line),) = reported([falling(step, reward=0.02) for step in range(25)])
    assert 2 * WINDOW <= step < 20
    assert line.startswith("replies shorten while the reward falls: from 56.0 to ")
    assert "learning_rate" in line and "kl_penalty_coef" in line and "format reward" in line
    # shorter replies with the same reward, and a lower reward with the same length
    assert reported([falling(step, reward=0.0) for step in range(25)]) == []
    assert reported([row(0.5 - 0.02 * step + wobble(step)) for step in range(25)]) == []


def test_entropy_that_collapses() -> None:
    """Two-digit sums on a real model at too high a learning rate."""
    rows = [row(0.04 - 0.0005 * step, entropy=1.9 - 0.06 * step) for step in range(25)]
    ((_, line),) = reported(rows)
    assert line.startswith("the entropy collapses without a higher reward: from 1.78 to 0.")
    assert "reward from 0.039 to 0.03" in line and "learning_rate" in line
    rising = [row(0.04 + 0.01 * step, entropy=1.9 - 0.06 * step) for step in range(25)]
    assert reported(rising) == []


def test_a_rise_within_the_noise_is_none() -> None:
    noisy = [0.02, 0.08, 0.03, 0.07, 0.05, 0.08, 0.03, 0.07, 0.02, 0.06]
    rows = [row(r, entropy=1.0 if step < WINDOW else 0.3) for step, r in enumerate(noisy)]
    assert len(reported(rows)) == 1


def test_evaluations_are_no_steps() -> None:
    few = row(mixed=0.0)
    evaluation = {f"test/{key}": value for key, value in few.items()}
    assert reported([few] * 4 + [evaluation] * 10) == []
    assert [step for step, _ in reported([few] * 4 + [evaluation] * 10 + [few])] == [14]


def test_metrics_that_are_missing_are_no_trouble() -> None:
    assert reported([{"env/all/reward/total": 0.0}] * 30) == []


def test_a_resumed_run_does_not_report_again() -> None:
    few = row(mixed=0.0)
    assert RunDiagnostics([few] * 4).lines(few) != []
    assert RunDiagnostics([few] * 5).lines(few) == []


async def test_the_loop_prints_the_line_once(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also over a resume; and the numbers stand on the line of each step."""
    monkeypatch.setenv("TINKER_COOKBOOK_STORE_DIR", str(tmp_path / "store"))
    monkeypatch.setattr(diagnostics, "WINDOW", 2)

    async def lines_of(steps: int) -> list[str]:
        troubles = {f"0.{j}": "equal" for j in range(2)}
        data = SomeAdditions(batches=4, groups=1, size=2, troubles=troubles)
        config = train_config(
            tmp_path / "run", data, max_steps=steps, display="plain", max_tokens=4
        )
        await train.main(config)
        return capsys.readouterr().out.splitlines()

    lines = await lines_of(3)
    assert sum("step 1: few groups have a signal: over the last" in line for line in lines) == 1
    assert sum("mixed groups 0 " in line and "entropy " in line for line in lines) == 3
    assert not any("few groups" in line for line in await lines_of(4))
    assert [each["env/all/by_group/frac_mixed"] for each in rows_of(tmp_path / "run")] == [0.0] * 4
