"""How much memory a token needs, measured on the loaded model, and the limits that follow.

Measured, once per base model: the bytes that autograd saves in a forward of a few tokens, and the
bytes of their keys and values. Counting real tensors works for every family without a formula.
Extrapolated: to the tokens of a pass (saved bytes grow linearly with them) and to the usual LoRA
rank. Not measured but estimated by a factor: the gradients that the backward holds on top.

Half of the memory that was free at load is for passes, a quarter for adapters, a quarter for keys
and values. A pass above its share uses activation checkpointing: every layer saves only its input
and runs again in the backward (Chen et al. 2016, https://arxiv.org/abs/1604.06174), for about a
third more time and the same numbers. A pass that does not fit even so is refused before it starts,
because an operating system that runs out of memory kills the process without a message.
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
from tinker_cookbook.utils.cpu_memory import return_freed_memory

DEFAULT_KV_TOKENS = {"cpu": 65536, "cuda": 524288}  # few workloads need more
DEFAULT_TOKENS_PER_PASS = {"cpu": 2048, "cuda": 16384}  # larger passes are not faster
# On a CPU, a default pass that takes more than this is halved. SmolLM2-135M in fp32 saves
# 1.1 MiB a token and trains as fast in passes of 1,024 tokens, with a gigabyte less.
LARGE_PASS_BYTES = 2 * 2**30
PROBE_TOKENS = 64  # of the measuring forward, unless a sliding window needs more
MAX_PROBED_WINDOW = 512  # the widest sliding window that the probe is made longer for
ASSUMED_RANK = 32  # LoRA rank that the estimate is for, the SDK's default
# Factor on the saved bytes for the gradients that exist beside them, with room for what is not
# measured: higher ranks and, on a GPU, the shared keys that each segment copies.
BACKWARD_FACTOR = 1.3
# Shares of the memory that is free at load
ADAPTER_SHARE = 0.25  # adapters in training
KV_SHARE = 0.25  # keys and values of sampled sequences
PASS_SHARE = 1 - ADAPTER_SHARE - KV_SHARE  # one pass, checkpointed or not
GIB = 2**30

# By cgroup controller: the files with a group's limit and usage, and the keys of `memory.stat` for
# its page cache, which the kernel reclaims when memory is needed.
CGROUP_FILES = {
    UNIFIED: ("memory.max", "memory.current", ("inactive_file", "active_file")),
    "memory": (
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        ("total_inactive_file", "total_active_file"),
    ),
}


def free_bytes(device: torch.device) -> int:
    """Bytes that this process can still allocate on a device, including torch's unused cache."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    # psutil knows what each operating system can provide without swapping
    return max(min([psutil.virtual_memory().available, *_free_by_cgroup()]), 0)


def _free_by_cgroup() -> list[int]:
    """Free bytes in each of the process's cgroups and their ancestors that has a limit.

    In a container, these may be far below what the machine has free.
    """
    free_bytes_by_group = []
    for controller, group in own_groups(CGROUP_FILES):
        limit, usage, cache = CGROUP_FILES[controller]
        try:
            free = int((group / limit).read_text()) - int((group / usage).read_text())
            stat = dict(line.split() for line in (group / "memory.stat").open())
            # usage counts page cache, such as the weight files just read, which can be reclaimed
            free_bytes_by_group.append(free + sum(int(stat[key]) for key in cache))
        except (OSError, ValueError, KeyError):
            continue  # no limit ("max"), or no such group
    return free_bytes_by_group


