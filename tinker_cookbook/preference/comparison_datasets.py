"""Data sets made of comparisons: how rows are opened, rendered and batched.

Rows are in one of the formats of `comparison_rows.py`, or in a format that a class derived from
`ComparisonDatasetBuilder` reads. A row that cannot be used is skipped; the report counts such rows
and names the first ones by file and line. JSONL files are rendered before training starts, so that
the report is complete by then; other data is rendered when a batch needs it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

import chz

from tinker_cookbook.exceptions import ConfigurationError, DataFormatError, RendererError
from tinker_cookbook.preference.comparison_rows import (
    ParsedComparison,
    Row,
    make_comparison_reader,
    parse_comparison,
)
from tinker_cookbook.preference.types import (
    LabeledComparison,
)
from tinker_cookbook.renderers import TrainOnWhat
from tinker_cookbook.supervised.data import Datasets
from tinker_cookbook.supervised.datasets import (
    IndexedRows,
    Rendered,
    RenderRow,
    skip_bad_rows,
)
from tinker_cookbook.supervised.row_datasets import make_dataset
from tinker_cookbook.supervised.types import (
    ChatDatasetBuilder,
    ChatDatasetBuilderCommonConfig,
    SupervisedDataset,
)
from tinker_cookbook.training.evaluators import EvaluatorBuilder
from tinker_cookbook.training.fields import SEED, CheckedConfig

T = TypeVar("T")

# Parses a row, given its location for messages; None: the builder leaves the row out.
ReadComparison = Callable[[Row, str], ParsedComparison | None]
RenderComparison = Callable[[LabeledComparison], Rendered]
ComparisonRows = tuple[IndexedRows[Row], IndexedRows[Row] | None]


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


def read_comparisons(
    split: ComparisonSplit,
    limit: int,
    is_usable: Callable[[LabeledComparison], bool] = lambda labeled: True,
) -> list[LabeledComparison]:
    """The comparisons of the first `limit` rows; unusable rows are left out, as the report of the
    data set says.

    is_usable: e.g. whether a comparison is short enough; a RendererError counts as False.
    """
    found = []
    for index in range(min(limit, len(split.rows))):
        try:
            parsed = split.read(split.rows[index], "row")
            if parsed is not None and is_usable(parsed.labeled):
                found.append(parsed.labeled)
        except (DataFormatError, RendererError):
            continue
    return found


def excluded(what: str) -> Rendered:
    """The result for a row that is left out on purpose: "tie" or "row"."""
    return Rendered([], notes={("excluded", what): 1})


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
