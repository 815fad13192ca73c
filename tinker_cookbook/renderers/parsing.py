"""Parse sampled tokens into messages, all at once or as a stream.

Text is fed to a content parser (`TagParser` for models that mark reasoning and tool calls with
tags, `StopStringParser` for plain transcripts), which emits deltas as soon as later text can no
longer change them. Both ways run the same state machine, so they agree wherever a stream is split.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple, Protocol

from tinker_cookbook.exceptions import RendererError
from tinker_cookbook.renderers.decoding import TokenDecoder
from tinker_cookbook.renderers.messages import (
    ContentPart,
    FunctionBody,
    Message,
    Role,
    TextPart,
    ThinkingPart,
    ToolCall,
    UnparsedToolCall,
    read_json_object,
)


class ParseTermination(StrEnum):
    """How a sampled response ended."""

    STOP_SEQUENCE = "stop_sequence"
    EOS = "eos"
    MALFORMED = "malformed"  # truncated by max_tokens, or the end token is in the wrong place

    @property
    def is_clean(self) -> bool:
        return self is not ParseTermination.MALFORMED

    @property
    def is_stop_sequence(self) -> bool:
        return self is ParseTermination.STOP_SEQUENCE


class ParseFailureKind(StrEnum):
    STRUCTURAL = "structural"  # the response does not end like a turn
    CONTENT = "content"  # it ends correctly but contains a tool call that cannot be parsed


class ParsedResponse(NamedTuple):
    message: Message
    termination: ParseTermination


def classify_parse_failure(
    message: Message, termination: ParseTermination
) -> ParseFailureKind | None:
    """The kind of failure of a parsed response, or None. A structural failure takes precedence."""
    if not termination.is_clean:
        return ParseFailureKind.STRUCTURAL
    return ParseFailureKind.CONTENT if message.get("unparsed_tool_calls") else None


@dataclass(frozen=True)
class MessageHeader:
    """The start of a message: who writes it."""

    role: Role
    name: str | None = None


@dataclass(frozen=True)
class TextDelta:
    text: str


@dataclass(frozen=True)
class ThinkingDelta:
    thinking: str


@dataclass(frozen=True)
class ToolCallDelta:
    """One complete tool call. Calls are not streamed in parts, as a part cannot be executed."""

    tool_call: ToolCall | UnparsedToolCall


Delta = TextDelta | ThinkingDelta | ToolCallDelta
MessageDelta = MessageHeader | Delta


class ContentParser(Protocol):
    """Turns text into deltas.

    stops: stop strings seen so far, for formats whose stop sequence is text. malformed: the text
    is not a valid response, whatever its last token.
    """

    stops: int
    malformed: bool

    def feed(self, text: str) -> list[Delta]: ...

    def finish(self) -> list[Delta]: ...


def partial_suffix_length(text: str, *marks: str) -> int:
    """Length of the longest suffix of `text` that may still grow into one of `marks`."""
    longest = min(len(text), max((len(mark) for mark in marks), default=1) - 1)
    for n in range(longest, 0, -1):
        if any(mark.startswith(text[-n:]) for mark in marks):
            return n
    return 0


@dataclass(frozen=True)
class ThinkTags:
    """The tags of a think block at the start of a response, and the newlines around them."""

    opened: str = "<think>"
    closed: str = "</think>"
    pad_open: str = ""
    pad_close: str = ""
    pad_after: str = ""
    exact: bool = False
    """White space before the opening tag makes the block text, and an empty block is kept as an
    empty thinking part, so that rendering gives the same tokens back."""


@dataclass(frozen=True)
class ToolTags:
    """`read` parses the text between the tags; it raises ValueError with the reason."""

    opened: str
    closed: str
    read: Callable[[str], ToolCall]


class StateParser:
    """A content parser as a state machine over a buffer of text that is not emitted yet.

    Each state is a method. It takes from the buffer what later text cannot change, and returns True
    if it has switched to another state, which then runs on the rest.
    """

    def __init__(self, start: Callable[[], bool]):
        self.stops = 0
        self.malformed = False
        self._buffer = ""
        self._deltas: list[Delta] = []
        self._final = False
        self._state = start

    def feed(self, text: str) -> list[Delta]:
        self._buffer += text
        while self._state():
            pass
        deltas, self._deltas = self._deltas, []
        return deltas

    def finish(self) -> list[Delta]:
        self._final = True
        return self.feed("")

    def _emit(self, kind: type[TextDelta] | type[ThinkingDelta], text: str) -> None:
        if text:
            self._deltas.append(kind(text))


class TagParser(StateParser):
    """Parses `[<think>…</think>] text [<tool_call>…</tool_call>]…`.

    A think block is recognised only at the start of the response, so that a reply may mention the
    tag. An unclosed block is reasoning to the end of the response.
    """

    def __init__(self, think: ThinkTags | None, tools: ToolTags | None):
        super().__init__(self._start if think else self._text)
        self._think = think or ThinkTags()
        self._tools = tools

    def _may_become(self, text: str, mark: str) -> bool:
        return not self._final and len(text) < len(mark) and mark.startswith(text)

    def _emit_certain(self, kind: type[TextDelta] | type[ThinkingDelta], *marks: str) -> None:
        """Emit the buffer except a suffix that may still become one of `marks`."""
        keep = 0 if self._final else partial_suffix_length(self._buffer, *marks)
        cut = len(self._buffer) - keep
        self._emit(kind, self._buffer[:cut])
        self._buffer = self._buffer[cut:]

    def _start(self) -> bool:
        text = self._buffer if self._think.exact else self._buffer.lstrip()
        if self._may_become(text, self._think.opened):
            return False
        if text.startswith(self._think.opened):
            self._buffer = text[len(self._think.opened) :]
            self._state = self._think_pad
        else:
            self._state = self._text
        return True

    def _think_pad(self) -> bool:
        if self._may_become(self._buffer, self._think.pad_open):
            return False
        self._buffer = self._buffer.removeprefix(self._think.pad_open)
        self._state = self._thinking
        return True

    def _thinking(self) -> bool:
        tags = self._think
        before, closed, after = self._buffer.partition(tags.closed)
        if not closed:
            self._emit_certain(ThinkingDelta, tags.closed, tags.pad_close + tags.closed)
            return False
        self._emit(ThinkingDelta, before.removesuffix(tags.pad_close))
        if tags.exact and not before:
            self._deltas.append(ThinkingDelta(""))  # an empty block, or its text is already emitted
        self._buffer = after
        self._state = self._after_thinking
        return True

    def _after_thinking(self) -> bool:
        pad = self._think.pad_after
        if self._may_become(self._buffer, pad):
            return False
        # Models sometimes write one newline where their template writes two.
        while pad and not self._buffer.startswith(pad):
            pad = pad[:-1]
        self._buffer = self._buffer[len(pad) :]
        self._state = self._text
        return True

    def _text(self) -> bool:
        if self._tools is None:
            self._emit_certain(TextDelta)
            return False
        opened = self._tools.opened
        before, found, after = self._buffer.partition(opened)
        if not found:
            self._emit_certain(TextDelta, opened, "\n" + opened)
            return False
        self._emit(TextDelta, before.removesuffix("\n"))
        self._buffer = after
        self._state = self._tool_call
        return True

    def _tool_call(self) -> bool:
        assert self._tools is not None
        tags = self._tools
        body, closed, after = self._buffer.partition(tags.closed)
        if not closed and not self._final:
            return False
        call: ToolCall | UnparsedToolCall
        try:
            if not closed:
                raise ValueError(f"no {tags.closed} before the end of the response")
            call = tags.read(body)
        except ValueError as error:
            call = UnparsedToolCall(raw_text=tags.opened + body + closed, error=str(error))
        self._deltas.append(ToolCallDelta(call))
        self._buffer = after
        self._state = self._between_calls
        return True

    def _between_calls(self) -> bool:
        assert self._tools is not None
        text = self._buffer.lstrip()
        if text.startswith(self._tools.opened):
            self._buffer = text
        elif not text or self._may_become(text, self._tools.opened):
            return False  # white space between and after calls is not part of the text
        self._state = self._text
        return True


class StopStringParser:
    """Parses the text up to a stop string, without one space at its start.

    If the stop string is missing, one blank line at the end (`padding`) belongs to the format and
    is removed.
    """

    def __init__(self, stop: str, padding: str):
        self.stops = 0
        self.malformed = False
        self._stop = stop
        self._padding = padding
        self._buffer = ""
        self._started = False

    def feed(self, text: str) -> list[Delta]:
        self._buffer += text
        if not self._started and self._buffer:
            self._started = True
            self._buffer = self._buffer.removeprefix(" ")
        if self.stops:
            return []
        before, found, after = self._buffer.partition(self._stop)
        if found:
            self.stops = 1
            self._buffer = after
        else:
            before = before[: len(before) - partial_suffix_length(before, self._stop)]
            self._buffer = self._buffer[len(before) :]
        return [TextDelta(before)] if before else []

    def finish(self) -> list[Delta]:
        if self.stops:
            self.stops += self._buffer.count(self._stop)
            return []
        rest = self._buffer.removesuffix(self._padding)
        return [TextDelta(rest)] if rest else []


def message_from_deltas(deltas: Iterable[MessageDelta], think_closed: str | None = None) -> Message:
    """Join deltas into one assistant message.

    The content is a string, or the parts [thinking, text] if there is reasoning (text only if not
    empty). Text that contains `think_closed` also becomes a part: as a string it would be split at
    that tag when it is rendered.
    """
    deltas = list(deltas)
    thoughts = [delta.thinking for delta in deltas if isinstance(delta, ThinkingDelta)]
    text = "".join(delta.text for delta in deltas if isinstance(delta, TextDelta))
    message = Message(role="assistant", content=text)
    if thoughts or (think_closed is not None and think_closed in text):
        parts: list[ContentPart] = []
        if thoughts:
            parts.append(ThinkingPart(type="thinking", thinking="".join(thoughts)))
        if text:
            parts.append(TextPart(type="text", text=text))
        message["content"] = parts
    calls = [delta.tool_call for delta in deltas if isinstance(delta, ToolCallDelta)]
    if parsed := [call for call in calls if isinstance(call, ToolCall)]:
        message["tool_calls"] = parsed
    if unparsed := [call for call in calls if isinstance(call, UnparsedToolCall)]:
        message["unparsed_tool_calls"] = unparsed
    return message


class ResponseParser:
    """Parses one response: tokens up to a stop or end-of-text token, decoded and fed to `content`.

    Termination: STOP_SEQUENCE if the response ends with its only stop sequence, EOS if it ends with
    an end-of-text token and has no stop sequence, else MALFORMED. Two stop tokens raise
    RendererError, because sampling ends at the first.
    """

    def __init__(
        self,
        decode: Callable[[list[int]], str],
        content: ContentParser,
        stop_tokens: frozenset[int],
        eos_tokens: frozenset[int],
        think_closed: str | None = None,
    ):
        self._decode = decode
        self._content = content
        self._think_closed = think_closed
        self._stop_tokens = stop_tokens
        self._eos_tokens = eos_tokens

    def parse(self, tokens: Iterable[int]) -> ParsedResponse:
        """Parse the whole response with a single decode; streaming needs two per token."""
        ending = _EndTracker(self._stop_tokens, self._eos_tokens)
        text = self._decode([token for token in map(int, tokens) if ending.is_content(token)])
        deltas = self._content.feed(text) + self._content.finish()
        return ParsedResponse(self._message(deltas), ending.termination(self._content))

    def _message(self, deltas: list[Delta]) -> Message:
        return message_from_deltas(deltas, self._think_closed)

    def stream(self, tokens: Iterable[int]) -> Iterator[MessageDelta | ParsedResponse]:
        """Yield a header, deltas while tokens arrive, and last the result of `parse` for all."""
        yield MessageHeader("assistant")
        ending = _EndTracker(self._stop_tokens, self._eos_tokens)
        decoder = TokenDecoder(self._decode)
        seen: list[Delta] = []
        for token in map(int, tokens):
            if ending.is_content(token):
                new = self._content.feed(decoder.feed(token))
                seen += new
                yield from new
        last = self._content.feed(decoder.finish()) + self._content.finish()
        yield from last
        yield ParsedResponse(self._message(seen + last), ending.termination(self._content))


class _EndTracker:
    """Counts stop and end-of-text tokens, and the tokens after them."""

    def __init__(self, stop_tokens: frozenset[int], eos_tokens: frozenset[int]):
        self._stop_tokens = stop_tokens
        self._eos_tokens = eos_tokens
        self._stops = 0
        self._eos = 0
        self._after_end = 0

    def is_content(self, token: int) -> bool:
        if token in self._stop_tokens:
            self._stops += 1
            if self._stops > 1:
                raise RendererError(
                    f"the response contains the stop token {token} more than once; "
                    "sample with stop=renderer.get_stop_sequences()"
                )
        elif token in self._eos_tokens:
            self._eos += 1
        elif not self._stops and not self._eos:
            return True
        else:
            self._after_end += 1
        return False

    def termination(self, content: ContentParser) -> ParseTermination:
        if content.malformed:
            return ParseTermination.MALFORMED
        match (self._stops + content.stops, self._eos, self._after_end):
            case (1, 0, 0):
                return ParseTermination.STOP_SEQUENCE
            case (0, 1, 0):
                return ParseTermination.EOS
            case _:
                return ParseTermination.MALFORMED


def read_json_tool_call(body: str) -> ToolCall:
    """Parse `{"name": ..., "arguments": {...}}`. Raises ValueError with the reason.

    The arguments are kept as they were written, so that the call renders to the same tokens.
    """
    members = _json_members(body.strip())
    name, arguments = members.get("name"), members.get("arguments")
    if name is None or not isinstance(name.value, str) or not name.value:
        raise ValueError('a tool call needs a "name" that is a non-empty string')
    if arguments is None or not isinstance(arguments.value, dict):
        raise ValueError('a tool call needs "arguments" that are a JSON object')
    return ToolCall(function=FunctionBody(name=name.value, arguments=arguments.source))


class _JsonMember(NamedTuple):
    value: Any
    source: str


def _json_members(text: str) -> dict[str, _JsonMember]:
    """The members of a JSON object, each with its source text. Raises ValueError if it is none.

    `json.loads` would lose how the arguments were written: white space, escapes, number formats.
    """
    read_json_object(text, "a tool call")
    decoder = json.JSONDecoder()

    def skip(i: int, characters: str) -> int:
        while text[i] in characters:
            i += 1
        return i

    members: dict[str, _JsonMember] = {}
    i = skip(1, " \t\r\n")
    while text[i] != "}":
        key, i = decoder.raw_decode(text, i)
        start = skip(i, " \t\r\n:")
        value, end = decoder.raw_decode(text, start)
        members[key] = _JsonMember(value, text[start:end])
        i = skip(end, " \t\r\n,")
    return members
