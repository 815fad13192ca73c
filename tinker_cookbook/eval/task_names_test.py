"""Tasks by name, and one-line errors for those that cannot be made."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
from inspect_ai import Task

from tinker_cookbook.eval import registry
from tinker_cookbook.eval import tasks as local_tasks
from tinker_cookbook.eval.task_names import make_tasks, task_name
from tinker_cookbook.eval.testing import sums
from tinker_cookbook.exceptions import ConfigurationError, EvalError

SUMS = "tinker_cookbook.eval.testing:sums"
FILE = """
from inspect_ai import Task, task
from inspect_ai.dataset import Sample

@task
def one(answer: str = "a") -> Task:
    return Task(dataset=[Sample(input="?", target=answer)])

@task
def two() -> Task:
    return Task(dataset=[Sample(input="?"), Sample(input="!")])
"""


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "my_tasks.py"
    path.write_text(FILE)
    return str(path)


def lengths(made: list[Task]) -> dict[str, int]:
    return {task_name(task.name): len(task.dataset) for task in made}


def test_every_way_to_name_a_task(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(local_tasks.LOCAL, "sums", "tinker_cookbook.eval.testing")
    assert lengths(make_tasks(["sums"])) == {"sums": 6}
    assert lengths(make_tasks([SUMS], {"count": 3})) == {"sums": 3}
    importlib.reload(registry)  # as Inspect loads it through the entry point
    assert lengths(make_tasks(["tinker_cookbook/sums"], {"count": 2})) == {"sums": 2}
    assert lengths(make_tasks([sums, f"{file}@two"], {"count": 3})) == {"sums": 3, "two": 2}
    assert lengths(make_tasks([sums(4), file], {"answer": "b"})) == {"sums": 4, "one": 1, "two": 2}
    (one,) = make_tasks([f"{file}@one"], {"answer": "b"})
    assert one.dataset[0].target == "b"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("absent.py", "there is no file absent.py"),
        ("absent_module:f", "no module 'absent_module' in the working directory or installed"),
        ("tinker_cookbook.eval.testing:absent", "has no function 'absent'"),
        ("tinker_cookbook.eval.testing:scripted_model", "task_args for .*: missing a required"),
        ("inspect_evals/gsm8k", "python -m pip install inspect-evals"),
        ("smus", r"tasks=smus is unknown \(did you mean .*sums"),
    ],
)
def test_unknown_tasks(spec: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(local_tasks.LOCAL, "sums", "tinker_cookbook.eval.testing")
    with pytest.raises(ConfigurationError, match=message) as caught:
        make_tasks([spec])
    assert "\n" not in str(caught.value)


def test_what_a_file_may_lack(file: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"my_tasks\.py has no task 'three'"):
        make_tasks([f"{file}@three"])
    empty = tmp_path / "empty.py"
    empty.write_text("x = 1\n")
    with pytest.raises(ConfigurationError, match="no function decorated with @task"):
        make_tasks([str(empty)])
    broken = tmp_path / "broken.py"
    broken.write_text("from inspect_ai import task\n@task\ndef f(:\n")
    with pytest.raises(ConfigurationError, match=r"broken.py:3: "):
        make_tasks([str(broken)])
    needy = tmp_path / "needy.py"
    needy.write_text(FILE + "\nimport absent_package.part\n")
    with pytest.raises(EvalError, match="needs the package absent_package, which is not installed"):
        make_tasks([str(needy)])


def test_arguments_and_names() -> None:
    with pytest.raises(ConfigurationError, match="no task has an argument 'path'; they have count"):
        make_tasks([SUMS], {"path": "x"})
    with pytest.raises(ConfigurationError, match="two of them are named 'sums'"):
        make_tasks([SUMS, sums(2)])
    with pytest.raises(ConfigurationError, match="tasks is empty"):
        make_tasks([])
