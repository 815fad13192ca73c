"""Attention over prefix trees that computes no shared prefix twice, with exact gradients.

Every segment attends to itself causally; all tokens below a segment attend to that segment
together, in one unmasked call. A token's partial results are merged by their log-sum-exp (LSE):

    L = log(sum_i exp(lse_i)),  out = sum_i exp(lse_i - L) out_i

Backward passes the merged `out` and `L` to each part's own flash backward. This is exact: a flash
backward recomputes the probabilities as exp(score - L) and needs out only for rowsum(d_out * out),
so with the merged values each part yields its share of the full softmax's gradient (as in ring
attention, Liu et al. 2023, https://arxiv.org/abs/2310.01889). An attention sink, a logit that takes
its share of the softmax and has no value, is the merge's starting point: lse = sink, out = 0.

Shapes: q [1, Hq, T, D], k and v [1, Hkv, T, D] (the kernel handles grouped heads), L block length.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from tinker_cookbook.engine.autograd import Context, Gradients

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class AttentionPart(NamedTuple):
    """Tokens [q0, q1) attend to keys [k0, k1) in one call.

    causal: `count` equal blocks, each attending to itself. Otherwise one block, unmasked.
    """

    q0: int
    q1: int
    k0: int
    k1: int
    causal: bool
    count: int = 1


def split_blocks(x: torch.Tensor, start: int, stop: int, count: int) -> torch.Tensor:
    """Tokens [start, stop) of [1, H, T, D] as a batch of equal blocks [count, H, L, D]."""
    _, heads, _, size = x.shape
    return x[0, :, start:stop].reshape(heads, count, -1, size).transpose(0, 1)


def join_blocks(x: torch.Tensor) -> torch.Tensor:
    """[count, H, L, D] -> [H, count * L, D]."""
    return x.transpose(0, 1).reshape(x.shape[1], -1, x.shape[3])


class _AttentionContext(Context):
    parts: Sequence[AttentionPart]
    scale: float | None


class SharedPrefixAttention(torch.autograd.Function):
    """Attention as a merge of parts, in any order.

    Every token must be in at least one part. Sinks [Hq] are frozen: they get no gradient.
    """

    @staticmethod
    def forward(
        ctx: _AttentionContext,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        parts: Sequence[AttentionPart],
        scale: float | None,
        sinks: torch.Tensor | None = None,
    ) -> torch.Tensor:
        heads, length, size = query.shape[1:]
        # fp32: with bf16 sums, every merge would round the output once more
        out = query.new_zeros(heads, length, size, dtype=torch.float32)
        lse = query.new_full((heads, length), -torch.inf, dtype=torch.float32)
        if sinks is not None:
            lse[:] = sinks[:, None]
        for part in parts:
            span = slice(part.q0, part.q1)
            part_out, part_lse = _forward(
                split_blocks(query, part.q0, part.q1, part.count),
                split_blocks(key, part.k0, part.k1, part.count),
                split_blocks(value, part.k0, part.k1, part.count),
                0.0,  # dropout
                part.causal,
                scale=scale,
            )
            part_lse = part_lse.transpose(0, 1).reshape(heads, -1)
            merged = torch.logaddexp(lse[:, span], part_lse)
            # rescale what was merged so far to the new normaliser before adding this part; at the
            # first part exp(-inf) = 0 and out is 0
            out[:, span] *= (lse[:, span] - merged).exp()[..., None]
            out[:, span] += join_blocks(part_out) * (part_lse - merged).exp()[..., None]
            lse[:, span] = merged
        result = out.to(query.dtype)[None]
        # the merged result and LSE are all that the parts' backwards need, however many parts
        ctx.save_for_backward(query, key, value, result, lse)
        ctx.parts, ctx.scale = parts, scale
        return result

    @staticmethod
    def backward(ctx: _AttentionContext, *grads: torch.Tensor) -> Gradients:
        query, key, value, out, lse = ctx.saved_tensors
        d_out = grads[0].contiguous()
        # fp32 sums: a shared segment's keys collect a gradient from every part that reads them
        d_query, d_key, d_value = (
            torch.zeros_like(x, dtype=torch.float32) for x in (query, key, value)
        )
        for part in ctx.parts:
            count, q, k = part.count, (part.q0, part.q1), (part.k0, part.k1)
            # the merged LSE, not this part's own: it makes the part's probabilities global ones
            part_lse = lse[:, part.q0 : part.q1].reshape(lse.shape[0], count, -1).transpose(0, 1)
            dq, dk, dv = _backward(
                split_blocks(d_out, *q, count),
                split_blocks(query, *q, count),
                split_blocks(key, *k, count),
                split_blocks(value, *k, count),
                split_blocks(out, *q, count),
                part_lse.contiguous(),
                0.0,  # dropout
                part.causal,
                scale=ctx.scale,
            )
            d_query[0, :, part.q0 : part.q1] += join_blocks(dq)
            d_key[0, :, part.k0 : part.k1] += join_blocks(dk)
            d_value[0, :, part.k0 : part.k1] += join_blocks(dv)
        return (
            d_query.to(query.dtype),
            d_key.to(key.dtype),
            d_value.to(value.dtype),
            None,
            None,
            None,
        )
