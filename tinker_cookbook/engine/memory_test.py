"""The memory estimate against the bytes that autograd saves; checkpointing against none."""

from __future__ import annotations

import dataclasses
import json
import shutil
import types
from pathlib import Path

import pytest
import torch

from tinker_cookbook.engine import EngineConfig, base_model, memory, passes
from tinker_cookbook.engine.base_model import BaseModel
from tinker_cookbook.engine.head import GATHERED_BYTES
from tinker_cookbook.engine.lora import LoraSpec
from tinker_cookbook.engine.memory import GIB, MemoryEstimate
from tinker_cookbook.engine.testing import MOE, PLAIN, make_rows, make_trainer
from tinker_cookbook.engine.trainer import AdapterTrainer
from tinker_cookbook.exceptions import OutOfMemoryError
from tinker_cookbook.utils import control_groups

CPU = torch.device("cpu")


def saved_bytes(trainer: AdapterTrainer, lengths: tuple[int, ...]) -> int:
    """Bytes that autograd has saved at the end of a forward, counted by storage."""
    fixed = {memory.storage_id(t) for t in trainer.base.parameters}
    fixed |= {memory.storage_id(t) for t in trainer.adapter.copies.values()}
    saved: dict[int, torch.Tensor] = {}

    def record(tensor: torch.Tensor) -> torch.Tensor:
        saved.setdefault(memory.storage_id(tensor), tensor)
        return tensor

    work = trainer.prepare_work(make_rows(lengths=lengths), "cross_entropy", None)
    (each,) = passes._pack_passes([work])
    with torch.autograd.graph.saved_tensors_hooks(record, lambda x: x):
        hidden = passes._hidden_states([work], each)
    del hidden
    return sum(t.untyped_storage().nbytes() for key, t in saved.items() if key not in fixed)


FAMILIES = [*PLAIN, *MOE]


@pytest.mark.parametrize("family", [*FAMILIES, "tiny_qwen3_sliding"])
def test_the_estimate_equals_what_a_pass_saves(family: str, request: pytest.FixtureRequest) -> None:
    trainer = make_trainer(request.getfixturevalue(family), LoraSpec())
    for lengths in ((120,), (50, 60, 70)):
        found = saved_bytes(trainer, lengths) / sum(lengths)
        assert trainer.base.memory is not None
        assert found == pytest.approx(trainer.base.memory.saved, rel=0.06)


def test_the_estimate_goes_beyond_a_sliding_window(tiny_gpt_oss: str, tmp_path: Path) -> None:
    shutil.copytree(tiny_gpt_oss, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "sliding_window": 100}))
    trainer = make_trainer(str(tmp_path), LoraSpec())
    assert trainer.base.memory is not None
    assert saved_bytes(trainer, (250,)) / 250 == pytest.approx(trainer.base.memory.saved, rel=0.06)


@pytest.mark.parametrize("family", FAMILIES)
def test_checkpointing_changes_no_bit_and_saves_less(
    family: str, request: pytest.FixtureRequest, device: str
) -> None:
    path = request.getfixturevalue(family)
    rows = make_rows()
    plain = make_trainer(path, LoraSpec(rank=4), device, checkpointing="never")
    saving = make_trainer(path, LoraSpec(rank=4), device, checkpointing="always")
    results = [each.forward_backward(rows, "cross_entropy", None) for each in (plain, saving)]
    assert all((a == b).all() for a, b in zip(results[0].logprobs, results[1].logprobs))
    assert plain.grads is not None and saving.grads is not None
    assert plain.grads.keys() == saving.grads.keys()
    assert all(torch.equal(grad, saving.grads[name]) for name, grad in plain.grads.items())
    assert any(grad.abs().max() > 0 for grad in saving.grads.values())
    assert saved_bytes(saving, (60, 60)) < saved_bytes(plain, (60, 60)) / 8


def test_a_pass_above_its_share_is_checkpointed(tiny_qwen3: str) -> None:
    trainer = make_trainer(tiny_qwen3, LoraSpec(rank=4))
    base, rows = trainer.base, make_rows(lengths=(60,))
    assert base.memory is not None
    need = 60 * base.memory.saved * memory.BACKWARD_FACTOR
    for free, recompute in ((2.1 * need, False), (1.9 * need, True)):
        base.memory = dataclasses.replace(base.memory, free=int(free))
        trainer.forward_backward(rows, "cross_entropy", None)
        assert base._recompute is recompute


