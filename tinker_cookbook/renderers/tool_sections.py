"""Tool calls gathered in one section at the end of a reply, as DeepSeek and Kimi write them.

    reply <section> <call>head<separator>{"q": 1}</call><call>…</call> </section>

The head names the function, the arguments are JSON. (Spaces only for reading.)
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from tinker_cookbook.renderers.messages import (
    FunctionBody,
    Message,
    ToolCall,
    UnparsedToolCall,
    escape_tags_in_arguments,
    read_json_object,
)
from tinker_cookbook.renderers.parsing import (
    TagParser,
    TextDelta,
    ThinkTags,
    ToolCallDelta,
)


@dataclass(frozen=True)
class ToolSection:
    """`head` of a call as it is written; `read` turns head and arguments into a ToolCall, or raises
    ValueError saying why."""

    opened: str
    closed: str
    call_opened: str
    separator: str
    call_closed: str
    head: Callable[[ToolCall], str]
    read: Callable[[str, str], ToolCall]

    @property
    def tags(self) -> tuple[str, ...]:
        return (self.opened, self.closed, self.call_opened, self.separator, self.call_closed)

    def write(self, message: Message) -> str:
        """The section of a message, or "" if it calls nothing.

        A section whose last call was left open ends there: its raw text holds all that came.
        """
        blocks = [
            f"{self.call_opened}{self.head(call)}{self.separator}"
            f"{escape_tags_in_arguments(call, self.call_closed, self.closed)}{self.call_closed}"
            for call in message.get("tool_calls", [])
        ]
        blocks += [call.raw_text for call in message.get("unparsed_tool_calls", [])]
        if not blocks:
            return ""
        last = blocks[-1]
        is_whole = last.startswith(self.call_opened) and last.endswith(self.call_closed)
        return self.opened + "".join(blocks) + (self.closed if is_whole else "")

    def read_call(self, body: str) -> ToolCall:
        """A ToolCall from what stands between the tags of one call; ValueError otherwise.

        The arguments are kept as they were written, so that the call renders to the same tokens.
        """
        head, found, arguments = body.partition(self.separator)
        if not found:
            raise ValueError(f"a tool call needs {self.separator} in front of its arguments")
        read_json_object(arguments, "the arguments of a tool call")
        return self.read(head, arguments)


def kimi_function_name(call_id: str | None) -> str | None:
    """The function that an id of Kimi's form names (`functions.name:0`), None if it names none."""
    found = re.fullmatch(r"(?:functions\.)?+(.+):[0-9]+", (call_id or "").strip(), re.DOTALL)
    return found and found[1]


def _read_kimi_call(call_id: str, arguments: str) -> ToolCall:
    name = kimi_function_name(call_id)
    if name is None:
        raise ValueError("the id of a tool call must look like functions.name:0")
    return ToolCall(id=call_id, function=FunctionBody(name=name, arguments=arguments))


KIMI_SECTION = ToolSection(
    opened="<|tool_calls_section_begin|>",
    closed="<|tool_calls_section_end|>",
    call_opened="<|tool_call_begin|>",
    separator="<|tool_call_argument_begin|>",
    call_closed="<|tool_call_end|>",
    head=lambda call: call.id or "",
    read=_read_kimi_call,
)


class SectionParser(TagParser):
    """Reads `[<think>…</think>] text [section]`.

    `prompt_opens_think`: the prompt may have ended with the opening think tag, or may not (after a
    tool result). So what precedes `</think>` is reasoning, and a response without one is text; as
    this shows only at the end, streaming holds text back until then.
    """

    def __init__(
        self, think: ThinkTags | None, section: ToolSection, prompt_opens_think: bool = False
    ):
        super().__init__(think, None)
        self._section = section
        self._calls = 0
        if prompt_opens_think:
            self._state = self._thinking_or_text

    def _thinking_or_text(self) -> bool:
        tags, text = self._think, self._buffer.lstrip()
        if self._may_become(text, tags.opened):
            return False
        if text.startswith(tags.opened):
            self._state = self._start
            return True
        mark = _first(self._buffer, tags.closed, self._section.opened)
        if not mark and not self._final:
            return False
        self._state = self._thinking if mark == tags.closed else self._text
        return True

    def _text(self) -> bool:
        before, found, after = self._buffer.partition(self._section.opened)
        if not found:
            self._emit_certain(TextDelta, self._section.opened)
            return False
        self._emit(TextDelta, before)
        self._buffer = after
        self._calls = 0
        self._state = self._in_section
        return True

    def _in_section(self) -> bool:
        """White space between calls belongs to nothing; other text there is a failed call."""
        tags, text = self._section, self._buffer.lstrip()
        if text.startswith(tags.call_opened):
            self._buffer = text
            self._state = self._tool_call
        elif text.startswith(tags.closed) and self._calls:
            self._buffer = text[len(tags.closed) :]
            self._state = self._after_section
        elif not self._final and any(
            self._may_become(text, tag) for tag in (tags.call_opened, tags.closed)
        ):
            return False
        elif not text and self._calls:
            return False  # cut between its last call and its end
        else:
            mark = _first(text, tags.call_opened, tags.closed)
            if not mark and not self._final:
                return False
            self._buffer = text
            self._fail(f"no {tags.call_opened} where a tool call is due", mark)
        return True

    def _tool_call(self) -> bool:
        tags = self._section
        mark = _first(self._buffer, tags.call_closed, tags.closed)
        if mark != tags.call_closed:
            if not mark and not self._final:
                return False
            self._fail(f"no {tags.call_closed} before the end of the calls", mark)
            return True
        body, _, after = self._buffer.removeprefix(tags.call_opened).partition(tags.call_closed)
        call: ToolCall | UnparsedToolCall
        try:
            call = tags.read_call(body)
        except ValueError as error:
            raw_text = tags.call_opened + body + tags.call_closed
            call = UnparsedToolCall(raw_text=raw_text, error=str(error))
        self._give(call)
        self._buffer = after
        self._state = self._in_section
        return True

    def _after_section(self) -> bool:
        if not self._buffer.strip():
            return False  # white space after the section belongs to no text
        self._state = self._text
        return True

    def _give(self, call: ToolCall | UnparsedToolCall) -> None:
        self._calls += 1
        self._deltas.append(ToolCallDelta(call))

    def _fail(self, error: str, mark: str) -> None:
        """All text up to `mark` is a call that cannot be read; the section's end belongs to it."""
        before, found, after = self._buffer.partition(mark) if mark else (self._buffer, "", "")
        if mark == self._section.closed:
            before, self._state = before + found, self._after_section
        else:
            after, self._state = found + after, self._in_section
        self._give(UnparsedToolCall(raw_text=before, error=error))
        self._buffer = after


def _first(text: str, *marks: str) -> str:
    """The mark that comes first in `text`, or ""."""
    found = [(position, mark) for mark in marks if (position := text.find(mark)) >= 0]
    return min(found)[1] if found else ""
