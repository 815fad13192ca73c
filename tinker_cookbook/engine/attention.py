"""The engine's attention: one interface, `attend(q, k, v, plan)`, registered with transformers.

Nothing is padded: the rows of a pass lie one behind the other, and the plan says which rows see
which. A `PackedPlan` is a forest of segments: each segment sees itself causally and all of its
ancestors in full, so a prompt that several completions share is a parent computed once. A
`DecodePlan` adds one token to each of n sequences whose keys and values lie in a `KVCache`.

What a layer may have of its own: a sliding window (a row sees only the last `sliding_window`
positions, its own included), sinks (a score per query head that takes part in the softmax and adds
nothing, Xiao et al. 2023, https://arxiv.org/abs/2309.17453), and value heads smaller than the keys.
The last are padded with zeros, in the cache too: the kernels want one size.

Legend of shapes: T rows of the pass, n sequences, Hq query heads, Hkv key/value heads, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AttentionInterface

from tinker_cookbook.engine.shared_prefix import ForestAttention, Part, blocks

NAME = "tinker_cookbook_packed"  # as `attn_implementation`; without a mask function: none is built


@dataclass(frozen=True)
class Segment:
    """Rows [start, stop) of the pass; `parent` is the index of the segment that they continue."""

    start: int
    stop: int
    parent: int | None = None


class KVCache:
    """Keys and values of the sequences being decoded, a slot each: [slots, Hkv, capacity, D].

    Slots 0..n-1 are always the live ones, so decoding reads a plain slice.
    """

    def __init__(self, num_layers: int) -> None:
        self._keys: list[torch.Tensor | None] = [None] * num_layers
        self._values: list[torch.Tensor | None] = [None] * num_layers
        self.slots = 0
        self.capacity = 0  # tokens per slot

    def reserve(self, slots: int, capacity: int) -> None:
        """Make room for `slots` sequences of `capacity` tokens; what lies in those slots stays.

        Slots beyond are given up when the cache is made anew, so that slots x capacity stays within
        what the caller has counted.
        """
        if slots <= self.slots and capacity <= self.capacity:
            return
        self.slots, self.capacity = slots, max(capacity, self.capacity)
        for store in (self._keys, self._values):
            for layer, old in enumerate(store):
                if old is None:
                    continue  # made on first write, when head count, size and dtype are known
                new = old.new_zeros(self.slots, old.shape[1], self.capacity, old.shape[3])
                kept = min(slots, old.shape[0])
                new[:kept, :, : old.shape[2]] = old[:kept]
                store[layer] = new

    def clear(self) -> None:
        self.__init__(len(self._keys))

    def layer(self, index: int, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of one layer; `like` [.., Hkv, .., D] tells their shape on first use."""
        keys, values = self._keys[index], self._values[index]
        if keys is None or values is None:
            shape = (self.slots, like.shape[1], self.capacity, like.shape[3])
            # zeros, not empty: masked cells are multiplied by zero, and 0 * NaN is NaN
            keys = self._keys[index] = like.new_zeros(shape)
            values = self._values[index] = like.new_zeros(shape)
        return keys, values

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` tokens of one slot to another."""
        for store in (self._keys, self._values):
            for tensor in store:
                if tensor is not None:
                    tensor[target, :, :length] = tensor[source, :, :length]


@dataclass(frozen=True)
class PackedPlan:
    """A pass over packed rows. With a cache, the keys and values of `cells` [n] (rows of the pass,
    the tokens of one sequence in order) go to each of `slots`, for every (cells, slots) in `keep`.
    """

    segments: Sequence[Segment]
    cache: KVCache | None = None
    keep: Sequence[tuple[torch.Tensor, Sequence[int]]] = ()

    @cached_property
    def shared(self) -> list[Part] | None:
        """The parts of the attention where segments have parents, once for all layers."""
        if all(segment.parent is None for segment in self.segments):
            return None
        return parts_of(self.segments)

    @cached_property
    def parts(self) -> list[Part]:
        return self.shared or parts_of(self.segments)

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest sequence, ancestors included."""
        return max(
            sum(stop - start for start, stop in ancestry(self.segments, segment))
            for segment in self.segments
        )


@dataclass(frozen=True)
class DecodePlan:
    """One new token for each of the first n slots; `lengths` [n] are their tokens so far."""

    cache: KVCache
    lengths: torch.Tensor
    longest: int  # max(lengths) + 1, known on the host: no device synchronisation


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    s_aux: torch.Tensor | None = None,
    plan: PackedPlan | DecodePlan | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' signature: q [B, Hq, T, D], k and v [B, Hkv, T, D] -> [B, T, Hq, D].

    `s_aux` [Hq]: sinks. The values may be smaller than D; then the output is, too.
    """
    if plan is None:
        raise RuntimeError("the engine's attention needs a plan: call BaseModel.hidden")
    layer: int = module.layer_idx  # type: ignore[assignment]
    size = value.shape[-1]
    if size < key.shape[-1]:
        value = F.pad(value, (0, key.shape[-1] - size))
    if isinstance(plan, DecodePlan):
        out = _decode(plan, layer, query, key, value, scaling, sliding_window, s_aux)
    else:
        out = _packed(plan, layer, query, key, value, scaling, sliding_window, s_aux)
    return out[..., :size], None


def _packed(
    plan: PackedPlan,
    layer: int,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float | None,
    window: int | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    if window is not None and plan.longest <= window:
        window = None
    forest = (plan.shared is not None or sinks is not None) and window is None
    if forest and query.device.type == "cpu":
        out = ForestAttention.apply(query, key, value, plan.parts, scaling, sinks)
        out = out.transpose(1, 2)
    else:
        out = _by_segment(plan.segments, query, key, value, scaling, window, sinks)
    if plan.cache is not None:
        keys, values = plan.cache.layer(layer, key)
        for cells, slots in plan.keep:
            k, v = key[0, :, cells], value[0, :, cells]
            for slot in slots:
                keys[slot, :, : len(cells)], values[slot, :, : len(cells)] = k, v
    return out


def _by_segment(
    segments: Sequence[Segment],
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float | None,
    window: int | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """Plain SDPA, on every device; a segment with ancestors gets their rows again, and a mask.

    So do sinks and windows. With a window, queries go in blocks of its length, each with the keys
    that one of them sees.
    """
    outs = []
    for run in _runs(segments):
        count, first, last = len(run), run[0], run[-1]
        q, k, v = (blocks(x, first.start, last.stop, count) for x in (query, key, value))
        if first.parent is not None:
            spans = ancestry(segments, first)
            k = torch.cat([key[:, :, a:b] for a, b in spans], dim=2)
            v = torch.cat([value[:, :, a:b] for a, b in spans], dim=2)
        length, columns = q.shape[2], k.shape[2]
        step, reach = (length, columns) if window is None else (window, window)
        parts = []
        for start in range(0, length, step):
            part = q[:, :, start : start + step]
            end = columns - length + start + part.shape[2]
            seen = slice(max(0, end - part.shape[2] - reach + 1), end)
            parts.append(_sdpa(part, k[:, :, seen], v[:, :, seen], scaling, window, sinks))
        out = torch.cat(parts, dim=2) if len(parts) > 1 else parts[0]
        outs.append(out.transpose(1, 2).reshape(1, last.stop - first.start, *out.shape[1::2]))
    return torch.cat(outs, dim=1)


def _sdpa(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float | None,
    window: int | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """Causal attention of L queries to at least L keys; the last query sees the last key."""
    length, columns = query.shape[2], key.shape[2]
    size, grouped = query.shape[-1], query.shape[1] != key.shape[1]
    scale = size**-0.5 if scaling is None else scaling
    mask = None
    if columns > length or window is not None or sinks is not None:
        ones = torch.ones(length, columns, dtype=torch.bool, device=query.device)
        mask = ones.tril(diagonal=columns - length)
        if window is not None:
            mask = mask.triu(diagonal=columns - length - window + 1)
        if sinks is not None:
            query, key, value = _with_sink(query, key, value, sinks / scale)
            mask = F.pad(mask, (1, 0), value=True)
    out = F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=grouped
    )
    return out[..., :size]


def _with_sink(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, sinks: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The sinks [Hq] as one more key, in front, so that no mask per head is needed: the heads get
    8 more dimensions (kernels like multiples of 8), the first of which holds the head's sink in
    every query, one in the new key and zero in all others."""
    query, key, value = F.pad(query, (0, 8)), F.pad(key, (0, 8, 1, 0)), F.pad(value, (0, 8, 1, 0))
    query[..., -8] = sinks[:, None].to(query.dtype)
    key[:, :, 0, -8] = 1
    return query, key, value


def parts_of(segments: Sequence[Segment]) -> list[Part]:
    """Each segment to itself, and everything below it to it. Segments lie depth first, so what is
    below one is the rows that follow it until the next that is not its descendant."""
    parts = [
        Part(run[0].start, run[-1].stop, run[0].start, run[-1].stop, True, len(run))
        for run in _runs(segments, parents=True)
    ]
    ends = [segment.stop for segment in segments]  # of the subtree
    for index in range(len(segments) - 1, -1, -1):
        parent = segments[index].parent
        if parent is not None:
            ends[parent] = max(ends[parent], ends[index])
    for segment, end in zip(segments, ends):
        if end > segment.stop:
            parts.append(Part(segment.stop, end, segment.start, segment.stop, False))
    return parts


def _runs(segments: Sequence[Segment], parents: bool = False) -> list[list[Segment]]:
    """Neighbours of equal length go into one call; those with a parent only if `parents`."""
    runs: list[list[Segment]] = []
    for segment in segments:
        last = runs[-1][-1] if runs else None
        alike = last is not None and segment.stop - segment.start == last.stop - last.start
        alone = last is not None and last.parent is None and segment.parent is None
        if alike and (parents or alone):
            runs[-1].append(segment)
        else:
            runs.append([segment])
    return runs


def ancestry(segments: Sequence[Segment], segment: Segment) -> list[tuple[int, int]]:
    """Row spans that a segment sees, oldest ancestor first, itself last."""
    spans = [(segment.start, segment.stop)]
    while segment.parent is not None:
        segment = segments[segment.parent]
        spans.append((segment.start, segment.stop))
    return spans[::-1]


def _decode(
    plan: DecodePlan,
    layer: int,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float | None,
    window: int | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    n = query.shape[0]
    keys, values = plan.cache.layer(layer, key)
    rows = torch.arange(n, device=query.device)
    keys[rows, :, plan.lengths] = key[:, :, 0]
    values[rows, :, plan.lengths] = value[:, :, 0]
    columns = torch.arange(plan.longest, device=query.device)
    mask = columns[None, :] <= plan.lengths[:, None]  # [n, longest]: the new token sees itself
    if window is not None and window < plan.longest:
        mask &= columns[None, :] > plan.lengths[:, None] - window
    if sinks is not None:
        live = keys[:n, :, : plan.longest], values[:n, :, : plan.longest]
        return _one_token_with_sinks(query, *live, mask, scaling, sinks)
    out = F.scaled_dot_product_attention(
        query,
        keys[:n, :, : plan.longest],
        values[:n, :, : plan.longest],
        attn_mask=mask[:, None, None, :],
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return out.transpose(1, 2)


def _one_token_with_sinks(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor,
    scaling: float | None,
    sinks: torch.Tensor,
) -> torch.Tensor:
    """Written out: one more key for the sink would mean a copy of the cache for every token."""
    n, heads, _, size = query.shape
    grouped = query.reshape(n, keys.shape[1], -1, size)
    scale = size**-0.5 if scaling is None else scaling
    scores = (grouped @ keys.transpose(2, 3)).float() * scale
    scores = scores.masked_fill(~mask[:, None, None, :], -torch.inf)
    sink = sinks.float().view(1, keys.shape[1], -1, 1).expand(n, -1, -1, 1)
    shares = torch.cat([scores, sink], dim=-1).softmax(dim=-1)[..., :-1]
    return (shares.to(values.dtype) @ values).view(n, 1, heads, size)


AttentionInterface.register(NAME, attend)
