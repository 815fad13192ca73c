"""The pool of worker processes that compare answers (`equality_worker`).

Workers start on first use. One that takes too long is killed, and the next answer starts another.
Thread-safe.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import select
import subprocess
import sys
import threading
import time
from pathlib import Path

from tinker_cookbook.exceptions import TrainingError
from tinker_cookbook.utils.json_types import Json

MAX_PROCESSES = 4  # each takes about 80 MB
START_SECONDS = 120.0  # importing sympy takes half a second, but far longer on a busy machine
# Wall-clock limit of an answer: this plus 20 s for each CPU second it may use.
_GRACE_SECONDS = 30.0
_WORKER = Path(__file__).with_name("equality_worker.py")
_ROOT = Path(__file__).parents[
    2
]  # added to PYTHONPATH, so that the worker can import `tinker_cookbook`


class _WorkerDied(Exception):
    """The worker is gone: out of time, out of memory, or crashed."""


class _Worker:
    def __init__(self) -> None:
        # -P keeps this folder off sys.path, where its files could shadow library modules.
        # PYTHONHASHSEED: sympy iterates over sets, so the hash seed decides what it tries first,
        # and a grade must not change from run to run. start_new_session: Ctrl-C must reach only the
        # program, which then closes the pipes; the workers end with them.
        path = os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH"))))
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(_WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONHASHSEED": "0", "PYTHONPATH": path},
            start_new_session=True,
        )
        self._buffer = b""
        try:
            started = self._receive(START_SECONDS)
        except _WorkerDied as error:
            self.kill()
            raise TrainingError(
                f"the process that grades answers did not start within {START_SECONDS:.0f} s: run "
                f"{sys.executable} -P {_WORKER} to see why"
            ) from error
        if "error" in started:
            self.kill()
            raise TrainingError(f"answers cannot be graded: {started['error']}; pip install sympy")

    def answers_equal(self, given: str, truth: str, seconds: float) -> bool:
        line = json.dumps({"given": given, "truth": truth, "seconds": seconds}).encode() + b"\n"
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line)
            self._process.stdin.flush()
        except OSError as error:
            raise _WorkerDied from error
        # The worker enforces the CPU limit itself. This wall-clock limit catches a worker that gets
        # no CPU time at all, e.g. because it was stopped.
        return bool(self._receive(_GRACE_SECONDS + 20.0 * seconds)["same"])

    def _receive(self, seconds: float) -> dict[str, Json]:
        assert self._process.stdout is not None
        deadline = time.monotonic() + seconds
        while b"\n" not in self._buffer:
            left = max(0.0, deadline - time.monotonic())
            ready, _, _ = select.select([self._process.stdout], [], [], left)
            chunk = os.read(self._process.stdout.fileno(), 65_536) if ready else b""
            if not chunk:
                raise _WorkerDied
            self._buffer += chunk
        line, self._buffer = self._buffer.split(b"\n", 1)
        return json.loads(line)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):  # buffered bytes have no reader any more
                    pipe.close()


class WorkerPool:
    """At most `size` workers; each serves one thread at a time."""

    def __init__(self, size: int) -> None:
        self._slots = threading.Semaphore(size)
        self._idle: list[_Worker] = []

    def answers_equal(self, given: str, truth: str, seconds: float) -> bool:
        """Whether the answers are equal; False if `seconds` of CPU time do not suffice to tell.

        Raises TrainingError if no worker can be started.
        """
        with self._slots:
            try:
                worker = self._idle.pop()
            except IndexError:
                worker = _Worker()
            try:
                same = worker.answers_equal(given, truth, seconds)
            except _WorkerDied:
                worker.kill()
                return False
            # E.g. Ctrl-C. The worker may still write its result, and the next request would read it
            # as its own, so the worker cannot be reused.
            except BaseException:
                worker.kill()
                raise
            self._idle.append(worker)
            return same

    def close(self) -> None:
        while self._idle:
            self._idle.pop().kill()


_pool = WorkerPool(min(MAX_PROCESSES, os.cpu_count() or 1))
atexit.register(lambda: _pool.close())


def _reset_after_fork() -> None:
    """Give a forked child its own pool: it must not read from the parent's pipes."""
    global _pool
    _pool = WorkerPool(min(MAX_PROCESSES, os.cpu_count() or 1))


os.register_at_fork(after_in_child=_reset_after_fork)


def answers_equal(given: str, truth: str, seconds: float) -> bool:
    """`WorkerPool.answers_equal` of the pool that all threads of this process share."""
    return _pool.answers_equal(given, truth, seconds)
