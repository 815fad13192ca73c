"""The README's Python examples run as they stand."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.programs import Programs

ROOT = Path(__file__).parent.parent
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)


API, ENVIRONMENT, RECIPE = (
    next(block for block in BLOCKS if word in block)
    for word in ("connect()  #", "(MessageEnv)", 'recipe="my_recipe"')
)


Run = Callable[..., str]


@pytest.fixture
def run(programs: Programs) -> Run:
    def run(directory: Path, runs: str, *words: str) -> str:
        environment = {**os.environ, "TINKER_COOKBOOK_RUNS_DIR": str(directory / runs)}
        done = programs.run("my_recipe", *words, cwd=directory, env=environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_the_examples_are_found() -> None:
    assert len(BLOCKS) == 3


@pytest.mark.parametrize("block", [API, RECIPE], ids=["api", "recipe"])
def test_an_example_runs(run: Run, tmp_path: Path, block: str) -> None:
    (tmp_path / "my_recipe.py").write_text(block)
    out = run(tmp_path, "runs")
    losses = [float(x) for x in re.findall(r"^(?:\d+ |step \d+/20  loss )([\d.]+)", out, re.M)]
    assert len(losses) >= 10 and losses[-1] < losses[0] / 2, out


def test_the_recipe_goes_on_as_if_it_had_not_been_interrupted(run: Run, tmp_path: Path) -> None:
    interrupted = RECIPE.replace(
        "            with journal.step(step) as row:",
        "            assert step != 7 or journal.resume, 'killed'\n"
        "            with journal.step(step) as row:",
    )
    assert interrupted != RECIPE
    (tmp_path / "my_recipe.py").write_text(interrupted)
    with pytest.raises(AssertionError, match="killed"):
        run(tmp_path, "a", "save_every=5", "max_steps=9")
    out = run(tmp_path, "a", "save_every=5", "max_steps=9")
    assert "at step 5 of 9" in out
    (tmp_path / "my_recipe.py").write_text(RECIPE)
    whole = run(tmp_path, "b", "save_every=0", "max_steps=9")
    shown = r"^step (\d)/9  loss ([\d.]+)"
    assert re.findall(shown, out, re.M) == re.findall(shown, whole, re.M)[-4:]
