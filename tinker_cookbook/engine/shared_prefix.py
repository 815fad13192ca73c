"""Attention over a forest of segments without computing any ancestor twice, with exact gradients.

Every segment attends to itself causally; all rows below a segment attend to that segment together,
in one unmasked call. The partial results of a row are merged by their log-sum-exp:

    L = log(sum_i exp(lse_i)),  out = sum_i exp(lse_i - L) out_i

and the backward pass hands the merged `out` and `L` to each part's own flash backward, which is
exact because a flash backward needs nothing but the softmax normaliser and out (the identity behind
ring attention, Liu et al. 2023, https://arxiv.org/abs/2310.01889). An attention sink, a score that
takes its share of the softmax and gives nothing, is where the merge begins: lse = sink, out = 0.

Shapes: q [1, Hq, T, D], k and v [1, Hkv, T, D] (grouped heads are the kernel's work).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from tinker_cookbook.engine.autograd import Context, Gradients

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class Part(NamedTuple):
    """Rows [q0, q1) attend to rows [k0, k1): `count` equal blocks, each causal, or all unmasked."""

    q0: int
    q1: int
    k0: int
    k1: int
    causal: bool
    count: int = 1


def blocks(x: torch.Tensor, start: int, stop: int, count: int) -> torch.Tensor:
    """Rows [start, stop) of [1, H, T, D] as [count, H, L, D]."""
    _, heads, _, size = x.shape
    return x[0, :, start:stop].reshape(heads, count, -1, size).transpose(0, 1)


def rows(x: torch.Tensor) -> torch.Tensor:
    """[count, H, L, D] -> [H, count * L, D]."""
    return x.transpose(0, 1).reshape(x.shape[1], -1, x.shape[3])


class _Forest(Context):
    parts: Sequence[Part]
    scale: float | None


class SharedPrefixAttention(torch.autograd.Function):
    """Parts in any order; every row must be in at least one. Sinks [Hq] are frozen."""

    @staticmethod
    def forward(
        ctx: _Forest,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        parts: Sequence[Part],
        scale: float | None,
        sinks: torch.Tensor | None = None,
    ) -> torch.Tensor:
        heads, length, size = query.shape[1:]
        out = query.new_zeros(heads, length, size, dtype=torch.float32)
        lse = query.new_full((heads, length), -torch.inf, dtype=torch.float32)
        if sinks is not None:
            lse[:] = sinks[:, None]
        for part in parts:
            own = slice(part.q0, part.q1)
            o, part_lse = _forward(
                blocks(query, part.q0, part.q1, part.count),
                blocks(key, part.k0, part.k1, part.count),
                blocks(value, part.k0, part.k1, part.count),
                0.0,
                part.causal,
                scale=scale,
            )
            part_lse = part_lse.transpose(0, 1).reshape(heads, -1)
            merged = torch.logaddexp(lse[:, own], part_lse)
            out[:, own] *= (lse[:, own] - merged).exp()[..., None]
            out[:, own] += rows(o) * (part_lse - merged).exp()[..., None]
            lse[:, own] = merged
        result = out.to(query.dtype)[None]
        ctx.save_for_backward(query, key, value, result, lse)
        ctx.parts, ctx.scale = parts, scale
        return result

    @staticmethod
    def backward(ctx: _Forest, *grads: torch.Tensor) -> Gradients:
        query, key, value, out, lse = ctx.saved_tensors
        d_out = grads[0].contiguous()
        d_query, d_key, d_value = (
            torch.zeros_like(x, dtype=torch.float32) for x in (query, key, value)
        )
        for part in ctx.parts:
            count, q, k = part.count, (part.q0, part.q1), (part.k0, part.k1)
            part_lse = lse[:, part.q0 : part.q1].reshape(lse.shape[0], count, -1).transpose(0, 1)
            dq, dk, dv = _backward(
                blocks(d_out, *q, count),
                blocks(query, *q, count),
                blocks(key, *k, count),
                blocks(value, *k, count),
                blocks(out, *q, count),
                part_lse.contiguous(),
                0.0,
                part.causal,
                scale=ctx.scale,
            )
            d_query[0, :, part.q0 : part.q1] += rows(dq)
            d_key[0, :, part.k0 : part.k1] += rows(dk)
            d_value[0, :, part.k0 : part.k1] += rows(dv)
        return (
            d_query.to(query.dtype),
            d_key.to(key.dtype),
            d_value.to(value.dtype),
            None,
            None,
            None,
        )
