"""Several data sets as one: every batch holds groups of each, in fixed proportions."""

from __future__ import annotations

from collections.abc import Sequence

import chz
import numpy as np

from tinker_cookbook.exceptions import ConfigurationError, DataValidationError
from tinker_cookbook.rl.types import EnvGroupBuilder, RLDataset, RLDatasetBuilder
from tinker_cookbook.training.fields import COUNT


class InterleavedRLDataset(RLDataset):
    """Groups of several data sets in turns, in proportion to `weights` (None: to their sizes).

    Of each data set the groups come in their own order and at most once, so the mix ends where the
    first one is used up; an incomplete last batch is left out. groups_per_batch: of the mix; None
    for that of the first data set.
    """

    def __init__(
        self,
        datasets: Sequence[RLDataset],
        weights: Sequence[float] | None = None,
        groups_per_batch: int | None = None,
    ) -> None:
        self._sources = [_Groups(dataset) for dataset in datasets]
        sizes = [len(source) for source in self._sources]
        if not sizes or min(sizes) == 0:
            raise DataValidationError(f"data sets of {sizes} groups: each needs at least one")
        weights = sizes if weights is None else weights
        if len(weights) != len(sizes) or not all(0 < weight < np.inf for weight in weights):
            raise ConfigurationError(
                f"weights={list(weights)}: expected one above 0 for each of {len(sizes)} data sets"
            )
        self._slots = _slots(sizes, weights)
        self._groups_per_batch = groups_per_batch or self._sources[0].batch_size
        if not len(self):
            raise DataValidationError(
                f"{len(self._slots)} groups are no batch of groups_per_batch="
                f"{self._groups_per_batch}: lower it"
            )

    def get_batch(self, index: int) -> Sequence[EnvGroupBuilder]:
        start = index * self._groups_per_batch
        slots = self._slots[start : start + self._groups_per_batch]
        return [self._sources[source].get(item) for source, item in slots.tolist()]

    def __len__(self) -> int:
        return len(self._slots) // self._groups_per_batch


class ChainedRLDataset(RLDataset):
    """The batches of several data sets, one data set after another."""

    def __init__(self, datasets: Sequence[RLDataset]) -> None:
        self._datasets = list(datasets)
        self._ends = np.cumsum([len(dataset) for dataset in self._datasets])

    def get_batch(self, index: int) -> Sequence[EnvGroupBuilder]:
        which = int(np.searchsorted(self._ends, index, side="right"))
        dataset = self._datasets[which]
        return dataset.get_batch(index - int(self._ends[which]) + len(dataset))

    def __len__(self) -> int:
        return int(self._ends[-1])


@chz.chz
class InterleavedRLDatasetBuilder(RLDatasetBuilder):
    """Trains on a mix of data sets and tests on all of their test data."""

    builders: list[RLDatasetBuilder] = chz.field(
        doc="the data sets: builders.0=A builders.0.key=value builders.1=B"
    )
    weights: list[float] | None = chz.field(
        default=None, doc="parts of the mix, e.g. 3,1 (None: in proportion to the groups of each)"
    )
    groups_per_batch: int | None = chz.field(
        default=None, doc="groups of a batch (None: as the first data set)", metadata=COUNT
    )

    async def __call__(self) -> tuple[RLDataset, RLDataset | None]:
        built = [await builder() for builder in self.builders]
        tests = [test for _, test in built if test is not None]
        mix = InterleavedRLDataset(
            [train for train, _ in built], self.weights, self.groups_per_batch
        )
        return mix, ChainedRLDataset(tests) if tests else None


class _Groups:
    """A data set's groups by number. Its batches are as large as the first, but for the last."""

    def __init__(self, dataset: RLDataset) -> None:
        self._dataset = dataset
        self._held: tuple[int, Sequence[EnvGroupBuilder]] = -1, ()  # neighbours share a batch
        self.batch_size = len(dataset.get_batch(0)) if len(dataset) else 0
        last = len(dataset.get_batch(len(dataset) - 1)) if len(dataset) else 0
        self._size = max(len(dataset) - 1, 0) * self.batch_size + last

    def __len__(self) -> int:
        return self._size

    def get(self, item: int) -> EnvGroupBuilder:
        index, position = divmod(item, self.batch_size)
        if index != self._held[0]:
            self._held = index, self._dataset.get_batch(index)
        return self._held[1][position]


def _slots(sizes: Sequence[int], weights: Sequence[float]) -> np.ndarray:
    """[slots, 2]: of each slot of the mix the data set and the number of its group.

    Group m of a data set with weight w stands at (m + 1/2) / w, so that each data set is spread
    evenly. The line ends where a data set would need a group that it does not have.
    """
    end = min(size / weight for size, weight in zip(sizes, weights))
    # half a group of tolerance: sizes in the ratio of the weights end together
    counts = [min(size, int(end * weight + 0.5 + 1e-9)) for size, weight in zip(sizes, weights)]
    source = np.repeat(np.arange(len(sizes)), counts)
    item = np.concatenate([np.arange(count) for count in counts])
    position = (item + 0.5) / np.asarray(weights, dtype=np.float64)[source]
    order = np.lexsort((source, position))
    return np.stack([source, item], axis=1)[order]