@dataclass(frozen=True)
class SamplingLimits:
    """`EngineConfig`'s limits on sampling, with None replaced by measured values; in tokens."""

    tokens_per_pass: int
    kv_tokens: int
    prefix_tokens: int
    max_rows: int
    deterministic: bool


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes per token, and the bytes that were free once the model was loaded."""

    saved: float  # per token: what a pass saves for the backward
    checkpointed: float  # per token, with checkpointing: all layers' inputs and one layer's `saved`
    kv: float  # per token: keys and values of all layers
    free: int
    # already subtracted from `free`: what is allocated later, whatever the pass
    reserved: int = 0

    def sampling_limits(self, config: EngineConfig, device: torch.device) -> SamplingLimits:
        fitting = max(int(self.free * KV_SHARE / self.kv), 1)
        kv_tokens = config.kv_tokens or min(DEFAULT_KV_TOKENS.get(device.type, 65536), fitting)
        prefix_tokens = kv_tokens // 4 if config.prefix_tokens is None else config.prefix_tokens
        return SamplingLimits(
            config.tokens_per_pass or self.tokens_per_pass(device),
            kv_tokens,
            prefix_tokens,
            config.max_rows,
            config.deterministic,
        )

    def tokens_per_pass(self, device: torch.device) -> int:
        """The device's default or, if memory is short, the largest power of two that fits.

        A budget fits if a pass of FAMILY_BUDGET_FACTOR budgets does, with checkpointing.
        """
        default = DEFAULT_TOKENS_PER_PASS.get(device.type, 2048)
        usual = default * self.saved * BACKWARD_FACTOR
        if device.type == "cpu" and usual > LARGE_PASS_BYTES:
            default //= 2
        fitting = int(self.free * PASS_SHARE / (self.checkpointed * BACKWARD_FACTOR))
        if fitting >= FAMILY_BUDGET_FACTOR * default:
            return default
        return 1 << max((fitting // FAMILY_BUDGET_FACTOR).bit_length() - 1, 0)

    def needs_checkpointing(self, tokens: int, device: torch.device) -> bool:
        """Whether a pass of `tokens` tokens exceeds its share of memory without checkpointing.

        Raises OutOfMemoryError if it does not fit with checkpointing either.
        """
        need, share = tokens * self.checkpointed * BACKWARD_FACTOR, self.free * PASS_SHARE
        if need > share:  # measure again: other processes may have been busy at load
            share = max(share, (free_bytes(device) - self.reserved) * PASS_SHARE)
        if need > share and device.type == "cpu":  # what a GPU's allocator keeps counts as free
            return_freed_memory()
            share = max(share, (free_bytes(device) - self.reserved) * PASS_SHARE)
        if need > share:
            raise OutOfMemoryError(
                f"a pass of {tokens} tokens needs about {need / GIB:.1f} GiB even with activation"
                f" checkpointing, but passes may use {share / GIB:.1f} GiB (half of the free"
                " memory): shorten the sequences (max_length in a recipe; the engine never"
                " truncates) or lower engine.tokens_per_pass; with a bfloat16 model,"
                " engine.float32_residual=False saves up to half of it"
            )
        return tokens * self.saved * BACKWARD_FACTOR > share


class MeasuredModel(Protocol):
    """What measuring the memory needs of a loaded model."""

    device: torch.device
    residual_dtype: torch.dtype  # of the layers' inputs
    num_layers: int
    hidden_size: int
    sliding_window: int  # tokens; 0: none
    parameters: list[torch.Tensor]  # including buffers

    def new_adapter(self, spec: LoraSpec) -> Adapter: ...

    def hidden(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        plan: PackedPlan,
        adapters: list[AdapterSpan],
    ) -> torch.Tensor: ...


class _KVCounter:
    """A sink that counts the bytes of keys and values instead of storing them."""

    def __init__(self) -> None:
        self.bytes = 0

    def put(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        self.bytes += keys.nbytes + values.nbytes


def measure(base: MeasuredModel, reserved: int = 0) -> MemoryEstimate:
    """Measure what a forward of a few tokens saves, with an adapter on every layer.

    reserved: bytes that will be allocated besides: prepacked weights, the logits of a head chunk.
    """
    window = base.sliding_window
    # What a sliding window adds shows only in a sequence that is longer than the window. For wide
    # windows, the probe stays short.
    tokens = max(PROBE_TOKENS, 2 * window) if window <= MAX_PROBED_WINDOW else PROBE_TOKENS
    kv_counter = _KVCounter()
    # Saved bytes grow linearly with the rank, so two small ranks give every other. An adapter of
    # ASSUMED_RANK on all experts of a large model might not fit beside it.
    rank_1, rank_2 = (_count_saved_bytes(base, rank, tokens, kv_counter) for rank in (1, 2))
    saved = (rank_1 + (ASSUMED_RANK - 1) * (rank_2 - rank_1)) / tokens
    inputs = base.num_layers * base.hidden_size * base.residual_dtype.itemsize
    return MemoryEstimate(
        saved,
        inputs + saved / base.num_layers,
        kv_counter.bytes / (2 * tokens),  # both probes were counted
        max(free_bytes(base.device) - reserved, 0),
        reserved,
    )


def _count_saved_bytes(base: MeasuredModel, rank: int, length: int, kv_counter: _KVCounter) -> int:
    """Bytes that autograd has saved at the end of a forward, without weights and adapter."""
    adapter = base.new_adapter(LoraSpec(rank=rank))
    fixed = {storage_id(t) for t in (*base.parameters, *adapter.copies.values())}
    # By storage: several saved tensors may be views of one. The tensors are held until the end,
    # or a new one could get the address of one that was freed.
    saved: dict[int, torch.Tensor] = {}

    def record(tensor: torch.Tensor) -> torch.Tensor:
        saved.setdefault(storage_id(tensor), tensor)
        return tensor

    tokens = torch.zeros(length, dtype=torch.int64, device=base.device)
    positions = torch.arange(length, device=base.device)
    plan = PackedPlan([Segment(0, length)], saves=[(positions, kv_counter)])
    adapters = [AdapterSpan(adapter, 0, length)]
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(record, lambda x: x):
        base.hidden(tokens, positions, plan, adapters)
    return sum(t.untyped_storage().nbytes() for key, t in saved.items() if key not in fixed)


def storage_id(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
