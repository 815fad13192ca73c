"""Track what running rollouts wait for, so that a waiting loop can report it."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tinker_cookbook.utils.loop_clock import LoopClock


class RolloutProgress:
    """Shared by all groups that sample from one engine. `summary` may be called from another
    thread."""

    def __init__(self) -> None:
        self._numbers = itertools.count()
        self._waits: dict[int, tuple[str, float]] = {}  # reason and start (time.monotonic) of each
        self._last_answer_at = 0.0  # LoopClock seconds

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Register a wait for the duration of the block; `what`: e.g. "in env.step of MyEnv"."""
        number = next(self._numbers)
        self._waits[number] = what, time.monotonic()
        try:
            yield
        finally:
            del self._waits[number]

    def engine_answered(self) -> None:
        """Note that the engine has just answered a request of any kind."""
        self._last_answer_at = LoopClock.of_running_loop().now()

    def silence_timer(self) -> Callable[[], float]:
        """Return a timer: seconds since the engine's last answer, or since this call if later.

        Measured with the loop's clock, so that a blocked event loop does not count as an engine
        that does not answer.
        """
        clock = LoopClock.of_running_loop()
        began = clock.now()
        return lambda: clock.now() - max(began, self._last_answer_at)

    def summary(self) -> str:
        """E.g. "3 in env.step of MyEnv (longest 75 s), 12 sampling (longest 20 s)", longest first;
        "" if there are no waits."""
        now = time.monotonic()
        seconds: dict[str, list[float]] = {}
        for what, since in list(self._waits.values()):  # a copy: the loop's thread may change it
            seconds.setdefault(what, []).append(now - since)
        longest_first = sorted(seconds.items(), key=lambda item: -max(item[1]))
        return ", ".join(
            f"{len(waits)} {what} (longest {max(waits):.0f} s)" for what, waits in longest_first
        )
