"""Running Inspect tasks on a model, and the metrics of their logs."""

from __future__ import annotations

import asyncio
import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from weakref import WeakKeyDictionary

from inspect_ai import Epochs, Task, eval_async, eval_retry_async
from inspect_ai._util.logger import init_logger
from inspect_ai.log import EvalLog, EvalSample, EvalScore
from inspect_ai.model import Model
from inspect_ai.scorer import CORRECT, INCORRECT, NOANSWER
from inspect_ai.util._display import init_display_type  # `eval_async` leaves it to its caller

from tinker_cookbook.eval.inspect_config import check_config
from tinker_cookbook.eval.task_names import task_name
from tinker_cookbook.exceptions import EvalError
from tinker_cookbook.utils.error_text import one_line
from tinker_cookbook.utils.misc_utils import counted

InspectDisplay = Literal["rich", "plain", "none"]
# Inspect allows one evaluation at a time in a process; a lock belongs to one event loop.
_LOCKS: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = WeakKeyDictionary()


@dataclass(frozen=True)
class EvaluationSettings:
    """How tasks are run. `generate`: settings that replace the tasks' own, by Inspect's names.

    limit: samples of each task, from the first (None: all). epochs: replies to each sample (None:
    the task's own number). ks: the k of pass@k, computed beside the mean; empty: the task's own way
    to combine the epochs. allow_failures: failed samples leave the log complete. resumable: keep
    what a killed process has finished.
    """

    limit: int | None = None
    epochs: int | None = None
    ks: Sequence[int] = ()
    display: InspectDisplay = "none"
    allow_failures: bool = False
    resumable: bool = False
    generate: Mapping[str, Any] = field(default_factory=dict)

    def epochs_and_reducers(self) -> Epochs | int | None:
        if not self.ks:
            return self.epochs
        return Epochs(self.epochs or max(self.ks), ["mean", *(f"pass_at_{k}" for k in self.ks)])


async def evaluate(
    tasks: Sequence[Task], model: Model, log_dir: Path, settings: EvaluationSettings
) -> list[EvalLog]:
    """Run all tasks at once; their logs, in order. Failed samples are in them, see `num_failed`.

    Raises EvalError for a task without a single result, and CancelledError if the evaluation is
    cancelled, where Inspect itself returns the logs of what was done.
    """
    for task in tasks:
        check_config(task.config)
    async with _one_at_a_time():
        _init_inspect(settings.display)
        logs = await eval_async(
            list(tasks),
            model=[model],
            log_dir=str(log_dir),
            limit=settings.limit,
            epochs=settings.epochs_and_reducers(),
            max_tasks=len(tasks),
            # all samples are tried, also after one has failed
            fail_on_error=not settings.allow_failures,
            continue_on_fail=True,
            log_realtime=settings.resumable,
            score_display=settings.display == "rich",  # a plain line would show outdated metrics
            ctl_server=False,  # no socket, and no line about it
            **settings.generate,
        )
    return _checked(logs, len(tasks))


async def evaluate_rest(
    unfinished: Sequence[EvalLog], log_dir: Path, settings: EvaluationSettings
) -> list[EvalLog]:
    """Run the samples that are missing or failed in these logs, with the settings stored there;
    the complete logs, in order. The tasks are known to Inspect, i.e. made in this process."""
    async with _one_at_a_time():
        _init_inspect(settings.display)
        logs = await eval_retry_async(
            list(unfinished),
            log_dir=str(log_dir),
            fail_on_error=not settings.allow_failures,
            score_display=settings.display == "rich",
            ctl_server=False,
        )
    return _checked(logs, len(unfinished))


def _one_at_a_time() -> asyncio.Lock:
    return _LOCKS.setdefault(asyncio.get_running_loop(), asyncio.Lock())


def _init_inspect(display: InspectDisplay) -> None:
    """Choose Inspect's display, and keep the run's logging as it is: Inspect would silence the
    lines of other packages below a warning, from its first evaluation on."""
    init_display_type(display)
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    init_logger(None)
    root.setLevel(level)
    root.handlers[:] = handlers


