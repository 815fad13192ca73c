"""Attention of one new token per sequence, over slots and over what sequences share.

A row's keys lie in its slot; those of a context that it shares with other rows lie in blocks, and
the rows that share a block attend to it together in one unmasked call. The partial results of a row
are merged by their log-sum-exp. Query heads that share a key/value head lie beside each other as
further query rows, so every key is read once.

Legend of shapes: n rows, Hkv key/value heads, g query heads for each, D key size, Dv value size,
L tokens. A partial result is (out [rows, g, Hkv, Dv], lse [rows, g, Hkv]).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from tinker_cookbook.engine.kv_cache import KVCache, Slice

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu

Partial = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Context:
    """What the rows [start, stop) of `DecodePlan.sharing` have in common before their slots."""

    start: int
    stop: int
    path: Sequence[Slice]


@dataclass(frozen=True)
class DecodePlan:
    """One new token for each of n rows; row i lies in slot `slots[i]`, or, together, in slot i.

    The first `lengths[i]` tokens of the slot are there, the first of them at position `starts[i]`
    of the sequence. `contexts` are for the rows in `sharing`, those of the longest path first.
    With `apart`, every row is computed by itself, so that no row's result depends on the others;
    the pass may then hold more rows than the plan, which get zeros.
    """

    cache: KVCache
    slots: Sequence[int]
    lengths: Sequence[int]
    starts: Sequence[int]
    device: torch.device
    sharing: Sequence[int] = ()
    contexts: Sequence[Context] = ()
    apart: bool = False

    @property
    def longest(self) -> int:
        return max(self.lengths) + 1

    @cached_property
    def cells(self) -> torch.Tensor:
        """Where the new tokens go, among all cells of the cache, int64 [n]."""
        cells = [s * self.cache.capacity + n for s, n in zip(self.slots, self.lengths)]
        return torch.tensor(cells, device=self.device)

    @cached_property
    def sharing_rows(self) -> torch.Tensor:
        return torch.tensor(self.sharing, device=self.device)

    def mask(self, window: int | None) -> torch.Tensor:
        """What a row may see of its slot, as 0 or -inf: float32 [n, 1, 1, longest]."""
        if window not in self._masks:
            last = torch.tensor(self.lengths, device=self.device)[:, None]
            columns = torch.arange(self.longest, device=self.device)
            seen = columns <= last  # the new token sees itself
            if window is not None:
                seen &= columns > last - window
            zeros = torch.zeros(seen.shape, device=self.device)
            self._masks[window] = zeros.masked_fill_(~seen, -torch.inf)[:, None, None]
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
    """q [n, Hq, 1, D], k [n, Hkv, 1, D], v [n, Hkv, 1, Dv] -> [n, 1, Hq, Dv].

    A row sees the last `window` tokens, itself included; `sinks` [Hq] are logits that take part in
    each head's softmax and have no value.
    """
    rows, heads = query.shape[:2]
    live, kv_heads = len(plan.slots), key.shape[1]
    scale = query.shape[3] ** -0.5 if scaling is None else scaling
    keys, values = plan.cache.layer_tensors(layer, key[:, :, 0], value[:, :, 0])
    for store, new in ((keys, key), (values, value)):
        flat = store.view(store.shape[0] * store.shape[1], -1)
        flat.index_copy_(0, plan.cells, new[:live].reshape(live, -1))
    grouped = query[:live].view(live, kv_heads, heads // kv_heads, -1)
    attend = _apart if plan.apart else _together
    own = None if sinks is None else sinks.float().view(kv_heads, -1).t()
    out = attend(plan, layer, grouped, keys, values, scale, window, own)
    result = out.transpose(1, 2).reshape(live, 1, heads, -1).to(query.dtype)
    if rows > live:
        result = torch.cat([result, result.new_zeros(rows - live, *result.shape[1:])])
    return result


def _together(
    plan: DecodePlan,
    layer: int,
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    scale: float,
    window: int | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """All slots in one masked call; each context in a call for its rows."""
    n, longest = len(query), plan.longest
    out, lse = partial(query, keys[:n, :longest], values[:n, :longest], scale, plan.mask(window))
    if not plan.contexts:
        return _with_sinks((out, lse), sinks)
    folded = query.transpose(1, 2).index_select(0, plan.sharing_rows)  # [m, g, Hkv, D]
    merged = out.index_select(0, plan.sharing_rows), lse.index_select(0, plan.sharing_rows)
    for level in range(len(plan.contexts[0].path)):
        parts = []
        for context in plan.contexts:
            if level < len(context.path):
                own = plan.sharing[context.start : context.stop]
                part = folded[context.start : context.stop]
                parts.append(_over(plan, own, part, context.path[level], layer, scale, window))
        found = _cat(parts)
        count = len(found[1])  # the longest paths come first
        head = merge((merged[0][:count], merged[1][:count]), found)
        merged = head if count == len(merged[1]) else _cat([head, _from(merged, count)])
    if len(plan.sharing) == n:
        out, lse = torch.empty_like(merged[0]), torch.empty_like(merged[1])
    out = out.to(merged[0].dtype).index_copy_(0, plan.sharing_rows, merged[0])
    return _with_sinks((out, lse.index_copy_(0, plan.sharing_rows, merged[1])), sinks)


def _apart(
    plan: DecodePlan,
    layer: int,
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    scale: float,
    window: int | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """Every row in calls of its own, over its own length: the same bits in any company."""
    context_of = {
        row: context
        for context in plan.contexts
        for row in plan.sharing[context.start : context.stop]
    }
    rows = []
    for row, (slot, length) in enumerate(zip(plan.slots, plan.lengths)):
        first = 0 if window is None else max(0, length + 1 - window)
        span = slice(first, length + 1)
        own = query[row : row + 1]
        merged = partial(own, keys[slot : slot + 1, span], values[slot : slot + 1, span], scale)
        for each in context_of[row].path if row in context_of else ():
            merged = merge(
                merged, _over(plan, [row], own.transpose(1, 2), each, layer, scale, window)
            )
        # per row, too: elementwise kernels compute what does not fill a vector register with other
        # instructions, so a row's place among the others would decide about its last bit
        rows.append(_with_sinks(merged, sinks))
    return torch.cat(rows)


def _with_sinks(part: Partial, sinks: torch.Tensor | None) -> torch.Tensor:
    """The output of a softmax with one more logit for each head, sinks [g, Hkv]."""
    out, lse = part
    return out if sinks is None else out * torch.sigmoid(lse - sinks)[..., None]


def _over(
    plan: DecodePlan,
    rows: Sequence[int],
    query: torch.Tensor,
    each: Slice,
    layer: int,
    scale: float,
    window: int | None,
) -> Partial:
    """Rows [m, g, Hkv, D] over one block, all of it, or as much of it as their windows show."""
    keys, values = each.layer(layer)
    m, g, kv_heads, size = query.shape
    mask = None
    if window is not None:
        ends = torch.tensor([plan.starts[r] + plan.lengths[r] for r in rows], device=keys.device)
        seen = torch.arange(each.length, device=keys.device) + each.position
        hidden = seen[None, :] <= ends[:, None] - window
        if hidden.any():
            # a lowest finite number: a row that sees nothing here gets an lse that weighs nothing
            mask = torch.zeros(hidden.shape, device=keys.device).masked_fill_(hidden, -1e30)
            mask = mask.repeat_interleave(g, dim=0)[None, None]
    folded = query.reshape(1, m * g, kv_heads, size).transpose(1, 2)
    out, lse = partial(folded, keys[None], values[None], scale, mask)
    return out.view(m, g, kv_heads, -1), lse.view(m, g, kv_heads)


def has_flash(tensor: torch.Tensor) -> bool:
    """Whether the flash kernel that takes masks and returns the log-sum-exp runs on its device."""
    return tensor.device.type == "cpu"


def partial(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    scale: float,
    mask: torch.Tensor | None = None,
) -> Partial:
    """q [b, Hkv, R, D] over k [b, L, Hkv, D], v [b, L, Hkv, Dv] -> [b, R, Hkv, Dv], [b, R, Hkv]."""
    keys, values = keys.transpose(1, 2), values.transpose(1, 2)
    if has_flash(query) and keys.shape[3] == values.shape[3]:
        out, lse = _flash(query, keys, values, 0.0, False, attn_mask=mask, scale=scale)
        return out.transpose(1, 2), lse.transpose(1, 2)
    return plain(query, keys, values, scale, mask)


def plain(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    scale: float,
    mask: torch.Tensor | None,
) -> Partial:
    """The same from its definition, in fp32, on every device."""
    scores = query.float() @ keys.float().transpose(2, 3) * scale  # [b, Hkv, R, L]
    if mask is not None:
        scores = scores + mask
    lse = torch.logsumexp(scores, dim=-1)
    out = (scores - lse[..., None]).exp() @ values.float()
    return out.to(query.dtype).transpose(1, 2), lse.transpose(1, 2)


def merge(one: Partial, other: Partial) -> Partial:
    """Attention over two sets of keys from the attention over each; fp32."""
    share = torch.sigmoid(other[1] - one[1])[..., None]
    return (
        torch.lerp(one[0].float(), other[0].float(), share),
        torch.logaddexp(one[1], other[1]),
    )


def _cat(parts: Sequence[Partial]) -> Partial:
    if len(parts) == 1:
        return parts[0]
    return torch.cat([out for out, _ in parts]), torch.cat([lse for _, lse in parts])


def _from(part: Partial, row: int) -> Partial:
    return part[0][row:], part[1][row:]
