"""Combine data sets: interleaved, so that every batch has groups of each, or one after another."""

from __future__ import annotations

from collections.abc import Sequence

import chz
import numpy as np

from tinker_cookbook.exceptions import ConfigurationError, DataValidationError
from tinker_cookbook.rl.types import EnvGroupBuilder, RLDataset, RLDatasetBuilder
from tinker_cookbook.training.fields import COUNT


class InterleavedRLDataset(RLDataset):
    """Interleaves the groups of several data sets in proportion to `weights` (None: their sizes).

    Each data set's groups keep their order and are used at most once, so the mix ends when the
    first data set is exhausted; an incomplete last batch is dropped. groups_per_batch: None for the
    first data set's.
    """

    def __init__(
        self,
        datasets: Sequence[RLDataset],
        weights: Sequence[float] | None = None,
        groups_per_batch: int | None = None,
    ) -> None:
        self._sources = [_IndexedGroups(dataset) for dataset in datasets]
        sizes = [len(source) for source in self._sources]
        if not sizes or min(sizes) == 0:
            raise DataValidationError(
                f"the data sets have {sizes} groups: each needs at least one group"
            )
        weights = sizes if weights is None else weights
        if len(weights) != len(sizes) or not all(0 < weight < np.inf for weight in weights):
            raise ConfigurationError(
                f"weights={list(weights)}: expected one number above 0 for each of the"
                f" {len(sizes)} data sets"
            )
        self._order = _interleave(sizes, weights)
        self._groups_per_batch = groups_per_batch or self._sources[0].batch_size
        if not len(self):
            raise DataValidationError(
                f"the mix has {len(self._order)} groups, fewer than groups_per_batch="
                f"{self._groups_per_batch}: lower it"
            )

    def get_batch(self, index: int) -> Sequence[EnvGroupBuilder]:
        start = index * self._groups_per_batch
        entries = self._order[start : start + self._groups_per_batch]
        return [self._sources[source].get(group) for source, group in entries.tolist()]

    def __len__(self) -> int:
        return len(self._order) // self._groups_per_batch


class ChainedRLDataset(RLDataset):
    """Concatenates the batches of several data sets."""

    def __init__(self, datasets: Sequence[RLDataset]) -> None:
        self._datasets = list(datasets)
        self._ends = np.cumsum([len(dataset) for dataset in self._datasets])

    def get_batch(self, index: int) -> Sequence[EnvGroupBuilder]:
        number = int(np.searchsorted(self._ends, index, side="right"))
        dataset = self._datasets[number]
        return dataset.get_batch(index - int(self._ends[number]) + len(dataset))

    def __len__(self) -> int:
        return int(self._ends[-1])


@chz.chz
class InterleavedRLDatasetBuilder(RLDatasetBuilder):
    """Trains on a mix of data sets and tests on the test sets of all."""

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


class _IndexedGroups:
    """Access to a data set's groups by index. All its batches must have the size of the first,
    except for the last."""

    def __init__(self, dataset: RLDataset) -> None:
        self._dataset = dataset
        # neighbouring groups share a batch, which may be expensive to build
        self._cached_batch: tuple[int, Sequence[EnvGroupBuilder]] = -1, ()
        self.batch_size = len(dataset.get_batch(0)) if len(dataset) else 0
        last = len(dataset.get_batch(len(dataset) - 1)) if len(dataset) else 0
        self._size = max(len(dataset) - 1, 0) * self.batch_size + last

    def __len__(self) -> int:
        return self._size

    def get(self, group: int) -> EnvGroupBuilder:
        index, position = divmod(group, self.batch_size)
        if index != self._cached_batch[0]:
            self._cached_batch = index, self._dataset.get_batch(index)
        return self._cached_batch[1][position]


def _interleave(sizes: Sequence[int], weights: Sequence[float]) -> np.ndarray:
    """Return the order of the mix, int [N, 2]: (data set, index of the group in it).

    Group m of a data set with weight w gets position (m + 1/2) / w, and the mix is sorted by
    position, which spreads each data set evenly. It ends where a data set runs out of groups.
    """
    end = min(size / weight for size, weight in zip(sizes, weights))
    # half a group of tolerance, so that sizes in the ratio of the weights are all used completely
    counts = [min(size, int(end * weight + 0.5 + 1e-9)) for size, weight in zip(sizes, weights)]
    source = np.repeat(np.arange(len(sizes)), counts)
    group = np.concatenate([np.arange(count) for count in counts])
    position = (group + 0.5) / np.asarray(weights, dtype=np.float64)[source]
    order = np.lexsort((source, position))
    return np.stack([source, group], axis=1)[order]
