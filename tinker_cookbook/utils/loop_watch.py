"""Report when something blocks the event loop: then no rollout advances and no timeout fires."""

from __future__ import annotations

import asyncio
import linecache
import logging
import os
import sys
import sysconfig
import threading
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from types import FrameType, TracebackType

import tinker_cookbook
from tinker_cookbook.utils.loop_clock import LoopClock

logger = logging.getLogger(__name__)

_OURS = str(Path(tinker_cookbook.__file__).parent) + os.sep
_NOT_THE_USERS = (
    "<frozen",
    _OURS,
    *(sysconfig.get_path(name) + os.sep for name in ("stdlib", "platstdlib", "purelib", "platlib")),
)


class LoopWatch:
    """A watchdog thread for an event loop, as a context manager around the code that runs in it.

        with LoopWatch(progress.summary, journal.log_line):
            ...

    waits: describes what the loop's tasks wait for, "" for nothing. log_line: called with one line
    when the loop has not run for `seconds`, and again after twice that, four times that, ... Both
    are called from the watchdog thread.
    """

    def __init__(
        self, waits: Callable[[], str], log_line: Callable[[str], None], seconds: float = 30.0
    ) -> None:
        self._waits, self._log_line, self._seconds = waits, log_line, seconds
        self._ended = threading.Event()

    def __enter__(self) -> LoopWatch:
        clock, thread = LoopClock.of_running_loop(), threading.get_ident()
        self._ended.clear()
        threading.Thread(
            target=self._watch, args=(clock, thread), name="loop watch", daemon=True
        ).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()

    def _watch(self, clock: LoopClock, thread: int) -> None:
        next_word = self._seconds
        while not self._ended.wait(min(self._seconds / 10, 1.0)):
            blocked = clock.standstill()
            if blocked < self._seconds:
                next_word = self._seconds
            elif blocked >= next_word:
                next_word = 2 * blocked
                try:
                    self._log_line(self._message(blocked, thread))
                except Exception:  # e.g. a closed display; a failed warning must not end the run
                    logger.warning("could not report that the event loop is blocked", exc_info=True)

    def _message(self, blocked: float, thread: int) -> str:
        frame = sys._current_frames().get(thread)
        where = "" if frame is None else f" {_described(_users_frame(frame))}"
        waits = self._waits()
        return (
            f"nothing has moved for {blocked:.0f} s: the event loop is blocked{where}"
            + (f"; waiting: {waits}" if waits else "")
            + "; move the blocking call to a thread (utils.threads.in_thread)"
        )


def is_users_code(filename: str) -> bool:
    """Whether a source file belongs neither to Python, nor to an installed package, nor to us."""
    return not filename.startswith(_NOT_THE_USERS)


def _users_frame(innermost: FrameType) -> FrameType:
    """The innermost frame of user code; else the one that we called; else the innermost."""
    frames = list(_outwards(innermost))
    for frame in frames:
        if is_users_code(frame.f_code.co_filename):
            return frame
    for inner, frame in pairwise(frames):
        if frame.f_code.co_filename.startswith(_OURS):
            return inner
    return innermost


def _outwards(frame: FrameType | None) -> Iterator[FrameType]:
    """Walk outwards, up to the event loop: whatever started the loop does not block it."""
    while frame is not None and frame.f_code.co_filename != asyncio.events.__file__:
        yield frame
        frame = frame.f_back


def _described(frame: FrameType) -> str:
    code = frame.f_code
    line = linecache.getline(code.co_filename, frame.f_lineno).strip()
    return f"in {code.co_qualname}, {code.co_filename}:{frame.f_lineno}: {line}"
