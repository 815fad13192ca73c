"""Parse Harmony responses: what gpt-oss samples after `<|start|>assistant`.

A response is one or more Harmony messages, `header<|message|>body`, joined by `<|end|><|start|>`.
The five control tokens reach this parser as single code points that cannot occur in decoded text
(`marked_text`), so a reply that mentions `<|end|>` is not split there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from enum import Enum

from tinker_cookbook.renderers.messages import (
    FunctionBody,
    ToolCall,
    UnparsedToolCall,
    read_json_object,
)
from tinker_cookbook.renderers.parsing import (
    Delta,
    StateParser,
    TextDelta,
    ThinkingDelta,
    ToolCallDelta,
)

START, END, MESSAGE, CHANNEL, CONSTRAIN = (
    "<|start|>",
    "<|end|>",
    "<|message|>",
    "<|channel|>",
    "<|constrain|>",
)
CONTROL = (START, END, MESSAGE, CHANNEL, CONSTRAIN)
FUNCTIONS = "functions."

# Lone surrogates: valid in a str, and never the result of decoding bytes.
_MARKS = {tag: chr(0xD800 + i) for i, tag in enumerate(CONTROL)}
_TAGS = {ord(mark): tag for tag, mark in _MARKS.items()}
_ANY_MARK = re.compile(f"[{''.join(_MARKS.values())}]")
_BODY_END = re.compile(f"[{_MARKS[START]}{_MARKS[END]}]")
_PROMPT_HEADER = (
    _MARKS[START] + "assistant"
)  # the start of the first header, which is in the prompt
_WORD = rf"[^\s<{''.join(_MARKS.values())}]+"
# The recipient follows the role (as chat templates write it) or the channel (as models usually
# sample it). A content type follows, `<|constrain|>json` for calls.
_HEADER = re.compile(
    rf"{_PROMPT_HEADER}(?: to=(?P<to>{_WORD}))?"
    rf"{_MARKS[CHANNEL]}(?P<channel>analysis|commentary|final)(?: to=(?P<late_to>{_WORD}))?"
    rf"(?: ?{_MARKS[CONSTRAIN]}?{_WORD})? ?"
)
_RECIPIENT = re.compile(r"\bto=([^\s<]+)")


def marked_text(
    tokens: Sequence[int], control: Mapping[int, str], decode: Callable[[list[int]], str]
) -> str:
    """Decode tokens; those in `control` (id to tag) become the code points of the parser."""
    text, run = "", []
    for token in tokens:
        if token in control:
            text += decode(run) + _MARKS[control[token]]
            run = []
        else:
            run.append(token)
    return text + decode(run)


def recipient_of(raw_call: str) -> str | None:
    """The recipient in the raw text of a call, e.g. `functions.f`."""
    found = _RECIPIENT.search(raw_call.partition(MESSAGE)[0])
    return found.group(1) if found else None


class _Body(Enum):
    THINKING = ThinkingDelta
    TEXT = TextDelta
    CALL = ToolCallDelta
    FOREIGN = None  # a message of another role: the model continued as the user


class HarmonyParser(StateParser):
    """Parses the analysis channel as thinking, messages with a recipient as tool calls, the rest as
    text.

    Messages of one kind are separated by a blank line. If the format is violated (no channel, a
    control token inside a body, text between messages, a header without a body), the text is kept
    and the response is malformed. So is a response of reasoning alone.
    """

    def __init__(self) -> None:
        super().__init__(self._header)
        self._buffer = _PROMPT_HEADER
        self._kind = _Body.TEXT
        self._raw_header = ""
        self._recipient = ""
        self._call = ""
        self._body_kinds: set[_Body] = set()
        self._is_new_body = True
        self._emitted_kinds: set[_Body] = set()

    def finish(self) -> list[Delta]:
        deltas = self.feed("")
        if self._state == self._body:
            self._close_body()
        elif rest := self._buffer.removeprefix(_PROMPT_HEADER):
            self.malformed = True
            if not _ANY_MARK.search(rest):  # a plain reply, by a model that has not learnt channels
                self._kind = _Body.TEXT
                self._add(rest)
        if self._body_kinds == {_Body.THINKING}:
            self.malformed = True  # reasoning without a reply or a call
        last, self._deltas = self._deltas, []
        return deltas + last

    def _header(self) -> bool:
        header, found, after = self._buffer.partition(_MARKS[MESSAGE])
        if not found:
            return False
        self._buffer = after
        self._state = self._body
        self._is_new_body = True
        self._raw_header = header.removeprefix(_PROMPT_HEADER)
        fields = _HEADER.fullmatch(header)
        if fields is None or (fields["to"] and fields["late_to"]):
            self.malformed = True
            self._kind = _Body.TEXT if _PROMPT_HEADER in header else _Body.FOREIGN
        elif fields["to"] or fields["late_to"]:
            self._kind = _Body.CALL
            self._recipient = fields["to"] or fields["late_to"]
        else:
            self._kind = _Body.THINKING if fields["channel"] == "analysis" else _Body.TEXT
        self._body_kinds.add(self._kind)
        return True

    def _body(self) -> bool:
        end = _BODY_END.search(self._buffer)
        cut = end.start() if end else len(self._buffer)
        self._add(self._buffer[:cut])
        self._buffer = self._buffer[cut:]
        if end is None:
            return False
        self._close_body()
        if end.group() == _MARKS[END]:
            self._buffer = self._buffer[1:]
        else:
            self.malformed = True
        self._state = self._header
        return True

    def _add(self, text: str) -> None:
        if _ANY_MARK.search(text):
            self.malformed = True
            text = text.translate(_TAGS)
        if self._kind is _Body.CALL:
            self._call += text
        elif text and self._kind is not _Body.FOREIGN:
            if self._is_new_body and self._kind in self._emitted_kinds:
                text = "\n\n" + text
            self._is_new_body = False
            self._emitted_kinds.add(self._kind)
            self._emit(ThinkingDelta if self._kind is _Body.THINKING else TextDelta, text)

    def _close_body(self) -> None:
        if self._kind is not _Body.CALL:
            return
        call: ToolCall | UnparsedToolCall
        try:
            call = _read_call(self._recipient, self._call)
        except ValueError as error:
            raw = self._raw_header.translate(_TAGS) + MESSAGE + self._call
            call = UnparsedToolCall(raw_text=raw, error=str(error))
        self._deltas.append(ToolCallDelta(call))
        self._call = ""


def _read_call(recipient: str, arguments: str) -> ToolCall:
    """Parse one call, arguments kept as written. Raises ValueError with the reason."""
    name = recipient.removeprefix(FUNCTIONS)
    if name == recipient or not name:
        raise ValueError(f"a call to {recipient!r}, which is not a function ({FUNCTIONS}name)")
    read_json_object(arguments, "the arguments of a call")
    return ToolCall(function=FunctionBody(name=name, arguments=arguments))
