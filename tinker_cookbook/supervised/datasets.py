"""Render conversations to datums, report what was dropped, and serve shuffled batches."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Rows
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Generic, NamedTuple, Protocol, TypeVar

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
T = TypeVar("T")
D = TypeVar("D", covariant=True)

# Consecutive batches without any trainable example that are skipped before giving up.
MAX_EMPTY_BATCHES = 32


@dataclass(frozen=True)
class Rendered:
    """The datums of one conversation, and what was truncated or skipped."""

    datums: list[tinker.Datum]
    truncated: bool = False
    num_lost: int = 0  # trained tokens lost to truncation
    num_split: int = 0  # examples, if the conversation was split into several; else 0
    skipped: list[str] = field(default_factory=list)  # one reason per skipped example
    notes: RowNotes = field(default_factory=dict)  # see `Chat.notes`


class IndexedRows(Protocol[D]):
    """Rows by index, e.g. a `datasets.Dataset`."""

    def __len__(self) -> int: ...

    def __getitem__(self, row: int, /) -> D: ...


# Reports a bad row in `Rendered.skipped` instead of raising.
RenderRow = Callable[[T], Rendered]


def render_conversation(
    conversation: list[Message],
    renderer: Renderer,
    max_length: int | None,
    train_on_what: TrainOnWhat = TrainOnWhat.ALL_ASSISTANT_MESSAGES,
    reduction: Reduction = "mean",
) -> Rendered:
    """Render a conversation to datums, truncated on the right to `max_length` tokens.

    Examples without a trained token are skipped. `conversation_examples` decides how many examples
    a conversation gives. With reduction "mean" each example has the same total weight, whether it
    is one reply or a whole conversation.
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
    """`render_conversation` with the chat's tools declared; keeps the notes of its row. No datums
    if the chat is excluded."""
    if chat.is_excluded:
        return Rendered([], notes=chat.notes)
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
    """Render a conversation to exactly one datum; prefer `conversation_to_datums`.

    Warns if the renderer lacks the extension property and the conversation has several replies:
    all but the last are then trained as the renderer writes them in the history, which is not how
    the model samples them. Raises DataValidationError if no trained token is left.
    """
    if train_on_what in MULTI_REPLY_MODES and not renderer.has_extension_property:
        replies = sum(message["role"] == "assistant" for message in conversation)
        if replies > 1:
            warnings.warn(
                f"{type(renderer).__name__} renders earlier replies differently from how they are "
                "sampled: use conversation_to_datums, which makes one example per reply",
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
    """All datums of a conversation (see `render_conversation`); empty if nothing is trained."""
    return render_conversation(conversation, renderer, max_length, train_on_what, reduction).datums


def render_rows(
    renderer: Renderer,
    max_length: int | None,
    train_on_what: TrainOnWhat,
    read: Callable[[R, str], Chat] | None = None,
) -> RenderRow[R]:
    """Return a function that renders a row of a table.

    read: parses a row, given its location for messages (None: the first row determines the format).

    A row that cannot be rendered is skipped; see `skip_bad_rows`.
    """

    read = read or RowReader()
    return skip_bad_rows(
        lambda row: render_chat(read(row, "row"), renderer, max_length, train_on_what)
    )


def skip_bad_rows(render: RenderRow[T]) -> RenderRow[T]:
    """Return `render` for data with bad rows: the error of a row is the reason to skip the row.

    Rows are rendered during training, where a bad row must not end a run of many hours. Like a row
    without trained tokens it is skipped, and the report names it.
    """

    def render_or_skip(row: T) -> Rendered:
        try:
            return render(row)
        except (DataFormatError, RendererError) as error:
            return Rendered([], skipped=[str(error).removeprefix("row: ")])

    return render_or_skip


def render_with_function(
    map_fn: Callable[[Row], tinker.Datum] | None,
    flatmap_fn: Callable[[Row], list[tinker.Datum]] | None,
) -> RenderRow[Row]:
    """Wrap a user's function from row to datum(s); its DataValidationError skips the row."""
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


def add_to_report(report: DataReport, rendered: Rendered, location: str) -> None:
    """Count one rendered conversation; `location` names it if it is skipped."""
    report.num_conversations += 1
    report.num_examples += len(rendered.datums)
    report.num_truncated += rendered.truncated
    report.num_lost += rendered.num_lost
    report.num_split += rendered.num_split > 0
    report.num_split_examples += rendered.num_split
    report.num_skipped += len(rendered.skipped)
    report.rows.add(rendered.notes)
    num_free = max(0, MAX_NAMED - len(report.skipped))
    report.skipped += [f"{location}: {reason}" for reason in rendered.skipped[:num_free]]
    for datum in rendered.datums:
        report.num_tokens += datum.model_input.length
        if "weights" in datum.loss_fn_inputs:
            report.num_loss_tokens += int(
                np.count_nonzero(datum.loss_fn_inputs["weights"].to_numpy())
            )


class _ShuffledDataset(SupervisedDataset):
    """Batches over `num_rows` rows, in an order that depends on (shuffle_seed, epoch) alone.

    shuffle_seed None: the original order in every epoch. The last incomplete batch of an epoch is
    dropped (with shuffling, other rows each epoch). Fewer rows than `batch_size` form one batch.
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
        # A batch without any trainable example takes the rows of the next batch instead: a step
        # needs at least one datum, and with batch_size=1 a single bad row must not end a run.
        # Both batches are functions of (epoch, index), so a resumed run sees the same data.
        for num_skipped in range(min(len(self), MAX_EMPTY_BATCHES)):
            start = (index + num_skipped) % len(self) * self.batch_size
            rows = self._order[start : start + self.batch_size]
            datums = [datum for row in rows.tolist() for datum in self._examples(row)]
            if datums:
                return datums
        raise DataValidationError(empty_batches_message(self.report, index))

    def _order_of_epoch(self, epoch: int) -> np.ndarray:
        return epoch_order(self.num_rows, self.shuffle_seed, epoch)

    @abstractmethod
    def _examples(self, row: int) -> list[tinker.Datum]: ...


# With seed + epoch, epoch 1 of seed 0 would have the order of epoch 0 of seed 1. This stride is
# larger than the number of epochs of any run, so the orders of two seeds never overlap.
EPOCH_SEED_STRIDE = 1_000_003


def epoch_seed(seed: int, epoch: int) -> int:
    """The argument of `set_epoch` for an epoch: distinct for every (seed, epoch)."""
    return seed * EPOCH_SEED_STRIDE + epoch


def epoch_order(num_rows: int, shuffle_seed: int | None, epoch: int) -> np.ndarray:
    """A permutation of range(num_rows); a pure function. shuffle_seed None: the identity."""
    if shuffle_seed is None:
        return np.arange(num_rows)
    return np.random.default_rng([shuffle_seed, epoch]).permutation(num_rows)


def empty_batches_message(report: DataReport | None, index: int) -> str:
    """Error message: batch `index` and the batches after it have no trainable example."""
    if report is None:
        return f"batch {index} and the batches after it have no example with trained tokens"
    return (
        f"{report.name}: batch {index} and the batches after it have no example with trained"
        " tokens: " + _reasons(report)
    )


def _reasons(report: DataReport) -> str:
    """Why rows have no datums, as far as the report lists it."""
    return "; ".join([*report.skipped, *report.rows.exclusions()])


class _StoredDatum(NamedTuple):
    """A datum as arrays, about 8 bytes per token. inputs: the loss inputs that a `Sequence` lacks,
    such as the label of an unpaired example."""

    sequence: Sequence
    inputs: dict[str, tinker.TensorData]

    @classmethod
    def of(cls, datum: tinker.Datum) -> _StoredDatum:
        others = {k: v for k, v in datum.loss_fn_inputs.items() if k not in _SEQUENCE_INPUTS}
        return cls(from_datum(datum), others)

    def restore(self) -> tinker.Datum:
        datum = to_datum(self.sequence)
        datum.loss_fn_inputs.update(self.inputs)
        return datum


_SEQUENCE_INPUTS = ("target_tokens", "weights")


class RenderedRows(_ShuffledDataset, Generic[T]):
    """Rows rendered up front, so that `report` is complete before step 0.

    keep_together: a batch holds all datums of a row or none, and `batch_size` counts rows that have
    any, e.g. pairs. Otherwise each datum is shuffled on its own, and `batch_size` counts datums.
    unit: what a row holds, in reports. locate: the location of a row for messages (default: as the
    rows tell it).
    """

    def __init__(
        self,
        rows: IndexedRows[T],
        render: RenderRow[T],
        *,
        batch_size: int,
        max_length: int | None,
        shuffle_seed: int | None = 0,
        name: str = "data",
        unit: str = "conversation",
        keep_together: bool = False,
        locate: Callable[[int], str] | None = None,
    ) -> None:
        self.report: DataReport = DataReport(name, max_length, unit=unit)
        self._groups: list[list[_StoredDatum]] = []  # the datums of each row of the data set
        for index in range(len(rows)):
            rendered = render(rows[index])
            add_to_report(self.report, rendered, locate(index) if locate else where(rows, index))
            stored = [_StoredDatum.of(datum) for datum in rendered.datums]
            if not keep_together:
                self._groups += [[each] for each in stored]
            elif stored:
                self._groups.append(stored)
        if not self._groups:
            raise DataValidationError(
                f"{name}: none of the {len(rows):,} {unit}s has a token to train on: "
                + _reasons(self.report)
            )
        super().__init__(len(self._groups), batch_size, shuffle_seed)
        self.report.notes += _batch_size_notes(self, f"{unit}s" if keep_together else "examples")

    def _examples(self, row: int) -> list[tinker.Datum]:
        return [stored.restore() for stored in self._groups[row]]


class RenderedChats(RenderedRows[Chat]):
    """Conversations rendered up front; a conversation that cannot be rendered is an error."""

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
        def render(chat: Chat) -> Rendered:
            try:
                return render_chat(chat, renderer, max_length, train_on_what, reduction)
            except RendererError as error:
                raise RendererError(f"{chat.location}: {error}") from error

        super().__init__(
            chats,
            render,
            batch_size=batch_size,
            max_length=max_length,
            shuffle_seed=shuffle_seed,
            name=name,
            locate=lambda index: chats[index].location,
        )


def _batch_size_notes(dataset: _ShuffledDataset, unit: str) -> list[str]:
    """Notes for the report if the batch size does not divide the number of rows."""
    num_rows, batch_size = len(dataset._order), dataset.batch_size
    if num_rows < batch_size:
        return [f"batch_size={batch_size} exceeds the data: each batch is all {num_rows} {unit}"]
    num_dropped = num_rows % batch_size
    if not num_dropped:
        return []
    which = "the last ones" if dataset.shuffle_seed is None else "different ones each time"
    return [
        f"batches of {batch_size}: each epoch drops {num_dropped} of {num_rows:,} {unit}, {which}"
    ]


class LazyRows(_ShuffledDataset, Generic[T]):
    """Rows rendered on access, for data sets that are too large to render before training.

    `report` counts each row on first access. forms: row formats that are already known to be
    converted, for the report before training. unit: what a row holds, in reports.
    """

    def __init__(
        self,
        rows: IndexedRows[T],
        render: RenderRow[T],
        *,
        batch_size: int,
        shuffle_seed: int | None = 0,
        name: str = "data",
        max_length: int | None = None,
        forms: Rows[str] = (),
        unit: str = "conversation",
    ) -> None:
        super().__init__(len(rows), batch_size, shuffle_seed)
        self._rows, self._render = rows, render
        self.report: DataReport = DataReport(
            name, max_length, complete=False, num_rows=len(rows), unit=unit
        )
        self.report.rows.source_formats += forms
        self.report.notes += _batch_size_notes(self, "rows")
        self._seen = np.zeros(self.num_rows, dtype=bool)  # rows that `report` already counts

    def _examples(self, row: int) -> list[tinker.Datum]:
        rendered = self._render(self._rows[row])
        if not self._seen[row]:
            self._seen[row] = True
            self.report.complete = bool(self._seen.all())
            add_to_report(self.report, rendered, where(self._rows, row))
        return rendered.datums


class SupervisedDatasetFromHFDataset(LazyRows[Row]):
    """Rows of a `datasets.Dataset`, rendered by your function.

    map_fn returns one datum per row, flatmap_fn a list. If it raises DataValidationError, the row
    is skipped and counted.
    """

    def __init__(
        self,
        hf_dataset: IndexedRows[Row],
        batch_size: int,
        map_fn: Callable[[Row], tinker.Datum] | None = None,
        flatmap_fn: Callable[[Row], list[tinker.Datum]] | None = None,
        shuffle_seed: int | None = 0,
    ) -> None:
        super().__init__(
            hf_dataset,
            render_with_function(map_fn, flatmap_fn),
            batch_size=batch_size,
            shuffle_seed=shuffle_seed,
        )
