"""The README's Python examples run as they stand."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)


def test_the_examples_are_found() -> None:
    assert len(BLOCKS) == 2
    assert len([line for line in BLOCKS[1].splitlines() if line.strip()]) <= 40


@pytest.mark.parametrize("number", [0, 1])
def test_an_example_runs(tmp_path: Path, number: int) -> None:
    (tmp_path / "my_recipe.py").write_text(BLOCKS[number])
    done = subprocess.run(
        [sys.executable, "-m", "my_recipe"],
        cwd=tmp_path,
        env={**os.environ, "TINKER_COOKBOOK_RUNS_DIR": str(tmp_path / "runs")},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    losses = [
        float(x) for x in re.findall(r"^(?:\d+ |step \d+/20  loss )([\d.]+)", done.stdout, re.M)
    ]
    assert len(losses) >= 10 and losses[-1] < losses[0] / 2, done.stdout
