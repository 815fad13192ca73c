"""The engine's attention: one function, `attend(q, k, v, plan)`, registered with transformers.

Nothing is padded: the sequences of a pass are concatenated, and the plan says which tokens see
which. A `PackedPlan` is a set of prefix trees made of segments: each segment sees itself causally
and all of its ancestors in full, so a prompt that several completions share is a parent that is
computed once. A segment may also continue tokens of an earlier pass whose keys and values were
cached. A `DecodePlan` adds one token to each of n sequences (`decode_attention.py`).

A layer may have a sliding window (a token sees only the last `sliding_window` positions, its own
included), sinks (one logit per query head that takes part in the softmax and has no value, Xiao et
al. 2023, https://arxiv.org/abs/2309.17453), and value heads smaller than its key heads.

Shapes: T tokens of the pass, C cached keys before them, n sequences, Hq query heads, Hkv key/value
heads, D head size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
import torch.nn.functional as F
from transformers import AttentionInterface

from tinker_cookbook.engine.decode_attention import DecodePlan, decode, has_flash
from tinker_cookbook.engine.kv_cache import Sink, Slice
from tinker_cookbook.engine.shared_prefix import (
    AttentionPart,
    SharedPrefixAttention,
    split_blocks,
)
from tinker_cookbook.exceptions import ConfigurationError

# The `attn_implementation` under which it is registered. No mask function is registered under this
# name, so transformers builds no mask.
NAME = "tinker_cookbook_packed"
Argument = torch.Tensor | float | bool | str | None  # what a module passes to its attention
FEATURES = ("latent", "sinks", "sliding_window")  # attention features of a family supported here
# Arguments of modules that may be ignored, with the value for which that is safe (None: any)
_IGNORABLE = {"position_ids": None, "use_cache": False, "dropout": 0.0, "is_causal": True}


@dataclass(frozen=True)
class Segment:
    """Tokens [start, stop) of the pass, which continue those of segment `parent`.

    A segment without a parent may continue the cached keys [a, b) of an earlier pass (`cached`).
    """

    start: int
    stop: int
    parent: int | None = None
    cached: tuple[int, int] | None = None

    @property
    def num_cached(self) -> int:
        """Cached tokens before its first token."""
        return 0 if self.cached is None else self.cached[1] - self.cached[0]


@dataclass(frozen=True)
class PackedPlan:
    """A pass over packed sequences.

    cached: keys and values of earlier passes that segments continue, concatenated. They are laid
    out in front of the pass's own keys, so key indices of the pass are shifted by `num_cached`.
    saves: for every (tokens [n], sink), the sink receives the keys and values of those tokens of
    the pass, which belong to one sequence and are in order.
    """

    segments: Sequence[Segment]
    cached: Sequence[Slice] = ()
    saves: Sequence[tuple[torch.Tensor, Sink]] = ()

    @cached_property
    def shared(self) -> list[AttentionPart] | None:
        """The parts of the attention if any segment sees another one or cached keys, else None.

        Cached on the plan, because all layers use the same parts.
        """
        if all(segment.parent is None and segment.cached is None for segment in self.segments):
            return None
        return attention_parts(self.segments, self.num_cached)

    @cached_property
    def parts(self) -> list[AttentionPart]:
        return self.shared or attention_parts(self.segments, self.num_cached)

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest sequence, ancestors and cached tokens included."""
        return max(
            sum(
                stop - start
                for start, stop in visible_key_spans(self.segments, segment, self.num_cached)
            )
            for segment in self.segments
        )

    @cached_property
    def num_cached(self) -> int:
        return sum(cached.length for cached in self.cached)


class AttentionModule(Protocol):
    """An attention module of transformers."""

    layer_idx: int


def attend(
    module: AttentionModule,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    s_aux: torch.Tensor | None = None,
    plan: PackedPlan | DecodePlan | None = None,
    **others: Argument,
) -> tuple[torch.Tensor, None]:
    """Attention by transformers' signature: q [B, Hq, T, D], k, v [B, Hkv, T, D] to [B, T, Hq, D].

    `s_aux` [Hq] are sinks. If values are smaller than D, so is the output. Raises
    ConfigurationError for a mask (the plan says which tokens see which) and for any other argument
    that would change the result.
    """
    if plan is None:  # it comes with the keyword arguments that transformers' modules pass down
        raise RuntimeError("the engine's attention needs a plan: call BaseModel.hidden")
    _check_arguments(module, {"attention_mask": attention_mask, **others})
    layer = module.layer_idx
    if isinstance(plan, DecodePlan):
        return decode(plan, layer, query, key, value, scaling, sliding_window, s_aux), None
    return _attend_packed(plan, layer, query, key, value, scaling, sliding_window, s_aux), None


