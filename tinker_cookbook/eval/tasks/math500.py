"""MATH-500: competition problems (see `math_problems.math500`)."""

from __future__ import annotations

from inspect_ai import Task, task

from tinker_cookbook.eval.tasks.boxed_answers import boxed_answers_task
from tinker_cookbook.math_problems.math500 import HUB, read_math500


@task
def math500(path: str = "hub", one_shot: bool = False) -> Task:
    """500 problems.

    path: "hub", another name on the hub, a directory with math500.jsonl, or a file. one_shot: show
    one solved problem before each question.
    """
    problems = read_math500(HUB if path == "hub" else path)
    return boxed_answers_task(problems, "math500", one_shot)
