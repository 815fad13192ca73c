"""Conversations from plain data, checked: every error says where, and what was found there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinker_cookbook.exceptions import DataFormatError
from tinker_cookbook.renderers.messages import SURROGATE, Message, get_text_content
from tinker_cookbook.renderers.tool_declarations import openai_tools
from tinker_cookbook.utils.files import existing_file

if TYPE_CHECKING:
    from tinker_cookbook.renderers.base import Renderer

EXPECTED = '{"messages": [{"role": "user", "content": "..."}, ...]}'


@dataclass(frozen=True)
class Chat:
    """A conversation and where it stands, for messages to the user ("chats.jsonl:17").

    tools: those that are declared to the model, as OpenAI's API or `ToolSpec` has them.
    """

    messages: list[Message]
    where: str
    tools: list[dict[str, Any]] = field(default_factory=list)

    def messages_for(self, renderer: Renderer) -> list[Message]:
        """The messages with the tools declared in front, as `renderer` does it; the system prompt,
        if there is one, becomes part of the declaration. RendererError where it has no form."""
        if not self.tools:
            return self.messages
        renderer.checked(self.messages)  # what is wrong is named by its place in the data
        first, rest = self.messages[0], self.messages[1:]
        if first["role"] not in ("system", "developer"):
            first, rest = Message(role="system", content=""), self.messages
        prefix = renderer.declare_tools(openai_tools(self.tools), get_text_content(first))
        if any("trainable" in message for message in self.messages):
            for message in prefix:
                message["trainable"] = first.get("trainable", False)
        return [*prefix, *rest]


@dataclass(frozen=True)
class BadRow:
    """Where there should be a conversation and is none."""

    where: str
    problem: str


def read_chats(path: str | Path, key: str = "path", message_field: str = "messages") -> list[Chat]:
    """All conversations of a JSONL file, one `{"messages": [...]}` a line, with `"tools": [...]`
    where tools are declared; blank lines are ignored.

    `key` is the configuration key that named the file, `message_field` the one in each line that
    holds the messages. Raises ConfigurationError for a file that is not there, DataFormatError
    (with file and line number) for one that cannot be read.
    """
    path = existing_file(path, key)
    chats = []
    for number, raw in enumerate(path.read_bytes().split(b"\n"), start=1):
        where = f"{path}:{number}"
        try:
            line = raw.decode("utf-8-sig").strip()
        except UnicodeDecodeError as error:
            raise DataFormatError(f"{where}: not UTF-8 text: {raw[:80]!r}") from error
        if not line:
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataFormatError(
                f"{where}: not JSON ({error.msg}, column {error.colno}); found {line[:80]}; "
                f"expected one object a line: {EXPECTED}"
            ) from error
        chats.append(row_chat(row, where, message_field))
    if not chats:
        raise DataFormatError(f"{path}: the file is empty; expected one object a line: {EXPECTED}")
    return chats


def table_chat(row: Any, where: str, message_field: str = "messages") -> Chat:
    """`row_chat` for a row of a table, which has every key of any row: what is None is not there,
    also inside tools and the arguments of calls."""
    kept = _without_nones(row)
    if isinstance(row, Mapping) and message_field in row:
        kept.setdefault(message_field, None)
    return row_chat(kept, where, message_field)


def row_chat(row: Any, where: str, message_field: str = "messages") -> Chat:
    """The conversation of one row, checked, but for roles, parts and tool calls, which the renderer
    checks. Keys of messages that are None are left out; tools may be JSON in text.
    """
    if not isinstance(row, Mapping):
        raise DataFormatError(f"{where}: found {_short(row)}; expected {EXPECTED}")
    if message_field not in row:
        raise DataFormatError(
            f"{where}: no {message_field!r}; "
            f"found {', '.join(map(repr, row)) or 'an empty object'}; expected {EXPECTED}"
        )
    messages = row[message_field]
    if not isinstance(messages, list) or not messages:
        raise DataFormatError(
            f"{where}: {message_field!r} must be a list of messages that is not empty; "
            f"found {_short(messages)}"
        )
    if row.get("functions"):
        raise DataFormatError(f"{where}: 'functions' is not read; write them as 'tools'")
    checked = [  # counted from 0, as the renderers do
        _message(message, f"{where}: message {index}") for index, message in enumerate(messages)
    ]
    return Chat(checked, where, _tools(row.get("tools"), where))


def _tools(value: Any, where: str) -> list[dict[str, Any]]:
    """The tools of a row: a list of them, as it is or as JSON in text; none where it is empty."""
    tools = value or []
    if isinstance(tools, str):
        try:
            tools = json.loads(tools) or []
        except json.JSONDecodeError:
            raise DataFormatError(f"{where}: 'tools' is not JSON, {_found(value)}") from None
    if not isinstance(tools, list):
        raise DataFormatError(f"{where}: 'tools' must be a list of tools, {_found(value)}")
    if SURROGATE.search(json.dumps(tools, ensure_ascii=False, default=str)):
        raise DataFormatError(f"{where}: 'tools' hold half of a surrogate pair")
    for index, tool in enumerate(tools):
        function = tool.get("function", tool) if isinstance(tool, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise DataFormatError(
                f"{where}: tool {index} must be an object with name, description and parameters, "
                f"{_found(tool)}"
            )
    return tools


def _without_nones(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nones(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nones(item) for item in value]
    return value


def _message(message: Any, where: str) -> Message:
    if not isinstance(message, Mapping):
        raise DataFormatError(f"{where} must be an object with role and content, {_found(message)}")
    kept = {key: value for key, value in message.items() if value is not None}
    if not isinstance(kept.get("role"), str):
        raise DataFormatError(f"{where}: 'role' must be a string, {_found(message)}")
    # A message that only calls tools has no content in the form that APIs write.
    if not isinstance(kept.get("content"), str | list) and not kept.get("tool_calls"):
        raise DataFormatError(f"{where}: 'content' must be a string or a list, {_found(message)}")
    content = kept.get("content")
    if kept["role"] == "assistant" and isinstance(content, list) and all(map(_is_text, content)):
        kept["content"] = "".join(part["text"] for part in content)  # with its <think>, if any
    return kept  # type: ignore[return-value]


def _is_text(part: Any) -> bool:
    return (
        isinstance(part, Mapping)
        and part.get("type") == "text"
        and isinstance(part.get("text"), str)
    )


def _found(value: Any) -> str:
    return f"found {_short(value)}"


def _short(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)[:80]
