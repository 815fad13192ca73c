from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tinker_cookbook.utils import trace


@trace.scope
async def outer(number: int) -> int:
    trace.update_scope_context({"number": number})
    await asyncio.sleep(0.05)
    return inner(number) + 1


@trace.scope
def inner(number: int, *, fails: bool = False) -> int:
    """Twice."""
    trace.update_scope_context({"twice": np.int64(2 * number)})
    if fails:
        raise ValueError("inner")
    return 2 * number


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "some" / "events.jsonl"
    trace.trace_init(flush_interval_sec=0.0, output_file=str(path))
    yield path
    trace.trace_shutdown()


def events(path: Path, phase: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in path.read_text().splitlines()]
    return [event for event in found if event["ph"] == phase]


async def test_spans_of_tasks_are_in_the_file(file: Path) -> None:
    tasks = [asyncio.create_task(outer(i), name=f"task {i}") for i in (1, 2)]
    assert [await task for task in tasks] == [3, 5]
    spans, tracks = events(file, "X"), events(file, "M")
    assert {track["args"]["name"] for track in tracks} == {"task 1", "task 2"}
    for number, track in ((1, "task 1"), (2, "task 2")):
        (tid,) = [each["tid"] for each in tracks if each["args"]["name"] == track]
        within, around = [each for each in spans if each["tid"] == tid]  # as they end
        assert (within["name"], within["args"]) == ("inner", {"twice": 2 * number})
        assert (around["name"], around["args"]) == ("outer", {"number": number})
        assert 50_000 <= around["dur"] < 5e6 and around["pid"] == within["pid"]
        assert around["ts"] <= within["ts"] <= around["ts"] + around["dur"] + 1000


def test_a_span_that_raises_and_one_in_a_thread(file: Path) -> None:
    with pytest.raises(ValueError, match="inner"):
        inner(3, fails=True)
    thread = threading.Thread(target=inner, args=(4,), name="beside")
    thread.start()
    thread.join()
    assert [each["args"] for each in events(file, "X")] == [{"twice": 6}, {"twice": 8}]
    assert [each["args"]["name"] for each in events(file, "M")] == ["MainThread", "beside"]
    trace.trace_shutdown()
    inner(5)  # nowhere to be written to
    assert len(events(file, "X")) == 2


async def test_whoever_listens_is_told_of_spans_in_tasks_too() -> None:
    told: list[tuple[str, float]] = []
    elsewhere: list[str] = []
    with trace.listening(lambda name, seconds: told.append((name, seconds))):
        await asyncio.gather(outer(1), outer(2))
        with trace.span("block", lambda name, _: elsewhere.append(name)):
            trace.update_scope_context({"unseen": 1})
    await outer(3)
    assert sorted(name for name, _ in told) == ["inner", "inner", "outer", "outer"]
    assert all(seconds >= 0.05 for name, seconds in told if name == "outer")
    assert elsewhere == ["block"]


def test_what_is_decorated_stays_what_it_was() -> None:
    assert inner.__name__ == "inner" and inner.__doc__ == "Twice."
    assert asyncio.iscoroutinefunction(outer) and not asyncio.iscoroutinefunction(inner)
    trace.update_scope_context({"no": "span is open"})


class Env:
    @trace.scope
    def step(self) -> int:
        return 1


def test_names(file: Path) -> None:
    @trace.scope
    def local() -> None:
        pass

    local()
    assert Env().step() == 1
    assert [each["name"] for each in events(file, "X")] == ["local", "Env.step"]
