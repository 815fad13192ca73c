"""Mix several chat data sets by weight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import chz
import numpy as np

from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.renderers import TrainOnWhat
from tinker_cookbook.renderers.chats import Chat, RowReader, make_row_reader
from tinker_cookbook.supervised.datasets import LazyRows, RenderRow, epoch_order, render_rows
from tinker_cookbook.supervised.types import ChatDatasetBuilder, SupervisedDataset
from tinker_cookbook.training.fields import SEED
from tinker_cookbook.utils import data_files
from tinker_cookbook.utils.data_files import Row, Rows
from tinker_cookbook.utils.data_identity import path_identity
from tinker_cookbook.utils.json_types import Plain


@chz.chz
class HFDatasetSource:
    """One data set of a mixture."""

    path: str = chz.field(doc="data set: name on the hub, directory or file")
    name: str | None = chz.field(default=None, doc="configuration (subset) of the data set")
    split: str = chz.field(default="train", doc="split")
    weight: float = chz.field(
        default=1.0, doc="share of the mixture in rows, relative to the other weights"
    )
    message_field: str = chz.field(default="messages", doc="column with the list of messages")

    def identity(self) -> Mapping[str, Plain]:
        """Count, size and digest of a local data set's files; nothing for a name on the hub."""
        return path_identity(self.path)


@chz.chz
class InterleavedChatDatasetBuilder(ChatDatasetBuilder):
    """Several data sets, mixed by weight.

    No row is repeated within an epoch: the source that is smallest relative to its weight is used
    in full and determines the size of the epoch. The other sources contribute rows in proportion to
    their weights, a different random subset each epoch.
    """

    sources: list[HFDatasetSource] = chz.field(
        doc="data sets to mix: sources.0.path=... sources.0.weight=... sources.1.path=..."
    )
    test_size: int = chz.field(
        default=0, doc="rows held out for evaluation, mixed by the same weights"
    )
    shuffle_seed: int = chz.field(
        default=0, doc="seed of the train/test split and of each epoch's shuffle", metadata=SEED
    )

    def __call__(self) -> tuple[SupervisedDataset, SupervisedDataset | None]:
        if not self.sources:
            raise ConfigurationError("sources is empty: expected at least one data set")
        tables = [self._load(source) for source in self.sources]
        readers = [
            make_row_reader(rows, source.message_field, source.path)
            for rows, source in zip(tables, self.sources)
        ]
        # Each source is shuffled once and its first rows are held out: the split depends on
        # shuffle_seed alone and is the same in every epoch and after a resume.
        parts = [rows.shuffle(seed=self.shuffle_seed) for rows in tables]
        sizes = [len(part) for part in parts]
        weights = [source.weight for source in self.sources]
        held_out = (
            mixture_counts(sizes, weights, self.test_size) if self.test_size else [0] * len(parts)
        )
        train = MixtureRows(
            [part.select(range(n, len(part))) for part, n in zip(parts, held_out)], readers
        )
        test = MixtureRows([part.select(range(n)) for part, n in zip(parts, held_out)], readers)
        return (
            self._build(train, weights, self.config.batch_size, self.shuffle_seed, "mixture"),
            self._build(test, None, len(test), None, "mixture (test)") if len(test) else None,
        )

    def _load(self, source: HFDatasetSource) -> Rows:
        if not source.weight > 0:
            raise ConfigurationError(f"{source.path}: weight={source.weight}: expected above 0")
        return data_files.open_rows(source.path, source.name, source.split)

    def _build(
        self,
        rows: MixtureRows,
        weights: list[float] | None,
        batch_size: int,
        shuffle_seed: int | None,
        name: str,
    ) -> LazyMixture:
        config = self.config
        train_on_what = config.train_on_what or TrainOnWhat.ALL_ASSISTANT_MESSAGES
        return LazyMixture(
            rows,
            weights,
            render_rows(self.renderer, config.max_length, train_on_what, rows.chat),
            batch_size=batch_size,
            shuffle_seed=shuffle_seed,
            name=name,
            max_length=config.max_length,
            forms=rows.forms,
        )


SourceRow = tuple[int, Row]  # index of the source, and one of its rows


class MixtureRows:
    """The concatenated rows of several data sets, each with the index of its source."""

    def __init__(self, parts: Sequence[Rows], readers: Sequence[RowReader]) -> None:
        self.parts, self._readers = parts, readers
        self.offsets = np.cumsum([0, *(len(part) for part in parts)])

    def __len__(self) -> int:
        return int(self.offsets[-1])

    def __getitem__(self, row: int) -> SourceRow:
        part, index = self._locate(row)
        return part, self.parts[part][index]

    def where(self, row: int) -> str:
        part, index = self._locate(row)
        return self.parts[part].where(index)

    def _locate(self, row: int) -> tuple[int, int]:
        """(source, index within the source) of a row of the concatenation."""
        part = int(np.searchsorted(self.offsets, row, side="right")) - 1
        return part, row - int(self.offsets[part])

    @property
    def forms(self) -> list[str]:
        """The row formats of the sources that need conversion."""
        return [form for reader in self._readers for form in reader.source_formats]

    def chat(self, row: SourceRow, where: str) -> Chat:
        """Parse a row with the reader of its source."""
        part, source_row = row
        return self._readers[part](source_row, where)


class LazyMixture(LazyRows[SourceRow]):
    """`LazyRows` that takes rows of each source by weight in each epoch (None: all rows)."""

    def __init__(
        self,
        rows: MixtureRows,
        weights: list[float] | None,
        render: RenderRow[SourceRow],
        *,
        batch_size: int,
        shuffle_seed: int | None,
        name: str,
        max_length: int | None,
        forms: Sequence[str],
    ) -> None:
        sizes = [len(part) for part in rows.parts]
        self._counts = mixture_counts(sizes, weights) if weights else sizes
        self._offsets = rows.offsets
        super().__init__(
            rows,
            render,
            batch_size=batch_size,
            shuffle_seed=shuffle_seed,
            name=name,
            max_length=max_length,
            forms=forms,
        )

    def _order_of_epoch(self, epoch: int) -> np.ndarray:
        # Take the first rows of each source's own epoch order, then shuffle the union: the
        # subset of a large source changes with the epoch.
        chosen = [
            offset + epoch_order(int(size), self.shuffle_seed, epoch)[:count]
            for offset, size, count in zip(self._offsets, np.diff(self._offsets), self._counts)
        ]
        rows = np.concatenate(chosen)
        return rows[epoch_order(len(rows), self.shuffle_seed, epoch)]


def mixture_counts(
    sizes: Sequence[int], weights: Sequence[float], total: int | None = None
) -> list[int]:
    """Number of rows to take from each part, in proportion to the weights.

    total None: as many as possible without repeating a row. Each part gives at least one row.
    Raises ConfigurationError if a given `total` would use up a part.
    """
    shares = np.asarray(weights, dtype=np.float64) / sum(weights)
    wanted = total if total is not None else float(np.min(np.asarray(sizes) / shares))
    counts = [max(1, round(wanted * share)) for share in shares]
    for size, count in zip(sizes, counts):
        if total is not None and count >= size:
            raise ConfigurationError(
                f"test_size={total} would hold out {count} of the {size} rows of one source; set a"
                " smaller test_size"
            )
    return [min(size, count) for size, count in zip(sizes, counts)]
