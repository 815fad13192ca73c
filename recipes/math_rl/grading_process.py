"""The worker processes of the grader: started when first needed, killed when an answer takes too
long, started again for the next one. Any number of threads may ask."""

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

MAX_PROCESSES = 4  # about 80 MB each
START_SECONDS = 120.0  # sympy takes half a second to import, on a busy machine many
_GRACE = 30.0  # seconds of wall-clock time for an answer, besides 20 for each of CPU time
_WORKER = Path(__file__).with_name("equality_worker.py")
_ROOT = Path(__file__).parents[2]  # where the worker finds `recipes`


class _Died(Exception):
    """The worker is gone: out of time or memory, or crashed."""


class _Worker:
    def __init__(self) -> None:
        # -P: this folder must not shadow modules of the libraries. A fixed hash seed: the order in
        # which sympy tries things, and so what it finds, must not change from run to run. A session
        # of its own: Ctrl-C is for the program, which then closes our end.
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
        except _Died as error:
            self.kill()
            raise TrainingError(
                f"the process that grades answers did not start within {START_SECONDS:.0f} s: run "
                f"{sys.executable} -P {_WORKER} to see why"
            ) from error
        if "error" in started:
            self.kill()
            raise TrainingError(f"answers cannot be graded: {started['error']}; pip install sympy")

    def same(self, given: str, truth: str, seconds: float) -> bool:
        line = json.dumps({"given": given, "truth": truth, "seconds": seconds}).encode() + b"\n"
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line)
            self._process.stdin.flush()
        except OSError as error:
            raise _Died from error
        # the worker keeps its own time in CPU seconds; this is for one that is stopped or starved
        return bool(self._receive(_GRACE + 20.0 * seconds)["same"])

    def _receive(self, seconds: float) -> dict[str, Json]:
        assert self._process.stdout is not None
        end = time.monotonic() + seconds
        while b"\n" not in self._buffer:
            left = max(0.0, end - time.monotonic())
            ready, _, _ = select.select([self._process.stdout], [], [], left)
            chunk = os.read(self._process.stdout.fileno(), 65_536) if ready else b""
            if not chunk:
                raise _Died
            self._buffer += chunk
        line, self._buffer = self._buffer.split(b"\n", 1)
        return json.loads(line)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):  # what was still to be written has no reader
                    pipe.close()


class WorkerPool:
    """At most `size` workers, each serving one thread at a time."""

    def __init__(self, size: int) -> None:
        self._slots = threading.Semaphore(size)
        self._idle: list[_Worker] = []

    def same(self, given: str, truth: str, seconds: float) -> bool:
        """Whether `given` is the answer `truth`. False, too, where that cannot be said within
        `seconds` of CPU time. TrainingError where no worker can be started."""
        with self._slots:
            try:
                worker = self._idle.pop()
            except IndexError:
                worker = _Worker()
            try:
                same = worker.same(given, truth, seconds)
            except _Died:
                worker.kill()
                return False
            except BaseException:  # e.g. Ctrl-C: an answer may still come, for nobody
                worker.kill()
                raise
            self._idle.append(worker)
            return same

    def close(self) -> None:
        while self._idle:
            self._idle.pop().kill()


_pool = WorkerPool(min(MAX_PROCESSES, os.cpu_count() or 1))
atexit.register(lambda: _pool.close())


def _forget() -> None:
    """In a forked child the pipes are the parent's; it starts workers of its own."""
    global _pool
    _pool = WorkerPool(min(MAX_PROCESSES, os.cpu_count() or 1))


os.register_at_fork(after_in_child=_forget)


def same(given: str, truth: str, seconds: float) -> bool:
    """`WorkerPool.same` of the workers that this process shares."""
    return _pool.same(given, truth, seconds)
