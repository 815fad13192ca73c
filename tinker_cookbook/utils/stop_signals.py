"""SIGINT, SIGTERM and SIGHUP: the first one stops a program gracefully, the second at once."""

from __future__ import annotations

import _thread
import logging
import os
import signal
import stat
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import IO

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_GRACE_SECONDS = 2.0  # time to clean up once everything is saved
# A wrapper forwards a Ctrl-C that the terminal has already sent to every process of the group; such
# a repetition comes faster than a person can press the keys again.
_ECHO_SECONDS = 0.1
_DEFAULT_WORDS = "stopped; run the same command to resume"


class Stopped(SystemExit):
    """Raised to end a program after a stop signal, with exit code 128 + signal number."""

    def __init__(self, number: signal.Signals, message: str) -> None:
        super().__init__(128 + number)
        self.message = message


class StopSignals:
    """The stop signal received, if any, and the handlers to notify: see `handled` and `watch`."""

    def __init__(self) -> None:
        self.requested: signal.Signals | None = None
        self._requested_at = 0.0
        self._said_last = False
        self._watchers: list[tuple[Callable[[], str], Callable[[], None]]] = []

    @contextmanager
    def watch(self, describe: Callable[[], str], act: Callable[[], None]) -> Iterator[None]:
        """In the block, the first signal prints `describe()` and calls `act()`.

        Both run inside the signal handler, between any two instructions of the main thread, so they
        must not take locks or print. With nested blocks the first one, which belongs to the program
        itself, is notified only if there is no other: a run that can be saved takes precedence.
        """
        watcher = describe, act
        self._watchers.append(watcher)
        try:
            yield
        finally:
            self._watchers.remove(watcher)

    def end_soon(
        self, last_words: str = _DEFAULT_WORDS, unless: Callable[[], bool] = lambda: False
    ) -> None:
        """Everything is saved: end the process after the grace period, even if something hangs.

        Python would wait for threads that compute, and they cannot be stopped from outside. Ending
        them is safe, because everything a run keeps is written atomically. unless: checked when
        the time is up; True cancels the exit.
        """

        def end() -> None:
            time.sleep(_GRACE_SECONDS)
            if not unless():
                self._end(self.requested, last_words)

        # not a `threading.Timer`: the signal may have arrived while a lock of `threading` was held
        _thread.start_new_thread(end, ())

    def say_last(self, words: str) -> None:
        if not self._said_last:
            self._said_last = True
            _write_now(f"{words}\n")

    def stopped(self, message: str = _DEFAULT_WORDS) -> Stopped:
        """The exception to raise for the signal received."""
        assert self.requested is not None, "no signal was received"
        return Stopped(self.requested, message)

    def _handle(self, number: int, frame: types.FrameType | None) -> None:
        if number == signal.SIGHUP:
            for stream in (sys.stdout, sys.stderr):
                if _is_gone(stream):
                    discard(stream)
        if self.requested is None:
            self.requested, self._requested_at = signal.Signals(number), time.monotonic()
            self._tell()
        # a shell that loses its terminal sends SIGHUP twice
        elif number != signal.SIGHUP and time.monotonic() - self._requested_at > _ECHO_SECONDS:
            self._end(signal.Signals(number), "ended at once; the same command resumes")

    def _tell(self) -> None:
        assert self.requested is not None
        told = self._watchers[1:] or self._watchers
        what = "; ".join(describe() for describe, _ in told) or "stopping"
        _write_now(f"{self.requested.name}: {what}; a second Ctrl-C or signal ends it at once\n")
        for _, act in told:
            act()
        if not told:
            self.end_soon()
            raise KeyboardInterrupt if self.requested == signal.SIGINT else self.stopped()

    def _end(self, number: signal.Signals | None, last_words: str) -> None:
        with suppress(Exception):
            if sys.stdout.isatty():  # a live display may have hidden the cursor; show it again
                os.write(sys.stdout.fileno(), b"\x1b[?25h")
        self.say_last(last_words)
        logging.shutdown()
        os._exit(128 + (number or signal.SIGTERM))


_active: StopSignals | None = None


def active() -> StopSignals:
    """The active StopSignals; without `handled`, or outside the main thread, none ever arrives."""
    return _active or StopSignals()


@contextmanager
def handled() -> Iterator[StopSignals]:
    """Handle the signals in the block, and print the message of `Stopped` at its end.

    For programs not started by `cli_utils.cli`:

        with stop_signals.handled():
            asyncio.run(train.main(config))

    Signals that are ignored (nohup, a background job) stay ignored, and handlers that the program
    has installed stay in place. Does nothing inside another `handled` or outside the main thread.
    """
    global _active
    in_main_thread = threading.current_thread() is threading.main_thread()
    if _active is not None or not in_main_thread:
        yield active()
        return
    _active = signals = StopSignals()
    previous = {number: signal.getsignal(number) for number in _SIGNALS}
    for number, handler in previous.items():
        if handler in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, signals._handle)
    try:
        yield signals
    except (KeyboardInterrupt, Stopped) as error:
        signals.requested = signals.requested or signal.SIGINT
        stopped = error if isinstance(error, Stopped) else signals.stopped()
        signals.say_last(stopped.message)
        raise stopped from None
    finally:
        _active = None
        for number, handler in previous.items():
            if signal.getsignal(number) == signals._handle:
                # a late signal must not change the exit code of a process that is ending
                signal.signal(number, signal.SIG_IGN if signals.requested else handler)


def discard(stream: IO[str]) -> None:
    """Redirect the stream to /dev/null, so that later writes cannot fail."""
    with suppress(OSError, ValueError):  # ValueError: no file descriptor, or closed
        target = os.open(os.devnull, os.O_WRONLY)
        os.dup2(target, stream.fileno())
        os.close(target)


def _is_gone(stream: IO[str]) -> bool:
    """Whether the stream is a terminal that was closed, so that every write would raise."""
    try:
        return stat.S_ISCHR(os.fstat(stream.fileno()).st_mode) and not stream.isatty()
    except (OSError, ValueError):
        return False


def _write_now(text: str) -> None:
    """Write to stderr unbuffered: the handler may have interrupted a print."""
    with suppress(OSError, ValueError):
        on_terminal = sys.stderr.isatty()
        # overwrite a live line, or the ^C that the terminal echoes
        start = "\r\x1b[2K" if on_terminal else ""
        os.write(sys.stderr.fileno(), (start + text).encode())
