from __future__ import annotations

import pytest
from pydantic import ValidationError

from tinker_cookbook.exceptions import RendererError
from tinker_cookbook.renderers import (
    FunctionBody,
    ToolCall,
    ensure_text,
    format_content_as_string,
    get_text_content,
    parse_content_blocks,
)
from tinker_cookbook.renderers.messages import (
    normalise_message,
    split_thinking,
    to_openai_message,
)

THINK = {"type": "thinking", "thinking": "\nhm\n"}
TEXT = {"type": "text", "text": "\n\n95"}


def test_get_text_content() -> None:
    assert get_text_content({"role": "assistant", "content": " as it is\n"}) == " as it is\n"
    assert get_text_content({"role": "assistant", "content": [TEXT]}) == "\n\n95"
    # where reasoning was left out, so are the blank lines behind it
    assert get_text_content({"role": "assistant", "content": [THINK, TEXT]}) == "95"
    assert get_text_content({"role": "assistant", "content": [THINK]}) == ""
    code = {"type": "text", "text": "\n \n    return 1\n  \n"}
    assert get_text_content({"role": "assistant", "content": [THINK, code]}) == "    return 1"


def test_ensure_text() -> None:
    assert ensure_text("x") == "x"
    assert ensure_text([TEXT, TEXT]) == "\n\n95\n\n95"
    with pytest.raises(RendererError, match="'thinking'"):
        ensure_text([TEXT, THINK])


def test_format_and_parse_content_are_inverse() -> None:
    image = {"type": "image", "image": "x.png"}
    assert format_content_as_string([TEXT, image], separator="|") == "\n\n95|<image>"
    for parts in ([THINK, TEXT], [TEXT, THINK, TEXT], [THINK, THINK], [THINK]):
        string = format_content_as_string(parts, separator="")
        assert parse_content_blocks(string) == parts
    assert format_content_as_string("<think>") == "<think>"
    assert parse_content_blocks("no tags, <think> unclosed") is None


def test_split_thinking() -> None:
    assert split_thinking("plain <think>") == ("", "plain <think>")
    assert split_thinking("<think>\n\na\n</think>\n\nb\n") == ("a", "b\n")
    assert split_thinking("a</think>b</think>c") == ("a", "b</think>c")
    assert split_thinking([THINK, TEXT, THINK]) == ("\nhm\n\nhm\n", "\n\n95")


def test_tool_calls_are_frozen_and_strict() -> None:
    call = ToolCall(id="1", function=FunctionBody(name="f", arguments="{}"))
    assert call.type == "function"
    with pytest.raises(ValidationError):
        call.id = "2"
    with pytest.raises(ValidationError):
        FunctionBody(name="f", arguments="{}", extra=1)


def test_to_openai_message() -> None:
    call = ToolCall(id="1", function=FunctionBody(name="f", arguments="{}"))
    message = {"role": "assistant", "content": [THINK, TEXT], "tool_calls": [call]}
    assert to_openai_message(message) == {
        "role": "assistant",
        "content": "\n\n95",
        "reasoning_content": "\nhm\n",
        "tool_calls": [
            {"type": "function", "id": "1", "function": {"name": "f", "arguments": "{}"}}
        ],
    }
    result = {"role": "tool", "content": "x</think>y", "tool_call_id": "1", "name": "f"}
    assert to_openai_message(result) == result


def test_to_openai_message_keeps_calls_in_every_form() -> None:
    raw = {"raw_text": "<tool_call>oops</tool_call>", "error": "no JSON"}
    call = {"function": {"name": "f", "arguments": "{}"}}
    message = {"role": "assistant", "content": "Hi", "tool_calls": [call]}
    found = to_openai_message({**message, "unparsed_tool_calls": [raw]})
    assert found["content"] == "Hi\n<tool_call>oops</tool_call>"
    assert found["tool_calls"][0]["function"] == call["function"]
    with pytest.raises(RendererError, match="images cannot be converted"):
        to_openai_message({"role": "user", "content": [{"type": "image", "image": "x.png"}]})


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_normalising_twice_changes_nothing(key: str) -> None:
    message = {"role": "assistant", "content": "r", key: "hm"}
    once = normalise_message(message, 0, ("assistant",))
    assert once["content"] == [
        {"type": "thinking", "thinking": "hm"},
        {"type": "text", "text": "r"},
    ]
    assert normalise_message(once, 0, ("assistant",)) == once
    assert message == {"role": "assistant", "content": "r", key: "hm"}
