"""Blocking functions beside an event loop."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import threading
from collections.abc import Callable
from typing import TypeVar, TypeVarTuple

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


async def in_thread(function: Callable[[*Ts], T], *args: *Ts) -> T:
    """`function(*args)` in a thread of its own.

    Unlike `asyncio.to_thread`, a call that hangs takes no worker from the others, and does not keep
    the program from ending.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()
    context = contextvars.copy_context()
    name = getattr(function, "__qualname__", "function")

    def answer(settle: Callable[[], None]) -> None:
        if not future.done():  # it may have been cancelled meanwhile
            settle()

    def run() -> None:
        try:
            settle = functools.partial(future.set_result, context.run(function, *args))
        except BaseException as error:
            if isinstance(error, StopIteration):  # which no future can carry
                error = RuntimeError(f"{name} raised StopIteration")
            settle = functools.partial(future.set_exception, error)
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(answer, settle)

    threading.Thread(target=run, name=f"in_thread {name}", daemon=True).start()
    return await future
