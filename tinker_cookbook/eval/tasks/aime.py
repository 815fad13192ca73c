"""AIME 2024, 2025 and 2026: 30 competition problems a year (see `math_problems.aime`).

The same functions with another `path` read any copy of `math_problems.aime.HUB` of that year. For
pass@k, evaluate each problem several times.
"""

from __future__ import annotations

from inspect_ai import Task, task

from tinker_cookbook.eval.tasks.boxed_answers import boxed_answers_task
from tinker_cookbook.math_problems.aime import Year, read_aime


@task
def aime2024(path: str = "hub", one_shot: bool = False) -> Task:
    """path: "hub", another name on the hub, a directory with aime2024.jsonl, or a file."""
    return _aime("2024", path, one_shot)


@task
def aime2025(path: str = "hub", one_shot: bool = False) -> Task:
    """path: "hub", another name on the hub, a directory with aime2025.jsonl, or a file."""
    return _aime("2025", path, one_shot)


@task
def aime2026(path: str = "hub", one_shot: bool = False) -> Task:
    """path: "hub", another name on the hub, a directory with aime2026.jsonl, or a file."""
    return _aime("2026", path, one_shot)


def _aime(year: Year, path: str, one_shot: bool) -> Task:
    return boxed_answers_task(read_aime(path, year), f"aime{year}", one_shot)
