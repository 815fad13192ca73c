"""Where keys and values of sampled sequences lie: a slot for each sequence that is being decoded,
and blocks for what several sequences have in common.

Tokens come first in every tensor, [.., tokens, Hkv, D], so that a token of every sequence is
written in one copy and a stretch of tokens is one piece of memory. Key and value heads may differ
in size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch


class Sink(Protocol):
    """Takes keys [tokens, Hkv, D] and values [tokens, Hkv, Dv] of one layer."""

    def put(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> None: ...


@dataclass(eq=False)
class Block:
    """Keys and values of a stretch of tokens; a tensor per layer, none before it was computed."""

    keys: list[torch.Tensor] = field(default_factory=list)
    values: list[torch.Tensor] = field(default_factory=list)

    def put(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        assert layer == len(self.keys), "layers come in their order"
        self.keys.append(keys)
        self.values.append(values)

    @property
    def ready(self) -> bool:
        return bool(self.keys)


class Slice(NamedTuple):
    """Tokens [start, stop) of a block; the first of them stands at `position` in its sequence."""

    block: Block
    start: int
    stop: int
    position: int

    @property
    def length(self) -> int:
        return self.stop - self.start

    def layer(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        block = self.block
        return block.keys[index][self.start : self.stop], block.values[index][
            self.start : self.stop
        ]


class KVCache:
    """A slot of `capacity` tokens for each sequence: keys [slots, capacity, Hkv, D] per layer.

    Slots 0..n-1 are always the live ones, so decoding reads a plain slice.
    """

    def __init__(self, num_layers: int) -> None:
        self.num_layers = num_layers
        self._keys: list[torch.Tensor | None] = [None] * num_layers
        self._values: list[torch.Tensor | None] = [None] * num_layers
        self.slots = 0
        self.capacity = 0  # tokens per slot

    @property
    def tokens(self) -> int:
        """Tokens there is memory for."""
        return self.slots * self.capacity

    def reserve(self, slots: int, capacity: int, live: int) -> None:
        """Make it that many slots of that many tokens; what lies in the first `live` stays."""
        if (slots, capacity) == (self.slots, self.capacity):
            return
        shared = min(capacity, self.capacity)
        self.slots, self.capacity = slots, capacity
        for store in (self._keys, self._values):
            for layer, old in enumerate(store):
                if old is None:
                    continue  # made on first write, when head count, size and dtype are known
                new = old.new_zeros(slots, capacity, *old.shape[2:])
                new[:live, :shared] = old[:live, :shared]
                store[layer] = new

    def clear(self) -> None:
        self.__init__(self.num_layers)

    def layer(
        self, index: int, keys: torch.Tensor, values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Both tensors of a layer; keys [.., Hkv, D] and values tell their shape on first use."""
        stored = self._keys[index], self._values[index]
        if stored[0] is not None and stored[1] is not None:
            return stored[0], stored[1]
        # zeros, not empty: masked cells are multiplied by zero, and 0 * NaN is NaN
        new_keys, new_values = (
            like.new_zeros(self.slots, self.capacity, *like.shape[-2:]) for like in (keys, values)
        )
        self._keys[index], self._values[index] = new_keys, new_values
        return new_keys, new_values

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` tokens of one slot to another."""
        for store in (self._keys, self._values):
            for tensor in store:
                if tensor is not None:
                    tensor[target, :length] = tensor[source, :length]

    def read(self, slot: int, start: int, stop: int) -> Block:
        """A copy of tokens [start, stop) of a slot."""
        copies = (
            [tensor[slot, start:stop].clone() for tensor in store if tensor is not None]
            for store in (self._keys, self._values)
        )
        return Block(*copies)

    def write(self, slots: Sequence[int], path: Sequence[Slice]) -> None:
        """Copy the slices, one behind the other, to the beginning of each of the slots."""
        start = 0
        for each in path:
            target = SlotSink(self, slots, start)
            for layer in range(self.num_layers):
                target.put(layer, *each.layer(layer))
            start += each.length


@dataclass(frozen=True)
class SlotSink:
    """Writes into each of the slots, from token `start` on."""

    cache: KVCache
    slots: Sequence[int]
    start: int

    def put(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        own_keys, own_values = self.cache.layer(layer, keys, values)
        span = slice(self.start, self.start + len(keys))
        for slot in self.slots:
            own_keys[slot, span], own_values[slot, span] = keys, values
