"""The in-process service: the SDK's interface, its order of operations, its futures and errors."""

from __future__ import annotations

import asyncio
import inspect
import socket
from concurrent.futures import CancelledError
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
import tinker
from tinker import types
from tinker.lib.public_interfaces.api_future import APIFuture

from tinker_cookbook.engine.scheduler import Engine
from tinker_cookbook.engine.testing import call
from tinker_cookbook.exceptions import (
    CheckpointError,
    ConfigurationError,
    DataValidationError,
    TinkerCookbookError,
    TrainingError,
)
from tinker_cookbook.service import EngineConfig, connect
from tinker_cookbook.service.local import (
    LocalSamplingClient,
    LocalServiceClient,
    LocalTrainingClient,
)
from tinker_cookbook.service.session import Session
from tinker_cookbook.service.testing import DATA, datum

ADAM = types.AdamParams(learning_rate=1e-2)


@pytest.fixture
def service(tmp_path: Path) -> LocalServiceClient:
    service = connect(engine=EngineConfig(device="cpu"), store_dir=tmp_path / "store")
    assert isinstance(service, LocalServiceClient)
    return service


def engine_of(owner: LocalServiceClient | Session) -> Engine:
    assert isinstance(owner.engine, Engine)
    return owner.engine


def weights_of(client: LocalTrainingClient) -> dict[str, np.ndarray]:
    client.result()
    trainer = engine_of(client._session).worker.runs[client.model_id]
    return {k: v.detach().numpy().copy() for k, v in trainer.adapter.master.items()}


def test_the_first_program(service: LocalServiceClient, tiny_qwen3: str) -> None:
    """The first lines of every tutorial, synchronously."""
    training_client = service.create_lora_training_client(base_model=tiny_qwen3, rank=8, seed=0)
    before = training_client.forward(DATA, "cross_entropy").result().metrics["loss:sum"]
    for _ in range(20):
        forward_backward = training_client.forward_backward(DATA, "cross_entropy")
        optim_step = training_client.optim_step(ADAM)
        assert isinstance(forward_backward, APIFuture)
        output = forward_backward.result()
        assert optim_step.result().metrics["grad_norm"] > 0
    assert output.metrics["loss:sum"] < before / 4
    assert [len(each["logprobs"].tolist()) for each in output.loss_fn_outputs] == [4, 2]
    path = training_client.save_weights_for_sampler(name="first").result().path
    assert path == f"tinker://{training_client.model_id}/sampler_weights/first"
    sampling_client = service.create_sampling_client(model_path=path)
    params = types.SamplingParams(max_tokens=4, temperature=0.0)
    reply = sampling_client.sample(types.ModelInput.from_ints([5]), 1, params).result()
    assert list(reply.sequences[0].tokens) == [6, 7, 8, 9]
    assert reply.sequences[0].stop_reason == "length"
    assert reply.sequences[0].logprobs is not None


async def test_the_first_program_async(service: LocalServiceClient, tiny_qwen3: str) -> None:
    client = await service.create_lora_training_client_async(base_model=tiny_qwen3, seed=1)
    future = await client.forward_backward_async(DATA, "cross_entropy")
    step = await client.optim_step_async(ADAM)
    assert (await future).metrics["loss:sum"] > 0
    await step.result_async()
    sampler = await client.save_weights_and_get_sampling_client_async()
    prompt = types.ModelInput.from_ints([5, 6, 7])
    replies = await asyncio.gather(
        *(sampler.sample_async(prompt, 2, types.SamplingParams(max_tokens=3)) for _ in range(8))
    )
    ids = {s.sequence_id for r in replies for s in r.sequences}
    assert len(ids) == 16
    logprobs = await sampler.compute_logprobs_async(prompt)
    assert logprobs[0] is None and all(isinstance(each, float) for each in logprobs[1:])
    assert (await client.get_info_async()).lora_rank == 32


