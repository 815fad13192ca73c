"""The Inspect logs of a run directory: which tasks are finished, and what can be continued."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote
from zipfile import BadZipFile

from inspect_ai import Task
from inspect_ai.log import (
    EvalLog,
    list_eval_logs,
    read_eval_log,
    read_eval_log_sample_summaries,
)

from tinker_cookbook.exceptions import EvalError
from tinker_cookbook.utils.error_text import one_line


class Found(NamedTuple):
    """What a directory has of some tasks, by name: complete logs, and those to continue."""

    complete: dict[str, EvalLog]
    unfinished: dict[str, EvalLog]


def find_logs(log_dir: Path, tasks: Sequence[Task]) -> Found:
    """The newest complete log of each task, or else the unfinished one with the most samples."""
    complete: dict[str, EvalLog] = {}
    unfinished: dict[str, tuple[tuple[int, str], str]] = {}  # (samples, date), file
    names = {task.name for task in tasks}
    for info in list_eval_logs(str(log_dir), descending=False) if log_dir.exists() else []:
        try:
            header = read_eval_log(info, header_only=True)
        except (ValueError, OSError, BadZipFile) as error:
            raise EvalError(
                f"{unquote(info.name.removeprefix('file://'))} is damaged ({one_line(error)}):"
                " remove it, and the same command evaluates its samples again"
            ) from error
        name = header.eval.task
        if name not in names:
            continue
        if header.status == "success":
            complete[name] = read_eval_log(info)
            continue
        # A run that continues another begins with a log of its own, so the newest may have less.
        summaries = read_eval_log_sample_summaries(info)
        done = sum(each.completed and each.error is None for each in summaries)
        key = done, header.eval.created
        if name not in unfinished or key > unfinished[name][0]:
            unfinished[name] = key, info.name
    return Found(
        complete,
        {
            name: read_eval_log(file)
            for name, (_, file) in unfinished.items()
            if name not in complete
        },
    )
