"""The engine thread: order, fairness, merged passes, isolated errors, and closing."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import Future, wait
from typing import Any

import numpy as np
import pytest
import torch

from tinker_cookbook.engine import EngineConfig
from tinker_cookbook.engine.lora import LoraSpec
from tinker_cookbook.engine.losses import LOSSES
from tinker_cookbook.engine.requests import (
    AdamConfig,
    CreateRun,
    DropRun,
    Forward,
    ForwardBackward,
    OptimStep,
    SampleRequest,
    Train,
    TrainResult,
    TrainSequence,
)
from tinker_cookbook.engine.scheduler import Engine
from tinker_cookbook.engine.testing import TOLERANCE, call, make_rows, sampled, with_inputs
from tinker_cookbook.exceptions import DataValidationError, OutOfMemoryError, TrainingError


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = Engine(EngineConfig(device="cpu"))
    yield engine
    engine.close()


def test_operations_run_in_call_order(engine: Engine) -> None:
    seen: list[int] = []
    threads = set()

    def operation(i: int) -> int:
        threads.add(threading.current_thread().name)
        seen.append(i)
        return i * i

    futures = [call(engine, lambda i=i: operation(i)) for i in range(200)]
    assert [future.result(10) for future in futures] == [i * i for i in range(200)]
    assert seen == list(range(200)) and threads == {"engine"}


def test_an_error_stays_with_its_operation(engine: Engine) -> None:
    def leave() -> None:
        raise SystemExit("a library gave up")

    bad = call(engine, lambda: 1 // 0)
    worse = call(engine, leave)
    good = call(engine, lambda: 5)
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
def test_out_of_memory_names_the_key(engine: Engine, tiny_qwen3: str, error: Exception) -> None:
    def starve() -> None:
        engine.worker.base_model(tiny_qwen3)
        raise error

    with pytest.raises(OutOfMemoryError, match=r"set engine\.tokens_per_pass=1024 \(now 2048\)"):
        call(engine, starve).result(10)


def test_training_and_sampling_take_turns(engine: Engine, tiny_qwen3: str) -> None:
    """A long queue of operations does not starve a sample, nor does sampling starve operations."""
    request = SampleRequest(np.array([5, 6, 7]), 100, num_samples=4, seed=0)
    call(engine, lambda: engine.worker.base_model(tiny_qwen3)).result(60)
    finished: list[str] = []
    sample = sampled(engine, tiny_qwen3, request)
    sample.add_done_callback(lambda _: finished.append("sample"))
    operations = [call(engine, lambda: time.sleep(0.01)) for _ in range(400)]
    operations[20].add_done_callback(lambda _: finished.append("operation 20"))
    operations[-1].add_done_callback(lambda _: finished.append("last operation"))
    assert len(sample.result(60).sequences) == 4
    operations[-1].result(60)
    assert finished.index("sample") < finished.index("last operation")
    assert "operation 20" in finished


def test_cancelled_operations_do_not_run(engine: Engine) -> None:
    gate = threading.Event()
    call(engine, gate.wait)
    ran: list[int] = []
    waiting = call(engine, lambda: ran.append(1))
    assert waiting.cancel()
    gate.set()
    call(engine, lambda: None).result(10)
    assert ran == []
    assert wait([waiting], 10).done  # `wait` returns once the engine has acknowledged


def test_close(tiny_qwen3: str) -> None:
    engine = Engine(EngineConfig(device="cpu"))
    started = threading.Event()

    def slow() -> int:
        started.set()
        time.sleep(0.2)
        return 7

    endless = SampleRequest(np.array([5]), 200, num_samples=200)
    sample = sampled(engine, tiny_qwen3, endless)
    running, queued = call(engine, slow), call(engine, lambda: 8)
    started.wait(10)
    engine.close()
    assert running.result(0) == 7
    for future in (queued, sample):
        with pytest.raises(TrainingError, match="engine is closed"):
            future.result(1)
    with pytest.raises(TrainingError, match="engine is closed"):
        call(engine, lambda: 9)


class Tenant:
    """A run used as a client would: everything goes through the engine's queue."""

    def __init__(self, engine: Engine, path: str, name: str, spec: LoraSpec, loss: str) -> None:
        self.engine, self.name, self.loss = engine, name, loss
        engine.submit(CreateRun(name, path, spec)).result(60)
        self.trainer = engine.worker.runs[name]
        generator = torch.Generator().manual_seed(spec.seed)
        with torch.no_grad():
            for key, tensor in self.trainer.adapter.master.items():
                if key.endswith("lora_B"):  # B starts at zero, which would hide the adapter
                    tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.05)
        self.trainer.adapter.refresh()

    def __del__(self) -> None:
        self.engine.dispose(DropRun(self.name))

    def train(
        self, sequences: list[TrainSequence], kind: type[Train] = ForwardBackward
    ) -> Future[TrainResult]:
        return self.engine.submit(kind(self.name, sequences, self.loss))

    def step(self) -> Future[dict[str, float]]:
        return self.engine.submit(OptimStep(self.name, AdamConfig(learning_rate=1e-3)))


