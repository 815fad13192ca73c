"""What the stand-ins promise: real clients over a script, and a script under the real engine."""

from __future__ import annotations

import asyncio
from concurrent.futures import CancelledError, Future
from pathlib import Path

import numpy as np
import pytest
from tinker import types

from tinker_cookbook.engine import EngineConfig
from tinker_cookbook.engine.requests import (
    BaseWeights,
    CreateRun,
    ForwardBackward,
    OptimStep,
    Request,
    Sample,
    SampleRequest,
    Save,
    Snapshot,
)
from tinker_cookbook.engine.samplers import SAMPLERS
from tinker_cookbook.engine.scheduler import Engine
from tinker_cookbook.testing import (
    Asked,
    ScriptedEngine,
    ScriptedSampler,
    scripted_service,
    scripted_text,
)
from tinker_cookbook.tokenizer_utils import get_tokenizer

PROMPT = types.ModelInput.from_ints([5, 6])
DATUM = types.Datum(
    model_input=PROMPT,
    loss_fn_inputs={"target_tokens": np.array([6, 7]), "weights": np.array([0, 1], np.float32)},
)


def count(asked: Asked) -> list[int]:
    return [asked.time, *asked.prompt]


def test_clients_over_a_script(tmp_path: Path) -> None:
    engine = ScriptedEngine(count, logprob_of=lambda token: -token / 10)
    client = scripted_service(engine, tmp_path).create_lora_training_client("nano", rank=4)
    output = client.forward_backward([DATUM], "cross_entropy").result(10)
    assert output.metrics["loss:sum"] == pytest.approx(0.7)
    assert output.loss_fn_outputs[0]["logprobs"].tolist() == pytest.approx([-0.6, -0.7])
    client.optim_step(types.AdamParams()).result(10)
    path = client.save_state("here").result(10).path
    assert path == f"tinker://{client.model_id}/weights/here"
    sampler = client.save_weights_and_get_sampling_client()
    reply = sampler.sample(PROMPT, 2, types.SamplingParams(max_tokens=2)).result(10)
    assert [list(each.tokens) for each in reply.sequences] == [[0, 5], [1, 5]]
    assert [each.stop_reason for each in reply.sequences] == ["length", "length"]
    assert sampler.compute_logprobs(PROMPT).result(10)[1] == pytest.approx(-0.6)
    kinds = [CreateRun, ForwardBackward, OptimStep, Save, Snapshot, Sample, Sample]
    assert [type(request) for request in engine.requests] == kinds


def test_held_answers_come_in_their_order(tmp_path: Path) -> None:
    engine = ScriptedEngine(count)
    sampler = scripted_service(engine, tmp_path).create_sampling_client(base_model="nano").result()
    engine.hold()
    futures = [sampler.sample(PROMPT, 1, types.SamplingParams(max_tokens=9)) for _ in range(2)]
    with pytest.raises(TimeoutError):
        futures[0].result(0.01)
    engine.release()
    assert [list(each.result(10).sequences[0].tokens[:1]) for each in futures] == [[0], [1]]


async def test_text_that_comes_later(tmp_path: Path) -> None:
    reply = scripted_text("nano", lambda asked: f"{asked.request.seed}<|im_end|>")
    engine = ScriptedEngine(reply, delay=lambda request: 0.05 if request.seed == 1 else 0.0)
    sampler = scripted_service(engine, tmp_path).create_sampling_client(base_model="nano").result()
    came: list[str] = []

    async def ask(seed: int) -> None:
        params = types.SamplingParams(max_tokens=9, seed=seed)
        response = await sampler.sample(PROMPT, 1, params)
        came.append(str(get_tokenizer("nano").decode(response.sequences[0].tokens)))

    await asyncio.gather(ask(1), ask(2))
    assert came == ["2<|im_end|>", "1<|im_end|>"]
    assert [request.seed for request in engine.samples] == [1, 2]


def test_a_script_that_raises_is_the_answer(tmp_path: Path) -> None:
    def gone(asked: Asked) -> list[int]:
        raise ConnectionError("the service is gone")

    sampler = scripted_service(ScriptedEngine(gone), tmp_path).create_sampling_client(
        base_model="nano"
    )
    with pytest.raises(ConnectionError, match="is gone"):
        sampler.sample(PROMPT, 1, types.SamplingParams(max_tokens=9)).result(10)


def test_a_sampler_by_name_under_the_real_engine(
    tiny_qwen3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SAMPLERS, "torch", lambda *_: ScriptedSampler(count))
    engine = Engine(EngineConfig(device="cpu"))
    tokens: list[int] = []
    asked = Sample(BaseWeights(tiny_qwen3, "base"), SampleRequest(np.array([5, 6]), 9))
    result = engine.submit(asked, on_token=lambda _, token, __: tokens.append(token)).result(60)
    assert result.sequences[0].tokens == tokens == [0, 5, 6]
    engine.close()


def test_a_request_that_does_not_come_is_answered() -> None:
    coming: Future[Request[None]] = Future()
    answer = ScriptedEngine().submit_when(coming, "run a")
    coming.cancel()
    with pytest.raises(CancelledError):
        answer.result(5)