def test_the_client_is_a_future_of_itself(service: LocalServiceClient, tiny_qwen3: str) -> None:
    client = service.create_lora_training_client(tiny_qwen3)
    assert client.result(60) is client and client.future().result(60) is client
    sampler = service.create_sampling_client(base_model=tiny_qwen3)
    assert sampler.result(60) is sampler

    async def awaits() -> bool:
        return await client is client

    assert asyncio.run(awaits())


async def test_an_answer_is_one_object_however_it_is_asked_for(
    service: LocalServiceClient, tiny_qwen3: str
) -> None:
    client = service.create_lora_training_client(tiny_qwen3).result()
    future = client.forward_backward(DATA, "cross_entropy")
    blocker = Event()
    stuck = call(engine_of(service), blocker.wait)
    behind = client.forward(DATA, "cross_entropy")
    with pytest.raises(TimeoutError):
        behind.result(timeout=0.01)
    with pytest.raises(TimeoutError):  # which gives the operation up, as with the SDK's future
        await behind.result_async(timeout=0.01)
    first = future.result(60)
    assert future.result() is first and await future is first
    assert future.future().result(60) is first
    blocker.set()
    assert stuck.result(60)
    with pytest.raises(CancelledError):
        behind.result(60)


def test_snapshots_do_not_move(service: LocalServiceClient, tiny_qwen3: str) -> None:
    client = service.create_lora_training_client(tiny_qwen3, seed=0)
    prompt = types.ModelInput.from_ints([5, 6, 7, 8, 9])
    base = service.create_sampling_client(base_model=tiny_qwen3).compute_logprobs(prompt).result()
    # all submitted at once: each snapshot is of the weights as they were at its place in the queue
    first = client.save_weights_and_get_sampling_client()
    client.forward_backward(DATA, "cross_entropy")
    client.optim_step(ADAM)
    second = client.save_weights_and_get_sampling_client()
    client.forward_backward(DATA, "cross_entropy")
    client.optim_step(ADAM)
    now = client.forward([datum([5, 6, 7, 8, 9])], "cross_entropy").result()
    assert first.compute_logprobs(prompt).result()[1:] == pytest.approx(base[1:], abs=1e-6)
    moved = second.compute_logprobs(prompt).result()
    assert sum(moved[1:]) > sum(base[1:])
    assert now.loss_fn_outputs[0]["logprobs"].tolist() != pytest.approx(moved[1:], abs=1e-4)


def test_resume_is_exact(service: LocalServiceClient, tiny_qwen3: str) -> None:
    client = service.create_lora_training_client(tiny_qwen3, seed=3, user_metadata={"a": "b"})
    for _ in range(2):
        client.forward_backward(DATA, "cross_entropy")
        client.optim_step(ADAM)
    path = client.save_state("two").result().path
    again = service.create_training_client_from_state_with_optimizer(path)
    fresh = service.create_training_client_from_state(path)
    for each in (client, again, fresh):
        each.forward_backward(DATA, "cross_entropy")
        each.optim_step(ADAM).result()
    expected, got, other = map(weights_of, (client, again, fresh))
    assert all(np.array_equal(expected[k], got[k]) for k in expected)
    assert any(not np.array_equal(expected[k], other[k]) for k in expected)  # its Adam is new
    client.load_state_with_optimizer(path)
    client.forward_backward(DATA, "cross_entropy")
    client.optim_step(ADAM).result()
    assert all(np.array_equal(expected[k], v) for k, v in weights_of(client).items())
    run = service.create_rest_client().get_training_run_by_tinker_path(path).result()
    assert run.base_model == tiny_qwen3 and run.user_metadata == {"a": "b"}


def test_seed_decides_the_start(service: LocalServiceClient, tiny_qwen3: str) -> None:
    clients = [service.create_lora_training_client(tiny_qwen3, seed=s) for s in (1, 1, 2, None)]
    name = "model.layers.0.self_attn.q_proj.lora_A"
    a, b, c, d = (weights_of(client)[name] for client in clients)
    assert np.array_equal(a, b) and not np.array_equal(a, c) and not np.array_equal(c, d)


