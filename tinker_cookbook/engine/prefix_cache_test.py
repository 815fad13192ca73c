"""Trees of token sequences: matches, pins, and what goes when there is no room."""

from __future__ import annotations

import gc

import numpy as np

from tinker_cookbook.engine.prefix_cache import PrefixCache, length


class Owner:
    pass


def insert(cache: PrefixCache, owner: object, tokens: list[int]) -> None:
    array = np.array(tokens)
    path = cache.match(owner, array, ready=False)
    if length(path) < len(tokens):
        node = cache.insert(owner, array[length(path) :], path)
        node.keys.append(node.tokens)  # type: ignore[arg-type]  # anything: it counts as computed


def found(cache: PrefixCache, owner: object, tokens: list[int]) -> list[int]:
    """What the path that matches holds, piece by piece."""
    path = cache.match(owner, np.array(tokens))
    positions = np.cumsum([0, *(each.length for each in path)])
    assert [each.position for each in path] == positions[:-1].tolist()
    return [int(t) for each in path for t in each.block.tokens[each.start : each.stop]]  # type: ignore[attr-defined]


def test_matches_are_the_longest_beginning_of_any_sequence() -> None:
    cache, owner = PrefixCache(), Owner()
    rng = np.random.default_rng(0)
    texts = [rng.integers(0, 3, rng.integers(1, 12)).tolist() for _ in range(200)]
    for text in texts:
        insert(cache, owner, text)
    beginnings = {tuple(text[:n]) for text in texts for n in range(len(text) + 1)}
    assert cache.tokens == len(beginnings) - 1  # every different beginning is held once
    for _ in range(500):
        text = rng.integers(0, 3, rng.integers(1, 14)).tolist()
        longest = max(n for n in range(len(text) + 1) if tuple(text[:n]) in beginnings)
        assert found(cache, owner, text) == text[:longest]


def test_a_node_is_never_split() -> None:
    cache, owner = PrefixCache(), Owner()
    insert(cache, owner, [1, 2, 3, 4, 5])
    insert(cache, owner, [1, 2, 3, 9, 9])
    insert(cache, owner, [1, 2, 8])
    assert cache.tokens == 8 and len(cache.match(owner, np.array([1, 2, 3, 9]))) == 2
    pending = cache.match(owner, np.array([1, 2, 3, 4, 5]))
    cache.insert(owner, np.array([6, 7]), pending)
    assert found(cache, owner, [1, 2, 3, 4, 5, 6, 7]) == [1, 2, 3, 4, 5]  # not computed yet


def test_the_longest_unused_goes_first_and_never_what_is_pinned() -> None:
    cache, owner, other = PrefixCache(), Owner(), Owner()
    for text in ([1, 1, 1], [2, 2], [1, 1, 1, 4, 4, 4, 4]):
        insert(cache, owner, text)
    insert(cache, other, [1, 1, 1, 1, 1])
    assert (cache.tokens, cache.pinned) == (14, 0)
    held = cache.match(owner, np.array([2, 2]))
    cache.pin(held)
    assert cache.pinned == 2
    found(cache, owner, [1, 1, 1, 4, 4])  # used just now: the other owner's goes first
    cache.evict(7)
    assert cache.tokens == 9 and found(cache, other, [1, 1]) == []
    cache.evict(6)  # a node with children stays as long as they do
    assert cache.tokens == 5 and found(cache, owner, [1, 1, 1, 4]) == [1, 1, 1]
    cache.evict(0)
    assert cache.tokens == 2 and found(cache, owner, [2, 2, 5]) == [2, 2]
    cache.unpin(held)
    cache.evict(0)
    assert cache.tokens == 0


def test_a_tree_goes_with_its_owner() -> None:
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
