"""From conversations to batches of datums: rendering, account of it, and the shuffled data sets."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Rows
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

import numpy as np

from tinker_cookbook.exceptions import (
    ConfigurationError,
    DataFormatError,
    DataValidationError,
    RendererError,
)
from tinker_cookbook.renderers import TrainOnWhat
from tinker_cookbook.renderers.chats import Chat, RowReader
from tinker_cookbook.renderers.examples import MULTI_REPLY_MODES, conversation_examples
from tinker_cookbook.renderers.row_summary import RowNotes
from tinker_cookbook.sequences import Reduction, Sequence, from_datum, to_datum
from tinker_cookbook.supervised.types import MAX_NAMED, DataReport, SupervisedDataset
from tinker_cookbook.utils.data_files import where
from tinker_cookbook.utils.json_types import Plain

if TYPE_CHECKING:
    import tinker

    from tinker_cookbook.renderers import Message, Renderer

Row = Mapping[str, Plain]
R = TypeVar("R", bound=Plain)
D = TypeVar("D", covariant=True)

# Batches that may be passed over, one after the other, because nothing in them can be trained on.
MAX_EMPTY_BATCHES = 32


@dataclass(frozen=True)
class Rendered:
    """What one conversation gave."""

    datums: list[tinker.Datum]
    truncated: bool = False
    num_lost: int = 0  # trained tokens that were cut off
    num_split: int = 0  # examples that the conversation was split into, 0 where it was not
    skipped: list[str] = field(default_factory=list)  # a reason per example that was left out
    notes: RowNotes = field(default_factory=dict)  # see `Chat.notes`


class Drawn(Protocol[D]):
    """Rows by number."""

    def __len__(self) -> int: ...

    def __getitem__(self, row: int, /) -> D: ...


RenderRow = Callable[[R], Rendered]  # does not raise for what is wrong with one row alone


def render_conversation(
    conversation: list[Message],
    renderer: Renderer,
    max_length: int | None,
    train_on_what: TrainOnWhat = TrainOnWhat.ALL_ASSISTANT_MESSAGES,
    reduction: Reduction = "mean",
) -> Rendered:
    """The examples of a conversation, cut to `max_length` tokens, without those that train nothing.

    `conversation_examples` says what the examples are. With reduction "mean" each of them counts as
    much as any other, be it one reply or a whole conversation.
    """
    examples = conversation_examples(conversation, renderer, max_length, train_on_what)
    skipped = [str(example.problem) for example in examples if example.problem]
    if not examples:
        skipped.append(f"no message is trained under train_on_what={train_on_what.value}")
    return Rendered(
        [to_datum(each.truncated, reduction=reduction) for each in examples if not each.problem],
        truncated=any(example.is_truncated for example in examples),
        num_lost=sum(
            each.full.num_loss_tokens - each.truncated.num_loss_tokens for each in examples
        ),
        num_split=len(examples) if len(examples) > 1 else 0,
        skipped=skipped,
    )


def render_chat(
    chat: Chat,
    renderer: Renderer,
    max_length: int | None,
    train_on_what: TrainOnWhat,
    reduction: Reduction = "mean",
) -> Rendered:
    """`render_conversation` with the tools declared, and with the notes of the row."""
    messages = chat.messages_for(renderer)
    rendered = render_conversation(messages, renderer, max_length, train_on_what, reduction)
    return replace(rendered, notes=chat.notes)


def conversation_to_datum(
    conversation: list[Message],
    renderer: Renderer,
    max_length: int | None,
    train_on_what: TrainOnWhat = TrainOnWhat.ALL_ASSISTANT_MESSAGES,
    reduction: Reduction = "mean",
) -> tinker.Datum:
    """The conversation as exactly one datum; `conversation_to_datums` suits every renderer.

    Warns where the renderer lacks the extension property and the conversation has several replies:
    then all but the last are trained in the form they have as history (see `render_conversation`).
    Raises DataValidationError where no trained token is left.
    """
    if train_on_what in MULTI_REPLY_MODES and not renderer.has_extension_property:
        replies = sum(message["role"] == "assistant" for message in conversation)
        if replies > 1:
            warnings.warn(
                f"{type(renderer).__name__} shows earlier replies in another form than it samples "
                "them in: use conversation_to_datums, which makes one example per reply",
                stacklevel=2,
            )
    model_input, weights = renderer.build_supervised_example(
        conversation, train_on_what=train_on_what
    )
    return to_datum(Sequence(model_input.to_ints(), weights), max_length, reduction)


def conversation_to_datums(
    conversation: list[Message],
    renderer: Renderer,
    max_length: int | None,
    train_on_what: TrainOnWhat = TrainOnWhat.ALL_ASSISTANT_MESSAGES,
    reduction: Reduction = "mean",
) -> list[tinker.Datum]:
    """All datums of a conversation, see `render_conversation`; empty if it has nothing to train."""
    return render_conversation(conversation, renderer, max_length, train_on_what, reduction).datums


def render_rows(
    renderer: Renderer,
    max_length: int | None,
    train_on_what: TrainOnWhat,
    read: Callable[[R, str], Chat] | None = None,
) -> RenderRow[R]:
    """`render_conversation` for the rows of a table. read: from a row and its place to the
    conversation (None: in the form of the first row).

    Rows are drawn while training runs, so one that cannot be rendered is skipped like one that
    trains nothing: hours of work must not end for it. The report names it.
    """

    read = read or RowReader()

    def render(row: R) -> Rendered:
        try:
            chat = read(row, "row")
            return render_chat(chat, renderer, max_length, train_on_what)
        except (DataFormatError, RendererError) as error:
            return Rendered([], skipped=[str(error).removeprefix("row: ")])

    return render


def mapped_rows(
    map_fn: Callable[[Row], tinker.Datum] | None,
    flatmap_fn: Callable[[Row], list[tinker.Datum]] | None,
) -> RenderRow[Row]:
    """A user's function from row to datum(s); a DataValidationError from it skips the row."""
    if (map_fn is None) == (flatmap_fn is None):
        raise ConfigurationError("give exactly one of map_fn and flatmap_fn")

    def render(row: Row) -> Rendered:
        try:
            if flatmap_fn is not None:
                return Rendered(list(flatmap_fn(row)))
            assert map_fn is not None
            return Rendered([map_fn(row)])
        except DataValidationError as error:
            return Rendered([], skipped=[str(error)])

    return render


