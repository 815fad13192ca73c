"""Timeouts measured in time during which the event loop was running.

An environment that blocks the thread for minutes stops all others, which must not time out because
of it. So timeouts use a clock that stands still while the loop is blocked.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any
from weakref import WeakKeyDictionary

BEAT_SECONDS = 0.1


class LoopClock:
    """The clock of one event loop (`of_running_loop`); it ticks until the loop is closed."""

    def __init__(self) -> None:
        self._now = self._last = time.monotonic()

    @staticmethod
    def of_running_loop() -> LoopClock:
        loop = asyncio.get_running_loop()
        if loop not in _CLOCKS:
            _CLOCKS[loop] = LoopClock()
            _CLOCKS[loop]._beat()
        return _CLOCKS[loop]

    def now(self) -> float:
        """Seconds; a blocked loop adds at most two ticks."""
        return self._now + min(time.monotonic() - self._last, 2 * BEAT_SECONDS)

    def standstill(self) -> float:
        """Seconds since the last tick. May be called from another thread."""
        return time.monotonic() - self._last

    def _beat(self) -> None:
        self._now, self._last = self.now(), time.monotonic()
        asyncio.get_running_loop().call_later(BEAT_SECONDS, self._beat)


_CLOCKS: WeakKeyDictionary[asyncio.AbstractEventLoop, LoopClock] = WeakKeyDictionary()


async def settled(
    futures: Iterable[asyncio.Future[Any]], seconds: float, spent: Callable[[], float]
) -> bool:
    """Wait for the first of `futures`; False if `spent()` reaches `seconds` first."""
    waited_for = set(futures)
    while not any(future.done() for future in waited_for):
        left = seconds - spent()
        if left <= 0:
            return False
        await asyncio.wait(waited_for, timeout=left, return_when=asyncio.FIRST_COMPLETED)
    return True


@asynccontextmanager
async def bounded(seconds: float, spent: Callable[[], float]) -> AsyncIterator[asyncio.Timeout]:
    """Like `asyncio.timeout`, but expires when `spent()`, which may decrease, reaches `seconds`."""
    loop = asyncio.get_running_loop()

    def check() -> None:
        nonlocal timer
        left = seconds - spent()
        if left <= 0:
            scope.reschedule(loop.time())
        else:
            timer = loop.call_later(left, check)

    timer = loop.call_later(seconds, check)
    try:
        async with asyncio.timeout(None) as scope:
            yield scope
    finally:
        timer.cancel()
