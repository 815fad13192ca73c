"""What the supervised loop asks of data."""

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

MAX_NAMED = 5  # skipped examples that a report names
EXAMPLE_LENGTH = in_range(
    lambda value: 2 <= value < math.inf, "2 or more; one token predicts nothing"
)


@dataclass
class DataReport:
    """What became of the conversations of a data set; `lines()` is what a user reads.

    A data set that renders on demand counts each row once, when it is first drawn: `complete` is
    False there, and the figures are those so far.
    """

    name: str = "data"
    max_length: int | None = None
    complete: bool = True
    num_rows: int = 0  # of a data set that renders on demand: conversations it holds
    num_conversations: int = 0
    num_examples: int = 0  # what is trained on; a conversation may give several
    num_split: int = 0  # conversations that gave several examples
    num_split_examples: int = 0  # these
    num_truncated: int = 0  # conversations longer than max_length
    num_lost: int = 0  # trained tokens that were cut off
    num_skipped: int = 0  # examples without a trained token
    num_tokens: int = 0  # input tokens of all examples, after truncation
    num_loss_tokens: int = 0  # trained tokens, each counted 1 whatever its weight
    skipped: list[str] = field(default_factory=list)  # the first MAX_NAMED of them, with the reason
    rows: RowSummary = field(default_factory=RowSummary)  # what of them was converted or not read
    notes: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """One line of totals, then one for each thing that was changed or left out."""
        if not self.complete and not self.num_conversations:
            first = f"{counted(self.num_rows, 'conversation')}, rendered as they are drawn"
            return [f"{self.name}: {line}" for line in (first, *self.rows.lines(), *self.notes)]
        so_far = "" if self.complete else f" of {self.num_rows:,} so far"
        lines = [
            f"{self.name}: {counted(self.num_conversations, 'conversation')}{so_far}, "
            f"{counted(self.num_examples, 'example')}, {counted(self.num_tokens, 'token')}, "
            f"of them {self.num_loss_tokens:,} trained"
        ]
        if self.num_truncated:
            lines.append(
                f"{self.name}: {counted(self.num_truncated, 'conversation')} longer than "
                f"max_length={self.max_length}, cut at the end, "
                f"and with it {counted(self.num_lost, 'trained token')}"
            )
        if self.num_split:
            note = describe_split(self.num_split, self.num_split_examples)
            lines.append(f"{self.name}: {note}")
        if self.num_skipped:
            more = self.num_skipped - len(self.skipped)
            named = "; ".join(self.skipped) + (f"; and {more:,} more" if more else "")
            lines.append(f"{self.name}: {counted(self.num_skipped, 'example')} skipped: {named}")
        return lines + [f"{self.name}: {note}" for note in (*self.rows.lines(), *self.notes)]


class SupervisedDataset(ABC):
    """Batches of datums by index. `get_batch(i)` depends on i and the last `set_epoch` alone, so a
    resumed run sees the batches that an uninterrupted one sees."""

    report: DataReport | None = None  # where the data set keeps account of what it left out

    @abstractmethod
    def get_batch(self, index: int) -> list[tinker.Datum]:
        """Batch `index` of the epoch, 0 <= index < len(self)."""

    @abstractmethod
    def __len__(self) -> int:
        """Batches per epoch."""

    def set_epoch(self, seed: int = 0) -> None:  # noqa: B027 (a data set may have one fixed order)
        """Put the data into the order of epoch `seed`. Here: the order never changes."""


@chz.chz
class SupervisedDatasetBuilder(CheckedConfig):
    """Configuration that builds (training data, test data or None)."""

    def __call__(self) -> tuple[SupervisedDataset, SupervisedDataset | None]:
        raise ConfigurationError(
            f"data={type(self).__name__} is only the base of data sets: name one, e.g."
            " data=JsonlChats data.path=chats.jsonl"
        )

    def default_num_epochs(self) -> int:
        """Passes over this data where a recipe's num_epochs is None."""
        return 1

    def default_evaluator_builders(self) -> list[EvaluatorBuilder]:
        """Evaluators that show what this data teaches, where a recipe is given none."""
        return []


@chz.chz
class ChatDatasetBuilderCommonConfig(CheckedConfig):
    """How conversations become tokens and batches."""

    model_name_for_tokenizer: str = chz.field(doc="model whose tokenizer is used (name or path)")
    renderer_name: str = chz.field(doc="how messages become tokens, e.g. qwen3_instruct")
    max_length: int | None = chz.field(
        doc="tokens per example; longer ones lose their end, and this is counted (None: no limit)",
        metadata=EXAMPLE_LENGTH,
    )
    batch_size: int = chz.field(doc="examples per optimizer step", metadata=COUNT)
    train_on_what: TrainOnWhat | None = chz.field(
        default=None, doc="which messages are trained (None: what the data set is meant for)"
    )


@chz.chz
class ChatDatasetBuilder(SupervisedDatasetBuilder):
    """A data set of conversations.

    A recipe that has its own keys for model, renderer and lengths fills `common_config` from them
    with `chz.replace`, so that on the command line the data's own keys are enough.
    """

    common_config: ChatDatasetBuilderCommonConfig | None = chz.field(
        default=None, doc="tokenizer, renderer, lengths (None: from the recipe's own keys)"
    )

    @property
    def config(self) -> ChatDatasetBuilderCommonConfig:
        """`common_config`, or ConfigurationError where nobody has filled it."""
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
