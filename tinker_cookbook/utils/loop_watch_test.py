"""Something blocks the event loop: who is told, of what, how often."""

from __future__ import annotations

import asyncio
import importlib
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tinker_cookbook.utils.loop_watch import LoopWatch

ENV = """
import re, time

async def sleeps(seconds):
    time.sleep(seconds)

def inner(seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        re.search("(a+)+c", "a" * 14 + "b")

async def loops(seconds):
    inner(seconds)
"""


@pytest.fixture
def env(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "blocking_env.py").write_text(ENV)
    monkeypatch.syspath_prepend(str(tmp_path))
    return importlib.import_module("blocking_env")


@pytest.mark.parametrize(
    ("name", "place"), [("sleeps", "in sleeps, {}:5: time.sleep"), ("loops", "in inner, {}:")]
)
async def test_a_blocked_loop(env: Any, name: str, place: str) -> None:
    said: list[tuple[float, str]] = []
    waits = ""
    with LoopWatch(lambda: waits, lambda text: said.append((time.monotonic(), text)), seconds=0.3):
        await asyncio.sleep(0.5)
        assert said == []
        waits = "1 in Game.step (longest 0 s)"
        started = time.monotonic()
        await getattr(env, name)(1.0)
        waits = ""
        times = [at - started for at, _ in said]
        assert len(said) == 2 and times[0] > 0.15 and times[0] + 0.2 < times[1] < 1.0
        assert f"the event loop is blocked {place.format(env.__file__)}" in said[0][1]
        assert "; waiting: 1 in Game.step (longest 0 s); " in said[0][1]
        await asyncio.sleep(0.2)
        await getattr(env, name)(0.5)  # another blockage
        assert len(said) == 3
    assert "loop watch" not in {thread.name for thread in threading.enumerate() if ended(thread)}


def ended(thread: threading.Thread) -> bool:
    thread.join(timeout=1.0) if thread.name == "loop watch" else None
    return thread.is_alive()


async def test_one_who_cannot_listen_does_not_end_the_watch(env: Any) -> None:
    said = []

    def log_line(text: str) -> None:
        said.append(text)
        raise ValueError("the display is closed")

    with LoopWatch(lambda: "", log_line, seconds=0.3):
        for blockages in (1, 2):
            await env.sleeps(0.5)
            await asyncio.sleep(0.2)
            assert len(said) >= blockages
    assert "waiting" not in said[0]


async def test_a_library_that_blocks_is_named_by_who_called_it() -> None:
    """No code of a user's is running: what this package called is named."""
    said: list[str] = []
    with LoopWatch(lambda: "", said.append, seconds=0.3):
        threading.Event().wait(0.5)
    assert f"in Event.wait, {threading.__file__}:" in said[0]