def test_an_error_is_that_requests_alone(service: LocalServiceClient, tiny_qwen3: str) -> None:
    client = service.create_lora_training_client(tiny_qwen3)
    bad = client.forward_backward([datum([5, 999_999])], "cross_entropy")
    unknown = client.forward_backward(DATA, "cross_entopy")
    good = client.forward_backward(DATA, "cross_entropy")
    with pytest.raises(DataValidationError, match="datum 0: target_tokens holds token id 999999"):
        bad.result()
    with pytest.raises(ConfigurationError, match="unknown loss_fn 'cross_entopy'"):
        unknown.result()
    assert good.result().metrics["loss:sum"] > 0
    with pytest.raises(CheckpointError, match="overwrite=True"):
        client.save_state("x").result()
        client.save_state("x").result()
    client.save_state("x", overwrite=True).result()
    with pytest.raises(DataValidationError, match=r"must return \(loss, metrics\)"):
        client.forward_backward_custom(DATA, lambda *_: None).result()
    missing = types.Datum(model_input=types.ModelInput.from_ints([5]), loss_fn_inputs={})
    with pytest.raises(DataValidationError, match="has no target_tokens"):
        client.forward([missing], "cross_entropy").result()
    with pytest.raises(ConfigurationError, match="kind='inflight' is not supported"):
        client.save_weights_and_get_sampling_client(kind="inflight")
    sampler = service.create_sampling_client(base_model=tiny_qwen3)
    alternatives = sampler.sample(
        types.ModelInput.from_ints([5]), 1, types.SamplingParams(), prompt_alt_tokens_k=3
    )
    with pytest.raises(TrainingError, match="prompt_alt_tokens_k=3 is not supported"):
        alternatives.result()


def test_requests_of_wrong_types(service: LocalServiceClient, tiny_qwen3: str) -> None:
    """Each raises one of the project's errors, in one line, and the engine continues."""
    client = service.create_lora_training_client(tiny_qwen3, rank=2, seed=0)
    sampler = service.create_sampling_client(base_model=tiny_qwen3)
    prompt, params = types.ModelInput.from_ints([5, 6]), types.SamplingParams(max_tokens=3)
    integers = datum([5, 6, 7])
    floats = datum([5, 6, 7], target_tokens=np.array([3.7, 4.2], np.float32))
    nan = datum([5, 6, 7], target_tokens=np.array([np.nan, 4.0], np.float32))
    targets = types.TensorData.from_numpy(np.array([[5.5]], np.float32))

    def train(data: Any, loss: Any = "cross_entropy", config: Any = None) -> Any:
        return client.forward_backward(data, loss, config)

    cases: dict[str, Any] = {
        "num_samples=nan: expected a whole number": sampler.sample(prompt, float("nan"), params),
        "num_samples=2.0: expected a whole number": sampler.sample(prompt, 2.0, params),
        "num_samples=1.5: expected a whole number": sampler.sample(prompt, 1.5, params),
        "num_samples='2': expected a whole number": sampler.sample(prompt, "2", params),
        "num_samples=None: expected a whole number": sampler.sample(prompt, None, params),
        "sampling_params is of type dict": sampler.sample(prompt, 1, {"max_tokens": 3}),
        "prompt is of type list; expected tinker.ModelInput": sampler.sample([5], 1, params),
        "target_prompt_logprobs is of type list": sampler.sample(
            prompt, 1, params, target_prompt_logprobs=[[5]]
        ),
        "target_prompt_logprobs has dtype float32": sampler.sample(
            prompt, 1, params, target_prompt_logprobs=targets
        ),
        "LoRA rank='a': expected a whole": service.create_lora_training_client(tiny_qwen3, "a"),
        f"LoRA seed={2**70}: expected": service.create_lora_training_client(
            tiny_qwen3, 2, seed=2**70
        ),
        "train_mlp='yes': expected True or False": service.create_lora_training_client(
            tiny_qwen3, 2, train_mlp="yes"
        ),
        "datum 0 is of type str; expected tinker.Datum": train(["x"]),
        "data is a NoneType, not a list of tinker.Datum": train(None),
        "data is a Datum, not a list of tinker.Datum": train(integers),
        "unknown loss_fn ['ppo']; known": train([integers], ["ppo"]),
        "beta=None must be a finite number": train([integers], "dro", {"beta": None}),
        "datum 1: target_tokens has dtype float32; token ids": train([integers, floats]),
        "datum 0: target_tokens has dtype float32; token ids must": train([nan]),
        "datum 0: target_tokens has dtype float32": client.forward_backward_custom([floats], print),
        "loss_fn='x' is not a function": client.forward_backward_custom([integers], "x"),
    }
    for message, future in cases.items():
        with pytest.raises(TinkerCookbookError) as caught:
            future.result(30)
        assert message in str(caught.value) and "\n" not in str(caught.value)
    assert train([integers]).result(30).metrics
    assert len(sampler.sample(prompt, 2, params).result(30).sequences) == 2


