"""Spans: how long functions and blocks take.

    @scope
    async def grade(reply: str) -> float: ...

    with span("tokenise"): ...

In a run with a `Journal`, the seconds of all spans of one name are summed in `time/<name>` of the
current row. After `trace_init` each span, including those of `Journal.timed`, is also written to a
file as an event in the trace-event format of Chrome and Perfetto, one JSON object per line. To view
it, convert it to an array (`jq -s . trace_events.jsonl > trace.json`) and open that in
ui.perfetto.dev.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, ParamSpec, TypeVar
from weakref import WeakKeyDictionary

from tinker_cookbook.utils import jsonl
from tinker_cookbook.utils.misc_utils import each_call_in
from tinker_cookbook.utils.plain_data import plain

P = ParamSpec("P")
R = TypeVar("R")
Listener = Callable[[str, float], None]
"""Called with the name of a span and its duration in seconds."""

_attributes: ContextVar[dict[str, Any] | None] = ContextVar("attributes", default=None)
_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


def scope(function: Callable[P, R]) -> Callable[P, R]:
    """Time every call of a function, sync or async, as a span with the function's name."""
    name = function.__qualname__.rpartition("<locals>.")[2]
    return each_call_in(function, lambda: span(name))


@contextmanager
def span(name: str, listener: Listener | None = None) -> Iterator[None]:
    """Time a block as a span, even if it raises. listener: None takes that of `listening`."""
    attributes: dict[str, Any] = {}
    token = _attributes.set(attributes)
    started, began = time.time(), time.perf_counter()
    try:
        yield
    finally:
        seconds = time.perf_counter() - began
        _attributes.reset(token)
        if (told := listener or _listener.get()) is not None:
            told(name, seconds)
        if _file is not None:
            _file.add(name, started, seconds, attributes)


def update_scope_context(values: Mapping[str, Any]) -> None:
    """Add attributes to the innermost open span, for the trace file; ignored without one."""
    attributes = _attributes.get()
    if attributes is not None:
        attributes.update(values)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Call `listener` for every span in the block and in tasks started from it."""
    before = _listener.get()
    _listener.set(listener)
    try:
        yield
    finally:
        _listener.set(before)


def trace_init(flush_interval_sec: float = 1.0, output_file: str = "trace_events.jsonl") -> None:
    """Write every span to the file from now on; flushed every `flush_interval_sec` and at exit."""
    global _file
    trace_shutdown()
    _file = _TraceFile(Path(output_file).expanduser(), flush_interval_sec)


def trace_shutdown() -> None:
    """Close the file of `trace_init`, if any."""
    global _file
    if _file is not None:
        _file.close()
    _file = None


class _TraceFile:
    """The trace file; each asyncio task, and each thread outside of tasks, has its own track."""

    def __init__(self, path: Path, flush_seconds: float) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._stream = path.open("a", encoding="utf-8")
        self._flush_seconds, self._flushed = flush_seconds, time.monotonic()
        self._tracks: WeakKeyDictionary[asyncio.Task[Any] | threading.Thread, int] = (
            WeakKeyDictionary()
        )
        self._count = 0
        self._lock = threading.Lock()

    def add(self, name: str, started: float, seconds: float, attributes: dict[str, Any]) -> None:
        """started: seconds since the epoch."""
        with self._lock:
            event = {"name": name, "ph": "X", "ts": round(started * 1e6), "dur": seconds * 1e6}
            self._write({**event, "tid": self._track(), "args": plain(attributes)})
            if time.monotonic() - self._flushed >= self._flush_seconds:
                self._stream.flush()
                self._flushed = time.monotonic()

    def close(self) -> None:
        with self._lock:
            self._stream.close()

    def _track(self) -> int:
        try:
            owner = asyncio.current_task() or threading.current_thread()
        except RuntimeError:  # no event loop in this thread
            owner = threading.current_thread()
        if owner not in self._tracks:
            self._count += 1
            self._tracks[owner] = self._count
            name = owner.name if isinstance(owner, threading.Thread) else owner.get_name()
            about = {"name": "thread_name", "ph": "M", "tid": self._count, "args": {"name": name}}
            self._write(about)
        return self._tracks[owner]

    def _write(self, event: Mapping[str, Any]) -> None:
        self._stream.write(jsonl.encode({**event, "pid": os.getpid()}, compact=True) + "\n")


_file: _TraceFile | None = None
atexit.register(trace_shutdown)
