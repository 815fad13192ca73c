"""Prefix cache: keys and values of token sequences, kept in trees for later requests to reuse.

Each owner (a version of an adapter's weights, the base model alone or, for a deterministic sampler,
a single request) has a tree of its own, because the same tokens have different keys under different
weights. A node holds the tokens that follow some token
of its parent. Two sequences that diverge in the middle of a node share that node up to there, and
the second one continues in a child. Nodes in use are pinned; the others are evicted, least recently
used first, when room is needed.
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
    """A span of tokens and its continuations.

    A node is never split: running jobs hold slices of it, and a split would invalidate them. So
    children hang off an offset within the node, not off its end. There is no link to the parent:
    without reference cycles, a tree is freed the moment its owner is, not at the next garbage
    collection.
    """

    tokens: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    pins: int = 0  # number of users; evictable at 0
    last_used: int = 0  # in ticks of the cache's clock
    children: dict[tuple[int, int], Node] = field(default_factory=dict)  # by (offset, first token)


CachedPrefix = list[Slice]  # slices of nodes that together spell a sequence from its first token on


class PrefixCache:
    """Trees of nodes. Enforces no limit: the caller counts `tokens` and `pinned` and evicts."""

    def __init__(self) -> None:
        # Weak keys: once new weights replace an adapter's, no request can match the old tree.
        self._roots: WeakKeyDictionary[object, Node] = WeakKeyDictionary()
        self._clock = 0

    @property
    def tokens(self) -> int:
        """Number of tokens in all nodes."""
        return sum(len(node.tokens) for _, _, node in self._iter_nodes())

    @property
    def pinned(self) -> int:
        """Number of tokens in pinned nodes."""
        return sum(len(node.tokens) for _, _, node in self._iter_nodes() if node.pins)

    def match(self, owner: object, tokens: np.ndarray, ready: bool = True) -> CachedPrefix:
        """Return the longest cached prefix of the tokens.

        ready: stop at nodes that are still to be computed. Without it the prefix includes nodes
        that the pass being planned will fill, so requests admitted together share them.
        """
        prefix: CachedPrefix = []
        node, offset, depth = self._roots.get(owner), 0, 0
        self._clock += 1
        while node is not None and depth < len(tokens):
            child = node.children.get((offset, int(tokens[depth])))
            if child is None or (ready and not child.ready):
                break
            length = common_prefix_length(child.tokens, tokens[depth:])
            prefix.append(Slice(child, 0, length, depth))
            child.last_used = self._clock
            # The match may end inside the child; the next lookup then finds a child that branches
            # off at this offset, or nothing.
            node, offset, depth = child, length, depth + length
        return prefix

    def insert(self, owner: object, tokens: np.ndarray, prefix: CachedPrefix) -> Node:
        """Add a node, not yet computed, for the tokens that follow a prefix returned by `match`."""
        parent = prefix[-1].block if prefix else self._roots.setdefault(owner, Node())
        assert isinstance(parent, Node)
        self._clock += 1
        # A copy: `tokens` is usually a view, which would keep the whole prompt alive.
        node = Node(tokens=tokens.copy(), last_used=self._clock)
        parent.children[prefix[-1].stop if prefix else 0, int(tokens[0])] = node
        return node

    # A prefix starts at the root, so these two cover all ancestors of its last node: an unpinned
    # node has no pinned descendants.

    def pin(self, prefix: CachedPrefix) -> None:
        for node in _nodes_of(prefix):
            node.pins += 1

    def unpin(self, prefix: CachedPrefix) -> None:
        for node in _nodes_of(prefix):
            node.pins -= 1

    def evict(self, max_unpinned: int) -> None:
        """Evict unpinned nodes until they hold at most `max_unpinned` tokens in total."""
        excess = self.tokens - self.pinned - max(max_unpinned, 0)
        while excess > 0:
            # Leaves only: keys of a node are unreachable without its ancestors. Evicting a leaf
            # may turn its parent into one, so they are listed anew each time.
            leaves = [
                entry for entry in self._iter_nodes() if not (entry[2].children or entry[2].pins)
            ]
            if not leaves:
                return
            parent, key, oldest = min(leaves, key=lambda entry: entry[2].last_used)
            del parent.children[key]
            excess -= len(oldest.tokens)

    def clear(self) -> None:
        self._roots.clear()

    def _iter_nodes(self) -> Iterator[tuple[Node, tuple[int, int], Node]]:
        """Yield (parent, key among its children, node) for every node."""
        stack = list(self._roots.values())
        while stack:
            parent = stack.pop()
            for key, node in parent.children.items():
                stack.append(node)
                yield parent, key, node


def prefix_length(prefix: Sequence[Slice]) -> int:
    """Number of tokens in a cached prefix."""
    return sum(piece.length for piece in prefix)


def _nodes_of(prefix: CachedPrefix) -> Iterator[Node]:
    for piece in prefix:
        assert isinstance(piece.block, Node)
        yield piece.block
