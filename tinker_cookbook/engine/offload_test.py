"""Offloaded adapters are restored bit for bit, and only as many as needed are offloaded."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch

from tinker_cookbook.engine import EngineConfig, checkpoints
from tinker_cookbook.engine.base_model import BaseModel
from tinker_cookbook.engine.lora import Adapter, LoraSpec
from tinker_cookbook.engine.requests import AdamConfig, CreateRun, DropRun, ForwardBackward
from tinker_cookbook.engine.scheduler import Engine
from tinker_cookbook.engine.testing import call, make_rows
from tinker_cookbook.engine.trainer import AdapterTrainer
from tinker_cookbook.exceptions import OutOfMemoryError

ADAM = AdamConfig(learning_rate=1e-2)


def train(trainer: AdapterTrainer, steps: int) -> None:
    for step in range(steps):
        trainer.forward_backward(make_rows(seed=step), "cross_entropy", None)
        trainer.optim_step(ADAM)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_offload_changes_no_bit(tiny_llama: str, dtype: str, tmp_path: Path, device: str) -> None:
    base = BaseModel(tiny_llama, EngineConfig(device=device, dtype=dtype))  # type: ignore[arg-type]
    plain, offloaded = (
        AdapterTrainer(base, LoraSpec(rank=4)),
        AdapterTrainer(base, LoraSpec(rank=4)),
    )
    offloaded.offload()  # before its first step, without moments
    train(plain, 2)
    train(offloaded, 1)
    offloaded.offload()
    offloaded.forward_backward(make_rows(seed=1), "cross_entropy", None)
    copies = 0 if dtype == "float32" else sum(t.nbytes for t in offloaded.adapter.copies.values())
    assert sum(tensor.nbytes for tensor in offloaded._tensors().values()) + copies == offloaded.size
    offloaded.offload()  # with an accumulated gradient
    assert not offloaded.on_device
    assert all(tensor.numel() == 0 for tensor in offloaded._tensors().values())
    offloaded.optim_step(ADAM)
    assert offloaded.on_device
    if device == "cpu":
        assert not list(Path(base.offloader._directory.name).iterdir())  # type: ignore[union-attr]
    for name, tensor in plain.adapter.master.items():
        assert torch.equal(tensor, offloaded.adapter.master[name])
    offloaded.offload()
    for name, trainer in (("plain", plain), ("offloaded", offloaded)):
        (tmp_path / name).mkdir()
        checkpoints.write_state(trainer, "base", tmp_path / name)
    for file in ("adapter_model.safetensors", "optimizer.safetensors"):
        assert (tmp_path / "plain" / file).read_bytes() == (
            tmp_path / "offloaded" / file
        ).read_bytes()


def test_an_offloaded_run_can_be_restored_from_a_checkpoint(
    tiny_llama: str, tmp_path: Path, device: str
) -> None:
    base = BaseModel(tiny_llama, EngineConfig(device=device))
    trainer = AdapterTrainer(base, LoraSpec(rank=4))
    train(trainer, 1)
    checkpoints.write_state(trainer, "base", tmp_path)
    saved = {name: tensor.detach().clone() for name, tensor in trainer.adapter.master.items()}
    train(trainer, 1)
    trainer.offload()
    checkpoints.read_adapter(trainer.adapter, tmp_path)
    checkpoints.read_optimizer(trainer, tmp_path)
    assert all(torch.equal(saved[n], tensor) for n, tensor in trainer.adapter.master.items())
    train(trainer, 1)


def test_the_least_recently_used_are_offloaded(tiny_qwen3: str) -> None:
    engine = Engine(EngineConfig(device="cpu"))
    for index in range(4):
        engine.submit(CreateRun(str(index), tiny_qwen3, LoraSpec(rank=4))).result(60)
    runs = [engine.worker.runs[str(index)] for index in range(4)]
    base = runs[0].base
    base.offloader.limit = 2 * runs[0].size
    for index in (0, 1, 2, 3, 1):
        engine.submit(ForwardBackward(str(index), make_rows(), "cross_entropy")).result(60)
    call(engine, lambda: None).result(60)  # room is made after an operation
    assert [run.on_device for run in runs] == [False, True, False, True]
    files = Path(base.offloader._directory.name)  # type: ignore[union-attr]
    assert len(list(files.iterdir())) == 2
    runs.clear()
    for index in range(4):
        engine.submit(DropRun(str(index))).result(60)
    gc.collect()
    assert not list(files.iterdir())
    engine.close()


def test_an_adapter_that_never_fits_is_refused(tiny_qwen3: str) -> None:
    base = BaseModel(tiny_qwen3, EngineConfig(device="cpu", adapter_gib=0.0005))
    with pytest.raises(OutOfMemoryError, match=r"LoRA rank=32: .* raise engine.adapter_gib"):
        AdapterTrainer(base, LoraSpec(rank=32))
    assert AdapterTrainer(base, LoraSpec(rank=1)).on_device


def test_an_adapter_that_cannot_be_restored_stays_offloaded(
    tiny_llama: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = BaseModel(tiny_llama, EngineConfig(device="cpu", dtype="bfloat16"))
    trainer = AdapterTrainer(base, LoraSpec(rank=4))
    train(trainer, 1)
    before = trainer.forward(make_rows(), "cross_entropy", None)
    trainer.offload()

    def starve(self: object, dtype: torch.dtype) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(Adapter, "make_copies", starve)
        with pytest.raises(MemoryError):
            trainer.forward(make_rows(), "cross_entropy", None)
        assert not trainer.on_device
    after = trainer.forward(make_rows(), "cross_entropy", None)
    assert after.metrics == before.metrics


def test_more_adapters_to_sample_from_than_fit(tiny_qwen3: str) -> None:
    base = BaseModel(tiny_qwen3, EngineConfig(device="cpu"))
    trainer = AdapterTrainer(base, LoraSpec(rank=4))
    size = sum(tensor.nbytes for tensor in trainer.adapter.copies.values())
    base.offloader.limit = int(2.5 * size)
    one = base.offloader.admit(trainer.adapter.snapshot())
    two = base.offloader.admit(trainer.adapter.snapshot())
    with pytest.raises(OutOfMemoryError, match=r"the 2 in use take .* release sampling clients"):
        base.offloader.admit(trainer.adapter.snapshot())
    del two
    assert base.offloader.admit(trainer.adapter.snapshot()) is not one
