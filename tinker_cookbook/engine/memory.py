"""How much memory a token takes, measured on the loaded model, and what follows from it.

What a pass keeps for its backward grows with its tokens. It is counted once per base model, by a
forward of a few tokens (so it holds for every family), and compared with what was free then: half
of it is for passes, the rest for adapters and for the keys and values of samples. A pass above its
share is computed with activation checkpointing: every layer keeps its input alone and runs again in
the backward (Chen et al. 2016, https://arxiv.org/abs/1604.06174): about a third more time, the same
numbers. A pass that would not fit even so, then or now, is refused before it starts, because an
operating system that runs out of memory ends the process without a word.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import psutil
import torch

from tinker_cookbook.engine.attention import PackedPlan, Segment
from tinker_cookbook.engine.config import EngineConfig
from tinker_cookbook.engine.lora import Adapter, AdapterSpan, LoraSpec
from tinker_cookbook.engine.packing import FAMILY_BUDGET_FACTOR
from tinker_cookbook.exceptions import OutOfMemoryError
from tinker_cookbook.utils.control_groups import UNIFIED, own_groups

KV_USUAL = {"cpu": 65536, "cuda": 524288}  # tokens of keys and values; few ask for more
USUAL = {"cpu": 2048, "cuda": 16384}  # tokens per pass; beyond, a pass gets larger, not faster
PROBE = 64  # tokens of the counting forward, unless a sliding window asks for more
WIDEST = 512  # sliding window that the counting forward is made longer for
RANK = 32  # of the adapter that is counted, the SDK's default
# Gradients that live beside what was kept, as a factor on it; and what is not counted: higher
# ranks, and on a GPU the keys of what segments share, which each of them copies.
BACKWARD = 1.3
ADAPTERS = 0.25  # share of the free memory that adapters in training may take
KEYS = 0.25  # ... and the keys and values of what is being sampled
PASS = 1 - ADAPTERS - KEYS  # ... and a pass, checkpointed or not
GIB = 2**30

# By controller: the files with a group's limit and its use, and what `memory.stat` calls the files
# that are only kept in memory while nobody else wants it.
GROUP_FILES = {
    UNIFIED: ("memory.max", "memory.current", ("inactive_file", "active_file")),
    "memory": (
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        ("total_inactive_file", "total_active_file"),
    ),
}


def free_bytes(device: torch.device) -> int:
    """Memory that this process can still take on a device, what torch keeps unused included."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    # psutil, because what can be had without swapping differs by operating system
    return max(min([psutil.virtual_memory().available, *_group_free()]), 0)


def _group_free() -> list[int]:
    """What the process's control groups and those above them leave; none without a limit."""
    found = []
    for controller, group in own_groups(GROUP_FILES):
        limit, use, cache = GROUP_FILES[controller]
        try:
            free = int((group / limit).read_text()) - int((group / use).read_text())
            stat = dict(each.split() for each in (group / "memory.stat").open())
            found.append(free + sum(int(stat[key]) for key in cache))
        except (OSError, ValueError, KeyError):
            continue  # no limit ("max"), or no such group here
    return found


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
    prepacked: int = 0  # already taken from `free`: the second copy of weights that sampling makes

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
        """As many as pay on this device, or the power of two of which families fit, too."""
        usual = USUAL.get(device.type, 2048)
        fitting = int(self.free * PASS / (self.checkpointed * BACKWARD))
        if fitting >= FAMILY_BUDGET_FACTOR * usual:
            return usual
        return 1 << max((fitting // FAMILY_BUDGET_FACTOR).bit_length() - 1, 0)

    def needs_checkpointing(self, tokens: int, device: torch.device) -> bool:
        """Whether a pass of so many tokens is above its share; refused if it fits in no case."""
        need, share = tokens * self.checkpointed * BACKWARD, self.free * PASS
        if need > share:  # the model may have been loaded at a busy moment
            share = max(share, (free_bytes(device) - self.prepacked) * PASS)
        if need > share:
            raise OutOfMemoryError(
                f"a pass of {tokens} tokens needs about {need / GIB:.1f} GiB even with activation"
                f" checkpointing, passes may take {share / GIB:.1f} GiB (half of what is free):"
                " shorten the rows (here a row is never cut; max_length of a recipe does) or lower"
                " engine.tokens_per_pass"
            )
        return tokens * self.plain * BACKWARD > share


class Measurable(Protocol):
    """A loaded model, as far as counting its memory goes."""

    device: torch.device
    dtype: torch.dtype
    num_layers: int
    hidden_size: int
    sliding_window: int  # tokens; 0: none
    parameters: list[torch.Tensor]  # and buffers

    def new_adapter(self, spec: LoraSpec) -> Adapter: ...

    def hidden(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        plan: PackedPlan,
        adapters: list[AdapterSpan],
    ) -> torch.Tensor: ...


class _KeySize:
    """Where a pass puts keys and values to have them counted."""

    def __init__(self) -> None:
        self.bytes = 0

    def put(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        self.bytes += keys.nbytes + values.nbytes


def measure(base: Measurable, prepacked: int = 0) -> Memory:
    """Count what a forward over a few tokens keeps, with an adapter on everything.

    It grows evenly with the rank, so two small ranks tell of RANK: an adapter of that rank on all
    of a large model's experts might not fit. A window's part is known only beyond the window.
    """
    window = base.sliding_window
    tokens = max(PROBE, 2 * window) if window <= WIDEST else PROBE
    keys = _KeySize()
    one, two = (_kept(base, rank, tokens, keys) for rank in (1, 2))
    plain = (one + (RANK - 1) * (two - one)) / tokens
    inputs = base.num_layers * base.hidden_size * base.dtype.itemsize
    return Memory(
        plain,
        inputs + plain / base.num_layers,
        keys.bytes / (2 * tokens),
        max(free_bytes(base.device) - prepacked, 0),
        prepacked,
    )


def _kept(base: Measurable, rank: int, length: int, keys: _KeySize) -> int:
    """Bytes that autograd holds at the end of a forward, without what is there anyway."""
    adapter = base.new_adapter(LoraSpec(rank=rank))
    fixed = {storage_id(t) for t in (*base.parameters, *adapter.copies.values())}
    kept: dict[int, torch.Tensor] = {}  # holds the tensors, or their memory would be used again

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.setdefault(storage_id(tensor), tensor)
        return tensor

    tokens = torch.zeros(length, dtype=torch.int64, device=base.device)
    positions = torch.arange(length, device=base.device)
    plan = PackedPlan([Segment(0, length)], saves=[(positions, keys)])
    rows = [AdapterSpan(adapter, 0, length)]
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        base.hidden(tokens, positions, plan, rows)
    return sum(t.untyped_storage().nbytes() for key, t in kept.items() if key not in fixed)


def storage_id(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
