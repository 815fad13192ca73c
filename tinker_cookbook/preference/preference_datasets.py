"""Configurable data sets of comparisons, and how they become data sets to train on.

| builder | source of the comparisons |
|---|---|
| `ComparisonBuilderFromJsonl` | a JSONL file, one comparison per line |
| `HubComparisons` | a data set on the hub, or a local file or directory |

Rows are in one of the formats of `comparison_rows.py`, or in a format that a class derived from
`ComparisonDatasetBuilder` reads. A row that cannot be used is skipped; the report counts such rows
and names the first ones by file and line. JSONL files are rendered before training starts, so that
the report is complete by then; other data is rendered when a batch needs it.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import chz

from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.preference.comparison_rows import (
    ParsedComparison,
    Row,
    make_comparison_reader,
    parse_comparison,
)
from tinker_cookbook.preference.types import (
    ComparisonRenderer,
    ComparisonRendererFromChatRenderer,
    LabeledComparison,
)
from tinker_cookbook.renderers import TrainOnWhat
from tinker_cookbook.renderers.chats import is_jsonl
from tinker_cookbook.sequences import Sequence as TokenSequence
from tinker_cookbook.sequences import to_datum
from tinker_cookbook.supervised.data import Datasets, hold_out_rows
from tinker_cookbook.supervised.datasets import (
    IndexedRows,
    LazyRows,
    Rendered,
    RenderedRows,
    RenderRow,
    skip_bad_rows,
)
from tinker_cookbook.supervised.types import (
    ChatDatasetBuilder,
    ChatDatasetBuilderCommonConfig,
    SupervisedDataset,
)
from tinker_cookbook.training.evaluators import EvaluatorBuilder
from tinker_cookbook.training.fields import NON_NEGATIVE, SEED, CheckedConfig
from tinker_cookbook.utils import data_files
from tinker_cookbook.utils.data_identity import file_identity, path_identity
from tinker_cookbook.utils.files import existing_file
from tinker_cookbook.utils.json_types import Plain

T = TypeVar("T")

# Parses a row, given its location for messages; None: the builder leaves the row out.
ReadComparison = Callable[[Row, str], ParsedComparison | None]
RenderComparison = Callable[[LabeledComparison], Rendered]
ComparisonRows = tuple[IndexedRows[Row], IndexedRows[Row] | None]

_LOCAL_COPY = "put the path of a local copy in place of its name"
_TEST_SIZE = 1024  # rows held out of a data set without a test split, at most a tenth of it


@dataclass(frozen=True)
class ComparisonSplit:
    """One split of a data set of comparisons.

    render_up_front: render all rows before training starts. source_formats: the known format of the
    rows, for the report; [] if the builder reads a format of its own.
    """

    rows: IndexedRows[Row]
    read: ReadComparison
    name: str
    render_up_front: bool
    source_formats: list[str]

    def render_with(self, render: RenderComparison) -> RenderRow[Row]:
        """A function that renders a row; a row that cannot be used is skipped, with the reason."""

        def render_row(row: Row) -> Rendered:
            parsed = self.read(row, "row")
            if parsed is None:
                return excluded("row")
            rendered = render(parsed.labeled)
            return replace(rendered, notes=Counter(parsed.notes) + Counter(rendered.notes))

        return skip_bad_rows(render_row)


def excluded(what: str) -> Rendered:
    """The result for a row that is left out on purpose: "tie" or "row"."""
    return Rendered([], notes={("excluded", what): 1})


def make_dataset(
    rows: IndexedRows[T],
    render: RenderRow[T],
    *,
    render_up_front: bool,
    batch_size: int | None,
    shuffle_seed: int,
    max_length: int | None,
    name: str,
    unit: str,
    source_formats: Sequence[str] = (),
) -> SupervisedDataset:
    """A data set whose batches hold all datums of a row or none, and whose size counts rows.

    render_up_front: render all rows now, and leave those without a datum out of the batches.
    batch_size None: a test set, in one unshuffled batch, so that no row is dropped.
    """
    size, seed = (max(1, len(rows)), None) if batch_size is None else (batch_size, shuffle_seed)
    if render_up_front:
        return RenderedRows(
            rows,
            render,
            batch_size=size,
            max_length=max_length,
            shuffle_seed=seed,
            name=name,
            unit=unit,
            keep_together=True,
        )
    return LazyRows(
        rows,
        render,
        batch_size=size,
        shuffle_seed=seed,
        name=name,
        max_length=max_length,
        forms=source_formats,
        unit=unit,
    )


@chz.chz
class ComparisonDatasetBuilder(CheckedConfig):
    """Base of the configs of comparison data sets.

    Derived classes define `get_train_and_test_datasets` and, if the rows are in a format of their
    own, `example_to_labeled_comparison`.
    """

    # Not an abstract method, so that a command line without a class ends in one clear line.
    def get_train_and_test_datasets(self) -> ComparisonRows:
        """The rows to train and to evaluate on (None: no test set), e.g. `datasets.Dataset`."""
        raise ConfigurationError(
            f"{type(self).__name__} is an abstract base class; choose a data set, e.g."
            " ComparisonBuilderFromJsonl"
        )

    def example_to_labeled_comparison(self, example: Row) -> LabeledComparison | None:
        """The comparison of a row; None leaves the row out. Raises DataFormatError to skip it."""
        return parse_comparison(example)

    def data_name(self) -> str:
        """The name of the data in reports."""
        return type(self).__name__

    def renders_up_front(self) -> bool:
        """Whether all rows are rendered before training starts, so that the report is complete."""
        return False

    def default_num_epochs(self) -> int:
        """Passes over this data if a recipe's num_epochs is None."""
        return 1

    def default_evaluator_builders(
        self, config: ChatDatasetBuilderCommonConfig
    ) -> list[EvaluatorBuilder]:
        """Evaluators of what this data teaches; used if a recipe is given none."""
        return []

    def open_splits(self) -> tuple[ComparisonSplit, ComparisonSplit | None]:
        """Open the training and the test split (None: no test set).

        Raises DataFormatError if the rows are in none of the known formats.
        """
        train, test = self.get_train_and_test_datasets()
        return (
            self._open_split(train, self.data_name()),
            None if test is None else self._open_split(test, f"{self.data_name()} (test)"),
        )

    def _open_split(self, rows: IndexedRows[Row], name: str) -> ComparisonSplit:
        method = type(self).example_to_labeled_comparison
        if method is not ComparisonDatasetBuilder.example_to_labeled_comparison:
            return ComparisonSplit(rows, self._read_own_format, name, self.renders_up_front(), [])
        reader = make_comparison_reader(rows, name)
        return ComparisonSplit(rows, reader, name, self.renders_up_front(), reader.source_formats)

    def _read_own_format(self, row: Row, location: str) -> ParsedComparison | None:
        labeled = self.example_to_labeled_comparison(row)
        return None if labeled is None else ParsedComparison(labeled, {})


