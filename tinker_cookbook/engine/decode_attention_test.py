"""Decoding over slots and shared blocks, against dense attention over each sample's keys."""

from __future__ import annotations

import pytest
import torch

from tinker_cookbook.engine import decode_attention
from tinker_cookbook.engine.decode_attention import DecodePlan, SharedPrefix, decode
from tinker_cookbook.engine.kv_cache import Block, KVCache, Slice

HEADS, KV_HEADS, SIZE = 6, 2, 16


def dense(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    scale: float,
    window: int | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """q [Hq, D] over k [L, Hkv, D], v [L, Hkv, Dv] in float64; the last key is the query's own."""
    keys, values = (x.double().repeat_interleave(HEADS // KV_HEADS, 1) for x in (keys, values))
    scores = torch.einsum("hd,lhd->hl", query.double(), keys) * scale
    if window is not None:
        scores[:, : max(0, scores.shape[1] - window)] = -torch.inf
    if sinks is not None:
        scores = torch.cat([scores, sinks.double()[:, None]], dim=1)
    weights = scores.softmax(-1)[:, : len(keys)]
    return torch.einsum("hl,lhd->hd", weights, values)


@pytest.mark.parametrize("batch_invariant", [False, True])
@pytest.mark.parametrize("value_size", [SIZE, 10])
@pytest.mark.parametrize("fallback", [False, True])
@pytest.mark.parametrize("window", [None, 1, 7, 25])
@pytest.mark.parametrize("with_sinks", [False, True])
def test_against_dense_attention(
    batch_invariant: bool,
    value_size: int,
    fallback: bool,
    window: int | None,
    with_sinks: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if fallback:  # what devices other than the CPU run
        plain = decode_attention.plain_attention
        monkeypatch.setattr(
            decode_attention,
            "partial_attention",
            lambda q, k, v, scale, mask=None: plain(
                q, k.transpose(1, 2), v.transpose(1, 2), scale, mask
            ),
        )
    torch.manual_seed(0)
    blocks = []
    for tokens in (30, 20, 12):
        block = Block()
        block.put(0, torch.randn(tokens, KV_HEADS, SIZE), torch.randn(tokens, KV_HEADS, value_size))
        blocks.append(block)
    # samples 4, 0 and 2 share two blocks, 5 shares part of the first; 1 and 3 share nothing
    long = [Slice(blocks[0], 0, 30, 0), Slice(blocks[1], 0, 20, 30)]
    short = [Slice(blocks[0], 0, 17, 0)]
    shared = [SharedPrefix(0, 3, long), SharedPrefix(3, 4, short)]
    prefixes = {4: long, 0: long, 2: long, 5: short}
    lengths, n = [3, 9, 0, 21, 5, 2], 6
    cache = KVCache(1)
    cache.reserve(8, 24, 0)
    keys, values = cache.layer_tensors(
        0, torch.empty(1, KV_HEADS, SIZE), torch.empty(1, KV_HEADS, value_size)
    )
    for slot, length in enumerate(lengths):
        keys[slot, :length] = torch.randn(length, KV_HEADS, SIZE)
        values[slot, :length] = torch.randn(length, KV_HEADS, value_size)
    starts = [sum(piece.length for piece in prefixes.get(i, ())) for i in range(n)]
    cpu, sharing = torch.device("cpu"), [4, 0, 2, 5]
    plan = DecodePlan(cache, range(n), lengths, starts, cpu, sharing, shared, batch_invariant)
    query = torch.randn(n, HEADS, 1, SIZE)
    key, value = torch.randn(n, KV_HEADS, 1, SIZE), torch.randn(n, KV_HEADS, 1, value_size)
    sinks = torch.randn(HEADS) if with_sinks else None
    out = decode(plan, 0, query, key, value, 0.3, window, sinks)
    for i in range(n):
        pieces = [piece.layer(0) for piece in prefixes.get(i, ())]
        pieces.append((keys[i, : lengths[i]], values[i, : lengths[i]]))
        pieces.append((key[i].transpose(0, 1), value[i].transpose(0, 1)))
        own_keys, own_values = (torch.cat(tensors) for tensors in zip(*pieces))
        expected = dense(query[i, :, 0], own_keys, own_values, 0.3, window, sinks)
        assert (out[i, 0] - expected).abs().max() <= 2e-6


def test_slots_keep_their_tokens() -> None:
    """Resizing, moving and copying; positions that were never written are zero, not NaN."""
    cache = KVCache(2)
    cache.reserve(3, 4, 0)
    like = torch.full((5, 2, 3), torch.nan), torch.full((5, 2, 4), torch.nan)
    for layer in range(2):
        cache.layer_tensors(layer, *like)[0][1, :3] = float(layer + 1)
    cache.reserve(5, 9, 2)
    cache.copy_slot(1, 0, 2)
    for layer in range(2):
        keys, values = cache.layer_tensors(layer, *like)
        assert keys.shape == (5, 9, 2, 3) and values.shape == (5, 9, 2, 4)
        assert keys[:, :, 0, 0].sum() == (3 + 2) * (layer + 1) and not values.any()
    block = cache.read_slot(1, 1, 3)
    cache.reserve(1, 2, 1)
    assert cache.tokens == 2 and cache.layer_tensors(1, *like)[0].eq(2).all()
    assert [k.shape for k in block.keys] == [(2, 2, 3)] * 2
    assert block.keys[0].eq(1).all() and block.keys[1].eq(2).all()
