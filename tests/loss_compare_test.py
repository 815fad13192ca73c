"""scripts/loss_compare.py: what counts as a difference; and the whole program on a repository with
a recipe that takes no time."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import psutil
import pytest
from safetensors.numpy import save_file

SCRIPTS = Path(__file__).parent.parent / "scripts"

METRICS = """\
{"step": 0, "loss": 2.5, "grad_norm": NaN, "time/total": 0.25}
{"step": 1, "loss": 1.25, "grad_norm": 3, "time/total": 0.5}
"""


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import loss_compare

    return loss_compare


@pytest.fixture
def differing(tool: ModuleType) -> Callable[..., str | None]:
    """The difference between METRICS and the same with some text replaced."""

    def ask(old: str = "", new: str = "") -> str | None:
        assert old in METRICS
        pair = [tool.read_metrics(text) for text in (METRICS, METRICS.replace(old, new, 1))]
        return tool.find_difference(
            *[tool.Outcome(rows, {"w": "F32"}) for rows in pair], ("A", "B")
        )

    return ask


def test_equal_but_for_the_clock(differing: Callable[..., str | None]) -> None:
    assert differing() is None
    assert differing('"time/total": 0.5', '"time/total": 0.75, "time/evals": 3.0') is None


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        ("1.25", "1.2500000000000002", "step 1: loss is 1.25 at A, 1.2500000000000002 in the B"),
        ("2.5", "-2.5", "step 0: loss is 2.5 at A, -2.5 in the B"),
        ("NaN", "0.0", "step 0: grad_norm is NaN at A, 0.0 in the B"),
        ("3", "3.0", "step 1: grad_norm is 3 at A, 3.0 in the B"),
        ('"loss": 2.5, ', "", "step 0: loss is 2.5 at A, absent in the B"),
        ('"loss": 2.5', '"loss": 2.5, "x": 1', "step 0: x is absent at A, 1 in the B"),
    ],
)
def test_a_value_that_differs_in_the_last_bit(
    differing: Callable[..., str | None], old: str, new: str, found: str
) -> None:
    assert differing(old, new) == found


def test_a_row_too_many_and_the_number_of_further_values(
    differing: Callable[..., str | None],
) -> None:
    last = METRICS.splitlines()[1] + "\n"
    assert differing(last, "") == (
        "step 1: step is 1 at A, absent in the B (and 2 more values)"
    )  # fmt: skip


def test_tensors_are_compared_by_their_bytes_without_the_name_of_the_run(
    tool: ModuleType, tmp_path: Path
) -> None:
    def outcome(run: str, weights: list[float]) -> Any:
        directory = tmp_path / run / "sampler_weights" / "final"
        directory.mkdir(parents=True)
        save_file({"a": np.array(weights)}, directory / "adapter_model.safetensors")
        found = tool.read_tensors(tmp_path)
        shutil.rmtree(tmp_path / run)
        return tool.Outcome([{"step": "0"}], found)

    one, other, zero, minus = (
        outcome(f"run-{number}", np.float32(value))
        for number, value in enumerate(([1, 2], [1, 2], [1, 0.0], [1, -0.0]))
    )
    assert tool.find_difference(one, other, ("A", "B")) is None
    found = tool.find_difference(zero, minus, ("A", "B"))
    assert found.startswith("run/sampler_weights/final/adapter_model.safetensors a is F32[2] ")


def test_every_case_is_of_a_recipe_and_words_select(tool: ModuleType) -> None:
    cases = tool.read_cases((SCRIPTS / "recipes").read_text())
    assert len(set(cases)) == len(cases) > 6
    assert [str(case).split()[:3] for case in tool.select(cases, ["max_lag="])] == [
        ["recipes.rl_basic", "max_steps=5", "max_lag=2"]
    ]
    with pytest.raises(tool.ComparisonError, match="has any of: none_such"):
        tool.select(cases, ["none_such"])


# -- the whole program

RECIPE = """\
import json, os, sys, time
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from tinker_cookbook import LOSS

words = dict(word.split("=") for word in sys.argv[1:])
assert words["engine.deterministic"] == "true"
if "wait" in words:
    Path(words["wait"]).touch()
    time.sleep(60)
if "fail" in words:
    sys.exit(words["fail"])
run = Path(words["log_path"])
run.mkdir()
loss = time.time() if "now" in words else LOSS
(run / "metrics.jsonl").write_text(json.dumps({"step": 0, "loss": loss, "time/total": time.time()}))
weights = Path(os.environ["TINKER_COOKBOOK_RUNS_DIR"], f"store/runs/x-{time.time()}/weights/final")
weights.mkdir(parents=True)
save_file({"w": np.zeros(2)}, weights / "adapter_model.safetensors")
"""


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe and scripts/loss_compare.py, committed; what it makes goes to tmp_path/scratch."""
    root = tmp_path / "a checkout"
    for name, text in {
        "tinker_cookbook/__init__.py": "LOSS = 2.0\n",
        "recipes/__init__.py": "",
        "recipes/quick.py": RECIPE,
        "scripts/recipes": "# name, keys\nrecipes.quick number=1\nrecipes.quick number=2\n",
        "scripts/loss_compare.py": (SCRIPTS / "loss_compare.py").read_text(),
        "scripts/revisions.py": (SCRIPTS / "revisions.py").read_text(),
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "x"]):
        identity = ["-c", "user.name=x", "-c", "user.email=x"]
        subprocess.run(["git", "-C", root, *identity, *words], check=True)
    (tmp_path / "scratch").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "scratch"))
    return root


