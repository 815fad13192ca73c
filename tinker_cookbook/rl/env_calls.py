"""Calls of users' environments: bounded in time, and nothing that comes back is taken on trust.

Whatever goes wrong becomes a RolloutFailedError with a kind, one line for the user, and the cause.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import math
import traceback
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

import tinker

from tinker_cookbook.rl.limits import RolloutLimits
from tinker_cookbook.rl.rollout_progress import RolloutProgress
from tinker_cookbook.rl.rollout_strategy import RolloutFailedError
from tinker_cookbook.rl.types import Env, Metrics, RolloutError

T = TypeVar("T")
_TRACEBACK_LENGTH = 8000  # characters of a recorded traceback, its end


async def env_call(
    call: Callable[[], Awaitable[T]],
    where: str,
    limits: RolloutLimits,
    progress: RolloutProgress,
    kind: str = "env_error",
) -> T:
    """`await call()` for at most `env_timeout` seconds. where: its name for the user; kind: of the
    failure where it raises."""
    seconds = limits.env_timeout
    scope = asyncio.timeout(seconds)
    try:
        with progress.waiting(f"in {where}"):
            async with scope:
                return await call()
    except asyncio.CancelledError as error:
        if being_cancelled():
            raise
        # something that the environment awaited was
        raise failure(kind, f"{where} was cancelled from inside", error) from error
    except Exception as error:
        if isinstance(error, TimeoutError) and scope.expired():
            kind, reason = "env_timeout", f" took longer than env_timeout={seconds:g} seconds"
        else:
            reason = ": " + " ".join(f"{type(error).__name__}: {error}".split())
        raise failure(kind, where + reason, error) from error


def being_cancelled() -> bool:
    """Whether a CancelledError that we see is meant for us."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def failure(kind: str, message: str, cause: BaseException | None = None) -> RolloutFailedError:
    trace = "" if cause is None else "".join(traceback.format_exception(cause))
    return RolloutFailedError(
        RolloutError(kind=kind, message=message, traceback=trace[-_TRACEBACK_LENGTH:])
    )


def checked_number(value: Any, what: str, kind: str) -> float:
    """A finite number as a float: bools, numpy and torch scalars are numbers, text is not."""
    number = math.nan
    if hasattr(type(value), "__float__"):
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError, RuntimeError):
            number = math.nan
    if not math.isfinite(number):
        raise failure(kind, f"{what} is {value!r:.100}, expected a finite number")
    return number


def checked_metrics(metrics: Any, where: str) -> Metrics:
    checked: Metrics = {}
    for name, value in checked_dict(metrics, f"{where}: metrics").items():
        number = checked_number(value, f"{where}: metric {name!r}", "env_error")
        checked[str(name)] = value if type(value) is int else number
    return checked


def checked_dict(value: Any, what: str) -> dict[Any, Any]:
    if not isinstance(value, Mapping):
        raise failure("env_error", f"{what}: {found(value)}, expected a dict")
    return dict(value)


def checked_prompt(prompt: Any, what: str) -> tinker.ModelInput:
    if not isinstance(prompt, tinker.ModelInput):
        raise failure("env_error", f"{what} is {found(prompt)}, expected a ModelInput")
    if prompt.length < 1:
        raise failure("env_error", f"{what} is empty")
    return prompt


@functools.cache
def takes_extra(env_class: type[Env]) -> bool:
    """Whether its `step` has a place for `extra`."""
    parameters = inspect.signature(env_class.step).parameters
    return "extra" in parameters or any(
        parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()
    )


def found(value: Any) -> str:
    """A value as error messages show it."""
    return f"{type(value).__name__} {value!r:.60}"
