"""The results of an evaluation as a table for people."""

from __future__ import annotations

import io
from collections.abc import Sequence

from inspect_ai.log import EvalLog
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from tinker_cookbook.eval.running import evaluation_metrics, num_scored
from tinker_cookbook.eval.task_names import task_name

_COUNTS = ("num_samples", "failed", "truncated", "output_tokens")


def results_lines(logs: Sequence[EvalLog], width: int = 100) -> list[str]:
    """A table with a line for each metric, its standard error behind it."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in ("task", "metric", "value", "scored", "failed", "truncated", "tokens"):
        left = name in ("task", "metric")
        table.add_column(name, justify="left" if left else "right", overflow="fold")
    for log in logs:
        task = task_name(log.eval.task)
        prefix = f"{task}/"
        metrics = {
            name.removeprefix(prefix): value for name, value in evaluation_metrics([log]).items()
        }
        total, failed, *others = [f"{metrics.pop(name):,.0f}" for name in _COUNTS]
        scored = total if failed == "0" else f"{num_scored(log):,} of {total}"
        counts = [scored, failed, *others]
        shown = {name: value for name, value in metrics.items() if not _is_error(name)}
        for i, (name, value) in enumerate(shown.items()):
            error = metrics.get(_error_of(name))
            text = f"{value:.4g}" if error is None else f"{value:.3f} ± {error:.3f}"
            table.add_row(*([task] if i == 0 else [""]), name, text, *(counts if i == 0 else []))
        if not shown:
            table.add_row(task, "no score", "", *counts)
    text = io.StringIO()
    Console(file=text, width=width, color_system=None).print(table)
    return [line.rstrip() for line in text.getvalue().splitlines() if line.strip()]


def _is_error(name: str) -> bool:
    return name.endswith("stderr")


def _error_of(name: str) -> str:
    """The metric that holds the standard error: of the accuracy or mean, or of another metric."""
    before, slash, last = name.rpartition("/")
    return f"{before}{slash}stderr" if last in ("accuracy", "mean") else f"{name}_stderr"
