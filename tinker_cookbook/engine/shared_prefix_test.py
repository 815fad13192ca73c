"""Attention over forests of segments, with windows and sinks, against float64."""

from __future__ import annotations

import pytest
import torch

from tinker_cookbook.engine import attention
from tinker_cookbook.engine.attention import PackedPlan, Segment

TOLERANCE = 1e-5


def dense_attention(
    segments: list[Segment],
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    window: int | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """float64, one row at a time."""
    out = []
    for segment in segments:
        for row in range(segment.start, segment.stop):
            spans = attention.visible_key_spans(segments, segment)
            seen = [i for a, b in spans for i in range(a, b) if i <= row]
            seen = seen[-window:] if window is not None else seen
            k, v = (x[0, :, seen].repeat_interleave(2, dim=0).double() for x in (key, value))
            scores = (k @ query[0, :, row, :, None].double())[..., 0] * 0.3
            if sinks is not None:
                scores = torch.cat([scores, sinks[:, None].double()], dim=1)
            shares = scores.softmax(-1)[:, : len(seen)]
            out.append((shares[:, None] @ v)[:, 0])
    return torch.stack(out)[None]


@pytest.mark.parametrize("fallback", [False, True])
@pytest.mark.parametrize("window", [None, 100, 7])
@pytest.mark.parametrize("with_sinks", [False, True])
def test_attention_against_float64(
    fallback: bool, window: int | None, with_sinks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forests with windows and sinks, both the CPU's way and the one for every device."""
    if fallback:
        monkeypatch.setattr(
            attention.SharedPrefixAttention,
            "apply",
            lambda q, k, v, parts, scale, sinks: attention._attend_by_segment(
                segments, q, k, v, scale, None, sinks
            ).transpose(1, 2),
        )
    segments = [
        Segment(0, 9),
        Segment(9, 13, parent=0),
        Segment(13, 17, parent=0),
        Segment(17, 20, parent=2),
        Segment(20, 30),
        Segment(30, 40),
    ]
    torch.manual_seed(0)
    shapes = (1, 4, 40, 16), (1, 2, 40, 16), (1, 2, 40, 12)  # values smaller than keys
    tensors = [torch.randn(shape, requires_grad=True) for shape in shapes]
    sinks = torch.randn(4) if with_sinks else None
    module = torch.nn.Module()
    module.layer_idx = 0  # type: ignore[assignment]
    plan = PackedPlan(segments)
    out, _ = attention.attend(
        module, *tensors, None, scaling=0.3, sliding_window=window, s_aux=sinks, plan=plan
    )
    expected = dense_attention(segments, *tensors, window, sinks)
    assert (out - expected).abs().max() <= 1e-6
    slope = torch.randn(out.shape)
    ours = torch.autograd.grad(out, tensors, slope)
    theirs = torch.autograd.grad(expected, tensors, slope.double())
    for a, b in zip(ours, theirs):
        assert (a - b).abs().max() <= TOLERANCE