def _check_arguments(module: AttentionModule, arguments: Mapping[str, Argument]) -> None:
    """Refuse what a new model or version of transformers passes and the engine would ignore."""
    for name, value in arguments.items():
        if value is None:
            continue
        harmless = name in _IGNORABLE and _IGNORABLE[name] in (None, value)
        if not harmless:
            shown = "a tensor" if isinstance(value, torch.Tensor) else repr(value)
            raise ConfigurationError(
                f"{type(module).__name__} passes {name}={shown} to its attention, which the engine"
                " does not support"
            )


def _attend_packed(
    plan: PackedPlan,
    layer: int,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float | None,
    window: int | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    # first: `tokens` index the pass's own keys, before cached keys are put in front of them
    for tokens, sink in plan.saves:
        k, v = (x[0].transpose(0, 1).index_select(0, tokens) for x in (key, value))
        sink.put(layer, k, v)
    if plan.cached:
        layers = [cached.layer(layer) for cached in plan.cached]
        key = torch.cat([*(k.transpose(0, 1)[None] for k, _ in layers), key], dim=2)
        value = torch.cat([*(v.transpose(0, 1)[None] for _, v in layers), value], dim=2)
    size = value.shape[-1]
    if size < key.shape[-1]:  # kernels require keys and values of one size
        value = F.pad(value, (0, key.shape[-1] - size))
    if window is not None and plan.longest <= window:
        window = None  # no sequence is long enough to reach its end
    # The flash kernel behind the merge takes no window. Without sharing and sinks, there is nothing
    # to merge.
    mergeable = (plan.shared is not None or sinks is not None) and window is None
    if mergeable and has_flash(query):
        out = SharedPrefixAttention.apply(query, key, value, plan.parts, scaling, sinks)
        out = out.transpose(1, 2)
    else:
        out = _attend_by_segment(
            plan.segments, query, key, value, scaling, window, sinks, plan.num_cached
        )
    return out[..., :size]


def _attend_by_segment(
    segments: Sequence[Segment],
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float | None,
    window: int | None = None,
    sinks: torch.Tensor | None = None,
    num_cached: int = 0,
) -> torch.Tensor:
    """Attention by torch's SDPA, segment by segment, on every device.

    A segment with ancestors gets a copy of their keys and a mask, so shared keys are read once per
    segment. With a window, queries go in blocks of the window's length, each with only the keys
    that its queries see, so the cost grows with length times window, not with length squared.
    """
    outs = []
    for group in _group_equal_lengths(segments):
        count, first, last = len(group), group[0], group[-1]
        q = split_blocks(query, first.start, last.stop, count)
        k, v = (
            split_blocks(x, first.start + num_cached, last.stop + num_cached, count)
            for x in (key, value)
        )
        # a group of several segments has neither ancestors nor cached keys
        spans = visible_key_spans(segments, first, num_cached)
        if len(spans) > 1:
            k = torch.cat([key[:, :, a:b] for a, b in spans], dim=2)
            v = torch.cat([value[:, :, a:b] for a, b in spans], dim=2)
        length, columns = q.shape[2], k.shape[2]
        step, reach = (length, columns) if window is None else (window, window)
        blocks = []
        for start in range(0, length, step):
            block = q[:, :, start : start + step]
            # the last query of the block sees key end - 1, the first one reaches back `reach` keys
            end = columns - length + start + block.shape[2]
            seen = slice(max(0, end - block.shape[2] - reach + 1), end)
            blocks.append(_sdpa(block, k[:, :, seen], v[:, :, seen], scaling, window, sinks))
        out = torch.cat(blocks, dim=2) if len(blocks) > 1 else blocks[0]
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
    mask = None  # plain causal attention of equally many queries and keys needs none
    if columns > length or window is not None or sinks is not None:
        ones = torch.ones(length, columns, dtype=torch.bool, device=query.device)
        mask = ones.tril(diagonal=columns - length)  # aligned at the end: last query, last key
        if window is not None:
            mask = mask.triu(diagonal=columns - length - window + 1)
        if sinks is not None:
            # SDPA multiplies every score by `scale`, and a sink is not to be scaled
            query, key, value = _append_sink_key(query, key, value, sinks / scale)
            mask = F.pad(mask, (1, 0), value=True)
    out = F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=grouped
    )
    return out[..., :size]


