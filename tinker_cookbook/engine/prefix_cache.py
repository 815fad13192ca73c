"""Keys and values of token sequences, kept in trees: what one request computed, others take.

A tree for each owner (an adapter, or the base model alone). A node holds the tokens that follow
some token of its parent; a sequence that leaves a node in its middle begins a child there, and the
node stays whole. Nodes in use are pinned; the others go, the longest unused first, when there is
no room.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import numpy as np

from tinker_cookbook.engine.kv_cache import Block, Slice
from tinker_cookbook.engine.packing import common_prefix_length


@dataclass(eq=False)
class Node(Block):
    """A stretch of tokens and what follows some of them. It does not know its parent: without
    cycles, a tree whose owner is gone is freed at once."""

    tokens: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    pins: int = 0
    used: int = 0  # when; by the cache's own clock
    children: dict[tuple[int, int], Node] = field(default_factory=dict)  # by (offset, first token)


CachedPrefix = list[Slice]  # a sequence from its first token on; every block is a Node


class PrefixCache:
    """Trees of nodes. Room is the caller's to count: `tokens`, `pinned`, `evict`."""

    def __init__(self) -> None:
        self._roots: WeakKeyDictionary[object, Node] = WeakKeyDictionary()
        self._clock = 0

    @property
    def tokens(self) -> int:
        return sum(len(node.tokens) for _, _, node in self._nodes())

    @property
    def pinned(self) -> int:
        """Tokens in nodes that somebody uses."""
        return sum(len(node.tokens) for _, _, node in self._nodes() if node.pins)

    def match(self, owner: object, tokens: np.ndarray, ready: bool = True) -> CachedPrefix:
        """The longest beginning of the tokens that is there; with `ready`, computed already."""
        path: CachedPrefix = []
        node, offset, depth = self._roots.get(owner), 0, 0
        self._clock += 1
        while node is not None and depth < len(tokens):
            child = node.children.get((offset, int(tokens[depth])))
            if child is None or (ready and not child.ready):
                break
            length = common_prefix_length(child.tokens, tokens[depth:])
            path.append(Slice(child, 0, length, depth))
            child.used = self._clock
            node, offset, depth = child, length, depth + length
        return path

    def insert(self, owner: object, tokens: np.ndarray, path: CachedPrefix) -> Node:
        """A node without keys yet for the tokens that follow the path, which `match` gave."""
        parent = path[-1].block if path else self._roots.setdefault(owner, Node())
        assert isinstance(parent, Node)
        self._clock += 1
        node = Node(tokens=tokens.copy(), used=self._clock)
        parent.children[path[-1].stop if path else 0, int(tokens[0])] = node
        return node

    def pin(self, path: CachedPrefix) -> None:
        for node in _nodes_of(path):
            node.pins += 1

    def unpin(self, path: CachedPrefix) -> None:
        for node in _nodes_of(path):
            node.pins -= 1

    def evict(self, tokens: int) -> None:
        """Let unused nodes go until what they hold is at most so many tokens, if that can be."""
        excess = self.tokens - self.pinned - max(tokens, 0)
        while excess > 0:
            leaves = [each for each in self._nodes() if not (each[2].children or each[2].pins)]
            if not leaves:
                return
            parent, key, oldest = min(leaves, key=lambda each: each[2].used)
            del parent.children[key]
            excess -= len(oldest.tokens)

    def clear(self) -> None:
        self._roots.clear()

    def _nodes(self) -> Iterator[tuple[Node, tuple[int, int], Node]]:
        """(parent, key among its children, node) for every node."""
        stack = list(self._roots.values())
        while stack:
            parent = stack.pop()
            for key, node in parent.children.items():
                stack.append(node)
                yield parent, key, node


def length(path: Sequence[Slice]) -> int:
    return sum(each.length for each in path)


def _nodes_of(path: CachedPrefix) -> Iterator[Node]:
    for each in path:
        assert isinstance(each.block, Node)
        yield each.block
