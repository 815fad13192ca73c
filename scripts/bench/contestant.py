"""A contestant, run in its own process (so that its peak memory can be measured) or in this one."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import worker

WORKER = "scripts/bench/worker.py"
ROOT = Path(__file__).resolve().parent.parent.parent


@dataclass(frozen=True)
class Place:
    """How contestants run. isolate: each in its own process, with this many threads."""

    isolate: bool
    threads: int
    offline: bool
    answer_seconds: int

    def environment(self, root: Path) -> dict[str, str]:
        """The environment of a process that runs the code of the checkout `root`."""
        paths = [str(root), *filter(None, [os.environ.get("PYTHONPATH")])]
        return {
            **os.environ,
            "OMP_NUM_THREADS": str(self.threads),
            "MKL_NUM_THREADS": str(self.threads),
            "TOKENIZERS_PARALLELISM": "false",
            "TINKER_TELEMETRY": "0",
            "PYTHONPATH": os.pathsep.join(paths),
            **({"HF_HUB_OFFLINE": "1"} if self.offline else {}),
        }


@dataclass
class Contestant:
    """One row of a table: the class to measure (`MODULE:CLASS`), its arguments, and the results."""

    name: str
    target: str
    words: dict[str, Any] = field(default_factory=dict)
    python: str = sys.executable
    root: Path = ROOT  # the checkout whose code it runs, including the worker
    facts: dict[str, Any] = field(default_factory=dict)  # reported at construction
    measured: list[dict[str, Any]] = field(default_factory=list)
    memory: dict[str, float] = field(default_factory=dict)  # peaks, GiB
    error: str | None = None  # why there is no (further) measurement
    _process: subprocess.Popen[bytes] | None = None
    _instance: Any = None
    _log: Path | None = None

    def start(self, place: Place, log: Path) -> None:
        if not place.isolate:
            self._instance, reply = worker.make(self.target, self.words)
        else:
            self._log = log
            try:
                self._process = self._open(place, log)
            except OSError as error:
                self.error = worker.one_line(error)
                return
            reply = self._ask(self.words, place.answer_seconds)
        self.facts = self._take(reply) or {}

    def measure(self, place: Place, **words: Any) -> dict[str, Any] | None:
        """Measure once; returns None and sets `error` on failure."""
        if self.error is not None:
            return None
        if self._process is not None:
            reply = self._ask(words, place.answer_seconds)
        else:
            reply = worker.answer(self._instance, words)
        answer = self._take(reply)
        if answer is not None:
            self.measured.append(answer)
        return answer

    def stop(self) -> None:
        self._instance = None
        if self._process is None:
            return
        with suppress(BrokenPipeError):
            self._process.stdin.close()  # type: ignore[union-attr]
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def log(self) -> str:
        """The output of its process."""
        return self._log.read_text(errors="replace") if self._log else ""

    def values(self, key: str) -> list[float]:
        return [entry[key] for entry in self.measured if key in entry]

    def _open(self, place: Place, log: Path) -> subprocess.Popen[bytes]:
        with log.open("wb") as file:
            return subprocess.Popen(
                [self.python, str(self.root / WORKER), self.target],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                env=place.environment(self.root),
                bufsize=0,
            )

    def _ask(self, words: dict[str, Any], seconds: int) -> dict[str, Any]:
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(json.dumps(words).encode() + b"\n")
        except BrokenPipeError:
            return {"error": _exit_reason(process)}
        deadline, line = time.monotonic() + seconds, b""
        while not line.endswith(b"\n"):
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([process.stdout], [], [], left)[0]:
                process.kill()
                return {"error": f"no answer within {seconds} s"}
            piece = os.read(process.stdout.fileno(), 1 << 16)
            if not piece:
                return {"error": _exit_reason(process)}
            line += piece
        return json.loads(line)

    def _take(self, reply: dict[str, Any]) -> dict[str, Any] | None:
        if (
            self._process is not None
        ):  # without a process of its own, the peak includes all contestants
            self.memory = {key: reply[key] for key in worker.PEAKS if key in reply}
        self.error = reply.get("error")
        return reply.get("answer")


def _exit_reason(process: subprocess.Popen[bytes]) -> str:
    code = process.wait()
    return "killed: out of memory?" if code == -9 else f"its process ended with code {code}"
