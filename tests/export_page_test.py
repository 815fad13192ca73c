"""docs/export.md: its commands and its Python run in their order, with a shorter training run."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

import chz
import pytest

from tests.programs import Programs
from tinker_cookbook.weights.export import Config
from tinker_cookbook.weights.merge_check import BOUNDS

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "export.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(bash|python)\n(.*?)```", PAGE, flags=re.DOTALL)


@pytest.mark.slow
def test_everything_runs(programs: Programs, tmp_path: Path) -> None:
    env = {**os.environ, "TINKER_COOKBOOK_RUNS_DIR": str(tmp_path / "runs")}
    printed = []
    for number, (language, block) in enumerate(BLOCKS):
        if language == "python":
            (tmp_path / f"block_{number}.py").write_text(block)
            commands = [[f"block_{number}"]]
        else:
            commands = [shlex.split(line) for line in block.splitlines()]
        for command in commands:
            if command[0] == "./scripts/run":
                command = command[1:]
            short = ["max_steps=3", "eval_every=0"] if command[0].startswith("recipes.") else []
            done = programs.run(*command, *short, cwd=tmp_path, env=env)
            assert done.returncode == 0, (command, done.stderr)
            printed.append(done.stdout)
    assert len(printed) == 8
    assert "merged: merged model in bfloat16" in printed[2] and "checked: " in printed[2]
    assert "would upload" in printed[3]
    made = ("adapter", "merged", "adapter2", "merged2", "files", "again")
    assert all((tmp_path / name).is_dir() for name in made)


def test_every_key_and_bound_is_there() -> None:
    table = re.findall(r"^\| `(\w+)` \|", PAGE, re.M)
    assert sorted(table) == sorted(chz.chz_fields(Config))
    bounds = {"float32": 0.001, "float16": 0.02, "bfloat16": 0.1}
    assert bounds == BOUNDS
    assert "exceeds 0.001 (float32), 0.02 (float16) or 0.1 nats per token (bfloat16)" in PAGE
