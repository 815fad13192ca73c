"""The engine thread: order, turns, errors that stay with their request, an orderly end."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
import torch

from tinker_cookbook.engine import EngineConfig
from tinker_cookbook.engine.rows import SampleRequest
from tinker_cookbook.engine.scheduler import Engine
from tinker_cookbook.exceptions import OutOfMemoryError, TrainingError


@pytest.fixture
def engine():
    engine = Engine(EngineConfig(device="cpu"))
    yield engine
    engine.close()


def test_operations_run_in_the_order_of_the_calls(engine: Engine) -> None:
    seen: list[int] = []
    threads = set()

    def operation(i: int) -> int:
        threads.add(threading.current_thread().name)
        seen.append(i)
        return i * i

    futures = [engine.submit(lambda i=i: operation(i)) for i in range(200)]
    assert [future.result(10) for future in futures] == [i * i for i in range(200)]
    assert seen == list(range(200)) and threads == {"engine"}


def test_an_error_stays_with_its_operation(engine: Engine) -> None:
    def leave() -> None:
        raise SystemExit("a library gave up")

    bad = engine.submit(lambda: 1 // 0)
    worse = engine.submit(leave)
    good = engine.submit(lambda: 5)
    with pytest.raises(ZeroDivisionError):
        bad.result(10)
    with pytest.raises(SystemExit):
        worse.result(10)
    assert good.result(10) == 5


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        MemoryError(),
    ],
)
def test_out_of_memory_names_the_key(engine: Engine, error: Exception) -> None:
    def starve() -> None:
        raise error

    with pytest.raises(OutOfMemoryError, match=r"lower engine\.tokens_per_pass \(now 8192\)"):
        engine.submit(starve).result(10)


def test_training_and_sampling_take_turns(engine: Engine, tiny_qwen3: str) -> None:
    """A long queue of operations does not starve a sample, nor the other way round."""
    request = SampleRequest(np.array([5, 6, 7]), 100, num_samples=4, seed=0)
    engine.submit(lambda: engine.base_model(tiny_qwen3)).result(60)
    finished: list[str] = []
    sample = engine.sample(tiny_qwen3, lambda: (None, request))
    sample.add_done_callback(lambda _: finished.append("sample"))
    operations = [engine.submit(lambda: time.sleep(0.01)) for _ in range(400)]
    operations[20].add_done_callback(lambda _: finished.append("operation 20"))
    operations[-1].add_done_callback(lambda _: finished.append("last operation"))
    assert len(sample.result(60).sequences) == 4
    operations[-1].result(60)
    assert finished.index("sample") < finished.index("last operation")
    assert "operation 20" in finished


def test_cancelled_operations_do_not_run(engine: Engine) -> None:
    gate = threading.Event()
    engine.submit(gate.wait)
    ran: list[int] = []
    waiting = engine.submit(lambda: ran.append(1))
    assert waiting.cancel()
    gate.set()
    engine.submit(lambda: None).result(10)
    assert ran == []


def test_close(tiny_qwen3: str) -> None:
    engine = Engine(EngineConfig(device="cpu"))
    started = threading.Event()

    def slow() -> int:
        started.set()
        time.sleep(0.2)
        return 7

    endless = SampleRequest(np.array([5]), 200, num_samples=200)
    sample = engine.sample(tiny_qwen3, lambda: (None, endless))
    running, queued = engine.submit(slow), engine.submit(lambda: 8)
    started.wait(10)
    engine.close()
    assert running.result(0) == 7
    for future in (queued, sample):
        with pytest.raises(TrainingError, match="engine is closed"):
            future.result(1)
    with pytest.raises(TrainingError, match="engine is closed"):
        engine.submit(lambda: 9)