def make_tenants(engine: Engine, path: str) -> list[Tenant]:
    specs = [
        LoraSpec(rank=4, seed=1),
        LoraSpec(rank=8, seed=2, train_unembed=False),
        LoraSpec(rank=2, seed=3, train_mlp=False, alpha=8),
        LoraSpec(rank=3, seed=4, train_attn=False, train_mlp=False),
        LoraSpec(rank=4, seed=5),
        LoraSpec(rank=5, seed=6),
    ]
    return [
        Tenant(engine, path, f"run {i}", spec, loss)
        for i, (spec, loss) in enumerate(zip(specs, sorted(LOSSES)))
    ]


def count_passes(engine: Engine, path: str) -> list[int]:
    """Return a list that grows by the number of tokens of every pass from now on."""
    base = engine.worker.base_model(path)
    seen: list[int] = []
    hidden = base.hidden

    def counted(tokens: torch.Tensor, *args: Any) -> torch.Tensor:
        seen.append(len(tokens))
        return hidden(tokens, *args)

    base.hidden = counted  # type: ignore[method-assign]
    return seen


@pytest.mark.parametrize("budget", [8192, 200])
@pytest.mark.parametrize("family", ["tiny_qwen3", "tiny_llama"])
def test_runs_share_passes_without_affecting_one_another(
    family: str, budget: int, request: pytest.FixtureRequest, device: str
) -> None:
    """Different ranks, layers, seeds and losses in one pass: each gets what it would get alone."""
    path = request.getfixturevalue(family)
    engine = Engine(EngineConfig(device=device, tokens_per_pass=budget, head_chunk=16))
    tenants = make_tenants(engine, path)
    batches = {
        each.name: with_inputs(make_rows(seed=i), each.loss) for i, each in enumerate(tenants)
    }
    alone: dict[str, TrainResult] = {}
    grads: dict[str, dict[str, torch.Tensor]] = {}
    for each in tenants:  # twice: gradients accumulate over calls
        each.train(batches[each.name]).result(60)
        alone[each.name] = each.train(batches[each.name]).result(60)
        assert each.trainer.grads is not None
        grads[each.name], each.trainer.grads = each.trainer.grads, None
    passes = count_passes(engine, path)
    gate = threading.Event()
    call(engine, gate.wait)
    futures = [each.train(batches[each.name]) for each in tenants for _ in range(2)]
    gate.set()
    together = [future.result(60) for future in futures][1::2]
    worst = 0.0
    for each, result in zip(tenants, together):
        pairs = zip(result.logprobs, alone[each.name].logprobs)
        worst = max(worst, *(np.abs(a - b).max() for a, b in pairs))
        assert each.trainer.grads is not None
        assert each.trainer.grads.keys() == grads[each.name].keys()
        for key, grad in grads[each.name].items():
            scale = max(1.0, grad.abs().max().item())
            worst = max(worst, (each.trainer.grads[key] - grad).abs().max().item() / scale)
        expected = alone[each.name].metrics["loss:sum"]
        assert result.metrics["loss:sum"] == pytest.approx(expected, abs=1e-4)
    assert worst <= TOLERANCE
    # The first request of every run, then the second; or two runs of 94 tokens at a time.
    assert len(passes) == (2 if budget == 8192 else 6)
    assert max(passes) <= budget
    engine.close()


