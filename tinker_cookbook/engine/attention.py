"""The engine's attention: one interface, `attend(q, k, v, plan)`, registered with transformers.

Nothing is padded: the rows of a pass lie one behind the other, and the plan says which rows see
which. A `PackedPlan` is a forest of segments: each segment sees itself causally and all of its
ancestors in full, so a prompt that several completions share is a parent computed once. A segment
may also continue tokens of an earlier pass, whose keys and values were kept. A `DecodePlan` adds
one token to each of n sequences (`decode_attention.py`).

What a layer may have of its own: a sliding window (a row sees only the last `sliding_window`
positions, its own included), sinks (a score per query head that takes part in the softmax and adds
nothing, Xiao et al. 2023, https://arxiv.org/abs/2309.17453), and value heads smaller than the keys.

Legend of shapes: T rows of the pass, C kept keys before them, n sequences, Hq query heads, Hkv
key/value heads, D head size.
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
from tinker_cookbook.engine.shared_prefix import ForestAttention, Part, blocks
from tinker_cookbook.exceptions import ConfigurationError

NAME = "tinker_cookbook_packed"  # as `attn_implementation`; without a mask function: none is built
Argument = torch.Tensor | float | bool | str | None  # of a module to its attention
FEATURES = ("latent", "sinks", "sliding_window")  # of a family's attention, computed here
# What modules hand down that changes nothing, with the value for which that holds (None: any)
_WITHOUT_EFFECT = {"position_ids": None, "use_cache": False, "dropout": 0.0, "is_causal": True}


@dataclass(frozen=True)
class Segment:
    """Rows [start, stop) of the pass; `parent` is the index of the segment that they continue.

    One without a parent may continue the kept keys [a, b) of an earlier pass: `kept`.
    """

    start: int
    stop: int
    parent: int | None = None
    kept: tuple[int, int] | None = None

    @property
    def before(self) -> int:
        """Kept tokens before the first."""
        return 0 if self.kept is None else self.kept[1] - self.kept[0]


@dataclass(frozen=True)
class PackedPlan:
    """A pass over packed rows.

    `kept` are the keys and values of earlier passes that segments continue, laid end to end. The
    keys and values of `cells` [n] (rows of the pass, tokens of one sequence in order) go to the
    sink, for every (cells, sink) in `keep`.
    """

    segments: Sequence[Segment]
    kept: Sequence[Slice] = ()
    keep: Sequence[tuple[torch.Tensor, Sink]] = ()

    @cached_property
    def shared(self) -> list[Part] | None:
        """The parts of the attention where segments see others, once for all layers."""
        if all(segment.parent is None and segment.kept is None for segment in self.segments):
            return None
        return parts_of(self.segments, self.shift)

    @cached_property
    def parts(self) -> list[Part]:
        return self.shared or parts_of(self.segments, self.shift)

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest sequence, ancestors and kept tokens included."""
        return max(
            sum(stop - start for start, stop in ancestry(self.segments, segment, self.shift))
            for segment in self.segments
        )

    @cached_property
    def shift(self) -> int:
        """Kept keys, which lie before those of the pass."""
        return sum(each.length for each in self.kept)


class Layer(Protocol):
    """transformers' attention module."""

    layer_idx: int