def test_top_k_and_target_logprobs(service: LocalServiceClient, tiny_qwen3: str) -> None:
    sampler = service.create_sampling_client(base_model=tiny_qwen3)
    prompt = types.ModelInput.from_ints([5, 6, 7])
    response = sampler.sample(
        prompt,
        1,
        types.SamplingParams(max_tokens=4, temperature=0.0, stop=[]),
        include_prompt_logprobs=True,
        topk_prompt_logprobs=2,
        topk_sample_logprobs=3,
        target_prompt_logprobs=types.TensorData.from_numpy(np.array([[6, 9], [7, 9]])),
    ).result()
    prompt_top = response.topk_prompt_logprobs
    assert prompt_top is not None and prompt_top[0] is None
    assert [len(each) for each in prompt_top[1:]] == [2, 2]
    sequence = response.sequences[0]
    assert [each[0][0] for each in sequence.topk_logprobs] == list(sequence.tokens)  # greedy
    assert [each[0][1] for each in sequence.topk_logprobs] == pytest.approx(sequence.logprobs)
    targets = response.target_prompt_logprobs.to_numpy()
    assert targets[:, 0] == pytest.approx(response.prompt_logprobs[1:], abs=1e-6)


def test_a_model_that_is_not_there(service: LocalServiceClient, tmp_path: Path) -> None:
    client = service.create_lora_training_client(str(tmp_path / "nowhere"))
    step = client.forward_backward(DATA, "cross_entropy")
    for future in (client, step):
        with pytest.raises(ConfigurationError, match="nowhere"):
            future.result()
    assert service.create_rest_client().list_training_runs().result().training_runs == []


def test_a_checkpoint_of_another_base(
    service: LocalServiceClient, tiny_qwen3: str, tiny_llama: str
) -> None:
    path = service.create_lora_training_client(tiny_qwen3).save_state("x").result().path
    with pytest.raises(CheckpointError, match="was trained on"):
        service.create_training_client_from_state(path, base_model=tiny_llama)
    with pytest.raises(CheckpointError, match="was trained on"):
        service.create_lora_training_client(tiny_llama).load_state(path).result()


def test_stop_and_max_tokens(service: LocalServiceClient, tiny_qwen3: str) -> None:
    sampler = service.create_sampling_client(base_model=tiny_qwen3)
    prompt = types.ModelInput.from_ints([5, 6])

    def tokens(**keys: object) -> list[int]:
        params = types.SamplingParams(seed=1, **keys)  # type: ignore[arg-type]
        return list(sampler.sample(prompt, 1, params).result().sequences[0].tokens)

    free = tokens(max_tokens=40, stop=[])
    assert len(free) == 40
    assert tokens(max_tokens=40, stop=[free[7]]) == free[: free.index(free[7]) + 1]
    assert len(tokens(stop=[])) == 254  # to the end of the context of 256
    for empty in ("", [""], ["x", ""]):
        with pytest.raises(DataValidationError, match="empty string"):
            tokens(max_tokens=4, stop=empty)
    for outside in (-1, 307, 151645):
        with pytest.raises(DataValidationError, match=f"stop holds token id {outside}, which"):
            tokens(max_tokens=4, stop=[2, outside])


