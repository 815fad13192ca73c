"""Prefix cache: longest matches, pins, and eviction order."""

from __future__ import annotations

import gc

import numpy as np

from tinker_cookbook.engine.prefix_cache import PrefixCache, prefix_length


class Owner:
    pass


def insert(cache: PrefixCache, owner: object, tokens: list[int]) -> None:
    array = np.array(tokens)
    prefix = cache.match(owner, array, ready=False)
    if prefix_length(prefix) < len(tokens):
        node = cache.insert(owner, array[prefix_length(prefix) :], prefix)
        node.keys.append(node.tokens)  # type: ignore[arg-type]  # any value marks it as computed


def matched(cache: PrefixCache, owner: object, tokens: list[int]) -> list[int]:
    """Tokens of the prefix that matches; also checks the positions of its slices."""
    prefix = cache.match(owner, np.array(tokens))
    positions = np.cumsum([0, *(piece.length for piece in prefix)])
    assert [piece.position for piece in prefix] == positions[:-1].tolist()
    return [int(t) for piece in prefix for t in piece.block.tokens[piece.start : piece.stop]]  # type: ignore[attr-defined]


def test_match_returns_the_longest_cached_prefix() -> None:
    cache, owner = PrefixCache(), Owner()
    rng = np.random.default_rng(0)
    texts = [rng.integers(0, 3, rng.integers(1, 12)).tolist() for _ in range(200)]
    for text in texts:
        insert(cache, owner, text)
    prefixes = {tuple(text[:n]) for text in texts for n in range(len(text) + 1)}
    assert cache.tokens == len(prefixes) - 1  # every distinct prefix is stored once
    for _ in range(500):
        text = rng.integers(0, 3, rng.integers(1, 14)).tolist()
        longest = max(n for n in range(len(text) + 1) if tuple(text[:n]) in prefixes)
        assert matched(cache, owner, text) == text[:longest]


def test_a_node_is_never_split() -> None:
    cache, owner = PrefixCache(), Owner()
    insert(cache, owner, [1, 2, 3, 4, 5])
    insert(cache, owner, [1, 2, 3, 9, 9])
    insert(cache, owner, [1, 2, 8])
    assert cache.tokens == 8 and len(cache.match(owner, np.array([1, 2, 3, 9]))) == 2
    pending = cache.match(owner, np.array([1, 2, 3, 4, 5]))
    cache.insert(owner, np.array([6, 7]), pending)
    assert matched(cache, owner, [1, 2, 3, 4, 5, 6, 7]) == [
        1,
        2,
        3,
        4,
        5,
    ]  # the new node has no keys


def test_least_recently_used_is_evicted_first_and_pinned_never() -> None:
    cache, owner, other = PrefixCache(), Owner(), Owner()
    for text in ([1, 1, 1], [2, 2], [1, 1, 1, 4, 4, 4, 4]):
        insert(cache, owner, text)
    insert(cache, other, [1, 1, 1, 1, 1])
    assert (cache.tokens, cache.pinned) == (14, 0)
    pinned = cache.match(owner, np.array([2, 2]))
    cache.pin(pinned)
    assert cache.pinned == 2
    matched(cache, owner, [1, 1, 1, 4, 4])  # refreshed, so the other owner's goes first
    cache.evict(7)
    assert cache.tokens == 9 and matched(cache, other, [1, 1]) == []
    cache.evict(6)  # a node stays as long as it has children
    assert cache.tokens == 5 and matched(cache, owner, [1, 1, 1, 4]) == [1, 1, 1]
    cache.evict(0)
    assert cache.tokens == 2 and matched(cache, owner, [2, 2, 5]) == [2, 2]
    cache.unpin(pinned)
    cache.evict(0)
    assert cache.tokens == 0


def test_a_tree_is_freed_with_its_owner() -> None:
    cache, owner, other = PrefixCache(), Owner(), Owner()
    insert(cache, owner, [1, 2, 3])
    insert(cache, owner, [1, 2, 4])
    insert(cache, other, [5])
    gc.disable()
    try:
        del owner
        assert cache.tokens == 1
    finally:
        gc.enable()
