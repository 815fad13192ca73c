"""Interfaces between data and the supervised loop: data sets, their builders and reports."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import chz

from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.renderers import TrainOnWhat
from tinker_cookbook.renderers.examples import describe_split
from tinker_cookbook.renderers.row_summary import RowSummary
from tinker_cookbook.training.evaluators import EvaluatorBuilder
from tinker_cookbook.training.fields import COUNT, CheckedConfig, in_range
from tinker_cookbook.utils.misc_utils import counted

if TYPE_CHECKING:
    import tinker

    from tinker_cookbook.renderers import Renderer
    from tinker_cookbook.tokenizer_utils import Tokenizer

MAX_NAMED = 5  # skipped examples that a report lists with their reasons
EXAMPLE_LENGTH = in_range(
    lambda value: 2 <= value < math.inf, "2 or more; a single token has no target"
)


@dataclass
class DataReport:
    """Counts of the rendered, truncated, split and skipped rows of a data set.

    A row holds one `unit`: a conversation, or a pair of completions.

    A lazily rendered data set counts each row once, on first access. Its report has
    `complete=False` until every row was accessed. `lines()` formats the report for the log.
    """

    name: str = "data"
    max_length: int | None = None
    complete: bool = True
    num_rows: int = 0  # rows of a lazily rendered data set
    num_conversations: int = 0  # rows counted so far
    num_examples: int = 0  # training examples; a row may give several
    num_split: int = 0  # conversations that became several examples
    num_split_examples: int = 0  # the examples of those conversations
    num_truncated: int = 0  # rows with an example longer than max_length
    num_lost: int = 0  # trained tokens lost to truncation
    num_skipped: int = 0  # examples without a trained token, and rows that cannot be used
    num_tokens: int = 0  # input tokens of all examples, after truncation
    num_loss_tokens: int = 0  # trained tokens, whatever their weight
    skipped: list[str] = field(default_factory=list)  # "location: reason" of the first MAX_NAMED
    rows: RowSummary = field(default_factory=RowSummary)  # converted and ignored fields of the rows
    notes: list[str] = field(default_factory=list)
    unit: str = "conversation"

    def lines(self) -> list[str]:
        """One line of totals, then one line for each kind of change or omission."""
        if not self.complete and not self.num_conversations:
            first = f"{counted(self.num_rows, self.unit)}, rendered when first used"
            return [f"{self.name}: {line}" for line in (first, *self.rows.lines(), *self.notes)]
        so_far = "" if self.complete else f" of {self.num_rows:,} so far"
        lines = [
            f"{self.name}: {counted(self.num_conversations, self.unit)}{so_far}, "
            f"{counted(self.num_examples, 'example')}, {counted(self.num_tokens, 'token')}, "
            f"of them {self.num_loss_tokens:,} trained"
        ]
        if self.num_truncated:
            lines.append(
                f"{self.name}: {counted(self.num_truncated, self.unit)} longer than "
                f"max_length={self.max_length}, truncated on the right; "
                f"{counted(self.num_lost, 'trained token')} lost"
            )
        if self.num_split:
            note = describe_split(self.num_split, self.num_split_examples)
            lines.append(f"{self.name}: {note}")
        if self.num_skipped:
            num_unlisted = self.num_skipped - len(self.skipped)
            reasons = "; ".join(self.skipped)
            reasons += f"; and {num_unlisted:,} more" if num_unlisted else ""
            # A conversation may lose only one of its examples; any other row is skipped as a whole.
            skipped = counted(
                self.num_skipped, "example" if self.unit == "conversation" else self.unit
            )
            lines.append(f"{self.name}: {skipped} skipped: {reasons}")
        return lines + [f"{self.name}: {note}" for note in (*self.rows.lines(), *self.notes)]


class SupervisedDataset(ABC):
    """Batches of datums by index.

    `get_batch(i)` must depend only on i and the last `set_epoch`, so that a resumed run sees the
    same batches as an uninterrupted one.
    """

    report: DataReport | None = None  # None: the data set keeps no counts

    @abstractmethod
    def get_batch(self, index: int) -> list[tinker.Datum]:
        """Batch `index` of the epoch, 0 <= index < len(self)."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of batches per epoch."""

    def set_epoch(self, seed: int = 0) -> None:  # noqa: B027 (optional: a data set may have one fixed order)
        """Switch to the order of epoch `seed`. The default keeps one order for all epochs."""


@chz.chz
class SupervisedDatasetBuilder(CheckedConfig):
    """Config that builds (training data, test data or None)."""

    # Not an abstract method, so that a command line without `data=Class` ends in one clear line.
    def __call__(self) -> tuple[SupervisedDataset, SupervisedDataset | None]:
        raise ConfigurationError(
            f"data={type(self).__name__} is an abstract base class; choose a data set, e.g."
            " data=JsonlChats data.path=chats.jsonl"
        )

    def default_num_epochs(self) -> int:
        """Passes over this data if a recipe's num_epochs is None."""
        return 1

    def default_evaluator_builders(self) -> list[EvaluatorBuilder]:
        """Evaluators of the skill this data teaches; used if a recipe is given none."""
        return []


@chz.chz
class ChatDatasetBuilderCommonConfig(CheckedConfig):
    """Tokenizer, renderer, lengths and batch size of a chat data set."""

    model_name_for_tokenizer: str = chz.field(doc="model whose tokenizer is used (name or path)")
    renderer_name: str = chz.field(doc="renderer, e.g. qwen3_instruct")
    max_length: int | None = chz.field(
        doc="maximum tokens per example; longer ones are truncated on the right and counted"
        " (None: no limit)",
        metadata=EXAMPLE_LENGTH,
    )
    batch_size: int = chz.field(doc="examples per optimizer step", metadata=COUNT)
    train_on_what: TrainOnWhat | None = chz.field(
        default=None, doc="which messages are trained (None: the data set's default)"
    )


@chz.chz
class ChatDatasetBuilder(SupervisedDatasetBuilder):
    """Base of the builders of chat data sets.

    A recipe with its own keys for model, renderer and lengths sets `common_config` from them with
    `chz.replace`, so that only the data's own keys are needed on the command line.
    """

    common_config: ChatDatasetBuilderCommonConfig | None = chz.field(
        default=None, doc="tokenizer, renderer, lengths (None: from the recipe's keys)"
    )

    @property
    def config(self) -> ChatDatasetBuilderCommonConfig:
        """`common_config`; raises ConfigurationError if it is None."""
        if self.common_config is None:
            raise ConfigurationError(
                f"{type(self).__name__} was called without common_config: pass "
                "common_config=ChatDatasetBuilderCommonConfig(model_name_for_tokenizer=..., "
                "renderer_name=..., max_length=..., batch_size=...)"
            )
        return self.common_config

    @property
    def tokenizer(self) -> Tokenizer:
        from tinker_cookbook.tokenizer_utils import get_tokenizer

        return get_tokenizer(self.config.model_name_for_tokenizer)

    @property
    def renderer(self) -> Renderer:
        from tinker_cookbook.renderers import get_renderer

        return get_renderer(
            self.config.renderer_name,
            self.tokenizer,
            model_name=self.config.model_name_for_tokenizer,
        )