def _checked(logs: Sequence[EvalLog], expected: int) -> list[EvalLog]:
    """Raise if the evaluation was cancelled, and if a task or all of its samples failed."""
    if len(logs) < expected or any(log.status == "cancelled" for log in logs):
        raise asyncio.CancelledError("the evaluation was cancelled")
    for log in logs:
        count, samples = num_failed(log), log.samples or []
        # with status "error" but no failed sample, the task failed, e.g. its metric
        if (count and count == len(samples)) or (not count and log.status != "success"):
            reason = first_error(log) or (log.error.message if log.error else log.status)
            raise EvalError(f"{task_name(log.eval.task)}: {_short(reason)} (log: {log.location})")
    return list(logs)


def num_failed(log: EvalLog) -> int:
    """How many samples ended in an error and have no score."""
    return sum(sample.error is not None for sample in log.samples or [])


def num_scored(log: EvalLog) -> int:
    return sum(bool(sample.scores) and sample.error is None for sample in log.samples or [])


def first_error(log: EvalLog) -> str | None:
    errors = (sample.error.message for sample in log.samples or [] if sample.error is not None)
    error = next(errors, None)
    return None if error is None else _short(error)


def failures_line(log: EvalLog) -> str | None:
    """One line about the samples that failed; None if there are none."""
    if not (failed := num_failed(log)):
        return None
    return (
        f"{task_name(log.eval.task)}: {failed} of {counted(len(log.samples or []), 'sample')}"
        f" failed and have no score; the first: {first_error(log)}"
    )


def _short(error: str) -> str:
    """The message of an exception's repr, as Inspect stores it, in one line."""
    match = re.fullmatch(r"\w+\((['\"])(.*)\1\)", error.strip(), re.DOTALL)
    return one_line(match[2] if match else error, 400)


def evaluation_metrics(logs: Sequence[EvalLog]) -> dict[str, float]:
    """The metrics of each task: `<task>/<metric>`, in a task with several scores
    `<task>/<score>/<metric>`; pass@k is `<task>/pass@4`, its standard error
    `<task>/pass@4_stderr`.

    And the counts `<task>/num_samples` (replies to a sample in several epochs are as many samples),
    `<task>/failed`, `<task>/truncated` (ended by the token limit or the context) and
    `<task>/output_tokens`. Metrics that are not finite are left out, and pass@k of scores other
    than right and wrong, for which it is not defined.
    """
    metrics: dict[str, float] = {}
    for log in logs:
        task = task_name(log.eval.task)
        scores = log.results.scores if log.results else []
        several = len({score.name for score in scores}) > 1
        graded = {name for name in {score.scorer for score in scores} if not _is_binary(log, name)}
        for score in scores:
            if score.scorer in graded and (score.reducer or "").startswith("pass_at_"):
                continue
            prefix = f"{task}/{score.name}" if several else task
            for name, value in _metrics_of(score).items():
                metrics[f"{prefix}/{name}"] = value
        samples = log.samples or []
        metrics[f"{task}/num_samples"] = len(samples)
        metrics[f"{task}/failed"] = num_failed(log)
        metrics[f"{task}/truncated"] = sum(map(_is_truncated, samples))
        metrics[f"{task}/output_tokens"] = num_output_tokens(log)
    return metrics


def _is_binary(log: EvalLog, scorer: str) -> bool:
    """Whether all values of a scorer are right or wrong."""
    values: list[Any] = []
    for sample in log.samples or []:
        if scorer in (scores := sample.scores or {}):
            value = scores[scorer].value
            values += value.values() if isinstance(value, dict) else [value]
    return all(value in (CORRECT, INCORRECT, NOANSWER, 0, 1) for value in values)


def num_output_tokens(log: EvalLog) -> int:
    """How many tokens were sampled, by graders as well."""
    usages = (usage for sample in log.samples or [] for usage in sample.model_usage.values())
    return sum(usage.output_tokens for usage in usages)


def _is_truncated(sample: EvalSample) -> bool:
    choices = sample.output.choices
    return bool(choices) and choices[0].stop_reason in ("max_tokens", "model_length")


def _metrics_of(score: EvalScore) -> dict[str, float]:
    values = {name: float(metric.value) for name, metric in score.metrics.items()}
    return {
        _metric_name(name, score.reducer): value
        for name, value in values.items()
        if math.isfinite(value)
    }


def _metric_name(metric: str, reducer: str | None) -> str:
    if reducer in (None, "mean"):
        return metric
    if match := re.fullmatch(r"pass_at_(\d+)", reducer or ""):
        name = f"pass@{match[1]}"
        return name if metric in ("accuracy", "mean") else f"{name}_{metric}"
    return f"{reducer}/{metric}"