def test_no_tokens_are_samples_without_tokens(service: LocalServiceClient, tiny_qwen3: str) -> None:
    sampler = service.create_sampling_client(base_model=tiny_qwen3)
    prompt = types.ModelInput.from_ints([5, 6, 7])
    response = sampler.sample(
        prompt, 2, types.SamplingParams(max_tokens=0), include_prompt_logprobs=True
    ).result()
    assert [list(each.tokens) for each in response.sequences] == [[], []]
    assert [list(each.logprobs or []) for each in response.sequences] == [[], []]
    assert [each.stop_reason for each in response.sequences] == ["length", "length"]
    assert response.sequences[0].sequence_id != response.sequences[1].sequence_id
    scored = sampler.compute_logprobs(prompt).result()
    assert response.prompt_logprobs[1:] == pytest.approx(scored[1:])


@pytest.mark.parametrize("last_n", [0, -3, 1.5])
def test_the_last_logprobs_that_are_none(
    service: LocalServiceClient, tiny_qwen3: str, last_n: Any
) -> None:
    sampler = service.create_sampling_client(base_model=tiny_qwen3)
    prompt, params = types.ModelInput.from_ints([5, 6, 7]), types.SamplingParams(max_tokens=1)
    for future in (
        sampler.compute_logprobs(prompt, last_n),
        sampler.sample(prompt, 1, params, True, prompt_logprobs_last_n=last_n),
    ):
        with pytest.raises(DataValidationError, match=f"last_n={last_n}: expected an integer"):
            future.result()
    without = sampler.sample(prompt, 1, params, prompt_logprobs_last_n=2)
    with pytest.raises(DataValidationError, match="no effect without include_prompt_logprobs=True"):
        without.result()


def test_requests_that_cannot_be_answered(service: LocalServiceClient, tiny_qwen3: str) -> None:
    """Each raises one line with the value found; the next request succeeds."""
    sampler = service.create_sampling_client(base_model=tiny_qwen3)
    training = service.create_lora_training_client(tiny_qwen3)
    prompt = types.ModelInput.from_ints([5, 6, 7])

    def sampled(count: Any = 1, **keys: Any) -> Any:
        return sampler.sample(prompt, count, types.SamplingParams(max_tokens=2, **keys))

    nothing, outside = types.ModelInput.from_ints([]), types.ModelInput.from_ints([5, 307])
    params = types.SamplingParams(max_tokens=2)
    cases = {
        "num_samples=0": sampled(0),
        "num_samples=-1": sampled(-1),
        "seed=-1": sampled(seed=-1),
        "top_k=-2": sampled(top_k=-2),
        "top_p=0.0": sampled(top_p=0.0),
        "top_p=1.5": sampled(top_p=1.5),
        "top_p=nan": sampled(top_p=float("nan")),
        "temperature=nan": sampled(temperature=float("nan")),
        "temperature=inf": sampled(temperature=float("inf")),
        "temperature=-0.5": sampled(temperature=-0.5),
        "temperature=1e-40: expected 0": sampled(temperature=1e-40),
        "prompt holds token id 307 at position 1": sampler.sample(outside, 1, params),
        "prompt holds token id 307": sampler.compute_logprobs(outside),
        "prompt must be a non-empty": sampler.sample(nothing, 1, params),
        "must be a non-empty": sampler.compute_logprobs(nothing),
        "model_input holds token id 307": training.forward(
            [types.Datum(model_input=outside, loss_fn_inputs=datum([1, 2, 3]).loss_fn_inputs)],
            "cross_entropy",
        ),
        "target_tokens holds token id 307": training.forward([datum([5, 307])], "cross_entropy"),
    }
    for message, future in cases.items():
        with pytest.raises(DataValidationError) as caught:
            future.result(60)
        assert message in str(caught.value) and "\n" not in str(caught.value)
    assert len(sampled(top_k=10**6).result(60).sequences[0].tokens) == 2  # more than there are: all
    assert len(sampled(temperature=1e6).result(60).sequences[0].tokens) == 2
    same = [sampled(temperature=t, seed=3).result(60).sequences[0].tokens for t in (0.0, 1e-4)]
    assert list(same[0]) == list(same[1])  # the lowest is greedy


