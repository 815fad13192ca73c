"""A resumed run keeps its number of threads; the start-up lines of an engine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import tinker
import torch
from safetensors.torch import save_file

from tinker_cookbook.engine import EngineConfig
from tinker_cookbook.engine.checkpoints import ComputedWith, read_computed_with
from tinker_cookbook.engine.scheduler import Engine
from tinker_cookbook.engine.testing import call
from tinker_cookbook.service.local import LocalServiceClient
from tinker_cookbook.service.store import Store
from tinker_cookbook.utils.cpu_threads import HOW_MANY


@pytest.fixture
def same_number() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def number_of(service: LocalServiceClient) -> int:
    """The number of threads, asked on the thread that computes."""
    return call(service.engine, torch.get_num_threads).result()


def test_a_run_that_goes_on_keeps_its_number(
    tiny_qwen3: str, tmp_path: Path, same_number: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def service(number: int | None) -> LocalServiceClient:
        engine = Engine(EngineConfig(device="cpu", num_threads=number))
        return LocalServiceClient(engine, Store(tmp_path))

    first = service(2)
    client = first.create_lora_training_client(tiny_qwen3, rank=4, seed=0)
    datum = tinker.Datum(
        model_input=tinker.ModelInput.from_ints([5, 6, 7]),
        loss_fn_inputs={"target_tokens": np.array([6, 7, 8]), "weights": np.ones(3, np.float32)},
    )
    client.forward_backward([datum], "cross_entropy").result()
    client.optim_step(tinker.AdamParams(learning_rate=1e-3)).result()
    state = client.save_state("here").result().path
    threads, precision = client.about_engine()[:2]
    assert threads.startswith("2 CPU threads (engine.num_threads)")
    assert precision == "base model in float32, passes of up to 2,048 tokens"

    for name in HOW_MANY:
        monkeypatch.delenv(name, raising=False)
    fresh = service(None)
    fresh.create_lora_training_client(tiny_qwen3, rank=4).get_info()
    assert number_of(fresh) == 1
    resumed = service(None)
    client = resumed.create_training_client_from_state_with_optimizer(state)
    assert client.about_engine()[0].startswith("2 CPU threads (as when the run was saved)")
    assert number_of(resumed) == 2
    loaded = service(None)  # by hand, as a loop of one's own does
    client = loaded.create_lora_training_client(tiny_qwen3, rank=4)
    client.load_state_with_optimizer(state).result()
    assert number_of(loaded) == 2
    weights = service(None)  # a new run, from its weights alone
    weights.create_training_client_from_state(state).get_info()
    assert number_of(weights) == 1
    changed = service(1)
    changed.create_training_client_from_state_with_optimizer(state).get_info()
    assert number_of(changed) == 1
    for each in (first, fresh, resumed, loaded, weights, changed):
        each.engine.close()


def test_a_run_that_goes_on_in_another_precision_says_so(
    tiny_qwen3: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def service(dtype: Literal["float32", "bfloat16"]) -> LocalServiceClient:
        return LocalServiceClient(
            Engine(EngineConfig(device="cpu", dtype=dtype, num_threads=1)), Store(tmp_path)
        )

    first, same, other = service("float32"), service("float32"), service("bfloat16")
    client = first.create_lora_training_client(tiny_qwen3, rank=4, seed=0)
    state = client.save_state("here").result().path
    same.create_training_client_from_state_with_optimizer(state).get_info()
    other.create_training_client_from_state(state).get_info()  # a new run, from its weights alone
    assert not caplog.messages
    other.create_training_client_from_state_with_optimizer(state).get_info()
    (warning,) = caplog.messages
    assert warning.startswith("this run was saved with engine.dtype=float32 and resumes with bf")
    assert "set engine.dtype=float32" in warning
    for each in (first, same, other):
        each.engine.close()


def test_a_run_that_goes_on_with_another_residual_stream_says_so(
    tiny_qwen3: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def service(**keys: Any) -> LocalServiceClient:
        engine = Engine(EngineConfig(device="cpu", dtype="bfloat16", num_threads=1, **keys))
        return LocalServiceClient(engine, Store(tmp_path))

    first, stream, logits = service(), service(float32_residual=False), service(exact_logits=0)
    client = first.create_lora_training_client(tiny_qwen3, rank=4, seed=0)
    assert client.about_engine()[1].startswith(
        "base model in bfloat16 (float32: residual stream, logits of 32 tokens), passes of up to"
    )
    state = client.save_state("here").result().path
    for each, key in ((stream, "float32_residual=True"), (logits, "exact_logits=32")):
        each.create_training_client_from_state_with_optimizer(state).get_info()
        assert f"set engine.{key} to resume as before" in caplog.messages[-1]
    assert len(caplog.messages) == 2
    for each in (first, stream, logits):
        each.engine.close()


def test_settings_of_checkpoints_from_other_versions(tmp_path: Path) -> None:
    def read(metadata: dict[str, str]) -> ComputedWith:
        file = tmp_path / "optimizer.safetensors"
        save_file({"step": torch.ones(1)}, file, metadata=metadata)
        return read_computed_with(tmp_path)

    assert read({"format": "pt"}) == ComputedWith()
    assert read({"num_threads": "3"}) == ComputedWith(num_threads=3)
    assert read({"computed_with": '{"dtype": "float32", "later": 1}'}) == ComputedWith(
        dtype="float32"
    )


def test_a_run_on_tied_embeddings_is_told_about_merging(
    tiny_qwen3: str, tiny_llama: str, tmp_path: Path, same_number: None
) -> None:
    service = LocalServiceClient(Engine(EngineConfig(device="cpu")), Store(tmp_path))

    def told(model: str, train_unembed: bool) -> bool:
        client = service.create_lora_training_client(model, 4, train_unembed=train_unembed)
        lines = [line for line in client.about_engine() if "tied embeddings" in line]
        assert all(line.startswith(f"{model} has tied embeddings") for line in lines)
        return len(lines) == 1

    assert told(tiny_qwen3, True)
    assert not told(tiny_qwen3, False)
    assert not told(tiny_llama, True)
    assert not told("nano", True)  # tied, too; but nobody will merge the demo
    service.engine.close()
