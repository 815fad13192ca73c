"""Calls of users' environments: bounded in time, and nothing that comes back is taken on trust.

Whatever goes wrong becomes a RolloutFailedError with a kind, one line for the user, and the cause.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
import math
import traceback
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

import tinker

from tinker_cookbook.rl.rollouts.limits import RolloutLimits
from tinker_cookbook.rl.rollouts.progress import RolloutProgress
from tinker_cookbook.rl.rollouts.strategy import RolloutFailedError
from tinker_cookbook.rl.types import Env, Metrics, RolloutError
from tinker_cookbook.utils.loop_clock import LoopClock, settled
from tinker_cookbook.utils.loop_watch import is_users_code
from tinker_cookbook.utils.private_apis import abandon_task

T = TypeVar("T")
V = TypeVar("V")
logger = logging.getLogger(__name__)

CANCEL_SECONDS = 1.0  # for a call to end after it was cancelled
_CANCEL_ATTEMPTS = 3
_TRACEBACK_LENGTH = 8000  # characters of a recorded traceback, its end


class EnvCalls:
    """The calls of one environment or builder, each for at most `env_timeout` seconds.

    All run in one task that is not the caller's: what a call opens (a session, a cancel scope),
    another may close, and a call that does not even end when it is cancelled can be left behind.
    """

    def __init__(self, limits: RolloutLimits, progress: RolloutProgress) -> None:
        self._seconds, self._progress = limits.env_timeout, progress
        self._calls: asyncio.Queue[_Call | None] = asyncio.Queue()  # None: no more come
        self._worker: asyncio.Task[None] | None = None

    async def __call__(
        self, call: Callable[[], Awaitable[T]], where: str, kind: str = "env_error"
    ) -> T:
        """`await call()`. where: its name for the user; kind: of the failure where it raises."""
        clock = LoopClock.of_running_loop()
        began = clock.now()
        answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        worker = self._working()
        self._calls.put_nowait(functools.partial(_answer, call, answer))
        with self._progress.waiting(f"in {where}"):
            try:
                ended = {answer, worker}
                in_time = await settled(ended, self._seconds, lambda: clock.now() - began)
            except asyncio.CancelledError:
                await self._cancel(worker, answer)
                raise
            if not in_time:
                message = f"{where} took longer than env_timeout={self._seconds:g} seconds"
                if not await self._cancel(worker, answer):
                    message += " and cannot be cancelled: it is left behind"
                    logger.warning("%s", message)
                hung = _error(answer)
                raise failure("env_timeout", message, hung) from hung
        error = _error(answer)
        if error is None:
            return answer.result()
        if isinstance(error, asyncio.CancelledError):  # something that the environment awaited was
            raise failure(kind, f"{where} was cancelled from inside", error) from error
        if isinstance(error, Exception):
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise failure(kind, f"{where}: {reason}", error) from error
        raise error

    async def close(self) -> None:
        """Ends the task; calls may be made again."""
        if self._worker is not None and not self._worker.done():
            self._calls.put_nowait(None)
            await asyncio.wait({self._worker})

    def _working(self) -> asyncio.Task[None]:
        if self._worker is None or self._worker.done():
            self._calls = asyncio.Queue()
            self._worker = asyncio.create_task(_work(self._calls))
        return self._worker

    async def _cancel(self, worker: asyncio.Task[None], answer: asyncio.Future[T]) -> bool:
        """Whether the running call could be ended."""
        for _ in range(_CANCEL_ATTEMPTS):  # one that swallows the first may end at the second
            worker.cancel()
            ended, _ = await asyncio.wait(
                {answer, worker}, timeout=CANCEL_SECONDS, return_when=asyncio.FIRST_COMPLETED
            )
            if ended:
                _error(answer)  # or asyncio would complain that nobody looked
                return True
        self._worker = None
        answer.cancel()
        abandon_task(worker)
        return False


_Call = Callable[[], Awaitable[bool]]  # makes it; whether anybody still waits


def _error(answer: asyncio.Future[T]) -> BaseException | None:
    if answer.cancelled() or not answer.done():
        return asyncio.CancelledError()
    return answer.exception()


async def _work(calls: asyncio.Queue[_Call | None]) -> None:
    task = asyncio.current_task()
    assert task is not None
    while (call := await calls.get()) is not None:
        if not await call():
            return
        while task.cancelling():  # the cancellation was for this call
            task.uncancel()


async def _answer(call: Callable[[], Awaitable[T]], answer: asyncio.Future[T]) -> bool:
    """Whether anybody still waits."""
    try:
        result = await call()
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        if not answer.done():
            answer.set_exception(error)
    else:
        if not answer.done():
            answer.set_result(result)
    return not answer.cancelled()


def being_cancelled() -> bool:
    """Whether a CancelledError that we see is meant for us."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def failure(kind: str, message: str, cause: BaseException | None = None) -> RolloutFailedError:
    """message: for the user, who is told the line of their own code behind it."""
    trace = "" if cause is None else "".join(traceback.format_exception(cause))
    frames = [] if cause is None else traceback.extract_tb(cause.__traceback__)
    theirs = [frame for frame in frames if is_users_code(frame.filename)]
    if theirs:
        message += f" ({theirs[-1].filename}:{theirs[-1].lineno})"
    return RolloutFailedError(
        RolloutError(kind=kind, message=message, traceback=trace[-_TRACEBACK_LENGTH:])
    )


# What environments give back: annotated as they should, checked because they may not


def checked_number(value: float, what: str, kind: str) -> float:
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


def checked_metrics(metrics: Metrics, where: str) -> Metrics:
    checked: Metrics = {}
    for name, value in checked_dict(metrics, f"{where}: metrics").items():
        number = checked_number(value, f"{where}: metric {name!r}", "env_error")
        checked[str(name)] = value if type(value) is int else number
    return checked


def checked_dict(value: dict[str, V], what: str) -> dict[str, V]:
    if not isinstance(value, Mapping):
        raise failure("env_error", f"{what}: {found(value)}, expected a dict")
    return dict(value)


def checked_prompt(prompt: tinker.ModelInput, what: str) -> tinker.ModelInput:
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


def found(value: object) -> str:  # whatever an environment gave
    """A value as error messages show it."""
    return f"{type(value).__name__} {value!r:.60}"