def _append_sink_key(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, sinks: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Express the sinks [Hq] as one more key in front, with a value of zero.

    Its score must be the head's sink for every query, while one key serves several query heads.
    So the heads get 8 more dimensions (kernels prefer multiples of 8), of which the first holds the
    head's sink in every query, 1 in the new key and 0 in all other keys. The alternative, an
    additive mask per head, would be Hq times as large.
    """
    query, key, value = F.pad(query, (0, 8)), F.pad(key, (0, 8, 1, 0)), F.pad(value, (0, 8, 1, 0))
    query[..., -8] = sinks[:, None].to(query.dtype)
    key[:, :, 0, -8] = 1
    return query, key, value


def attention_parts(segments: Sequence[Segment], num_cached: int = 0) -> list[AttentionPart]:
    """Split the attention into calls: each segment to itself, and all its descendants to it.

    Segments are laid out depth first, so the descendants of a segment are the tokens that follow it
    up to the end of its subtree: one contiguous span, one call.
    """
    parts = [
        AttentionPart(
            group[0].start,
            group[-1].stop,
            group[0].start + num_cached,
            group[-1].stop + num_cached,
            True,
            len(group),
        )
        for group in _group_equal_lengths(segments, parents=True)
    ]
    # backwards, so that a child's subtree is complete before its parent takes over its end
    ends = [segment.stop for segment in segments]
    for index in range(len(segments) - 1, -1, -1):
        parent = segments[index].parent
        if parent is not None:
            ends[parent] = max(ends[parent], ends[index])
    for segment, end in zip(segments, ends):
        if end > segment.stop:
            keys = (segment.start + num_cached, segment.stop + num_cached)
            parts.append(AttentionPart(segment.stop, end, *keys, False))
    return parts + _cached_parts(segments, ends)


def _cached_parts(segments: Sequence[Segment], ends: Sequence[int]) -> list[AttentionPart]:
    """Calls over cached keys; neighbouring subtrees that continue the same keys share one."""
    parts: list[AttentionPart] = []
    for segment, end in zip(segments, ends):
        if segment.cached is None:
            continue
        last = parts[-1] if parts else None
        if last is not None and last.q1 == segment.start and (last.k0, last.k1) == segment.cached:
            parts[-1] = last._replace(q1=end)
        else:
            parts.append(AttentionPart(segment.start, end, *segment.cached, False))
    return parts


def _group_equal_lengths(segments: Sequence[Segment], parents: bool = False) -> list[list[Segment]]:
    """Group neighbours of equal length, which one batched call computes.

    Segments that continue others are grouped only if `parents`: then a call covers each segment's
    attention to itself alone.
    """
    groups: list[list[Segment]] = []
    for segment in segments:
        last = groups[-1][-1] if groups else None
        equal = last is not None and segment.stop - segment.start == last.stop - last.start
        independent = last is not None and all(
            one.parent is None and one.cached is None for one in (last, segment)
        )
        if equal and (parents or independent):
            groups[-1].append(segment)
        else:
            groups.append([segment])
    return groups


def visible_key_spans(
    segments: Sequence[Segment], segment: Segment, num_cached: int = 0
) -> list[tuple[int, int]]:
    """The key spans [start, stop) that a segment sees: cached keys, ancestors, itself.

    They are in the order of positions, on which the causal mask and windows rely.
    """
    spans = [(segment.start + num_cached, segment.stop + num_cached)]
    while segment.parent is not None:
        segment = segments[segment.parent]
        spans.append((segment.start + num_cached, segment.stop + num_cached))
    if segment.cached is not None:
        spans.append(segment.cached)
    return spans[::-1]


AttentionInterface.register(NAME, attend)
