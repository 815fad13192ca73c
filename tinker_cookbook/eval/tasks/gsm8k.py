"""GSM8K: grade-school word problems (see `math_problems.gsm8k`)."""

from __future__ import annotations

from typing import Literal

from inspect_ai import Task, task

from tinker_cookbook.eval.tasks.boxed_answers import boxed_answers_task
from tinker_cookbook.math_problems.gsm8k import HUB, read_gsm8k


@task
def gsm8k(
    path: str = "hub", split: Literal["train", "test"] = "test", one_shot: bool = False
) -> Task:
    """The test split, 1,319 problems.

    path: "hub", another name on the hub, a directory with test.jsonl, or a file. one_shot: show one
    solved problem before each question.
    """
    problems = read_gsm8k(HUB if path == "hub" else path, split)
    return boxed_answers_task(problems, "gsm8k", one_shot)
