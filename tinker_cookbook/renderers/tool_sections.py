"""Tool calls in one section at the end of a reply, the format of DeepSeek and Kimi.

    reply <section> <call>head<separator>{"q": 1}</call><call>…</call> </section>

The head names the function, the arguments are JSON. (The spaces are only for legibility.)
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
    """The tags of a section and the format of a call's head.

    `head` writes the head of a call; `read` makes a ToolCall of head and arguments, or raises
    ValueError with the reason.
    """

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
        """The section of a message, or "" if the message has no calls.

        The closing tag is left out after an unparsed call that is incomplete: its raw text already
        contains everything up to the end of the response.
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
        """Parse the text between the tags of one call. Raises ValueError with the reason.

        The arguments are kept as they were written, so that the call renders to the same tokens.
        """
        head, found, arguments = body.partition(self.separator)
        if not found:
            raise ValueError(f"a tool call needs {self.separator} before its arguments")
        read_json_object(arguments, "the arguments of a tool call")
        return self.read(head, arguments)


def kimi_function_name(call_id: str | None) -> str | None:
    """The function that a Kimi call id (`functions.name:0`) names; None if it names none."""
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
    """Parses `[<think>…</think>] text [section]`.

    `prompt_opens_think`: the prompt may have ended with the opening think tag; after a tool result
    it has not, and the parser does not see the prompt. So text before `</think>` is reasoning, and
    a response without that tag is all text. Streaming holds the text back until this is decided.
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
        # A section before any `</think>` means that the response has no reasoning.
        mark = _earliest_mark(self._buffer, tags.closed, self._section.opened)
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
        """Skip white space between calls; other text there is an unparsed call."""
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
            return False  # truncated between its last call and its closing tag
        else:
            mark = _earliest_mark(text, tags.call_opened, tags.closed)
            if not mark and not self._final:
                return False
            self._buffer = text
            self._add_unparsed_call(
                f"expected {tags.call_opened} at the start of a tool call", mark
            )
        return True

    def _tool_call(self) -> bool:
        tags = self._section
        mark = _earliest_mark(self._buffer, tags.call_closed, tags.closed)
        if mark != tags.call_closed:
            if not mark and not self._final:
                return False
            self._add_unparsed_call(f"no {tags.call_closed} before the end of the section", mark)
            return True
        body, _, after = self._buffer.removeprefix(tags.call_opened).partition(tags.call_closed)
        call: ToolCall | UnparsedToolCall
        try:
            call = tags.read_call(body)
        except ValueError as error:
            raw_text = tags.call_opened + body + tags.call_closed
            call = UnparsedToolCall(raw_text=raw_text, error=str(error))
        self._add_call(call)
        self._buffer = after
        self._state = self._in_section
        return True

    def _after_section(self) -> bool:
        if not self._buffer.strip():
            return False  # white space after the section is not part of the text
        self._state = self._text
        return True

    def _add_call(self, call: ToolCall | UnparsedToolCall) -> None:
        self._calls += 1
        self._deltas.append(ToolCallDelta(call))

    def _add_unparsed_call(self, error: str, mark: str) -> None:
        """Add all text up to `mark` as an unparsed call, including the section's closing tag.

        Its raw text then renders back to the same tokens, see `ToolSection.write`.
        """
        before, found, after = self._buffer.partition(mark) if mark else (self._buffer, "", "")
        if mark == self._section.closed:
            before, self._state = before + found, self._after_section
        else:
            after, self._state = found + after, self._in_section
        self._add_call(UnparsedToolCall(raw_text=before, error=error))
        self._buffer = after


def _earliest_mark(text: str, *marks: str) -> str:
    """The mark that comes first in `text`; "" if there is none."""
    found = [(position, mark) for mark in marks if (position := text.find(mark)) >= 0]
    return min(found)[1] if found else ""