def test_a_pass_that_cannot_fit_is_refused(
    tiny_qwen3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(tiny_qwen3, LoraSpec(rank=4))
    assert trainer.base.memory is not None
    need = 94 * trainer.base.memory.checkpointed * memory.BACKWARD_FACTOR
    trainer.base.memory = dataclasses.replace(trainer.base.memory, free=int(1.9 * need))
    monkeypatch.setattr(memory, "free_bytes", lambda device: 100_000)
    with pytest.raises(OutOfMemoryError, match=r"a pass of 94 tokens .* shorten the sequences"):
        # only half of the free memory is for passes
        trainer.forward_backward(make_rows(), "cross_entropy", None)
    assert trainer.grads is None
    trainer.forward(make_rows(), "cross_entropy", None)  # saves nothing for a backward
    trainer.forward_backward(make_rows(lengths=(1,)), "cross_entropy", None)


def test_free_memory_is_measured_again_after_a_busy_load(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    busy = MemoryEstimate(1000, 100, 10, free=1000, reserved=5000)
    for now in (0, 5000 + 2 * 13_000 - 10):
        monkeypatch.setattr(memory, "free_bytes", lambda device, now=now: now)
        with pytest.raises(OutOfMemoryError, match="a pass of 100 tokens"):
            busy.needs_checkpointing(100, CPU)
    monkeypatch.setattr(memory, "free_bytes", lambda device: 5000 + 2 * 13_000 + 10)
    assert busy.needs_checkpointing(100, CPU)
    monkeypatch.setattr(memory, "free_bytes", lambda device: 10**9)
    assert not busy.needs_checkpointing(100, CPU)
    monkeypatch.setattr(memory, "free_bytes", lambda device: 0)  # busy now, but free at load
    assert dataclasses.replace(busy, free=2 * 13_010).needs_checkpointing(100, CPU)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_second_copy_of_the_weights_is_not_free(
    tiny_llama: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = 500_000_000
    monkeypatch.setattr(memory, "free_bytes", lambda device: free)
    monkeypatch.setattr(base_model, "can_prepack", lambda weight: weight.dtype == torch.bfloat16)
    base = BaseModel(tiny_llama, EngineConfig(device="cpu", dtype=dtype))  # type: ignore[arg-type]
    assert base.memory is not None
    count = base.head.weight.numel() + sum(
        parameter.numel() for name, parameter in base.decoder.named_parameters() if "proj" in name
    )
    logits = 256 * base.vocab_size * 8
    if dtype == "bfloat16":  # the rows of W that exact_logits gathers, and their fp32 copies
        logits += 3 * GATHERED_BYTES // 2
    expected = logits + (2 * count if dtype == "bfloat16" else 0)
    assert base.memory.reserved == expected
    assert base.memory.free == free - expected
    # too little for a second copy
    free = 3 * sum(tensor.nbytes for tensor in base.decoder.parameters())
    base = BaseModel(tiny_llama, EngineConfig(device="cpu", dtype=dtype))  # type: ignore[arg-type]
    assert base.memory is not None and base.memory.reserved == logits
    assert base.memory.free == max(free - logits, 0)


def test_tokens_per_pass_follow_the_memory(
    tiny_qwen3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert MemoryEstimate(1000, 100, 10, 10**9).tokens_per_pass(CPU) == 2048
    assert MemoryEstimate(1000, 100, 10, 10**9).tokens_per_pass(torch.device("cuda")) == 16384
    assert MemoryEstimate(1000, 100, 10, 10**6).tokens_per_pass(CPU) == 1024
    # much to save per token: half as many tokens on a CPU, however much memory is free
    large = MemoryEstimate(10**6, 10**5, 10, 10**12)
    assert large.tokens_per_pass(CPU) == 1024
    assert large.tokens_per_pass(torch.device("cuda")) == 16384
    assert MemoryEstimate(1000, 100, 10, 0).tokens_per_pass(CPU) == 1
    monkeypatch.setattr(memory, "free_bytes", lambda device: 3_000_000)
    found = BaseModel(tiny_qwen3, EngineConfig(device="cpu"))
    assert found.memory is not None
    assert found.tokens_per_pass < 2048
    fitting = found.tokens_per_pass * found.memory.checkpointed * memory.BACKWARD_FACTOR
    assert 2 * fitting <= 1_500_000 < 4 * fitting  # a family may take two budgets
    assert (
        BaseModel(tiny_qwen3, EngineConfig(device="cpu", tokens_per_pass=99)).tokens_per_pass == 99
    )


def test_keys_and_values_follow_the_memory(tiny_llama: str, tiny_deepseek: str) -> None:
    base = BaseModel(tiny_llama, EngineConfig(device="cpu", dtype="float32"))
    assert (
        base.memory is not None and base.memory.kv == 2 * 2 * 2 * 16 * 4
    )  # layers, k and v, heads
    mla = BaseModel(tiny_deepseek, EngineConfig(device="cpu", dtype="float32"))
    sizes = mla.config
    per_head = sizes.qk_nope_head_dim + sizes.qk_rope_head_dim + sizes.v_head_dim
    assert mla.memory is not None
    assert mla.memory.kv == 2 * sizes.num_attention_heads * per_head * 4
    short = dataclasses.replace(base.memory, free=4_000_000)
    found = short.sampling_limits(EngineConfig(), CPU)
    assert found.kv_tokens == int(1_000_000 / base.memory.kv)
    assert found.prefix_tokens == found.kv_tokens // 4
    assert base.memory.sampling_limits(EngineConfig(), CPU).kv_tokens == 65536
    given = short.sampling_limits(EngineConfig(kv_tokens=77, prefix_tokens=0), CPU)
    assert (given.kv_tokens, given.prefix_tokens) == (77, 0)


def write_group(
    directory: Path, version: int, limit: int | str, used: int, inactive: int, active: int
) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    names = ("memory.max", "memory.current") if version == 2 else V1
    prefix = "" if version == 2 else "total_"
    (directory / names[0]).write_text(f"{limit}\n")
    (directory / names[1]).write_text(f"{used}\n")
    (directory / "memory.stat").write_text(
        f"anon 1\ninactive_file 1\n{prefix}inactive_file {inactive}\n{prefix}active_file {active}\n"
    )


V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes")


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(control_groups, "GROUPS", tmp_path / "fs")
    monkeypatch.setattr(control_groups, "OWN_GROUPS", tmp_path / "own")
    machine = types.SimpleNamespace(available=64 * GIB)
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: machine)
    (tmp_path / "own").write_text("9:name=systemd:/a\n4:memory:/a/b\n0::/a/b\n")
    return tmp_path / "fs"


@pytest.mark.parametrize("version", [1, 2])
def test_a_container_may_have_less_than_its_machine(groups: Path, version: int) -> None:
    root = groups / "memory" if version == 1 else groups
    assert memory.free_bytes(CPU) == 64 * GIB  # no such files
    # page cache of the weight files counts as used, but can be reclaimed
    write_group(root, version, 32 * GIB, 32 * GIB, 10 * GIB, 6 * GIB)
    assert memory.free_bytes(CPU) == 16 * GIB
    write_group(root / "a" / "b", version, 8 * GIB, 5 * GIB, GIB, 0)  # the process's own
    assert memory.free_bytes(CPU) == 4 * GIB
    write_group(root / "a", version, 4 * GIB, 3 * GIB, 0, 0)  # and the one above it
    assert memory.free_bytes(CPU) == GIB
    write_group(root / "a", version, "max" if version == 2 else 2**63 - 4096, 3 * GIB, 0, 0)
    assert memory.free_bytes(CPU) == 4 * GIB
    write_group(root / "a", version, GIB, 2 * GIB, 0, 0)
    assert memory.free_bytes(CPU) == 0


def test_the_unused_cache_of_torch_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10 * GIB, 80 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 60 * GIB)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 40 * GIB)
    assert memory.free_bytes(torch.device("cuda", 0)) == 30 * GIB


def test_free_memory_is_plausible() -> None:
    total = __import__("psutil").virtual_memory().total
    assert 50e6 < memory.free_bytes(CPU) <= total
