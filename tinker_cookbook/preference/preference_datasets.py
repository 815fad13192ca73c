"""Configurable data sets of comparisons, and how they become data sets to train on.

| builder | source of the comparisons |
|---|---|
| `ComparisonBuilderFromJsonl` | a JSONL file, one comparison per line |
| `HubComparisons` | a data set on the hub, or a local file or directory |

How rows are read and rendered: `comparison_datasets.py`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import chz

from tinker_cookbook.preference.comparison_datasets import (
    ComparisonDatasetBuilder,
    ComparisonRows,
    DatasetBuilderFromComparisons,
    RenderComparison,
    excluded,
)
from tinker_cookbook.preference.preference_model_evaluator import PreferenceAccuracy
from tinker_cookbook.preference.types import (
    ComparisonRenderer,
    ComparisonRendererFromChatRenderer,
    LabeledComparison,
    PreferenceModelFromChatRenderer,
)
from tinker_cookbook.renderers.chats import is_jsonl
from tinker_cookbook.sequences import Sequence as TokenSequence
from tinker_cookbook.sequences import to_datum
from tinker_cookbook.supervised.data import hold_out_rows
from tinker_cookbook.supervised.datasets import (
    Rendered,
)
from tinker_cookbook.training.evaluators import EvaluatorBuilder
from tinker_cookbook.training.fields import NON_NEGATIVE, SEED, CheckedConfig
from tinker_cookbook.utils import data_files
from tinker_cookbook.utils.data_identity import file_identity, path_identity
from tinker_cookbook.utils.files import existing_file
from tinker_cookbook.utils.json_types import Plain

_LOCAL_COPY = "put the path of a local copy in place of its name"
_TEST_SIZE = 1024  # rows held out of a data set without a test split, at most a tenth of it


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

    def default_evaluator_builders(self) -> list[EvaluatorBuilder]:
        return [PreferenceAccuracy(data=self, make_model=PreferenceModelFromChatRenderer)]

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
