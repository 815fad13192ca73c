"""The output of `show`: tokens as text, marked by loss weight; totals; warnings."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import IO, Any, NamedTuple

from rich.console import Console
from rich.text import Text

from tinker_cookbook.exceptions import RendererError
from tinker_cookbook.renderers.base import Renderer
from tinker_cookbook.renderers.chats import BadRow, Chat
from tinker_cookbook.renderers.decoding import TokenDecoder
from tinker_cookbook.renderers.examples import Example, conversation_examples, describe_split
from tinker_cookbook.renderers.messages import Message, split_thinking
from tinker_cookbook.renderers.row_summary import RowSummary
from tinker_cookbook.renderers.training_modes import REPLY_MODES, TrainOnWhat, trained_messages
from tinker_cookbook.utils.misc_utils import counted

_MAX_LOCATIONS = 5  # that a warning names


class TokenStatus(Enum):
    """What training does with a token."""

    UNTRAINED = "untrained"
    TRAINED = "trained"
    TRUNCATED = "truncated"


class TextPiece(NamedTuple):
    """The text of one token, or of the tokens that together encode one character."""

    text: str
    status: TokenStatus
    is_special: bool


def text_pieces(example: Example, tokenizer: Any) -> Iterator[TextPiece]:
    """All tokens of an example as text, including those beyond max_length."""
    special = set(tokenizer.get_added_vocab().values())
    decoder = TokenDecoder(lambda tokens: tokenizer.decode(tokens, skip_special_tokens=False))
    trained = example.full.loss_mask.tolist()
    status, is_special = TokenStatus.UNTRAINED, False
    for index, token in enumerate(example.full.tokens.tolist()):
        status = TokenStatus.TRAINED if trained[index] else TokenStatus.UNTRAINED
        status = TokenStatus.TRUNCATED if index >= example.length else status
        is_special = token in special
        if text := decoder.feed(token):
            yield TextPiece(text, status, is_special)
    if rest := decoder.finish():
        yield TextPiece(rest, status, is_special)


def escape_invisible(text: str) -> str:
    """The text with newlines marked, and control and invisible characters escaped."""
    return "".join(map(_escape_character, text))


def _escape_character(character: str) -> str:
    if character == "\n":
        return "⏎\n"
    if character.isprintable() or character == "\u200d":  # the zero-width joiner of emoji
        return character
    return character.encode("unicode_escape").decode("ascii")


def format_plain(pieces: Iterable[TextPiece]) -> str:
    """Plain text, with trained spans in «» and ✂ before the truncated tokens."""
    written, before = [], TokenStatus.UNTRAINED
    for piece in pieces:
        if piece.status is not before:
            written.append("»" if before is TokenStatus.TRAINED else "")
            written.append(
                {TokenStatus.TRAINED: "«", TokenStatus.TRUNCATED: "✂"}.get(piece.status, "")
            )
            before = piece.status
        written.append(escape_invisible(piece.text))
    return "".join(written) + ("»" if before is TokenStatus.TRAINED else "")


# Two styles each, which alternate so that token boundaries are visible.
_STYLES = {
    TokenStatus.UNTRAINED: ("", "dim"),
    TokenStatus.TRAINED: ("black on green", "black on bright_green"),
    TokenStatus.TRUNCATED: ("strike red", "strike dim red"),
}


def format_coloured(pieces: Iterable[TextPiece]) -> Text:
    """Coloured text, each token in the style of its status, special tokens bold."""
    text = Text()
    for number, piece in enumerate(pieces):
        style = _STYLES[piece.status][number % 2]
        text.append(
            escape_invisible(piece.text), f"bold {style}".strip() if piece.is_special else style
        )
    return text


@dataclass
class _Warning:
    """How often one kind of problem occurs, and where."""

    count: int = 0
    locations: list[str] = field(default_factory=list)

    def add(self, count: int, location: str) -> None:
        self.count += count
        if location in self.locations:
            return
        if len(self.locations) < _MAX_LOCATIONS:
            self.locations.append(location)
        elif self.locations[-1] != "...":
            self.locations.append("...")

    def __str__(self) -> str:
        return "; ".join(self.locations)


class Totals:
    """Renders conversations one by one and counts what is trained and what is not."""

    def __init__(
        self,
        renderer: Renderer,
        max_length: int | None,
        train_on_what: TrainOnWhat,
        rejects_file: bool = False,
    ) -> None:
        """rejects_file: training rejects the data for one conversation that cannot be rendered."""
        self._renderer = renderer
        self._rejects_file = rejects_file
        self.max_length, self.mode = max_length, train_on_what
        self.examples: list[Example] = []  # of the latest conversation
        self.rows = RowSummary()
        self.num_conversations = self.num_examples = self.num_tokens = self.num_trained = 0
        self._rejected, self._truncated, self._untrainable = _Warning(), _Warning(), _Warning()
        self._zero_weight, self._dropped = _Warning(), _Warning()
        self._num_lost = self._num_lost_trained = self._num_replies = 0
        self._num_split = self._num_parts = 0  # conversations with several examples; their examples

    @property
    def num_rejected(self) -> int:
        """Number of conversations that cannot be parsed or rendered."""
        return self._rejected.count

    def add(self, chat: Chat | BadRow) -> list[str]:
        """Render and count one conversation. Returns its warnings."""
        self.num_conversations += 1
        self.examples = []
        if isinstance(chat, BadRow):
            self._rejected.add(1, f"{chat.location}: {chat.problem}")
            return [f"cannot be parsed: {chat.problem}"]
        try:
            messages = chat.messages_for(self._renderer)
            self.examples = conversation_examples(
                messages, self._renderer, self.max_length, self.mode
            )
            trained = trained_messages(messages, self.mode)
        except RendererError as error:
            self._rejected.add(1, f"{chat.location}: {error}")
            return [f"cannot be rendered: {error}"]
        self.rows.add(chat.notes)
        notes = [
            note
            for example in self.examples
            if (note := self._count_example(example, chat.location))
        ]
        if len(self.examples) > 1:
            self._num_split += 1
            self._num_parts += len(self.examples)
        if not self.examples:
            self._untrainable.add(1, chat.location)
            notes.append(f"no message is trained under train_on_what={self.mode}")
        return notes + self._find_untrained(messages, trained, chat.location)

    def _count_example(self, example: Example, location: str) -> str | None:
        truncated, full = example.truncated, example.full
        note = example.problem
        if example.is_truncated:
            lost = full.num_loss_tokens - truncated.num_loss_tokens
            self._truncated.add(1, location)
            self._num_lost += len(full) - len(truncated)
            self._num_lost_trained += lost
            note = note or (
                f"truncated from {len(full)} to max_length={self.max_length} tokens: {lost} trained"
                " tokens are lost"
            )
        if example.problem:
            self._untrainable.add(1, f"{location}: {example.problem}")
        else:
            self.num_examples += 1
            self.num_tokens += len(truncated)
            self.num_trained += truncated.num_loss_tokens
        return note

    def _find_untrained(
        self, messages: list[Message], trained: list[bool], location: str
    ) -> list[str]:
        """Warn about replies with weight 0, and reasoning that no example contains."""
        replies = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        self._num_replies += len(replies)
        notes = []
        untrained = [i for i in replies if not trained[i]] if self.mode in REPLY_MODES else []
        if untrained:
            self._zero_weight.add(len(untrained), location)
            notes.append(f"{_name_messages(untrained)} not trained under train_on_what={self.mode}")
        if dropped := self._find_dropped_reasoning(messages):
            self._dropped.add(len(dropped), location)
            notes.append(f"the reasoning of {_name_messages(dropped)} dropped by this chat format")
        return notes

    def _find_dropped_reasoning(self, messages: list[Message]) -> list[int]:
        """Indices of the messages whose reasoning is in no example.

        Markers take the place of the reasoning, and the conversation is rendered once more: whether
        the reasoning itself occurs in the text would prove nothing, as a reply may repeat it.
        """
        checked = self._renderer.validate_messages(messages)
        marked = [_with_markers(message, i) for i, message in enumerate(checked)]
        if marked == checked:
            return []
        decode = self._renderer.tokenizer.decode
        examples = conversation_examples(marked, self._renderer, None, self.mode)
        text = "".join(decode(example.full.tokens.tolist()) for example in examples)
        return [
            i
            for i, message in enumerate(marked)
            if any(marker not in text for marker in _MARKER.findall(str(message["content"])))
        ]

    def lines(self, name: str) -> list[str]:
        """The totals, a note on conversations with several examples, and the summary of the rows:
        what was converted, and which keys were dropped."""
        share = ""
        if self.num_tokens:
            percent = f"{self.num_trained / self.num_tokens:.0%}"
            share = f" ({'<1%' if percent == '0%' and self.num_trained else percent})"
        lines = [
            f"{name}: {counted(self.num_conversations, 'conversation')},"
            f" {counted(self.num_examples, 'example')}, {counted(self.num_tokens, 'token')},"
            f" {self.num_trained:,} of them trained{share}"
        ]
        if self._num_split:
            lines.append(describe_split(self._num_split, self._num_parts))
        return lines + [f"{name}: {line}" for line in self.rows.lines()]

    def warnings(self) -> list[str]:
        """One line for each kind of problem: rejected, truncated, or without loss weight."""
        rejected = f"{counted(self._rejected.count, 'conversation')} cannot be rendered"
        if self._rejects_file:
            rejected += ", and training rejects the whole file"
        warnings = {
            rejected: self._rejected,
            f"{counted(self._truncated.count, 'example')} truncated at max_length="
            f"{self.max_length}: {counted(self._num_lost, 'token')} lost,"
            f" {self._num_lost_trained:,} of them trained": self._truncated,
            f"{counted(self._untrainable.count, 'example')} without trained"
            " tokens": self._untrainable,
            f"{self._zero_weight.count} of {counted(self._num_replies, 'assistant message')} not"
            f" trained under train_on_what={self.mode}": self._zero_weight,
            f"reasoning of {counted(self._dropped.count, 'message')} dropped by this"
            " chat format": self._dropped,
        }
        return [f"{text}: {warning}" for text, warning in warnings.items() if warning.count]


def _name_messages(indices: list[int]) -> str:
    numbers = ", ".join(map(str, indices))
    return f"message {numbers} is" if len(indices) == 1 else f"messages {numbers} are"


_MARKER = re.compile(r"REASONING-OF-\d+-\d+-STANDS-HERE")


def _with_markers(message: Message, index: int) -> Message:
    """The message with a marker in place of each non-empty piece of reasoning."""
    content = message["content"]
    if isinstance(content, str):
        if message["role"] != "assistant" or not split_thinking(content).thinking:
            return message
        before, closed, after = content.partition("</think>")
        head, opened, _ = before.rpartition("<think>")
        marked = f"{head}{opened}\n{_marker(index, 0)}\n{closed}{after}"
        return {**message, "content": marked}
    parts: list[Any] = [
        {**part, "thinking": _marker(index, number)}
        if part["type"] == "thinking" and part["thinking"].strip()
        else part
        for number, part in enumerate(content)
    ]
    return {**message, "content": parts}


def _marker(index: int, number: int) -> str:
    return f"REASONING-OF-{index}-{number}-STANDS-HERE"


class LossMaskPrinter:
    """Prints conversations, totals and warnings, with colours or with «» marks."""

    def __init__(self, renderer: Renderer, stream: IO[str], colours: bool) -> None:
        self._tokenizer = renderer.tokenizer
        self._stream, self._colours = stream, colours
        self._console = Console(
            file=stream, highlight=False, force_terminal=True if colours else None
        )

    def line(self, text: str, style: str = "") -> None:
        if self._colours:
            self._console.print(Text(text, style), soft_wrap=True)
        else:
            print(text, file=self._stream)

    def legend(self) -> None:
        if not self._colours:
            self.line("«trained»  ⏎ newline  ✂ truncated from here on")
            return
        samples = [
            ("trained", TokenStatus.TRAINED),
            ("untrained", TokenStatus.UNTRAINED),
            ("truncated", TokenStatus.TRUNCATED),
        ]
        text = Text("  ").join(Text(label, _STYLES[status][0]) for label, status in samples)
        text.append("  ⏎ newline  ").append("special token", "bold")
        self._console.print(text)

    def chat(self, location: str, examples: list[Example], notes: list[str]) -> None:
        for number, example in enumerate(examples, start=1):
            part = f", example {number} of {len(examples)}" if len(examples) > 1 else ""
            truncated = example.truncated
            size = f"{counted(len(truncated), 'token')}, {truncated.num_loss_tokens} trained"
            self.line(f"\n── {location}{part}: {size}", "bold")
            pieces = text_pieces(example, self._tokenizer)
            if self._colours:
                self._console.print(format_coloured(pieces), soft_wrap=True)
            else:
                print(format_plain(pieces), file=self._stream)
        if not examples:
            self.line(f"\n── {location}", "bold")
        for note in notes:
            self._warn(note)

    def summary(self, name: str, totals: Totals) -> None:
        self.line("")
        for line in totals.lines(name):
            self.line(line, "bold")
        for line in totals.warnings():
            self._warn(line)

    def _warn(self, text: str) -> None:
        self.line(f"! {escape_invisible(text)}", "yellow")
