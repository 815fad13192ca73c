"""Calls into users' environments, with a time limit and validation of everything they return.

Every error becomes a RolloutFailedError with a kind, one line for the user, and its cause.
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

CANCEL_SECONDS = 1.0  # time that a cancelled call has to end
_CANCEL_ATTEMPTS = 3
_TRACEBACK_LENGTH = 8000  # characters; a recorded traceback keeps its end


class EnvCalls:
    """Run the calls into one environment or builder, each for at most `env_timeout` seconds.

    All calls run in one worker task, separate from the caller's. Resources bound to a task (an
    aiohttp session, an anyio cancel scope) can therefore be opened by one call and closed by
    another, and a call that ignores its cancellation can be abandoned.
    """

    def __init__(self, limits: RolloutLimits, progress: RolloutProgress) -> None:
        self._seconds, self._progress = limits.env_timeout, progress
        self._calls: asyncio.Queue[_Call | None] = asyncio.Queue()  # None: end of the queue
        self._worker: asyncio.Task[None] | None = None

    async def __call__(
        self, call: Callable[[], Awaitable[T]], where: str, kind: str = "env_error"
    ) -> T:
        """Return `await call()`.

        where: the call's name in messages. kind: the failure's kind if the call raises. Raises
        RolloutFailedError.
        """
        # The loop's own clock stands still while something blocks the loop, so one env that
        # blocks it does not use up the time limits of all others.
        clock = LoopClock.of_running_loop()
        began = clock.now()
        outcome: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        worker = self._running_worker()
        self._calls.put_nowait(functools.partial(_resolve_call, call, outcome))
        with self._progress.waiting(f"in {where}"):
            try:
                ended = {outcome, worker}
                in_time = await settled(ended, self._seconds, lambda: clock.now() - began)
            except asyncio.CancelledError:
                # The caller is cancelled, not the worker: without this the user's call would go
                # on running after its group has ended.
                await self._cancel(worker, outcome)
                raise
            if not in_time:
                message = f"{where} took longer than env_timeout={self._seconds:g} seconds"
                if not await self._cancel(worker, outcome):
                    message += " and ignores cancellation: it was abandoned"
                    logger.warning("%s", message)
                hung = _call_error(outcome)
                raise rollout_failure("env_timeout", message, hung) from hung
        error = _call_error(outcome)
        if error is None:
            return outcome.result()
        # Our own cancellation is raised above. This one comes from something that the environment
        # awaited; passed on as a CancelledError, it would look like a stop of the whole run.
        if isinstance(error, asyncio.CancelledError):
            raise rollout_failure(kind, f"{where} was cancelled from inside", error) from error
        if isinstance(error, Exception):
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise rollout_failure(kind, f"{where}: {reason}", error) from error
        raise error

    async def close(self) -> None:
        """End the worker task. A later call starts a new one."""
        if self._worker is not None and not self._worker.done():
            self._calls.put_nowait(None)
            await asyncio.wait({self._worker})

    def _running_worker(self) -> asyncio.Task[None]:
        if self._worker is None or self._worker.done():
            self._calls = asyncio.Queue()
            self._worker = asyncio.create_task(_run_calls(self._calls))
        return self._worker

    async def _cancel(self, worker: asyncio.Task[None], outcome: asyncio.Future[T]) -> bool:
        """Cancel the running call; return whether it ended."""
        for _ in range(_CANCEL_ATTEMPTS):  # a call may swallow the first CancelledError
            worker.cancel()
            ended, _ = await asyncio.wait(
                {outcome, worker}, timeout=CANCEL_SECONDS, return_when=asyncio.FIRST_COMPLETED
            )
            if ended:
                _call_error(outcome)  # marks the exception as retrieved, or asyncio logs a warning
                return True
        self._worker = None
        outcome.cancel()
        abandon_task(worker)
        return False


_Call = Callable[[], Awaitable[bool]]  # runs a call; returns whether the caller still waits


def _call_error(outcome: asyncio.Future[T]) -> BaseException | None:
    if outcome.cancelled() or not outcome.done():
        return asyncio.CancelledError()
    return outcome.exception()


async def _run_calls(calls: asyncio.Queue[_Call | None]) -> None:
    task = asyncio.current_task()
    assert task is not None
    while (call := await calls.get()) is not None:
        if not await call():
            return
        # The cancellation was meant for that call alone. A count left over would make the next
        # call's `asyncio.timeout` or `TaskGroup` take its own cancellation for one from outside.
        while task.cancelling():
            task.uncancel()


async def _resolve_call(call: Callable[[], Awaitable[T]], outcome: asyncio.Future[T]) -> bool:
    """Run the call and store its result or exception; return whether the caller still waits."""
    try:
        result = await call()
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        if not outcome.done():
            outcome.set_exception(error)
    else:
        if not outcome.done():
            outcome.set_result(result)
    return not outcome.cancelled()


def is_being_cancelled() -> bool:
    """Whether a CancelledError just caught was meant for the current task."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def rollout_failure(
    kind: str, message: str, cause: BaseException | None = None
) -> RolloutFailedError:
    """Build a RolloutFailedError. The innermost line of the user's code is appended to
    `message`."""
    trace = "" if cause is None else "".join(traceback.format_exception(cause))
    frames = [] if cause is None else traceback.extract_tb(cause.__traceback__)
    user_frames = [frame for frame in frames if is_users_code(frame.filename)]
    if user_frames:
        message += f" ({user_frames[-1].filename}:{user_frames[-1].lineno})"
    return RolloutFailedError(
        RolloutError(kind=kind, message=message, traceback=trace[-_TRACEBACK_LENGTH:])
    )


# Values returned by environments: annotated with the documented types, which users' code need not
# follow. A wrong value is caught here, where the error can still name the environment.


def require_number(value: float, what: str, kind: str) -> float:
    """Return a finite float. Accepts bools, numpy and torch scalars, but not strings."""
    number = math.nan
    if hasattr(type(value), "__float__"):
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError, RuntimeError):
            number = math.nan
    if not math.isfinite(number):
        raise rollout_failure(kind, f"{what} is {value!r:.100}, expected a finite number")
    return number


def require_metrics(metrics: Metrics, where: str) -> Metrics:
    checked: Metrics = {}
    for name, value in require_dict(metrics, f"{where}: metrics").items():
        number = require_number(value, f"{where}: metric {name!r}", "env_error")
        checked[str(name)] = value if type(value) is int else number
    return checked


def require_dict(value: dict[str, V], what: str) -> dict[str, V]:
    if not isinstance(value, Mapping):
        raise rollout_failure("env_error", f"{what}: {describe_value(value)}, expected a dict")
    return dict(value)


def require_prompt(prompt: tinker.ModelInput, what: str) -> tinker.ModelInput:
    if not isinstance(prompt, tinker.ModelInput):
        raise rollout_failure(
            "env_error", f"{what} is {describe_value(prompt)}, expected a ModelInput"
        )
    if prompt.length < 1:
        raise rollout_failure("env_error", f"{what} is empty")
    return prompt


@functools.cache
def takes_extra(env_class: type[Env]) -> bool:
    """Whether the signature of `step` accepts `extra`."""
    parameters = inspect.signature(env_class.step).parameters
    return "extra" in parameters or any(
        parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()
    )


def describe_value(value: object) -> str:  # object: anything an environment may return
    """Type and truncated repr of a value, for error messages."""
    return f"{type(value).__name__} {value!r:.60}"
