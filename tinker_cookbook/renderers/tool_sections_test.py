"""The parser alone, letter by letter: tags need not be single tokens."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinker_cookbook.renderers.messages import FunctionBody, Message, ToolCall
from tinker_cookbook.renderers.parsing import ThinkTags, message_from_deltas
from tinker_cookbook.renderers.tool_sections import SectionParser, ToolSection

SECTION = ToolSection(
    opened="<calls>",
    closed="</calls>",
    call_opened="<call>",
    separator=":",
    call_closed="</call>",
    head=lambda call: call.function.name,
    read=lambda head, arguments: ToolCall(function=FunctionBody(name=head, arguments=arguments)),
)
pieces = st.sampled_from(
    ["<calls>", "</calls>", "<call>", "</call>", "f:{}", ":", "<think>", "</think>", "<", "a", "\n"]
)


def parse(text: str, cuts: set[int], **kwargs: Any) -> Message:
    parser = SectionParser(ThinkTags(), SECTION, **kwargs)
    deltas, start = [], 0
    for end in [*sorted(cut for cut in cuts if cut < len(text)), len(text)]:
        deltas += parser.feed(text[start:end])
        start = end
    return message_from_deltas(deltas + parser.finish())


@pytest.mark.parametrize("prompt_opens_think", [False, True])
@settings(max_examples=200, deadline=None)
@given(text=st.lists(pieces, max_size=10).map("".join), cuts=st.sets(st.integers(0, 60)))
def test_pieces_equal_the_whole(prompt_opens_think: bool, text: str, cuts: set[int]) -> None:
    whole = parse(text, set(), prompt_opens_think=prompt_opens_think)
    assert parse(text, cuts, prompt_opens_think=prompt_opens_think) == whole
    letters = set(range(len(text)))
    assert parse(text, letters, prompt_opens_think=prompt_opens_think) == whole


@settings(max_examples=300, deadline=None)
@given(text=st.lists(pieces.filter(lambda piece: piece != "<calls>"), max_size=10).map("".join))
def test_a_written_section_reads_back(text: str) -> None:
    """Whatever came as a section, writing and reading it gives the same calls, read and unread.

    A message holds unread calls behind read ones, so two that were apart may come back as one.
    """
    message = parse("<calls>" + text, set())
    assert message.get("tool_calls") or message.get("unparsed_tool_calls")
    again = parse(SECTION.write(message), set())
    assert again["content"] == ""
    assert again.get("tool_calls") == message.get("tool_calls")
    assert unread(again) == unread(message)


def unread(message: Message) -> str:
    return "".join(call.raw_text for call in message.get("unparsed_tool_calls", []))
