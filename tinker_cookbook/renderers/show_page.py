"""What `show` prints: tokens as text, marked by weight; totals; and what training leaves out."""

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
from tinker_cookbook.renderers.examples import Example, conversation_examples, split_note
from tinker_cookbook.renderers.messages import Message, split_thinking
from tinker_cookbook.renderers.row_account import RowAccount
from tinker_cookbook.renderers.training_modes import REPLY_MODES, TrainOnWhat, trained_messages
from tinker_cookbook.utils.misc_utils import counted

_MAX_NAMED = 5  # places that a warning names


class Fate(Enum):
    """What becomes of a token in training."""

    READ = "read"
    TRAINED = "trained"
    CUT = "cut"


class Piece(NamedTuple):
    """The text of one token, or of the several that make one character."""

    text: str
    fate: Fate
    is_special: bool


def pieces(example: Example, tokenizer: Any) -> Iterator[Piece]:
    """All tokens of an example as text, those that max_length cuts off included."""
    special = set(tokenizer.get_added_vocab().values())
    decoder = TokenDecoder(lambda tokens: tokenizer.decode(tokens, skip_special_tokens=False))
    trained = example.whole.loss_mask.tolist()
    fate, is_special = Fate.READ, False
    for index, token in enumerate(example.whole.tokens.tolist()):
        fate = Fate.TRAINED if trained[index] else Fate.READ
        fate = Fate.CUT if index >= example.length else fate
        is_special = token in special
        if text := decoder.feed(token):
            yield Piece(text, fate, is_special)
    if rest := decoder.finish():
        yield Piece(rest, fate, is_special)


def visible(text: str) -> str:
    """Newlines marked; what a terminal would obey or not show, as an escape."""
    return "".join(map(_visible, text))


def _visible(character: str) -> str:
    if character == "\n":
        return "⏎\n"
    if character.isprintable() or character == "\u200d":  # joins emoji
        return character
    return character.encode("unicode_escape").decode("ascii")


def plain_text(shown: Iterable[Piece]) -> str:
    """Trained runs in «», and ✂ where what follows is cut off."""
    written, before = [], Fate.READ
    for piece in shown:
        if piece.fate is not before:
            written.append("»" if before is Fate.TRAINED else "")
            written.append({Fate.TRAINED: "«", Fate.CUT: "✂"}.get(piece.fate, ""))
            before = piece.fate
        written.append(visible(piece.text))
    return "".join(written) + ("»" if before is Fate.TRAINED else "")


# by fate, two that take turns, so that one sees where a token ends
_STYLES = {
    Fate.READ: ("", "dim"),
    Fate.TRAINED: ("black on green", "black on bright_green"),
    Fate.CUT: ("strike red", "strike dim red"),
}


def coloured_text(shown: Iterable[Piece]) -> Text:
    """Each token in the style of its fate; special tokens bold."""
    text = Text()
    for number, piece in enumerate(shown):
        style = _STYLES[piece.fate][number % 2]
        text.append(visible(piece.text), f"bold {style}".strip() if piece.is_special else style)
    return text


@dataclass
class _Finding:
    """One kind of thing that training leaves out, and where."""

    count: int = 0
    places: list[str] = field(default_factory=list)

    def add(self, count: int, place: str) -> None:
        self.count += count
        if place in self.places:
            return
        if len(self.places) < _MAX_NAMED:
            self.places.append(place)
        elif self.places[-1] != "...":
            self.places.append("...")

    def __str__(self) -> str:
        return "; ".join(self.places)


