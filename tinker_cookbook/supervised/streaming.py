"""Batches from a stream of rows, for data sets too large to download."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import chz

from tinker_cookbook.exceptions import ConfigurationError, DataValidationError
from tinker_cookbook.renderers import TrainOnWhat
from tinker_cookbook.renderers.chats import make_row_reader
from tinker_cookbook.supervised.datasets import (
    MAX_EMPTY_BATCHES,
    RenderRow,
    Row,
    add_to_report,
    empty_batches_message,
    render_rows,
    render_with_function,
)
from tinker_cookbook.supervised.types import ChatDatasetBuilder, DataReport, SupervisedDataset
from tinker_cookbook.training.fields import SEED
from tinker_cookbook.utils import data_files
from tinker_cookbook.utils.data_files import PlacedRow, Stream, Streamed
from tinker_cookbook.utils.data_identity import path_identity
from tinker_cookbook.utils.json_types import Plain

if TYPE_CHECKING:
    import tinker


class StreamedRows(SupervisedDataset):
    """The first `length` rows of a stream, in batches of `batch_size` rows.

    Rows are shuffled in a buffer of `buffer_size` rows, seeded by (shuffle_seed, epoch). Batch i is
    a function of (epoch, i), as for every data set, so that runs can resume: a later batch skips
    the rows in between without rendering them, an earlier batch restarts the stream.
    """

    def __init__(
        self,
        stream: Stream,
        render: RenderRow[Row],
        *,
        batch_size: int,
        length: int,
        buffer_size: int = 10_000,
        shuffle_seed: int = 0,
        name: str = "data",
        max_length: int | None = None,
        forms: Sequence[str] = (),
    ) -> None:
        if batch_size < 1 or length < batch_size:
            raise ConfigurationError(
                f"batch_size={batch_size} with length={length}: expected 1 <= batch_size <= length"
            )
        self._stream = stream.shuffle(seed=shuffle_seed, buffer_size=buffer_size)
        self._render, self.batch_size, self.length = render, batch_size, length
        self.report: DataReport = DataReport(name, max_length, complete=False, num_rows=length)
        self.report.rows.source_formats += forms
        # A row's position changes with the epoch, so rows cannot be recognized across epochs. The
        # report counts the first epoch that is read, and each position of it once.
        self._counted_epoch: int | None = None
        self._num_counted = 0  # rows of that epoch in the report
        self.set_epoch(0)

    def __len__(self) -> int:
        return self.length // self.batch_size

    def set_epoch(self, seed: int = 0) -> None:
        self._epoch = seed
        self._restart()

    def get_batch(self, index: int) -> list[tinker.Datum]:
        if not 0 <= index < len(self):
            raise IndexError(f"batch {index} of {len(self)}")
        for num_skipped in range(min(len(self), MAX_EMPTY_BATCHES)):  # see _ShuffledDataset
            datums = self._read_batch((index + num_skipped) % len(self))
            if datums:
                return datums
        raise DataValidationError(empty_batches_message(self.report, index))

    def _restart(self) -> None:
        self._stream.set_epoch(self._epoch)
        self._rows: Iterator[PlacedRow] = iter(self._stream)
        self._position = 0  # rows read from the current iterator

    def _read_batch(self, index: int) -> list[tinker.Datum]:
        start = index * self.batch_size
        if start < self._position:
            self._restart()
        rows = list(
            itertools.islice(
                self._rows, start - self._position, start - self._position + self.batch_size
            )
        )
        if len(rows) < self.batch_size:
            raise DataValidationError(
                f"{self.report.name}: the stream ended within batch {index}: "
                f"length={self.length} is more than the number of rows"
            )
        self._position = start + self.batch_size
        return [datum for i, row in enumerate(rows, start) for datum in self._examples(row, i)]

    def _examples(self, placed: PlacedRow, index: int) -> list[tinker.Datum]:
        rendered = self._render(placed.row)
        if self._counted_epoch is None:
            self._counted_epoch = self._epoch
        if self._epoch == self._counted_epoch and index >= self._num_counted:
            self._num_counted = index + 1
            add_to_report(self.report, rendered, placed.where or f"row {index}")
        return rendered.datums


class StreamingSupervisedDatasetFromHFDataset(StreamedRows):
    """Rows of a `datasets.IterableDataset`, rendered by your function.

    See `SupervisedDatasetFromHFDataset`. length: rows per epoch, which a stream does not know.
    """

    def __init__(
        self,
        hf_dataset: Streamed,
        batch_size: int,
        length: int,
        map_fn: Callable[[Row], tinker.Datum] | None = None,
        flatmap_fn: Callable[[Row], list[tinker.Datum]] | None = None,
        buffer_size: int = 10_000,
        shuffle_seed: int = 0,
    ) -> None:
        super().__init__(
            Stream(hf_dataset),
            render_with_function(map_fn, flatmap_fn),
            batch_size=batch_size,
            length=length,
            buffer_size=buffer_size,
            shuffle_seed=shuffle_seed,
        )


@chz.chz
class StreamedHubChats(ChatDatasetBuilder):
    """Conversations streamed from the hub during training; no test set."""

    path: str = chz.field(doc="data set: name on the hub, or local path")
    length: int = chz.field(doc="rows per epoch")
    name: str | None = chz.field(default=None, doc="configuration (subset) of the data set")
    split: str = chz.field(default="train", doc="training split")
    message_field: str = chz.field(default="messages", doc="column with the list of messages")
    buffer_size: int = chz.field(default=10_000, doc="size of the shuffle buffer in rows")
    shuffle_seed: int = chz.field(default=0, doc="seed of each epoch's shuffle", metadata=SEED)

    def identity(self) -> Mapping[str, Plain]:
        """Count, size and digest of a local data set's files; nothing for a name on the hub."""
        return path_identity(self.path)

    def __call__(self) -> tuple[SupervisedDataset, SupervisedDataset | None]:
        config = self.config
        stream = data_files.open_stream(self.path, self.name, self.split)
        read = make_row_reader((placed.row for placed in stream), self.message_field, self.path)
        train = StreamedRows(
            stream,
            render_rows(
                self.renderer,
                config.max_length,
                config.train_on_what or TrainOnWhat.ALL_ASSISTANT_MESSAGES,
                read,
            ),
            batch_size=config.batch_size,
            length=self.length,
            buffer_size=self.buffer_size,
            shuffle_seed=self.shuffle_seed,
            name=self.path,
            max_length=config.max_length,
            forms=read.source_formats,
        )
        return train, None
