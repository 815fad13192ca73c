"""Attention of one new token per sequence, over its slot and over prefixes that sequences share.

A sample's own keys lie in its slot. Keys of a prefix that it shares with other samples lie in
blocks, and all samples that share a block attend to it together, in one unmasked call: the block is
read once, not once per sample. Each call gives a softmax over part of a sample's keys, with output
o_i and log-sum-exp l_i of the scores; merged, they are the softmax over all of its keys:

    L = log(sum_i exp(l_i)),  out = sum_i exp(l_i - L) o_i

The query heads that share a key/value head are folded into the query rows of that head (grouped
query attention), so every key is read once for all of them.

Shapes: n samples, Hkv key/value heads, g query heads for each of them, D key size, Dv value size, L
keys. A partial result is (out [n, g, Hkv, Dv], lse [n, g, Hkv]).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from tinker_cookbook.engine.kv_cache import KVCache, Slice

# Private, because the public scaled_dot_product_attention does not return the log-sum-exp.
_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu

Partial = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class SharedPrefix:
    """The samples [start, stop) of `DecodePlan.sharing` continue this prefix in their slots."""

    start: int
    stop: int
    prefix: Sequence[Slice]


@dataclass(frozen=True)
class DecodePlan:
    """One new token for each of n samples; sample i occupies slot `slots[i]`.

    The slot holds `slot_lengths[i]` tokens so far, the first of them at position `slot_starts[i]`
    of the sequence. `sharing` lists the samples whose beginning lies in blocks, grouped by
    `shared_prefixes`, which are sorted by their number of blocks, most first.

    batch_invariant: compute every sample by itself, so that its result does not depend on the
    others. The pass may then hold more rows than samples (padding), whose output is zero. Otherwise
    sample i must be in slot i.
    """

    cache: KVCache
    slots: Sequence[int]
    slot_lengths: Sequence[int]
    slot_starts: Sequence[int]
    device: torch.device
    sharing: Sequence[int] = ()
    shared_prefixes: Sequence[SharedPrefix] = ()
    batch_invariant: bool = False

    @property
    def longest(self) -> int:
        """Tokens in the fullest slot, the new one included."""
        return max(self.slot_lengths) + 1

    # Cached, because every layer needs the same tensors.

    @cached_property
    def write_indices(self) -> torch.Tensor:
        """Where the new tokens go in the cache, as indices of [slots * capacity]: int64 [n]."""
        capacity = self.cache.capacity
        indices = [slot * capacity + length for slot, length in zip(self.slots, self.slot_lengths)]
        return torch.tensor(indices, device=self.device)

    @cached_property
    def sharing_index(self) -> torch.Tensor:
        """`sharing` as a tensor."""
        return torch.tensor(self.sharing, device=self.device)

    def mask(self, window: int | None) -> torch.Tensor:
        """What each sample may see of its slot, as 0 or -inf: float32 [n, 1, 1, longest]."""
        if window not in self._masks:
            last = torch.tensor(self.slot_lengths, device=self.device)[:, None]
            columns = torch.arange(self.longest, device=self.device)
            visible = columns <= last  # the new token sees itself
            if window is not None:
                visible &= columns > last - window
            zeros = torch.zeros(visible.shape, dtype=torch.float32, device=self.device)
            self._masks[window] = zeros.masked_fill_(~visible, -torch.inf)[:, None, None]
        return self._masks[window]

    @cached_property
    def _masks(self) -> dict[int | None, torch.Tensor]:
        return {}


def decode(
    plan: DecodePlan,
    layer: int,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float | None,
    window: int | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """Store the new keys and values and attend to all keys so far.

    q [n, Hq, 1, D], k [n, Hkv, 1, D], v [n, Hkv, 1, Dv] -> [n, 1, Hq, Dv]. A token sees the last
    `window` tokens, itself included. `sinks` [Hq] are logits that take part in each head's softmax
    and have no value.
    """
    rows, heads = query.shape[:2]
    num_samples, kv_heads = len(plan.slots), key.shape[1]
    scale = query.shape[3] ** -0.5 if scaling is None else scaling
    keys, values = plan.cache.layer_tensors(layer, key[:, :, 0], value[:, :, 0])
    # Before attending: a token sees itself. Padding rows are left out, as they have no slot.
    for store, new in ((keys, key), (values, value)):
        flat = store.view(store.shape[0] * store.shape[1], -1)
        flat.index_copy_(0, plan.write_indices, new[:num_samples].reshape(num_samples, -1))
    grouped = query[:num_samples].view(num_samples, kv_heads, heads // kv_heads, -1)
    attend = _attend_one_by_one if plan.batch_invariant else _attend_batched
    grouped_sinks = None if sinks is None else sinks.float().view(kv_heads, -1).t()
    out = attend(plan, layer, grouped, keys, values, scale, window, grouped_sinks)
    result = out.transpose(1, 2).reshape(num_samples, 1, heads, -1).to(query.dtype)
    if rows > num_samples:
        padding = result.new_zeros(rows - num_samples, *result.shape[1:])
        result = torch.cat([result, padding])
    return result


def _attend_batched(
    plan: DecodePlan,
    layer: int,
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    scale: float,
    window: int | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """All slots in one masked call, then one call per block for the samples that share it."""
    n, longest = len(query), plan.longest
    out, lse = partial_attention(
        query, keys[:n, :longest], values[:n, :longest], scale, plan.mask(window)
    )
    if not plan.shared_prefixes:
        return _apply_sinks((out, lse), sinks)
    # Sharing samples are gathered in the order of `sharing`, so that those of one prefix are a
    # slice; the others are done after the call over the slots.
    folded = query.transpose(1, 2).index_select(0, plan.sharing_index)  # [m, g, Hkv, D]
    merged = out.index_select(0, plan.sharing_index), lse.index_select(0, plan.sharing_index)
    # The first block of every prefix, then the second of those that have one, and so on: a merge
    # per level for all samples together. Because prefixes with more blocks come first, the samples
    # of each level are the first `count`.
    for level in range(len(plan.shared_prefixes[0].prefix)):
        parts = []
        for shared in plan.shared_prefixes:
            if level < len(shared.prefix):
                members = plan.sharing[shared.start : shared.stop]
                queries = folded[shared.start : shared.stop]
                block = shared.prefix[level]
                parts.append(_attend_block(plan, members, queries, block, layer, scale, window))
        part = _concatenate(parts)
        count = len(part[1])
        head = merge((merged[0][:count], merged[1][:count]), part)
        merged = head if count == len(merged[1]) else _concatenate([head, _skip(merged, count)])
    if len(plan.sharing) == n:  # all of `out` is overwritten: do not convert its old content
        out, lse = torch.empty_like(merged[0]), torch.empty_like(merged[1])
    out = out.to(merged[0].dtype).index_copy_(0, plan.sharing_index, merged[0])
    return _apply_sinks((out, lse.index_copy_(0, plan.sharing_index, merged[1])), sinks)


def _attend_one_by_one(
    plan: DecodePlan,
    layer: int,
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    scale: float,
    window: int | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """Each sample in calls of its own, over its own length: the same bits in any batch.

    In `_attend_batched`, the padded length of a slot, the size of a block's call and the place in
    the batch depend on the other samples, and so do the last bits of the result.
    """
    shared_by_sample = {
        sample: shared
        for shared in plan.shared_prefixes
        for sample in plan.sharing[shared.start : shared.stop]
    }
    outs = []
    for sample, (slot, length) in enumerate(zip(plan.slots, plan.slot_lengths)):
        first = 0 if window is None else max(0, length + 1 - window)
        span = slice(first, length + 1)
        own = query[sample : sample + 1]
        merged = partial_attention(
            own, keys[slot : slot + 1, span], values[slot : slot + 1, span], scale
        )
        for block in shared_by_sample[sample].prefix if sample in shared_by_sample else ():
            part = _attend_block(plan, [sample], own.transpose(1, 2), block, layer, scale, window)
            merged = merge(merged, part)
        # Sinks sample by sample as well: elementwise kernels use other instructions for elements
        # that do not fill a vector register, so a sample's place in the batch would decide about
        # its last bit (seen on processors without AVX-512).
        outs.append(_apply_sinks(merged, sinks))
    return torch.cat(outs)


def _apply_sinks(part: Partial, sinks: torch.Tensor | None) -> torch.Tensor:
    """Add one logit s per head, sinks [g, Hkv], to the softmax; it has no value of its own.

    out * exp(lse) / (exp(lse) + exp(s)) = out * sigmoid(lse - s)
    """
    out, lse = part
    return out if sinks is None else out * torch.sigmoid(lse - sinks)[..., None]


def _attend_block(
    plan: DecodePlan,
    samples: Sequence[int],
    query: torch.Tensor,
    block: Slice,
    layer: int,
    scale: float,
    window: int | None,
) -> Partial:
    """Attend from queries [m, g, Hkv, D] of these samples to one block, within their windows."""
    keys, values = block.layer(layer)
    m, g, kv_heads, size = query.shape
    mask = None
    if window is not None:
        ends = [plan.slot_starts[i] + plan.slot_lengths[i] for i in samples]
        last = torch.tensor(ends, device=keys.device)
        positions = torch.arange(block.length, device=keys.device) + block.position
        hidden = positions[None, :] <= last[:, None] - window
        if hidden.any():  # no mask if all windows reach back to the start of the block
            # A very low finite number, not -inf: a sample that sees nothing of this block then has
            # an lse that weighs nothing in the merge, instead of NaN.
            mask = torch.zeros(hidden.shape, dtype=torch.float32, device=keys.device)
            mask.masked_fill_(hidden, -1e30)
            mask = mask.repeat_interleave(g, dim=0)[None, None]
    # All samples and query heads as the m * g query rows of a batch of one.
    folded = query.reshape(1, m * g, kv_heads, size).transpose(1, 2)
    out, lse = partial_attention(folded, keys[None], values[None], scale, mask)
    return out.view(m, g, kv_heads, -1), lse.view(m, g, kv_heads)


def has_flash(tensor: torch.Tensor) -> bool:
    """Whether the tensor's device has the flash kernel that takes masks and returns the lse."""
    return tensor.device.type == "cpu"


