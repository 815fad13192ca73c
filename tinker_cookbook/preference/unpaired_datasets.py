"""Data sets of single completions labeled good or bad, for KTO.

| builder | source of the completions |
|---|---|
| `KTODatasetBuilder` | rows with `prompt`, `completion` and `label`: a file, or data on the hub |
| `KTODatasetBuilderFromComparisons` | comparisons: chosen completions are good, rejected ones bad |

The label is an input of the loss: `loss_fn_inputs["label"]`, float32 [1], 1 for good and 0 for bad.
A custom loss reads it with `label_of`. Losses that accept no such input, such as cross_entropy, get
the datum from `remove_label`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import chz
import numpy as np
import tinker

from tinker_cookbook.exceptions import DataFormatError, DataValidationError
from tinker_cookbook.preference.comparison_datasets import (
    ComparisonSplit,
    CompletionDatasetBuilder,
    DatasetBuilderFromComparisons,
    excluded,
)
from tinker_cookbook.preference.comparison_rows import (
    Notes,
    Row,
    check_completion,
    check_prompt_and_keys,
    detect_in_first_rows,
    finish_messages,
    read_messages,
    unknown_format_error,
)
from tinker_cookbook.preference.dpo_datasets import (
    count_lost_tokens,
    find_prompt_problem,
    render_completion,
)
from tinker_cookbook.preference.preference_datasets import HubRows
from tinker_cookbook.preference.types import LabeledComparison
from tinker_cookbook.renderers import Message, Renderer
from tinker_cookbook.renderers.chats import is_jsonl
from tinker_cookbook.renderers.row_formats import to_row_dict
from tinker_cookbook.renderers.row_messages import errors_at, quote_found
from tinker_cookbook.renderers.row_summary import RowNotes
from tinker_cookbook.sequences import to_datum
from tinker_cookbook.supervised.data import Datasets
from tinker_cookbook.supervised.datasets import IndexedRows, Rendered, skip_bad_rows
from tinker_cookbook.supervised.row_datasets import make_dataset
from tinker_cookbook.supervised.types import SupervisedDataset
from tinker_cookbook.training.fields import SEED
from tinker_cookbook.utils.data_files import where
from tinker_cookbook.utils.json_types import Plain

LABEL = "label"  # the key of loss_fn_inputs

_KEYS = ("prompt", "completion", "label")
_EXPECTED = "the keys prompt, completion and label (true or false)"


class LabeledCompletion(NamedTuple):
    """A prompt and a completion that is good or bad, and what was dropped in its row."""

    prompt: list[Message]
    completion: list[Message]
    is_good: bool
    notes: RowNotes


def add_label(datum: tinker.Datum, is_good: bool) -> tinker.Datum:
    """The datum with its label as an input of the loss."""
    label = tinker.TensorData.from_numpy(np.asarray([is_good], dtype=np.float32))
    return tinker.Datum(
        model_input=datum.model_input, loss_fn_inputs={**datum.loss_fn_inputs, LABEL: label}
    )


def label_of(datum: tinker.Datum) -> bool:
    """Whether the completion of a datum is good. Raises DataValidationError without a label."""
    if LABEL not in datum.loss_fn_inputs:
        raise DataValidationError(
            f"a datum of unpaired data needs {LABEL!r}, found {sorted(datum.loss_fn_inputs)}"
        )
    return bool(datum.loss_fn_inputs[LABEL].to_numpy()[0])


def remove_label(datum: tinker.Datum) -> tinker.Datum:
    """The datum without its label, for losses that accept no such input."""
    return tinker.Datum(
        model_input=datum.model_input,
        loss_fn_inputs={k: v for k, v in datum.loss_fn_inputs.items() if k != LABEL},
    )


def check_unpaired_keys(row: Plain) -> None:
    """Raise DataFormatError unless the row has the keys of unpaired data; null is absent."""
    cleaned = to_row_dict(row, _EXPECTED)
    if not cleaned.keys() >= set(_KEYS):
        raise unknown_format_error(cleaned, _EXPECTED)


def parse_unpaired(row: Plain, location: str = "row") -> LabeledCompletion:
    """Parse a row with a completion; raises DataFormatError prefixed with `location`."""
    with errors_at(location):
        check_unpaired_keys(row)
        cleaned = to_row_dict(row)
        notes: Notes = Counter()
        prompt = read_messages(cleaned, "prompt", "user", notes)
        completion = read_messages(cleaned, "completion", "assistant", notes)
        check_completion(completion, "completion")
        prompt = check_prompt_and_keys(cleaned, _KEYS, prompt, completion, notes)
        is_good = _parse_label(cleaned["label"])
        prompt = finish_messages(prompt, notes)
        completion = finish_messages(completion, notes)
        return LabeledCompletion(prompt, completion, is_good, +notes)


def _parse_label(value: Plain) -> bool:
    text = value.strip().lower() if isinstance(value, str) else value  # CSV has no booleans
    if text in (True, "true"):
        return True
    if text in (False, "false"):
        return False
    raise DataFormatError(f"'label' must be true or false, {quote_found(value)}")


def render_labeled(
    example: LabeledCompletion, renderer: Renderer, max_length: int | None
) -> Rendered:
    """Render a completion to a datum with its label, truncated on the right to `max_length`."""
    prompt_tokens = renderer.build_generation_prompt(example.prompt).to_ints()
    rendered = render_completion(example.prompt, example.completion, renderer, max_length)
    problem = rendered.problem or find_prompt_problem(rendered, prompt_tokens)
    return Rendered(
        [] if problem else [add_label(to_datum(rendered.truncated), example.is_good)],
        truncated=rendered.is_truncated,
        num_lost=count_lost_tokens(rendered),
        skipped=[problem] if problem else [],
        notes=example.notes,
    )


@chz.chz
class KTODatasetBuilder(HubRows, CompletionDatasetBuilder):
    """Rows with `prompt`, `completion` and `label`; `batch_size` counts completions."""

    shuffle_seed: int = chz.field(
        default=0, doc="seed of the train/test split and of each epoch's shuffle", metadata=SEED
    )

    def __call__(self) -> Datasets:
        train, test = self.open_rows()
        return (
            self._build(train, self.config.batch_size, self.path),
            None if test is None else self._build(test, None, f"{self.path} (test)"),
        )

    def _build(
        self, rows: IndexedRows[Row], batch_size: int | None, name: str
    ) -> SupervisedDataset:
        detect_in_first_rows(rows, name, check_unpaired_keys)
        renderer, max_length = self.renderer, self.config.max_length
        return make_dataset(
            rows,
            skip_bad_rows(lambda row: render_labeled(parse_unpaired(row), renderer, max_length)),
            render_up_front=is_jsonl(self.path),
            batch_size=batch_size,
            shuffle_seed=self.shuffle_seed,
            max_length=max_length,
            name=name,
            unit="completion",
        )


class _Side(NamedTuple):
    """A row of a data set of comparisons, of which one completion is trained on."""

    row: Row
    is_good: bool


class _Sides:
    """The rows of a data set of comparisons, each once for either completion."""

    def __init__(self, rows: IndexedRows[Row]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return 2 * len(self._rows)

    def __getitem__(self, index: int) -> _Side:
        return _Side(self._rows[index // 2], is_good=index % 2 == 0)

    def where(self, index: int) -> str:
        return where(self._rows, index // 2)


@chz.chz
class KTODatasetBuilderFromComparisons(DatasetBuilderFromComparisons):
    """The completions of comparisons, shuffled one by one: chosen ones are good, rejected ones bad.

    `batch_size` counts completions.
    """

    def build_split(self, split: ComparisonSplit, batch_size: int | None) -> SupervisedDataset:
        render_side = partial(
            _render_side, renderer=self.renderer, max_length=self.config.max_length
        )
        render_good = split.render_with(partial(render_side, is_good=True))
        render_bad = split.render_with(partial(render_side, is_good=False))

        def render(side: _Side) -> Rendered:
            if side.is_good:
                return render_good(side.row)
            return replace(render_bad(side.row), notes={})  # `render_good` counts the row's notes

        return make_dataset(
            _Sides(split.rows),
            render,
            render_up_front=split.render_up_front,
            batch_size=batch_size,
            shuffle_seed=self.shuffle_seed,
            max_length=self.config.max_length,
            name=split.name,
            unit="completion",
            source_formats=split.source_formats,
        )


def _render_side(
    labeled: LabeledComparison, renderer: Renderer, max_length: int | None, is_good: bool
) -> Rendered:
    completion = labeled.chosen if is_good else labeled.rejected
    if completion is None:
        return excluded("tie")
    prompt = labeled.comparison.prompt_conversation
    example = LabeledCompletion(prompt, completion, is_good, notes={})
    return render_labeled(example, renderer, max_length)
