"""Batches of groups, one group per item of a list of problems or prompts."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np

from tinker_cookbook.rl.types import EnvGroupBuilder, RLDataset


class ShuffledRLDataset(RLDataset):
    """Batches of groups; `make_group(i)` builds the group of item i.

    seed: shuffles each epoch differently. Batches cross epoch boundaries, so that every batch is
    full and no item is dropped before the last epoch ends. None: one epoch in the given order; the
    last batch may be smaller.
    """

    def __init__(
        self,
        num_items: int,
        make_group: Callable[[int], EnvGroupBuilder],
        *,
        groups_per_batch: int,
        seed: int | None = None,
        num_epochs: int = 1,
    ) -> None:
        self._num_items, self._make_group = num_items, make_group
        self._seed, self._size = seed, groups_per_batch
        self._total = num_items * (1 if seed is None else num_epochs)

    def __len__(self) -> int:
        if self._seed is None:
            return -(-self._total // self._size)
        return max(1, self._total // self._size)

    def get_batch(self, index: int) -> Sequence[EnvGroupBuilder]:
        if not 0 <= index < len(self):
            raise IndexError(f"batch {index} of {len(self)}")
        positions = range(index * self._size, min((index + 1) * self._size, self._total))
        return [self._make_group(self._item_at(position)) for position in positions]

    def _item_at(self, position: int) -> int:
        """The item at a position of all epochs in sequence."""
        epoch, place = divmod(position, self._num_items)
        if self._seed is None:
            return place
        return _permutation(self._seed, epoch, self._num_items)[place]


@functools.lru_cache(maxsize=8)
def _permutation(seed: int, epoch: int, length: int) -> list[int]:
    return np.random.default_rng((seed, epoch)).permutation(length).tolist()
