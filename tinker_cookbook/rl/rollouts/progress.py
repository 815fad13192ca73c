"""What the running rollouts wait for, so that a loop that waits for them can say so."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tinker_cookbook.utils.loop_clock import LoopClock


class RolloutProgress:
    """One for any number of groups that sample from one engine. `summary` may be called from
    another thread."""

    def __init__(self) -> None:
        self._numbers = itertools.count()
        self._waits: dict[int, tuple[str, float]] = {}  # what for, and since when
        self._alive_at = 0.0  # of the loop's clock

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Around an await: `what` it waits for, e.g. "env.step of MyEnv"."""
        number = next(self._numbers)
        self._waits[number] = what, time.monotonic()
        try:
            yield
        finally:
            del self._waits[number]

    def engine_answered(self) -> None:
        """A reply has come, or the engine has done something else: it is alive."""
        self._alive_at = LoopClock.of_running_loop().now()

    def silence(self) -> Callable[[], float]:
        """Measures the seconds in which the engine has answered no rollout at all, from now on."""
        clock = LoopClock.of_running_loop()
        began = clock.now()
        return lambda: clock.now() - max(began, self._alive_at)

    def summary(self) -> str:
        """E.g. "3 in env.step of MyEnv (longest 75 s), 12 sampling (longest 20 s)"; "" where
        nothing is waited for. What has taken longest comes first."""
        now = time.monotonic()
        seconds: dict[str, list[float]] = {}
        for what, since in list(self._waits.values()):
            seconds.setdefault(what, []).append(now - since)
        longest_first = sorted(seconds.items(), key=lambda item: -max(item[1]))
        return ", ".join(
            f"{len(each)} {what} (longest {max(each):.0f} s)" for what, each in longest_first
        )