def attend(
    module: Layer,
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
    """transformers' signature: q [B, Hq, T, D], k and v [B, Hkv, T, D] -> [B, T, Hq, D].

    `s_aux` [Hq]: sinks. Values may be smaller than D; then the output is, too. ConfigurationError
    for any other argument that has an effect, and for a mask: the plan says who sees whom.
    """
    if plan is None:
        raise RuntimeError("the engine's attention needs a plan: call BaseModel.hidden")
    _check_arguments(module, {"attention_mask": attention_mask, **others})
    layer = module.layer_idx
    if isinstance(plan, DecodePlan):
        return decode(plan, layer, query, key, value, scaling, sliding_window, s_aux), None
    return _packed(plan, layer, query, key, value, scaling, sliding_window, s_aux), None


def _check_arguments(module: Layer, arguments: Mapping[str, Argument]) -> None:
    for name, value in arguments.items():
        if value is None:
            continue
        harmless = name in _WITHOUT_EFFECT and _WITHOUT_EFFECT[name] in (None, value)
        if not harmless:
            shown = "a tensor" if isinstance(value, torch.Tensor) else repr(value)
            raise ConfigurationError(
                f"{type(module).__name__} hands {name}={shown} to its attention, which the engine"
                " does not compute"
            )


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
    for cells, sink in plan.keep:
        k, v = (x[0].transpose(0, 1).index_select(0, cells) for x in (key, value))
        sink.put(layer, k, v)
    if plan.kept:
        layers = [each.layer(layer) for each in plan.kept]
        key = torch.cat([*(k.transpose(0, 1)[None] for k, _ in layers), key], dim=2)
        value = torch.cat([*(v.transpose(0, 1)[None] for _, v in layers), value], dim=2)
    size = value.shape[-1]
    if size < key.shape[-1]:  # the kernels want one size
        value = F.pad(value, (0, key.shape[-1] - size))
    if window is not None and plan.longest <= window:
        window = None
    forest = (plan.shared is not None or sinks is not None) and window is None
    if forest and has_flash(query):
        out = ForestAttention.apply(query, key, value, plan.parts, scaling, sinks)
        out = out.transpose(1, 2)
    else:
        out = _by_segment(plan.segments, query, key, value, scaling, window, sinks, plan.shift)
    return out[..., :size]


def _by_segment(
    segments: Sequence[Segment],
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float | None,
    window: int | None = None,
    sinks: torch.Tensor | None = None,
    shift: int = 0,
) -> torch.Tensor:
    """Plain SDPA, on every device; a segment with ancestors gets their rows again, and a mask.

    So do sinks and windows. With a window, queries go in blocks of its length, each with the keys
    that one of them sees.
    """
    outs = []
    for run in _runs(segments):
        count, first, last = len(run), run[0], run[-1]
        q = blocks(query, first.start, last.stop, count)
        k, v = (blocks(x, first.start + shift, last.stop + shift, count) for x in (key, value))
        spans = ancestry(segments, first, shift)
        if len(spans) > 1:
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


def parts_of(segments: Sequence[Segment], shift: int = 0) -> list[Part]:
    """Each segment to itself, and everything below it to it. Segments lie depth first, so what is
    below one is the rows that follow it until the next that is not its descendant. `shift` keys lie
    before those of the pass: neighbours that continue the same of them attend to them together."""
    parts = [
        Part(run[0].start, run[-1].stop, run[0].start + shift, run[-1].stop + shift, True, len(run))
        for run in _runs(segments, parents=True)
    ]
    ends = [segment.stop for segment in segments]  # of the subtree
    for index in range(len(segments) - 1, -1, -1):
        parent = segments[index].parent
        if parent is not None:
            ends[parent] = max(ends[parent], ends[index])
    for segment, end in zip(segments, ends):
        if end > segment.stop:
            span = (segment.start + shift, segment.stop + shift)
            parts.append(Part(segment.stop, end, *span, False))
    continued: list[Part] = []
    for segment, end in zip(segments, ends):
        if segment.kept is None:
            continue
        last = continued[-1] if continued else None
        if last is not None and last.q1 == segment.start and (last.k0, last.k1) == segment.kept:
            continued[-1] = last._replace(q1=end)
        else:
            continued.append(Part(segment.start, end, *segment.kept, False))
    return parts + continued


def _runs(segments: Sequence[Segment], parents: bool = False) -> list[list[Segment]]:
    """Neighbours of equal length go into one call; those that continue others only if `parents`."""
    runs: list[list[Segment]] = []
    for segment in segments:
        last = runs[-1][-1] if runs else None
        alike = last is not None and segment.stop - segment.start == last.stop - last.start
        alone = last is not None and all(
            each.parent is None and each.kept is None for each in (last, segment)
        )
        if alike and (parents or alone):
            runs[-1].append(segment)
        else:
            runs.append([segment])
    return runs


def ancestry(
    segments: Sequence[Segment], segment: Segment, shift: int = 0
) -> list[tuple[int, int]]:
    """Spans of keys that a segment sees, what it continues first, itself last."""
    spans = [(segment.start + shift, segment.stop + shift)]
    while segment.parent is not None:
        segment = segments[segment.parent]
        spans.append((segment.start + shift, segment.stop + shift))
    if segment.kept is not None:
        spans.append(segment.kept)
    return spans[::-1]


AttentionInterface.register(NAME, attend)
