"""What the running rollouts wait for, so that a loop that waits for them can say so."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager


class RolloutProgress:
    """One for any number of groups. `summary` may be called from another thread."""

    def __init__(self) -> None:
        self._numbers = itertools.count()
        self._waits: dict[int, tuple[str, float]] = {}  # what for, and since when

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Around an await: `what` it waits for, e.g. "env.step of MyEnv"."""
        number = next(self._numbers)
        self._waits[number] = what, time.monotonic()
        try:
            yield
        finally:
            del self._waits[number]

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
