"""The memory of freed keys and values."""

from __future__ import annotations

import platform

import psutil
import pytest
import torch

from tinker_cookbook.engine.kv_cache import MUCH, Block, KVCache, Slice
from tinker_cookbook.utils.cpu_memory import return_freed_memory


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="malloc_trim is glibc's")
def test_freed_slots_go_back_to_the_system() -> None:
    def resident() -> int:
        return psutil.Process().memory_info().rss

    # Freed once, a block of this size makes malloc take smaller ones from its heap, which it keeps.
    torch.empty(31 * 2**20, dtype=torch.uint8)
    num_layers, slots = 16, 64  # tensors of 16 MiB
    one_token = torch.ones(1, 4, 64)
    capacity = 2 * MUCH // (2 * num_layers * slots * one_token.nbytes)
    cache = KVCache(num_layers)
    return_freed_memory()  # of other tests, which these tensors would reuse
    before = resident()
    cache.reserve(slots, capacity, live=0)
    blocks = []
    for layer in range(num_layers):
        for tensor in cache.layer_tensors(layer, one_token, one_token):
            tensor.fill_(1)
            blocks.append(torch.ones(1000))  # small and kept: the heap cannot just become shorter
    used = resident() - before
    assert used > 1.9 * MUCH
    cache.clear()
    assert resident() - before < 0.1 * used
    assert len(blocks) == 2 * num_layers


def test_resizing_keeps_the_live_slots() -> None:
    cache = KVCache(num_layers=1)
    cache.reserve(slots=4, capacity=3, live=0)
    keys, values = torch.randn(2, 1, 2), torch.randn(2, 1, 2)
    cache.write_prefix([0, 1], [Slice(Block([keys], [values]), 0, 2, 0)])
    cache.reserve(slots=2, capacity=5, live=2)
    assert cache.tokens == 10
    for slot in (0, 1):
        block = cache.read_slot(slot, 0, 2)
        assert torch.equal(block.keys[0], keys) and torch.equal(block.values[0], values)
