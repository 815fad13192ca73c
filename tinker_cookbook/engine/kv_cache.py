"""Storage for the keys and values of sampled sequences.

Each sequence being decoded has a slot of its own; tokens that several sequences share lie in blocks
outside the slots.

The token axis comes before the head axis in every tensor, [.., tokens, Hkv, D]: one indexed copy
writes the new token of every sequence, and a span of tokens is contiguous memory. Keys and values
may have different head sizes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch

from tinker_cookbook.utils.cpu_memory import return_freed_memory

MUCH = 2**28  # bytes of freed keys and values that are returned to the system at once


class Sink(Protocol):
    """Receives keys [tokens, Hkv, D] and values [tokens, Hkv, Dv], layer by layer."""

    def put(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> None: ...


@dataclass(eq=False)  # compared by identity, as memory is; == of tensors has no single answer
class Block:
    """Keys and values of a span of tokens, one tensor per layer; empty until they are computed."""

    keys: list[torch.Tensor] = field(default_factory=list)
    values: list[torch.Tensor] = field(default_factory=list)

    def put(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        assert layer == len(self.keys), "layers must arrive in order"
        self.keys.append(keys)
        self.values.append(values)

    @property
    def ready(self) -> bool:
        """Whether the keys and values have been computed."""
        return bool(self.keys)


class Slice(NamedTuple):
    """Tokens [start, stop) of a block; `position` is that of the first one in its sequence."""

    block: Block
    start: int
    stop: int
    position: int

    @property
    def length(self) -> int:
        return self.stop - self.start

    def layer(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of one layer, as views into the block."""
        block = self.block
        return block.keys[index][self.start : self.stop], block.values[index][
            self.start : self.stop
        ]


class KVCache:
    """Slots of `capacity` tokens, one per sequence: keys [slots, capacity, Hkv, D] in each layer.

    The n live sequences always occupy slots 0..n-1, so decoding reads a slice without gathering.
    """

    def __init__(self, num_layers: int) -> None:
        self.num_layers = num_layers
        self._keys: list[torch.Tensor | None] = [None] * num_layers
        self._values: list[torch.Tensor | None] = [None] * num_layers
        self.slots = 0
        self.capacity = 0  # tokens per slot

    @property
    def tokens(self) -> int:
        """Number of tokens that the slots have memory for, used or not."""
        return self.slots * self.capacity

    def reserve(self, slots: int, capacity: int, live: int) -> None:
        """Resize to `slots` x `capacity` tokens, keeping the content of the first `live` slots."""
        if (slots, capacity) == (self.slots, self.capacity):
            return
        common, freed = min(capacity, self.capacity), self._bytes_on_cpu
        self.slots, self.capacity = slots, capacity
        for store in (self._keys, self._values):
            # One tensor at a time, so only a single layer's keys or values exist twice.
            for layer, old in enumerate(store):
                if old is None:
                    continue  # allocated on first write, when head count, size and dtype are known
                new = old.new_zeros(slots, capacity, *old.shape[2:])
                new[:live, :common] = old[:live, :common]
                store[layer] = new
                del old, new  # or the last one would be freed too late
        _return_if_much(freed)

    def clear(self) -> None:
        """Free all slots."""
        freed = self._bytes_on_cpu
        self.__init__(self.num_layers)
        _return_if_much(freed)

    @property
    def _bytes_on_cpu(self) -> int:
        tensors = [*self._keys, *self._values]
        return sum(t.nbytes for t in tensors if t is not None and t.device.type == "cpu")

    def layer_tensors(
        self, index: int, keys: torch.Tensor, values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of all slots in one layer.

        `keys` [.., Hkv, D] and `values` [.., Hkv, Dv] give shape and dtype on first use.
        """
        stored = self._keys[index], self._values[index]
        if stored[0] is not None and stored[1] is not None:
            return stored[0], stored[1]
        # Zeros rather than uninitialized memory: masked values are multiplied by a weight of zero,
        # and 0 * NaN is NaN.
        new_keys, new_values = (
            like.new_zeros(self.slots, self.capacity, *like.shape[-2:]) for like in (keys, values)
        )
        self._keys[index], self._values[index] = new_keys, new_values
        return new_keys, new_values

    def copy_slot(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` tokens of one slot to another."""
        for store in (self._keys, self._values):
            for tensor in store:
                if tensor is not None:
                    tensor[target, :length] = tensor[source, :length]

    def read_slot(self, slot: int, start: int, stop: int) -> Block:
        """Copy tokens [start, stop) of a slot into a new block."""
        # Cloned, because the slot is about to be reused by another sequence.
        copies = (
            [tensor[slot, start:stop].clone() for tensor in store if tensor is not None]
            for store in (self._keys, self._values)
        )
        return Block(*copies)

    def write_prefix(self, slots: Sequence[int], prefix: Sequence[Slice]) -> None:
        """Copy consecutive slices to the start of each of the slots."""
        start = 0
        for piece in prefix:
            sink = SlotSink(self, slots, start)
            for layer in range(self.num_layers):
                sink.put(layer, *piece.layer(layer))
            start += piece.length


def _return_if_much(freed: int) -> None:
    """Return freed memory to the system. malloc would keep it in holes that are too small for the
    larger tensors which follow, as much again as the cache itself."""
    if freed >= MUCH:
        return_freed_memory()


@dataclass(frozen=True)
class SlotSink:
    """Writes the same keys and values into each of the slots, starting at token `start`."""

    cache: KVCache
    slots: Sequence[int]
    start: int

    def put(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        slot_keys, slot_values = self.cache.layer_tensors(layer, keys, values)
        span = slice(self.start, self.start + len(keys))
        for slot in self.slots:
            slot_keys[slot, span], slot_values[slot, span] = keys, values
