"""A session: order across threads, disposal of runs and weights, abandoned futures."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
from tinker import types

from tinker_cookbook.engine import EngineConfig
from tinker_cookbook.engine.lora import LoraSpec
from tinker_cookbook.engine.requests import Request, SampleRequest
from tinker_cookbook.engine.scheduler import Engine
from tinker_cookbook.engine.testing import call
from tinker_cookbook.service.local import LocalTrainingClient
from tinker_cookbook.service.session import Run, Session
from tinker_cookbook.service.store import Store

R = TypeVar("R")


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    engine = Engine(EngineConfig(device="cpu"))
    yield Session(engine, Store(tmp_path / "store"))
    engine.close()


def engine_of(session: Session) -> Engine:
    assert isinstance(session.engine, Engine)
    return session.engine


def new_run(session: Session, model: str) -> Run:
    return session.create_run(model, lambda: LoraSpec(rank=2, seed=0))


def blocked(session: Session) -> threading.Event:
    """Block the engine until the returned event is set."""
    gate = threading.Event()
    call(engine_of(session), gate.wait)
    return gate


def kept(session: Session) -> int:
    """Number of sampling adapters that the engine holds, after all requests so far."""
    engine = engine_of(session)
    return call(engine, lambda: len(engine.worker.sampled._adapters)).result(30)


def test_saves_of_one_run_from_two_threads(
    session: Session, tiny_qwen3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files and engine process them in one order, or each would wait for the other."""
    run = new_run(session, tiny_qwen3)
    run.created.result(60)
    engine, submit_when = engine_of(session), engine_of(session).submit_when
    first_is_in, second_is_sent = threading.Event(), threading.Event()

    def slow(coming: Future[Request[R]], lane: str) -> Future[R]:
        answer = submit_when(coming, lane)
        if not first_is_in.is_set():
            first_is_in.set()
            second_is_sent.wait(0.5)
        return answer

    monkeypatch.setattr(engine, "submit_when", slow)
    answers: dict[str, Future[str]] = {}

    def save(name: str) -> None:
        answers[name] = session.save(run, "weights", name)

    first = threading.Thread(target=save, args=("a",))
    first.start()
    assert first_is_in.wait(10)
    save("b")
    second_is_sent.set()
    first.join()
    for name, answer in answers.items():
        assert answer.result(20) == f"tinker://{run.id}/weights/{name}"


def test_a_snapshot_that_is_given_up_before_it_is_taken_is_not_kept(
    session: Session, tiny_qwen3: str
) -> None:
    run = new_run(session, tiny_qwen3)
    run.created.result(60)
    gate = blocked(session)
    for name in (None, "named"):
        weights = session.snapshot(run, name)
        del weights
    gate.set()
    assert session.save(run, "weights", "behind them").result(30)
    gc.collect()
    assert kept(session) == 0


async def test_weights_are_forgotten_without_a_collection(
    session: Session, tiny_qwen3: str
) -> None:
    """Reinforcement learning makes one per step."""
    client = LocalTrainingClient(session, new_run(session, tiny_qwen3))
    await client
    gc.collect()
    gc.disable()
    try:
        params = types.SamplingParams(max_tokens=2)
        for name in (None, "named"):
            sampler = await client.save_weights_and_get_sampling_client_async(name)
            assert kept(session) == 1
            await sampler.sample_async(types.ModelInput.from_ints([5, 6]), 1, params)
            del sampler
            assert kept(session) == 0
    finally:
        gc.enable()


async def test_a_snapshot_that_nobody_awaits_any_more(
    session: Session, tiny_qwen3: str, caplog: pytest.LogCaptureFixture
) -> None:
    client = LocalTrainingClient(session, new_run(session, tiny_qwen3))
    await client
    gate = blocked(session)
    sampler = client.save_weights_and_get_sampling_client()
    waiting = asyncio.ensure_future(sampler.result_async())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    future = sampler.sample(types.ModelInput.from_ints([5]), 1, types.SamplingParams(max_tokens=1))
    gate.set()
    with pytest.raises(CancelledError), caplog.at_level(logging.ERROR):
        future.result(20)
    assert kept(session) == 0
    assert not caplog.records


def test_an_on_token_that_fails_is_that_requests_error(session: Session, tiny_qwen3: str) -> None:
    weights = session.base_weights(tiny_qwen3)
    weights.ready.result(60)
    gate = blocked(session)

    def fail(index: int, token: int, logprob: float) -> None:
        raise ZeroDivisionError("of the caller's own")

    def request() -> SampleRequest:
        return SampleRequest(np.array([5, 6]), 8, seed=0, stop_tokens=frozenset())

    bad = session.sample(weights, request, fail)
    good = session.sample(weights, request)
    gate.set()
    with pytest.raises(ZeroDivisionError):
        bad.result(20)
    assert len(good.result(20).sequences[0].tokens) == 8


def test_a_thread_that_cannot_be_started(
    session: Session, tiny_qwen3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run continues: neither its requests nor its files wait for what never started."""
    run = new_run(session, tiny_qwen3)
    run.created.result(60)

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            session.save(run, "weights", "first")
    assert session.save(run, "weights", "second").result(20).endswith("/second")


def test_values_of_the_wrong_kind_are_the_answers_error(session: Session, tiny_qwen3: str) -> None:
    run = new_run(session, tiny_qwen3)
    prompt = types.ModelInput.from_ints([5, 6, 7])
    targets = types.TensorData(data=[6, 7, 8], dtype="int64", shape=[3])
    datum = types.Datum(model_input=prompt, loss_fn_inputs={"target_tokens": targets})
    datum.loss_fn_inputs["target_tokens"] = [6, 7, 8]  # type: ignore[assignment]  # the mistake
    answer = session.forward(run, [datum], "cross_entropy", None)
    with pytest.raises(AttributeError, match="to_numpy"):
        answer.result(60)
