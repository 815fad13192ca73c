"""The memory estimate against what autograd keeps, and checkpointing against doing without."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tinker_cookbook.engine import EngineConfig, memory, passes
from tinker_cookbook.engine.base_model import BaseModel
from tinker_cookbook.engine.lora import LoraSpec
from tinker_cookbook.engine.memory import Memory
from tinker_cookbook.engine.trainer import Trainer
from tinker_cookbook.engine.trainer_test import make_rows, make_trainer
from tinker_cookbook.exceptions import OutOfMemoryError

CPU = torch.device("cpu")


def kept_bytes(trainer: Trainer, lengths: tuple[int, ...]) -> int:
    """What autograd holds at the end of a forward, counted here by its storages."""
    fixed = {memory.id_of(t) for t in trainer.base.parameters}
    fixed |= {memory.id_of(t) for t in trainer.adapter.copy.values()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.setdefault(memory.id_of(tensor), tensor)
        return tensor

    work = trainer.work(make_rows(lengths=lengths), "cross_entropy", None)
    (each,) = passes._passes([work])
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        hidden = passes._hidden([work], each)
    del hidden
    return sum(t.untyped_storage().nbytes() for key, t in kept.items() if key not in fixed)


@pytest.mark.parametrize("family", ["tiny_qwen3", "tiny_llama", "tiny_deepseek", "tiny_gpt_oss"])
def test_the_estimate_is_what_a_pass_keeps(family: str, request: pytest.FixtureRequest) -> None:
    trainer = make_trainer(request.getfixturevalue(family), LoraSpec(rank=1))
    for lengths in ((120,), (50, 60, 70)):
        found = kept_bytes(trainer, lengths) / sum(lengths)
        assert found == pytest.approx(trainer.base.memory.plain, rel=0.15)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "family", ["tiny_qwen3", "tiny_llama", "tiny_qwen3_moe", "tiny_deepseek", "tiny_gpt_oss"]
)
def test_checkpointing_changes_no_bit_and_keeps_less(
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
    assert kept_bytes(saving, (60, 60)) < kept_bytes(plain, (60, 60)) / 8


def test_a_pass_above_its_share_is_checkpointed(tiny_qwen3: str) -> None:
    trainer = make_trainer(tiny_qwen3, LoraSpec(rank=4))
    base, rows = trainer.base, make_rows(lengths=(60,))
    assert base.memory is not None
    need = 60 * base.memory.plain * memory.BACKWARD
    for free, recompute in ((2.1 * need, False), (1.9 * need, True)):
        base.memory = dataclasses.replace(base.memory, free=int(free))
        trainer.forward_backward(rows, "cross_entropy", None)
        assert base._recompute is recompute


def test_a_pass_that_cannot_fit_is_refused(tiny_qwen3: str) -> None:
    trainer = make_trainer(tiny_qwen3, LoraSpec(rank=4))
    assert trainer.base.memory is not None
    trainer.base.memory = dataclasses.replace(trainer.base.memory, free=100_000)
    with pytest.raises(OutOfMemoryError, match=r"a pass of 94 tokens .* lower max_length"):
        trainer.forward_backward(make_rows(), "cross_entropy", None)
    assert trainer.grads is None
    trainer.forward(make_rows(), "cross_entropy", None)  # keeps nothing
    trainer.forward_backward(make_rows(lengths=(1,)), "cross_entropy", None)


def test_tokens_per_pass_follow_the_memory(
    tiny_qwen3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Memory(1000, 100, 10, 10**9).tokens_per_pass(CPU) == 2048
    assert Memory(1000, 100, 10, 10**9).tokens_per_pass(torch.device("cuda")) == 16384
    assert Memory(1000, 100, 10, 5 * 10**5).tokens_per_pass(CPU) == 1024
    assert Memory(1000, 100, 10, 0).tokens_per_pass(CPU) == 1
    monkeypatch.setattr(memory, "free_bytes", lambda device: 3_000_000)
    found = BaseModel(tiny_qwen3, EngineConfig(device="cpu"))
    assert found.memory is not None
    assert found.tokens_per_pass < 2048
    fitting = found.tokens_per_pass * found.memory.checkpointed * memory.BACKWARD
    assert fitting <= 1_500_000 < 2 * fitting
    assert (
        BaseModel(tiny_qwen3, EngineConfig(device="cpu", tokens_per_pass=99)).tokens_per_pass == 99
    )


def test_keys_and_values_follow_the_memory(tiny_llama: str, tiny_deepseek: str) -> None:
    base = BaseModel(tiny_llama, EngineConfig(device="cpu", dtype="float32"))
    assert (
        base.memory is not None and base.memory.keys == 2 * 2 * 2 * 16 * 4
    )  # layers, k and v, heads
    mla = BaseModel(tiny_deepseek, EngineConfig(device="cpu", dtype="float32"))
    sizes = mla.config
    per_head = sizes.qk_nope_head_dim + sizes.qk_rope_head_dim + sizes.v_head_dim
    assert mla.memory is not None
    assert mla.memory.keys == 2 * sizes.num_attention_heads * per_head * 4
    short = dataclasses.replace(base.memory, free=4_000_000)
    found = short.sampling_limits(EngineConfig(), CPU)
    assert found.kv_tokens == int(1_000_000 / base.memory.keys)
    assert found.prefix_tokens == found.kv_tokens // 4
    assert base.memory.sampling_limits(EngineConfig(), CPU).kv_tokens == 65536
    given = short.sampling_limits(EngineConfig(kv_tokens=77, prefix_tokens=0), CPU)
    assert (given.kv_tokens, given.prefix_tokens) == (77, 0)


def test_free_memory_is_what_the_system_says() -> None:
    total = __import__("psutil").virtual_memory().total
    assert 50e6 < memory.free_bytes(CPU) <= total
