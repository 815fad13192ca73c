"""Every request and result can be pickled, and a recorded list of requests, replayed in another
engine, gives the same results to the last bit."""

from __future__ import annotations

import dataclasses
import pickle
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tinker_cookbook.engine import EngineConfig, requests
from tinker_cookbook.engine.lora import LoraSpec
from tinker_cookbook.engine.requests import (
    AdamConfig,
    BaseWeights,
    CheckpointWeights,
    CreateRun,
    DropRun,
    DropWeights,
    Forward,
    ForwardBackward,
    ForwardBackwardCustom,
    Load,
    LoadWeights,
    OptimStep,
    Request,
    Sample,
    SampleRequest,
    Save,
    Snapshot,
    SnapshotWeights,
    TrainSequence,
)
from tinker_cookbook.engine.scheduler import Engine
from tinker_cookbook.engine.testing import make_rows, with_inputs
from tinker_cookbook.exceptions import TrainingError

ADAM = AdamConfig(learning_rate=1e-2)


def squares(logprobs: list[torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
    loss = torch.stack([each.square().sum() for each in logprobs]).sum()
    return loss, {"squares:sum": loss.item()}


def story(path: str, directory: Path) -> list[Request[Any]]:
    """Every kind of request, in a valid order."""
    rows = with_inputs(make_rows(), "cross_entropy")
    ppo = with_inputs(make_rows(seed=1), "ppo")
    state = CheckpointWeights(path, "state", str(directory / "state"))
    sampler = CheckpointWeights(path, "sampler", str(directory / "sampler"))
    base, snapshot = BaseWeights(path, "base"), SnapshotWeights(path, "snapshot")
    prompt = np.arange(5, 25)
    scores = SampleRequest(prompt, 0, prompt_logprobs=True, prompt_top_k=2)
    samples = SampleRequest(prompt, None, 3, seed=7, stop_tokens=None, sample_top_k=2)
    return [
        CreateRun("a", path, LoraSpec(rank=4, seed=1)),
        Forward("a", rows, "cross_entropy"),
        ForwardBackward("a", rows, "cross_entropy", {"temperature": 0.5}),
        ForwardBackward("a", ppo, "ppo"),
        OptimStep("a", ADAM),
        ForwardBackwardCustom("a", make_rows(seed=2), squares),
        OptimStep("a", ADAM),
        Save("a", str(directory / "state"), "base", optimizer=True),
        Save("a", str(directory / "sampler"), "base", optimizer=False),
        Snapshot("a", snapshot),
        Load("a", state, optimizer=True),
        CreateRun("b", path, weights=state, optimizer=True),
        ForwardBackward("b", rows, "cross_entropy"),
        OptimStep("b", ADAM),
        Forward("b", rows, "cross_entropy"),
        DropRun("a"),
        LoadWeights(base),
        LoadWeights(sampler),
        Sample(base, scores),
        Sample(snapshot, scores),
        Sample(sampler, samples),
        Sample(snapshot, samples),
        DropWeights("snapshot"),
        Snapshot("b", SnapshotWeights(path, "later")),
        Sample(SnapshotWeights(path, "later"), samples),
    ]


def plain(value: Any) -> Any:
    """A result, with arrays as bytes."""
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    if dataclasses.is_dataclass(value):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    return value


def play(asked: list[Request[Any]], directory: Path) -> list[Any]:
    """Results of the requests in a new engine, and the files that it wrote."""
    for name in ("state", "sampler"):
        (directory / name).mkdir(exist_ok=True)
    engine = Engine(EngineConfig(device="cpu", deterministic=True))
    try:
        answers = [plain(engine.submit(request).result(120)) for request in asked]
    finally:
        engine.close()
    files = sorted(file for file in directory.rglob("*") if file.is_file())
    return [answers, [(file.name, file.read_bytes()) for file in files]]


def test_a_recorded_list_is_played_again_bit_for_bit(tiny_qwen3: str, tmp_path: Path) -> None:
    asked = story(tiny_qwen3, tmp_path)
    first = play(asked, tmp_path)
    recorded = pickle.loads(pickle.dumps(asked))
    assert play(recorded, tmp_path) == first
    kinds = {type(request) for request in asked}
    everything = {
        kind
        for kind in vars(requests).values()
        if isinstance(kind, type)
        and issubclass(kind, Request)
        and "__dataclass_fields__" in vars(kind)
    }
    abstract = {Request, requests.RunRequest, requests.WeightsRequest, requests.Train}
    assert kinds == everything - abstract  # no kind of request is missing
    with pytest.raises(AttributeError):
        asked[0].run = "b"  # type: ignore[attr-defined]


def test_an_answer_can_be_pickled(tiny_qwen3: str, tmp_path: Path) -> None:
    engine = Engine(EngineConfig(device="cpu"))
    for name in ("state", "sampler"):
        (tmp_path / name).mkdir()
    for request in story(tiny_qwen3, tmp_path):
        answer = engine.submit(request).result(120)
        assert plain(pickle.loads(pickle.dumps(answer))) == plain(answer)
    engine.close()


def test_a_request_that_is_not_there_yet_keeps_its_place(tiny_qwen3: str) -> None:
    engine = Engine(EngineConfig(device="cpu"))
    engine.submit(CreateRun("a", tiny_qwen3, LoraSpec(rank=2))).result(60)
    engine.submit(CreateRun("b", tiny_qwen3, LoraSpec(rank=2))).result(60)
    rows = with_inputs(make_rows(), "cross_entropy")
    done: list[str] = []

    def noted(name: str, future: Future[Any]) -> Future[Any]:
        future.add_done_callback(lambda _: done.append(name))
        return future

    coming: Future[Request[Any]] = Future()
    first = noted("first", engine.submit_when(coming, "run a"))
    second = noted("second", engine.submit(OptimStep("a", ADAM)))
    other = noted("other", engine.submit(Forward("b", rows, "cross_entropy")))
    other.result(60)
    assert done == ["other"]  # it does not wait for run a
    coming.set_result(ForwardBackward("a", rows, "cross_entropy"))
    second.result(60)
    assert first.done() and done == ["other", "first", "second"]
    never: Future[Request[Any]] = Future()
    lost = engine.submit_when(never, "run a")
    behind = engine.submit(Forward("a", rows, "cross_entropy"))
    never.set_exception(TrainingError("no such file"))
    with pytest.raises(TrainingError, match="no such file"):
        lost.result(60)
    assert behind.result(60).logprobs
    engine.close()


def test_what_does_not_exist(tiny_qwen3: str) -> None:
    engine = Engine(EngineConfig(device="cpu"))
    rows = [TrainSequence(np.arange(3), np.arange(3))]
    cases: dict[str, Request[Any]] = {
        "run x does not exist": Forward("x", rows, "cross_entropy"),
        "run y does not exist": OptimStep("y", ADAM),
        "weights z are not loaded": Sample(
            SnapshotWeights(tiny_qwen3, "z"), SampleRequest(np.arange(3), 2)
        ),
        "run w: neither a spec nor weights": CreateRun("w", tiny_qwen3),
        "run v exists already; use another id": CreateRun("v", tiny_qwen3, LoraSpec(rank=2)),
    }
    engine.submit(CreateRun("v", tiny_qwen3, LoraSpec(rank=2))).result(60)
    for message, request in cases.items():
        with pytest.raises(TrainingError, match=message):
            engine.submit(request).result(60)
    engine.close()


def test_tokens_come_one_by_one(tiny_qwen3: str) -> None:
    engine = Engine(EngineConfig(device="cpu"))
    seen: dict[int, list[tuple[int, float]]] = {0: [], 1: []}
    request = SampleRequest(np.array([5, 6]), 12, 2, seed=1)
    result = engine.submit(
        Sample(BaseWeights(tiny_qwen3, "base"), request),
        on_token=lambda index, token, logprob: seen[index].append((token, logprob)),
    ).result(60)
    for index, sequence in enumerate(result.sequences):
        assert seen[index] == list(zip(sequence.tokens, sequence.logprobs))
    engine.close()