@chz.chz
class ComparisonBuilderFromJsonl(ComparisonDatasetBuilder):
    """A JSONL file of comparisons, one per line."""

    train_path: str = chz.field(doc="JSONL file, one comparison per line")
    test_path: str | None = chz.field(
        default=None, doc="evaluation JSONL file (None: no evaluation)"
    )

    def identity(self) -> Mapping[str, Plain]:
        """The contents of the files; their paths do not matter."""
        files = {"train_path": self.train_path, "test_path": self.test_path}
        return {key: file_identity(path) for key, path in files.items() if path is not None}

    def data_name(self) -> str:
        return self.train_path

    def renders_up_front(self) -> bool:
        return True

    def get_train_and_test_datasets(self) -> ComparisonRows:
        paths = (("train_path", self.train_path), ("test_path", self.test_path))
        train, test = (None if path is None else _open_file(path, key) for key, path in paths)
        assert train is not None
        return train, test


def _open_file(path: str, key: str) -> data_files.Rows:
    existing_file(path, key)
    return data_files.open_rows(path)


@chz.chz
class HubRows(CheckedConfig):
    """The keys of a hub or local data set, and its split into rows to train and to evaluate on."""

    path: str = chz.field(doc="data set: name on the hub, directory or file")
    name: str | None = chz.field(default=None, doc="configuration (subset) of the data set")
    split: str = chz.field(default="train", doc="training split")
    test_split: str | None = chz.field(
        default=None,
        doc="evaluation split (None, and for a local file, which has no splits: hold out test_size"
        " rows of the training split)",
    )
    test_size: int | None = chz.field(
        default=None,
        doc="rows to evaluate on: held out from the shuffled training split or, with test_split,"
        " the first of the shuffled test_split (0: all of test_split; without test_split, none;"
        " None: the data set's default, at most a tenth of a local file)",
        metadata=NON_NEGATIVE,
    )
    shuffle_seed: int = chz.field(default=0, doc="seed of the train/test split", metadata=SEED)

    def identity(self) -> Mapping[str, Plain]:
        """Count, size and digest of a local data set's files; nothing for a name on the hub."""
        return path_identity(self.path)

    def default_test_size(self, num_rows: int) -> int:
        """The number of rows to evaluate on if test_size is None; 0 as in `test_size`.

        num_rows: of the training split.
        """
        return 0 if self.test_split is not None else min(_TEST_SIZE, num_rows // 10)

    def open_rows(self) -> tuple[data_files.Rows, data_files.Rows | None]:
        """Open the rows to train and to evaluate on (None: no test set)."""
        train, test = self._open(self.split), None
        is_file = Path(self.path).expanduser().is_file()
        if self.test_split is not None and not is_file:
            test = self._open(self.test_split)
        test_size = self.test_size
        if test_size is None:
            test_size = self.default_test_size(len(train))
            test_size = min(test_size, len(train) // 10) if is_file else test_size
        if test is not None and test_size:
            test = test.shuffle(seed=self.shuffle_seed)
        return hold_out_rows(train.shuffle(seed=self.shuffle_seed), test, test_size, self.path)

    def _open(self, split: str) -> data_files.Rows:
        return data_files.open_rows(self.path, self.name, split, _LOCAL_COPY)


@chz.chz
class HubComparisons(HubRows, ComparisonDatasetBuilder):
    """A hub or local data set of comparisons."""

    def data_name(self) -> str:
        return self.path

    def renders_up_front(self) -> bool:
        return is_jsonl(self.path)

    def get_train_and_test_datasets(self) -> ComparisonRows:
        return self.open_rows()


@chz.chz
class CompletionDatasetBuilder(ChatDatasetBuilder):
    """Base of the data sets of prompts with completions: only the last message is trained."""

    shuffle_seed: int = chz.field(default=0, doc="seed of each epoch's shuffle", metadata=SEED)

    @chz.validate
    def _check_train_on_what(self) -> None:
        mode = self.common_config and self.common_config.train_on_what
        if mode not in (None, TrainOnWhat.LAST_ASSISTANT_MESSAGE):
            raise ConfigurationError(
                f"train_on_what={mode}: preference data trains the last message of each completion;"
                f" remove the key, or set it to {TrainOnWhat.LAST_ASSISTANT_MESSAGE}"
            )


@chz.chz
class DatasetBuilderFromComparisons(CompletionDatasetBuilder):
    """Base of the data sets made of comparisons.

    Derived classes define `make_render` and `unit`, or `build_split`.
    """

    comparison_builder: ComparisonDatasetBuilder = chz.field(doc="comparisons to train on")

    def default_num_epochs(self) -> int:
        return self.comparison_builder.default_num_epochs()

    def default_evaluator_builders(self) -> list[EvaluatorBuilder]:
        return self.comparison_builder.default_evaluator_builders(self.config)

    def __call__(self) -> Datasets:
        train, test = self.comparison_builder.open_splits()
        return (
            self.build_split(train, self.config.batch_size),
            None if test is None else self.build_split(test, None),
        )

    def build_split(self, split: ComparisonSplit, batch_size: int | None) -> SupervisedDataset:
        """The data set of one split, see `make_dataset`; batch_size None: a test set."""
        return make_dataset(
            split.rows,
            split.render_with(self.make_render()),
            render_up_front=split.render_up_front,
            batch_size=batch_size,
            shuffle_seed=self.shuffle_seed,
            max_length=self.config.max_length,
            name=split.name,
            unit=self.unit(),
            source_formats=split.source_formats,
        )

    def make_render(self) -> RenderComparison:
        """A function that renders a comparison to the datums of a row."""
        raise ConfigurationError(f"{type(self).__name__} is an abstract base class")

    def unit(self) -> str:
        """What the datums of a row are, for the report."""
        return "comparison"


@chz.chz
class ChatDatasetBuilderFromComparisons(DatasetBuilderFromComparisons):
    """Training data of a generative preference model; `batch_size` counts comparisons.

    Only the label's token is trained. Ties are dropped; so is a comparison that is longer than
    max_length, because its label would be truncated.
    """

    swap: bool = chz.field(
        default=False,
        doc="train each comparison in both orders (False: in one, drawn from its text and"
        " shuffle_seed)",
    )

    def make_render(self) -> RenderComparison:
        return partial(self._render, ComparisonRendererFromChatRenderer(self.renderer))

    def _render(self, renderer: ComparisonRenderer, labeled: LabeledComparison) -> Rendered:
        if labeled.label == "Tie":
            return excluded("tie")
        orders = [labeled, labeled.swap()]
        if not self.swap:
            orders = [orders[self._coin(renderer, labeled)]]
        datums = []
        for each in orders:
            model_input, weights = renderer.to_model_input_weights(each)
            max_length = self.config.max_length
            if max_length is not None and model_input.length > max_length:
                reason = f"{model_input.length} tokens, more than max_length={max_length}"
                return Rendered([], skipped=[reason])
            datums.append(to_datum(TokenSequence(model_input.to_ints(), weights)))
        return Rendered(datums)

    def _coin(self, renderer: ComparisonRenderer, labeled: LabeledComparison) -> int:
        """0 or 1 at random, a function of the comparison and the seed alone."""
        tokens = renderer.build_generation_prompt(labeled.comparison).to_ints()
        text = f"{self.shuffle_seed} {tokens}".encode()
        return hashlib.sha256(text).digest()[0] & 1