def test_deadlines(service: LocalServiceClient, tiny_qwen3: str) -> None:
    sampler = service.create_sampling_client(base_model=tiny_qwen3).result()
    slow = sampler.sample(
        types.ModelInput.from_ints([5]), 64, types.SamplingParams(max_tokens=200, stop=[])
    )
    with pytest.raises(TimeoutError):
        slow.result(timeout=0.001)
    assert len(slow.result(timeout=120).sequences) == 64


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (LocalServiceClient, tinker.ServiceClient),
        (LocalTrainingClient, tinker.TrainingClient),
        (LocalSamplingClient, tinker.SamplingClient),
    ],
)
def test_interface_of_the_sdk(ours: type, theirs: type) -> None:
    """Our clients have all public methods of the SDK's, with the same parameters in the same order,
    except those that make no sense in process or are not implemented. Our additions are listed."""
    left_out = {
        "get_console_url", "get_telemetry", "copy_weights", "create_custom_loss", "create",
        "create_custom_loss_async", "save_weights_external", "save_weights_external_async",
        "from_sampler_handle", "get_sampler_handle", "on_queue_state_change",
    }  # fmt: skip
    for name, method in inspect.getmembers(theirs, callable):
        if name.startswith("_") or name in left_out:
            continue
        mine = inspect.signature(getattr(ours, name)).parameters
        own = {"compute_logprobs": ["temperature"]}.get(name.removesuffix("_async"), [])
        assert list(mine) == [*inspect.signature(method).parameters, *own], name
        assert all(mine[each].kind is inspect.Parameter.KEYWORD_ONLY for each in own)


def test_closing_a_session(tmp_path: Path, tiny_qwen3: str) -> None:
    with connect(engine=EngineConfig(device="cpu"), store_dir=tmp_path) as service:
        client = service.create_lora_training_client(tiny_qwen3).result()
        client.save_state("a").result()
    with pytest.raises(CheckpointError, match="not open for writing"):
        client.save_state("b").result()
    capabilities = service.get_server_capabilities()
    assert capabilities.tokens_per_pass == 2048  # of the model that is loaded, on a CPU
    supported = capabilities.supported_models
    names = [m.model_name for m in supported]
    contexts = {m.model_name: m.max_context_length for m in supported}
    assert (contexts["nano"], contexts["Qwen/Qwen3-4B-Instruct-2507"]) == (2048, 262_144)
    assert {"nano", "Qwen/Qwen3-8B", "Qwen/Qwen3-30B-A3B", "openai/gpt-oss-20b"} <= set(names)
    assert not any("DeepSeek" in name or "Kimi" in name for name in names)  # refused at load


def test_connect_refuses_what_would_be_ignored() -> None:
    with pytest.raises(ConfigurationError, match=r"engine\.\* keys have no effect with base_url"):
        connect("http://127.0.0.1:1", EngineConfig(dtype="float32"))
    with pytest.raises(ConfigurationError, match="store_dir=/x has no effect"):
        connect("http://127.0.0.1:1", store_dir="/x")
    with pytest.raises(ConfigurationError, match=r"127\.0\.0\.1:1 is not reachable"):
        connect("http://127.0.0.1:1")
    with pytest.raises(ConfigurationError, match="is not an http:// or https:// URL"):
        connect("gpu-box:8000")
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        assert isinstance(connect(url), tinker.ServiceClient)  # lazy: no request


def test_max_tokens_none_is_what_the_memory_holds(tmp_path: Path, tiny_qwen3: str) -> None:
    service = connect(engine=EngineConfig(device="cpu", kv_tokens=60), store_dir=tmp_path)
    sampler = service.create_sampling_client(base_model=tiny_qwen3)
    prompt = types.ModelInput.from_ints(list(range(5, 15)))
    answer = sampler.sample(prompt, 1, types.SamplingParams(stop=[])).result()
    assert len(answer.sequences[0].tokens) == 50
    assert answer.sequences[0].stop_reason == "length"
    some = sampler.compute_logprobs(prompt, prompt_logprobs_last_n=40).result()
    assert some[0] is None and None not in some[1:]
