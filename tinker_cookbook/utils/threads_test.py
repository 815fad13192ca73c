"""`in_thread`: results, errors, and calls that hang."""

from __future__ import annotations

import asyncio
import contextvars
import subprocess
import sys
import threading
import time

import pytest

from tinker_cookbook.utils.threads import in_thread


async def test_results_and_errors() -> None:
    assert await in_thread(divmod, 7, 2) == (3, 1)
    assert await in_thread(threading.get_ident) != threading.get_ident()
    with pytest.raises(ZeroDivisionError):
        await in_thread(divmod, 7, 0)
    with pytest.raises(RuntimeError, match="StopIteration"):
        await asyncio.wait_for(in_thread(next, iter([])), 5)


async def test_context_variables_travel() -> None:
    variable = contextvars.ContextVar("variable", default=0)
    variable.set(3)
    assert await in_thread(variable.get) == 3


async def test_more_at_once_than_a_pool_has() -> None:
    barrier = threading.Barrier(100)
    await asyncio.wait_for(asyncio.gather(*(in_thread(barrier.wait) for _ in range(100))), 20)


async def test_a_late_answer_to_a_cancelled_call() -> None:
    event = threading.Event()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(in_thread(event.wait), 0.01)
    event.set()
    await asyncio.sleep(0.05)  # an InvalidStateError would show up in the loop's handler


def test_a_call_that_hangs_does_not_keep_the_program() -> None:
    """asyncio.to_thread does: the same program with it is still there after the time given."""
    program = """
import asyncio, time
from tinker_cookbook.utils.threads import in_thread
async def main():
    try:
        await asyncio.wait_for(in_thread(time.sleep, 60), 0.05)
    except TimeoutError:
        print("went on")
asyncio.run(main())
"""
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=50
    )
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "went on", "")
    assert time.monotonic() - started < 45
