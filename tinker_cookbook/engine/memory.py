"""How much memory a token takes, measured on the loaded model, and what follows from it.

What a pass keeps for its backward grows with its tokens. It is counted once per base model, by a
forward of a few tokens (so it holds for every family), and compared with what was free then. A
pass above its share is computed with activation checkpointing: every layer keeps its input alone
and runs again in the backward (Chen et al. 2016, https://arxiv.org/abs/1604.06174): about a third
more time, the same numbers. A pass that would not fit even so is refused before it starts, because
an operating system that runs out of memory ends the process without a word.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import torch

from tinker_cookbook.engine.attention import PackedPlan, Segment
from tinker_cookbook.engine.config import EngineConfig
from tinker_cookbook.engine.lora import AdapterRows, LoraSpec
from tinker_cookbook.exceptions import OutOfMemoryError

if TYPE_CHECKING:
    from tinker_cookbook.engine.base_model import BaseModel

KV_USUAL = {"cpu": 65536, "cuda": 524288}  # tokens of keys and values; few ask for more
USUAL = {"cpu": 2048, "cuda": 16384}  # tokens per pass; beyond, a pass gets larger, not faster
PROBE = 64  # tokens of the counting forward
BACKWARD = 1.3  # gradients that live beside what was kept, as a factor on it
ACTIVATIONS = 0.5  # share of the free memory that a pass may take without checkpointing
ADAPTERS = 0.25  # ... and that adapters in training may take
KEYS = 0.25  # ... and the keys and values of what is being sampled
GIB = 2**30


def free_bytes(device: torch.device) -> int:
    """Memory that this process can still take on a device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = psutil.virtual_memory().available
    group = Path("/sys/fs/cgroup")  # a container may have less than its machine
    try:
        limit = int((group / "memory.max").read_text())
        free = min(free, limit - int((group / "memory.current").read_text()))
    except (OSError, ValueError):
        pass  # no limit ("max"), or no control groups
    return max(free, 0)


@dataclass(frozen=True)
class SamplingLimits:
    """`EngineConfig`'s limits on sampling, with what was found filled in; tokens."""

    tokens_per_pass: int
    kv_tokens: int
    prefix_tokens: int
    max_rows: int
    deterministic: bool


@dataclass(frozen=True)
class Memory:
    """Bytes that one token takes, and what was free when the model had been loaded."""

    plain: float  # what a pass keeps for the backward
    checkpointed: float  # ... with checkpointing: each layer's input, and one layer's share
    keys: float  # keys and values of all layers
    free: int

    def sampling_limits(self, config: EngineConfig, device: torch.device) -> SamplingLimits:
        fitting = max(int(self.free * KEYS / self.keys), 1)
        kv_tokens = config.kv_tokens or min(KV_USUAL.get(device.type, 65536), fitting)
        kept = kv_tokens // 4 if config.prefix_tokens is None else config.prefix_tokens
        return SamplingLimits(
            config.tokens_per_pass or self.tokens_per_pass(device),
            kv_tokens,
            kept,
            config.max_rows,
            config.deterministic,
        )

    def tokens_per_pass(self, device: torch.device) -> int:
        """As many as pay on this device, or the power of two that fits with checkpointing."""
        usual = USUAL.get(device.type, 2048)
        fitting = int(self.free * ACTIVATIONS / (self.checkpointed * BACKWARD))
        return usual if fitting >= usual else 1 << max(fitting.bit_length() - 1, 0)

    def needs_checkpointing(self, tokens: int) -> bool:
        """Whether a pass of so many tokens is above its share; refused if it fits in no case."""
        if tokens * self.checkpointed * BACKWARD > self.free:
            raise OutOfMemoryError(
                f"a pass of {tokens} tokens needs about"
                f" {tokens * self.checkpointed * BACKWARD / GIB:.1f} GiB even with activation"
                f" checkpointing, {self.free / GIB:.1f} GiB were free after the model was loaded:"
                " lower max_length (a row is never cut) or engine.tokens_per_pass"
            )
        return tokens * self.plain * BACKWARD > self.free * ACTIVATIONS


class _KeySize:
    """Where a pass puts keys and values to have them counted."""

    def __init__(self) -> None:
        self.bytes = 0

    def put(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        self.bytes += keys.nbytes + values.nbytes


def measure(base: BaseModel) -> Memory:
    """Count what a forward over a few tokens keeps, with an adapter on everything."""
    adapter = base.new_adapter(LoraSpec(rank=1))
    fixed = {id_of(t) for t in (*base.parameters, *adapter.copy.values())}
    kept: dict[int, Any] = {}  # holds the tensors, or their memory would be used again

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.setdefault(id_of(tensor), tensor)
        return tensor

    tokens = torch.zeros(PROBE, dtype=torch.int64, device=base.device)
    positions = torch.arange(PROBE, device=base.device)
    size = _KeySize()
    plan = PackedPlan([Segment(0, PROBE)], keep=[(positions, size)])
    rows = [AdapterRows(adapter, 0, PROBE)]
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        hidden = base.hidden(tokens, positions, plan, rows)
    sizes = [t.untyped_storage().nbytes() for key, t in kept.items() if key not in fixed]
    plain = sum(sizes) / PROBE
    inputs = base.num_layers * hidden.shape[-1] * hidden.element_size()
    return Memory(
        plain, inputs + plain / base.num_layers, size.bytes / PROBE, free_bytes(base.device)
    )


def id_of(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