def partial_attention(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    scale: float,
    mask: torch.Tensor | None = None,
) -> Partial:
    """q [b, Hkv, R, D] over k [b, L, Hkv, D], v [b, L, Hkv, Dv] -> [b, R, Hkv, Dv], [b, R, Hkv].

    `mask` is added to the scores and must broadcast to [b, Hkv, R, L].
    """
    keys, values = keys.transpose(1, 2), values.transpose(1, 2)
    if has_flash(query) and keys.shape[3] == values.shape[3]:  # the kernel has one head size
        out, lse = _flash(query, keys, values, 0.0, False, attn_mask=mask, scale=scale)
        return out.transpose(1, 2), lse.transpose(1, 2)
    return plain_attention(query, keys, values, scale, mask)


def plain_attention(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    scale: float,
    mask: torch.Tensor | None,
) -> Partial:
    """`partial_attention` from the definition of attention, in fp32, on any device.

    k [b, Hkv, L, D], v [b, Hkv, L, Dv].
    """
    scores = query.float() @ keys.float().transpose(2, 3) * scale  # [b, Hkv, R, L]
    if mask is not None:
        scores = scores + mask
    lse = torch.logsumexp(scores, dim=-1)
    out = (scores - lse[..., None]).exp() @ values.float()
    return out.to(query.dtype).transpose(1, 2), lse.transpose(1, 2)


def merge(first: Partial, second: Partial) -> Partial:
    """Attention over two sets of keys from the attention over each, in fp32.

    The second part's share of the softmax is exp(l2) / (exp(l1) + exp(l2)) = sigmoid(l2 - l1),
    which does not overflow.
    """
    share = torch.sigmoid(second[1] - first[1])[..., None]
    return (
        torch.lerp(first[0].float(), second[0].float(), share),
        torch.logaddexp(first[1], second[1]),
    )


def _concatenate(parts: Sequence[Partial]) -> Partial:
    if len(parts) == 1:
        return parts[0]
    return torch.cat([out for out, _ in parts]), torch.cat([lse for _, lse in parts])


def _skip(part: Partial, count: int) -> Partial:
    return part[0][count:], part[1][count:]
