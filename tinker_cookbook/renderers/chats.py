"""Conversations from plain data, checked: every error says where, and what was found there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinker_cookbook.exceptions import DataFormatError
from tinker_cookbook.utils.files import existing_file

if TYPE_CHECKING:
    from tinker_cookbook.renderers.messages import Message

EXPECTED = '{"messages": [{"role": "user", "content": "..."}, ...]}'


@dataclass(frozen=True)
class Chat:
    """A conversation and where it stands, for messages to the user ("chats.jsonl:17")."""

    messages: list[Message]
    where: str


@dataclass(frozen=True)
class BadRow:
    """Where there should be a conversation and is none."""

    where: str
    problem: str


def read_chats(path: str | Path, key: str = "path", field: str = "messages") -> list[Chat]:
    """All conversations of a JSONL file, one `{"messages": [...]}` a line; blank lines are ignored.

    `key` is the configuration key that named the file, `field` the one in each line that holds the
    messages. Raises ConfigurationError for a file that is
    not there, DataFormatError (with file and line number) for one that cannot be read.
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
        chats.append(Chat(row_messages(row, where, field), where))
    if not chats:
        raise DataFormatError(f"{path}: the file is empty; expected one object a line: {EXPECTED}")
    return chats


def row_messages(row: Any, where: str, field: str = "messages") -> list[Message]:
    """The checked messages of one row, for a renderer, which checks roles, parts and tool calls.

    Fields that are None are left out: a table has every column in every row.
    """
    if not isinstance(row, Mapping):
        raise DataFormatError(f"{where}: found {_short(row)}; expected {EXPECTED}")
    if field not in row:
        raise DataFormatError(
            f"{where}: no {field!r}; found {', '.join(map(repr, row)) or 'an empty object'}; "
            f"expected {EXPECTED}"
        )
    messages = row[field]
    if not isinstance(messages, list) or not messages:
        raise DataFormatError(
            f"{where}: {field!r} must be a list of messages that is not empty; "
            f"found {_short(messages)}"
        )
    return [  # counted from 0, as the renderers do
        _message(message, f"{where}: message {index}") for index, message in enumerate(messages)
    ]


def _message(message: Any, where: str) -> Message:
    if not isinstance(message, Mapping):
        raise DataFormatError(f"{where} must be an object with role and content, {_found(message)}")
    kept = {key: value for key, value in message.items() if value is not None}
    if not isinstance(kept.get("role"), str):
        raise DataFormatError(f"{where}: 'role' must be a string, {_found(message)}")
    # A message that only calls tools has no content in the form that APIs write.
    if not isinstance(kept.get("content"), str | list) and not kept.get("tool_calls"):
        raise DataFormatError(f"{where}: 'content' must be a string or a list, {_found(message)}")
    return kept  # type: ignore[return-value]


def _found(value: Any) -> str:
    return f"found {_short(value)}"


def _short(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)[:80]