class Totals:
    """Renders conversations one by one and keeps account of what is trained of them."""

    def __init__(
        self,
        renderer: Renderer,
        max_length: int | None,
        train_on_what: TrainOnWhat,
        refused_as_a_whole: bool = False,
    ) -> None:
        """refused_as_a_whole: training refuses the data for one conversation it cannot render."""
        self._renderer = renderer
        self._refused_as_a_whole = refused_as_a_whole
        self.max_length, self.mode = max_length, train_on_what
        self.examples: list[Example] = []  # of the conversation that was added last
        self.rows = RowAccount()
        self.num_conversations = self.num_examples = self.num_tokens = self.num_trained = 0
        self._refused, self._cut, self._useless = _Finding(), _Finding(), _Finding()
        self._masked, self._dropped = _Finding(), _Finding()
        self._lost = self._lost_trained = self._num_replies = 0
        self._num_split = self._num_parts = 0  # conversations of several examples, and these

    @property
    def num_refused(self) -> int:
        """Conversations that cannot be read or rendered."""
        return self._refused.count

    def add(self, chat: Chat | BadRow) -> list[str]:
        """Count one conversation; returns what is to be said of it."""
        self.num_conversations += 1
        self.examples = []
        if isinstance(chat, BadRow):
            self._refused.add(1, f"{chat.where}: {chat.problem}")
            return [f"cannot be read: {chat.problem}"]
        try:
            messages = chat.messages_for(self._renderer)
            self.examples = conversation_examples(
                messages, self._renderer, self.max_length, self.mode
            )
            trained = trained_messages(messages, self.mode)
        except RendererError as error:
            self._refused.add(1, f"{chat.where}: {error}")
            return [f"cannot be rendered: {error}"]
        self.rows.add(chat.notes)
        notes = [note for example in self.examples if (note := self._count(example, chat.where))]
        if len(self.examples) > 1:
            self._num_split += 1
            self._num_parts += len(self.examples)
        if not self.examples:
            self._useless.add(1, chat.where)
            notes.append(f"no message is trained under train_on_what={self.mode}")
        return notes + self._unseen(messages, trained, chat.where)

    def _count(self, example: Example, where: str) -> str | None:
        kept, whole = example.kept, example.whole
        note = example.problem
        if example.is_cut:
            lost = whole.num_loss_tokens - kept.num_loss_tokens
            self._cut.add(1, where)
            self._lost += len(whole) - len(kept)
            self._lost_trained += lost
            note = note or (
                f"cut to max_length={self.max_length} of {len(whole)} tokens: {lost} trained ones"
                " are lost"
            )
        if example.problem:
            self._useless.add(1, f"{where}: {example.problem}")
        else:
            self.num_examples += 1
            self.num_tokens += len(kept)
            self.num_trained += kept.num_loss_tokens
        return note

    def _unseen(self, messages: list[Message], trained: list[bool], where: str) -> list[str]:
        """Replies without weight, and reasoning that no example shows."""
        replies = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        self._num_replies += len(replies)
        notes = []
        masked = [i for i in replies if not trained[i]] if self.mode in REPLY_MODES else []
        if masked:
            self._masked.add(len(masked), where)
            notes.append(f"{_messages(masked)} not trained under train_on_what={self.mode}")
        if dropped := self._dropped_reasoning(messages):
            self._dropped.add(len(dropped), where)
            notes.append(f"the reasoning of {_messages(dropped)} not rendered by this format")
        return notes

    def _dropped_reasoning(self, messages: list[Message]) -> list[int]:
        """Messages with reasoning that no example shows: a mark in its place is found in none."""
        checked = self._renderer.checked(messages)
        marked = [_marked(message, i) for i, message in enumerate(checked)]
        if marked == checked:
            return []
        decode = self._renderer.tokenizer.decode
        examples = conversation_examples(marked, self._renderer, None, self.mode)
        text = "".join(decode(example.whole.tokens.tolist()) for example in examples)
        return [
            i
            for i, message in enumerate(marked)
            if any(mark not in text for mark in _MARK.findall(str(message["content"])))
        ]

    def lines(self, name: str) -> list[str]:
        """The account: one line of totals, one on conversations of several examples, and what of
        the rows was converted or is not read."""
        share = ""
        if self.num_tokens:
            percent = f"{self.num_trained / self.num_tokens:.0%}"
            share = f" ({'<1%' if percent == '0%' and self.num_trained else percent})"
        lines = [
            f"{name}: {counted(self.num_conversations, 'conversation')},"
            f" {counted(self.num_examples, 'example')}, {counted(self.num_tokens, 'token')},"
            f" of them {self.num_trained:,} trained{share}"
        ]
        if self._num_split:
            lines.append(split_note(self._num_split, self._num_parts))
        return lines + [f"{name}: {line}" for line in self.rows.lines()]

    def warnings(self) -> list[str]:
        """One line for each kind of thing that training refuses, cuts or leaves without weight."""
        refused = f"{counted(self._refused.count, 'conversation')} cannot be rendered"
        if self._refused_as_a_whole:
            refused += ", and training refuses such a file"
        found = {
            refused: self._refused,
            f"{counted(self._cut.count, 'example')} cut at max_length={self.max_length}:"
            f" {counted(self._lost, 'token')} lost, {self._lost_trained:,} of them trained"
            " ones": self._cut,
            f"{counted(self._useless.count, 'example')} with nothing to train": self._useless,
            f"{self._masked.count} of {counted(self._num_replies, 'assistant message')} not"
            f" trained under train_on_what={self.mode}": self._masked,
            f"reasoning of {counted(self._dropped.count, 'message')} not rendered by this"
            " format": self._dropped,
        }
        return [f"{what}: {finding}" for what, finding in found.items() if finding.count]