def compare(root: Path, *words: str) -> tuple[int, list[str], str]:
    done = subprocess.run(
        [sys.executable, root / "scripts/loss_compare.py", *words], capture_output=True, text=True
    )
    assert list((root.parent / "scratch").iterdir()) == []
    return done.returncode, done.stdout.splitlines(), done.stderr


def test_an_unchanged_tree_is_equal(repository: Path) -> None:
    (repository / "notes").write_text("not tracked")
    code, lines, _ = compare(repository, "HEAD")
    assert code == 0 and lines[0].endswith("against the working tree")
    assert [line.split()[0] for line in lines[1:5]] == ["equal", "1", "equal", "1"]
    assert lines[2].strip() == "1 rows, 2 values, 1 tensors"
    assert lines[5].startswith("2 of 2 equal") and lines[5].endswith("not compared: time/*")


def test_a_change_that_is_not_committed_is_found(repository: Path) -> None:
    (repository / "tinker_cookbook/__init__.py").write_text("LOSS = 2.0000000000000004\n")
    code, lines, _ = compare(repository, "HEAD", "number=2")
    assert code == 1 and len(lines) == 4 and lines[1].startswith("DIFFERENT")
    assert "step 0: loss is 2.0 at HEAD (" in lines[2] and ", 2.0000000000000004 in" in lines[2]
    assert lines[3].startswith("0 of 1 equal")


@pytest.mark.parametrize(
    ("keys", "verdict", "said"),
    [
        ("now=1", "UNSTABLE", "two runs of HEAD"),
        ("fail=reason", "FAILED", "reason"),
    ],
)
def test_a_case_that_proves_nothing_is_not_equal(
    repository: Path, keys: str, verdict: str, said: str
) -> None:
    (repository / "scripts/recipes").write_text(f"recipes.quick {keys}\n")
    code, lines, _ = compare(repository, "HEAD")
    assert code == 1 and lines[1].startswith(verdict) and said in "".join(lines[2:-1])


def test_a_recipe_that_the_revision_lacks_is_new(repository: Path) -> None:
    (repository / "recipes/later").mkdir()
    (repository / "recipes/later/train.py").write_text(RECIPE)
    (repository / "scripts/recipes").write_text("recipes.later.train\nrecipes.quick number=1\n")
    code, lines, _ = compare(repository, "HEAD")
    assert code == 0 and [line.split()[0] for line in lines[1:4:2]] == ["new", "equal"]
    assert lines[2].startswith("    HEAD (") and lines[2].endswith(" has no recipes.later.train")
    assert lines[5].startswith("1 of 1 equal")
    code, lines, _ = compare(repository, "HEAD", "later")
    assert code == 2 and lines[3].startswith("0 of 0 equal")
    (repository / "scripts/recipes").write_text("recipes.mistyped\n")
    code, lines, _ = compare(repository, "HEAD")
    assert code == 1 and lines[1].startswith("FAILED") and "mistyped" in "".join(lines)


def test_what_is_not_to_be_compared_is_one_line(repository: Path) -> None:
    code, _, err = compare(repository, "no-such-revision")
    assert code == 2 and err.startswith("error: no-such-revision is not a commit (fatal: ")
    assert len(err.splitlines()) == 1
    code, _, err = compare(repository, "HEAD", "number=3")
    assert code == 2 and err == "error: no line of scripts/recipes has any of: number=3\n"
    (repository / "recipes/__init__.py").unlink()
    code, _, err = compare(repository, "HEAD")
    assert code == 2 and "working tree: expected " in err and len(err.splitlines()) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_nothing_is_left_when_it_is_stopped(repository: Path, number: signal.Signals) -> None:
    started = repository.parent / "started"
    (repository / "scripts/recipes").write_text(f"recipes.quick wait={started}\n")
    command = [sys.executable, repository / "scripts/loss_compare.py", "HEAD"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        while not started.exists():
            assert process.poll() is None
            time.sleep(0.01)
        os.kill(process.pid, number)
        _, err = process.communicate(timeout=20)
    assert process.returncode == 128 + number and err == b""
    assert list((repository.parent / "scratch").iterdir()) == []
    running = [each.info["cmdline"] or [] for each in psutil.process_iter(["cmdline"])]
    assert not any(f"wait={started}" in words for words in running)