def count(report: DataReport, rendered: Rendered, where: str) -> None:
    """Add one conversation to the account; `where` names it."""
    report.num_conversations += 1
    report.num_examples += len(rendered.datums)
    report.num_truncated += rendered.truncated
    report.num_lost += rendered.num_lost
    report.num_split += rendered.num_split > 0
    report.num_split_examples += rendered.num_split
    report.num_skipped += len(rendered.skipped)
    report.rows.add(rendered.notes)
    room = max(0, MAX_NAMED - len(report.skipped))
    report.skipped += [f"{where}: {reason}" for reason in rendered.skipped[:room]]
    for datum in rendered.datums:
        report.num_tokens += datum.model_input.length
        if "weights" in datum.loss_fn_inputs:
            report.num_loss_tokens += int(
                np.count_nonzero(datum.loss_fn_inputs["weights"].to_numpy())
            )


class _Shuffled(SupervisedDataset):
    """`num_rows` rows in batches, in an order that depends on (shuffle_seed, epoch) alone.

    shuffle_seed None: the order of the rows, in every epoch. The rows that do not fill a last batch
    are left out of an epoch (each epoch leaves out others); fewer rows than `batch_size` are one
    batch.
    """

    def __init__(self, num_rows: int, batch_size: int, shuffle_seed: int | None) -> None:
        if batch_size < 1:
            raise ConfigurationError(f"batch_size={batch_size}: expected 1 or more")
        if num_rows < 1:
            raise DataValidationError("the data set is empty")
        self.num_rows, self.batch_size, self.shuffle_seed = num_rows, batch_size, shuffle_seed
        self.set_epoch(0)

    def __len__(self) -> int:
        return max(1, len(self._order) // self.batch_size)

    def set_epoch(self, seed: int = 0) -> None:
        self._order = self._order_of_epoch(seed)

    def get_batch(self, index: int) -> list[tinker.Datum]:
        if not 0 <= index < len(self):
            raise IndexError(f"batch {index} of {len(self)}")
        # A batch in which nothing can be trained on borrows the next batch's rows: no step may be
        # empty, and with a batch size of 1 a single bad row must not end a run.
        for passed_over in range(min(len(self), MAX_EMPTY_BATCHES)):
            start = (index + passed_over) % len(self) * self.batch_size
            rows = self._order[start : start + self.batch_size]
            datums = [datum for row in rows.tolist() for datum in self._examples(row)]
            if datums:
                return datums
        raise DataValidationError(nothing_to_train_on(self.report, index))

    def _order_of_epoch(self, epoch: int) -> np.ndarray:
        return epoch_order(self.num_rows, self.shuffle_seed, epoch)

    @abstractmethod
    def _examples(self, row: int) -> list[tinker.Datum]: ...


EPOCHS_APART = 1_000_003  # between the orders of two seeds: no run has that many epochs


def epoch_seed(seed: int, epoch: int) -> int:
    """What loops give to `set_epoch`, so that no two pairs of seed and epoch share an order."""
    return seed * EPOCHS_APART + epoch


def epoch_order(num_rows: int, shuffle_seed: int | None, epoch: int) -> np.ndarray:
    """A permutation of range(num_rows) that depends on its arguments alone; None: no shuffling."""
    if shuffle_seed is None:
        return np.arange(num_rows)
    return np.random.default_rng([shuffle_seed, epoch]).permutation(num_rows)


def nothing_to_train_on(report: DataReport | None, index: int) -> str:
    """The message for batch `index` and those after it giving no example at all."""
    if report is None:
        return f"batch {index} and those after it have no example that can be trained on"
    return (
        f"{report.name}: batch {index} and those after it have no example that can be trained on: "
        + "; ".join(report.skipped)
    )


class RenderedChats(_Shuffled):
    """Conversations that were all rendered at the start, so that `report` is final before step 0.

    A row is an example. Held as arrays: about 8 bytes per token.
    """

    def __init__(
        self,
        chats: Rows[Chat],
        renderer: Renderer,
        *,
        batch_size: int,
        max_length: int | None,
        train_on_what: TrainOnWhat = TrainOnWhat.ALL_ASSISTANT_MESSAGES,
        reduction: Reduction = "mean",
        shuffle_seed: int | None = 0,
        name: str = "data",
    ) -> None:
        self.report: DataReport = DataReport(name, max_length)
        self._sequences: list[Sequence] = []
        for chat in chats:
            try:
                rendered = render_chat(chat, renderer, max_length, train_on_what, reduction)
            except RendererError as error:
                raise RendererError(f"{chat.location}: {error}") from error
            count(self.report, rendered, chat.location)
            self._sequences += [from_datum(datum) for datum in rendered.datums]
        if not self._sequences:
            raise DataValidationError(
                f"{name}: of {len(chats):,} conversations none has a token to train on: "
                + "; ".join(self.report.skipped)
            )
        super().__init__(len(self._sequences), batch_size, shuffle_seed)
        self.report.notes += _batching_notes(self, "examples")

    def _examples(self, row: int) -> list[tinker.Datum]:
        return [to_datum(self._sequences[row])]


def _batching_notes(dataset: _Shuffled, unit: str) -> list[str]:
    """What to tell where batches and data do not fit."""
    num_rows, batch_size = len(dataset._order), dataset.batch_size
    if num_rows < batch_size:
        return [f"batch_size={batch_size} is more than there is: each batch is all {num_rows}"]
    left_out = num_rows % batch_size
    if not left_out:
        return []
    which = "the last" if dataset.shuffle_seed is None else "other ones each time"
    return [
        f"batches of {batch_size}: each epoch leaves out {left_out} of {num_rows:,} {unit}, {which}"
    ]


class LazyChats(_Shuffled, Generic[R]):
    """Rows that are rendered when they are drawn, for data sets too large to render at the start.

    `report` counts each row when it is first drawn. forms: how rows are known to be read, for the
    report at the start.
    """

    def __init__(
        self,
        rows: Drawn[R],
        render: RenderRow[R],
        *,
        batch_size: int,
        shuffle_seed: int | None = 0,
        name: str = "data",
        max_length: int | None = None,
        forms: Rows[str] = (),
    ) -> None:
        super().__init__(len(rows), batch_size, shuffle_seed)
        self._rows, self._render = rows, render
        self.report: DataReport = DataReport(name, max_length, complete=False, num_rows=len(rows))
        self.report.rows.source_formats += forms
        self.report.notes += _batching_notes(self, "rows")
        self._seen = np.zeros(self.num_rows, dtype=bool)

    def _examples(self, row: int) -> list[tinker.Datum]:
        rendered = self._render(self._rows[row])
        if not self._seen[row]:
            self._seen[row] = True
            self.report.complete = bool(self._seen.all())
            count(self.report, rendered, where(self._rows, row))
        return rendered.datums


class SupervisedDatasetFromHFDataset(LazyChats[Row]):
    """Rows of a `datasets.Dataset` through a function of yours, one datum (map_fn) or several
    (flatmap_fn) for each. A row for which it raises DataValidationError is skipped and counted."""

    def __init__(
        self,
        hf_dataset: Drawn[Row],
        batch_size: int,
        map_fn: Callable[[Row], tinker.Datum] | None = None,
        flatmap_fn: Callable[[Row], list[tinker.Datum]] | None = None,
        shuffle_seed: int | None = 0,
    ) -> None:
        super().__init__(
            hf_dataset,
            mapped_rows(map_fn, flatmap_fn),
            batch_size=batch_size,
            shuffle_seed=shuffle_seed,
        )