def test_a_run_keeps_its_order_while_others_join(engine: Engine, tiny_qwen3: str) -> None:
    one, two = make_tenants(engine, tiny_qwen3)[4:]
    passes = count_passes(engine, tiny_qwen3)
    order: list[str] = []
    gate = threading.Event()
    call(engine, gate.wait)
    batches = {each.name: with_inputs(make_rows(), each.loss) for each in (one, two)}
    for step in range(3):
        for each in (one, two):
            done = each.train(batches[each.name])
            done.add_done_callback(lambda _, x=f"{each.name} fb {step}": order.append(x))
            each.step().add_done_callback(lambda _, x=f"{each.name} step {step}": order.append(x))
    last = call(engine, lambda: None)
    gate.set()
    last.result(60)
    for each in (one, two):
        own = [x for x in order if x.startswith(each.name)]
        assert own == [f"{each.name} {what} {i}" for i in range(3) for what in ("fb", "step")]
    assert len(passes) == 3


def test_a_bad_request_fails_alone(engine: Engine, tiny_qwen3: str) -> None:
    """Bad data, or an error in the computation: the others get their results."""
    tenants = make_tenants(engine, tiny_qwen3)[:4]
    batches = [with_inputs(make_rows(), each.loss) for each in tenants]
    batches[1] = []
    broken = tenants[2].trainer.adapter.copies
    key = next(iter(broken))
    broken[key] = broken[key].detach()[:, :3].requires_grad_()  # a wrong shape: its product fails
    gate = threading.Event()
    call(engine, gate.wait)
    futures = [each.train(own) for each, own in zip(tenants, batches)]
    gate.set()
    assert futures[0].result(60).logprobs and futures[3].result(60).logprobs
    with pytest.raises(DataValidationError, match="the batch holds no datum"):
        futures[1].result(60)
    with pytest.raises(RuntimeError):
        futures[2].result(60)
    assert [each.trainer.grads is not None for each in tenants] == [True, False, False, True]


def test_a_loss_that_is_not_finite_fails_alone(engine: Engine, tiny_qwen3: str) -> None:
    """In a pass with others, whose gradients are not affected; nor are its own earlier ones."""
    tenants = [
        Tenant(engine, tiny_qwen3, f"run {i}", LoraSpec(rank=4, seed=i), "importance_sampling")
        for i in range(3)
    ]
    batches = [with_inputs(make_rows(seed=i), "importance_sampling") for i in range(3)]
    expected = []
    for each, own in zip(tenants, batches):
        each.train(own).result(60)
        expected.append({key: grad.clone() for key, grad in (each.trainer.grads or {}).items()})
    for each in (tenants[0], tenants[2]):
        each.trainer.reset()
    bad = with_inputs(make_rows(seed=1), "importance_sampling")
    bad[3].inputs["logprobs"][2] = -1000
    seen = count_passes(engine, tiny_qwen3)
    gate = threading.Event()
    call(engine, gate.wait)
    futures = [each.train(own) for each, own in zip(tenants, (batches[0], bad, batches[2]))]
    gate.set()
    futures[0].result(60), futures[2].result(60)
    with pytest.raises(DataValidationError, match=r"datum 3's loss is .*inf: .* -1000 at position"):
        futures[1].result(60)
    assert seen[0] > sum(sequence.length for sequence in batches[0])  # they did share a pass
    for each, want in zip(tenants, expected):
        assert each.trainer.grads is not None
        for key, grad in each.trainer.grads.items():
            assert (grad - want[key]).abs().max() <= TOLERANCE, key