def _messages(indices: list[int]) -> str:
    shown = ", ".join(map(str, indices))
    return f"message {shown} is" if len(indices) == 1 else f"messages {shown} are"


_MARK = re.compile(r"REASONING-OF-\d+-\d+-STANDS-HERE")


def _marked(message: Message, index: int) -> Message:
    """The message with a mark in the place of each piece of reasoning that is not empty."""
    content = message["content"]
    if isinstance(content, str):
        if message["role"] != "assistant" or not split_thinking(content).thinking:
            return message
        before, closed, after = content.partition("</think>")
        head, opened, _ = before.rpartition("<think>")
        marked = f"{head}{opened}\n{_mark(index, 0)}\n{closed}{after}"
        return {**message, "content": marked}
    parts: list[Any] = [
        {**part, "thinking": _mark(index, number)}
        if part["type"] == "thinking" and part["thinking"].strip()
        else part
        for number, part in enumerate(content)
    ]
    return {**message, "content": parts}


def _mark(index: int, number: int) -> str:
    return f"REASONING-OF-{index}-{number}-STANDS-HERE"


class Page:
    """Writes it all to a stream, with colours or with marks."""

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
            self.line("«trained»  ⏎ a newline  ✂ what follows is cut off")
            return
        samples = [("trained", Fate.TRAINED), ("read", Fate.READ), ("cut off", Fate.CUT)]
        text = Text("  ").join(Text(word, _STYLES[fate][0]) for word, fate in samples)
        text.append("  ⏎ a newline  ").append("special token", "bold")
        self._console.print(text)

    def chat(self, where: str, examples: list[Example], notes: list[str]) -> None:
        for number, example in enumerate(examples, start=1):
            part = f", example {number} of {len(examples)}" if len(examples) > 1 else ""
            kept = example.kept
            size = f"{counted(len(kept), 'token')}, {kept.num_loss_tokens} trained"
            self.line(f"\n── {where}{part}: {size}", "bold")
            shown = pieces(example, self._tokenizer)
            if self._colours:
                self._console.print(coloured_text(shown), soft_wrap=True)
            else:
                print(plain_text(shown), file=self._stream)
        if not examples:
            self.line(f"\n── {where}", "bold")
        for note in notes:
            self._warn(note)

    def summary(self, name: str, totals: Totals) -> None:
        self.line("")
        for line in totals.lines(name):
            self.line(line, "bold")
        for line in totals.warnings():
            self._warn(line)

    def _warn(self, text: str) -> None:
        self.line(f"! {visible(text)}", "yellow")
