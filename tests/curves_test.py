"""scripts/curves.py: which points it draws, and what it refuses."""

from __future__ import annotations

import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "scripts" / "curves.py"
ROWS = """\
{"step": 0, "loss": 2.5, "test/nll": 3.0}
{"step": 1, "loss": 1.25}
{"step": 2, "test/nll": 2.0, "note": "text"}
"""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    directory = tmp_path / "first"
    directory.mkdir()
    (directory / "metrics.jsonl").write_text(ROWS)
    return directory


def curves(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, words)], capture_output=True, text=True
    )


def test_points_are_the_rows_that_have_the_metric(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    from curves import points_of

    assert points_of(run, "loss") == [(0, 2.5), (1, 1.25)]
    assert points_of(run, "test/nll") == [(0, 3.0), (2, 2.0)]
    assert points_of(run, "note") == []
    # what was summed up before the step
    assert points_of(run, "test/nll", ["loss"]) == [(0, 3.0), (3.75, 2.0)]
    assert points_of(run, "loss", ["tokens", "loss"]) == [(0, 2.5), (2.5, 1.25)]


def test_draws_a_panel_per_metric(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / "curves.svg"
    done = curves(run, "--metrics", "loss,test/nll", "--out", out)
    assert done.returncode == 0, done.stderr
    texts = {element.text for element in ElementTree.parse(out).iter()}
    assert {"loss", "test/nll", "first"} <= texts


def test_seeds_share_a_line_of_the_legend(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for seed in range(2):
        shutil.copytree(run, tmp_path / f"sft-{seed}")
    out = tmp_path / "curves.svg"
    runs = (tmp_path / f"sft-{seed}" for seed in range(2))
    done = curves(*runs, "--metrics", "test/nll", "--over", "loss", "--out", out)
    assert done.returncode == 0, done.stderr
    texts = [element.text for element in ElementTree.parse(out).iter()]
    assert texts.count("sft") == 1 and "sum of loss" in texts


def test_runs_of_the_same_name_are_told_apart(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    shutil.copytree(run, tmp_path / "other" / "first")
    out = tmp_path / "curves.svg"
    done = curves(run, tmp_path / "other" / "first", "--metrics", "loss", "--out", out)
    assert done.returncode == 0, done.stderr
    texts = {element.text for element in ElementTree.parse(out).iter()}
    assert {str(run), str(tmp_path / "other" / "first")} <= texts


@pytest.mark.parametrize(
    ("where", "metric", "error"),
    [
        ("first", "nll", "error: --metrics nll is in none of the runs: there is test/nll\n"),
        ("first", "reward", "error: --metrics reward is in none of the runs\n"),
        ("other", "loss", "has no metrics.jsonl: expected the directory of a run\n"),
    ],
)
def test_refuses_what_it_does_not_find(run: Path, where: str, metric: str, error: str) -> None:
    done = curves(run.parent / where, "--metrics", metric, "--out", run / "x.svg")
    assert done.returncode == 1 and done.stderr.endswith(error)
    assert not (run / "x.svg").exists()


def test_refuses_a_missing_directory_for_the_picture(run: Path) -> None:
    done = curves(run, "--metrics", "loss,", "--out", run / "missing" / "x.svg")
    assert done.returncode == 1 and "there is no directory" in done.stderr