def test_forwards_of_runs_are_merged_with_forwards_only(engine: Engine, tiny_qwen3: str) -> None:
    tenants = make_tenants(engine, tiny_qwen3)[:4]
    passes = count_passes(engine, tiny_qwen3)
    gate = threading.Event()
    call(engine, gate.wait)
    kinds = (Forward, ForwardBackward, Forward, ForwardBackward)
    futures = [
        each.train(with_inputs(make_rows(), each.loss), kind) for each, kind in zip(tenants, kinds)
    ]
    gate.set()
    for future in futures:
        future.result(60)
    assert len(passes) == 2
    assert [each.trainer.grads is not None for each in tenants] == [False, True, False, True]


def test_a_cancelled_request_is_not_trained_on(engine: Engine, tiny_qwen3: str) -> None:
    tenants = make_tenants(engine, tiny_qwen3)[:3]
    gate = threading.Event()
    call(engine, gate.wait)
    futures = [each.train(with_inputs(make_rows(), each.loss)) for each in tenants]
    assert futures[1].cancel()
    gate.set()
    futures[0].result(60)
    futures[2].result(60)
    assert [each.trainer.grads is not None for each in tenants] == [True, False, True]


def test_a_cancelled_sample_stops(engine: Engine, tiny_qwen3: str) -> None:
    endless = SampleRequest(np.array([5]), 250, num_samples=500)
    sample = sampled(engine, tiny_qwen3, endless)
    time.sleep(0.2)
    assert sample.cancel()
    start = time.perf_counter()
    short = SampleRequest(np.array([5]), 2)
    sampled(engine, tiny_qwen3, short).result(60)
    call(engine, lambda: None).result(60)
    assert not engine.worker.samplers[tiny_qwen3].busy
    assert time.perf_counter() - start < 20


def test_requests_sent_together_enter_the_batch_together(engine: Engine, tiny_qwen3: str) -> None:
    passes = count_passes(engine, tiny_qwen3)
    gate = threading.Event()
    call(engine, gate.wait)
    prompt = np.arange(3, 43)
    futures = [sampled(engine, tiny_qwen3, SampleRequest(prompt, 30, seed=i)) for i in range(64)]
    gate.set()
    for future in futures:
        future.result(60)
    assert len(passes) <= 45  # 30 tokens, and a few steps until all have arrived


def test_a_full_disk_stops_no_run(
    engine: Engine, tiny_qwen3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tinker_cookbook.engine.offload.save_file", full)
    tenants = make_tenants(engine, tiny_qwen3)[:3]
    tenants[0].trainer.base.offloader.limit = 1
    for each in tenants:
        assert each.train(with_inputs(make_rows(), each.loss)).result(60).logprobs
    assert all(each.trainer.on_device for each in tenants)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_internal_error_fails_all_requests() -> None:
    engine = Engine(EngineConfig(device="cpu"))
    gate = threading.Event()
    running, queued = call(engine, gate.wait), call(engine, lambda: 8)
    engine.worker.offload_idle_runs = lambda: 1 // 0  # type: ignore[method-assign]
    gate.set()
    running.result(10)
    with pytest.raises(TrainingError, match=r"after an internal error: ZeroDivisionError"):
        queued.result(10)


def test_an_idle_engine_keeps_nothing_alive(engine: Engine, tiny_qwen3: str) -> None:
    tenant = make_tenants(engine, tiny_qwen3)[0]
    tenant.train(with_inputs(make_rows(), tenant.loss)).result(60)
    trainer = weakref.ref(tenant.trainer)
    del tenant
    time.sleep(0.1)
    gc.collect()
    assert trainer() is None
