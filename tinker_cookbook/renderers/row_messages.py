"""Parse and check the messages of a row, whatever the format of the row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from tinker_cookbook.exceptions import DataFormatError
from tinker_cookbook.renderers.known_keys import (
    MESSAGE_KEYS,
    PART_KEYS,
    REASONING_KEYS,
    REPLY_KEYS,
    ROW_KEYS,
    SYSTEM_PROMPT_KEYS,
    TEXT_KEYS,
    find_key_problem,
)
from tinker_cookbook.renderers.messages import Content, Message, parse_content_blocks
from tinker_cookbook.renderers.row_formats import canonical_role, excerpt
from tinker_cookbook.utils.json_types import Plain


@contextmanager
def errors_at(location: str) -> Iterator[None]:
    """Prefix the message of a DataFormatError with the location of the row."""
    try:
        yield
    except DataFormatError as error:
        raise DataFormatError(f"{location}: {error}") from error
    except RecursionError:
        raise DataFormatError(f"{location}: the row is nested too deeply") from None


def parse_message(message: Plain, place: str) -> Message:
    if not isinstance(message, Mapping):
        raise DataFormatError(
            f"{place} must be an object with role and content, {quote_found(message)}"
        )
    parsed = dict(message)
    if not isinstance(parsed.get("role"), str):
        raise DataFormatError(f"{place}: 'role' must be a string, {quote_found(message)}")
    # In OpenAI's API, a message with tool calls may have no content.
    if not isinstance(parsed.get("content"), str | list) and not parsed.get("tool_calls"):
        raise DataFormatError(
            f"{place}: 'content' must be a string or a list, {quote_found(message)}"
        )
    return parsed  # type: ignore[return-value]


def normalise_role(message: Message, notes: Counter[tuple[str, str]]) -> Message:
    role = message["role"]
    known_role = canonical_role(role)
    if known_role == role:
        return message
    notes["role", f"{role} read as {known_role}"] += 1
    return {**message, "role": known_role}


def add_system_prompt(
    row: Mapping[str, Plain], messages: list[Message], notes: Counter[tuple[str, str]]
) -> list[Message]:
    """The messages with the row's key 'system' as the first one, unless they begin with it."""
    system = None if is_empty(row.get("system")) else row["system"]
    if system and _system_content(messages) != system:
        return _prepend_system_message(system, messages)
    if system:
        notes["row", "system"] += 1
    return messages


def _system_content(messages: list[Message]) -> Content | None:
    first = messages[0]
    return first.get("content") if first["role"] in ("system", "developer") else None


def _prepend_system_message(system: Plain, messages: list[Message]) -> list[Message]:
    if not isinstance(system, str):
        raise DataFormatError(f"'system' must be a string, {quote_found(system)}")
    if _system_content(messages) is not None:
        raise DataFormatError(
            "'system' differs from the system message in the messages; remove one of the two"
        )
    first = Message(role="system", content=system)
    if any("trainable" in message for message in messages):
        first["trainable"] = False
    return [first, *messages]


def check_row_keys(
    row: Mapping[str, Plain],
    keys: tuple[str, ...],
    messages: list[Message],
    notes: Counter[tuple[str, str]],
) -> None:
    """Reject unknown keys that would change what is trained on; count the others as dropped.

    keys: the keys of the row that hold the conversation.
    """
    known = (*keys, *ROW_KEYS)
    for key, value in row.items():
        if key in known or is_empty(value):
            continue
        problem = find_key_problem("row", key, value, known)
        if key in REPLY_KEYS and messages[-1]["role"] != "assistant":
            problem = f"{key!r} is not supported; put the reply into the last message"
        if problem and not (key in TEXT_KEYS and _is_text_in_messages(key, value, messages)):
            raise DataFormatError(problem)
        notes["row", key] += 1


def is_empty(value: Plain) -> bool:
    return not value.strip() if isinstance(value, str) else value in (None, [], {})


def _is_text_in_messages(key: str, value: Plain, messages: list[Message]) -> bool:
    """Whether the messages hold the same text in the same place, so that dropping the key is safe:
    as the system prompt, as a reply, or as reasoning, whichever the key names.

    The texts must be equal. A text that merely occurs inside a message may mean something else.
    """
    if key in SYSTEM_PROMPT_KEYS:
        first = messages[0]
        groups = [_text_variants(first)] if first["role"] in ("system", "developer") else []
    else:
        replies = [message for message in messages if message["role"] == "assistant"]
        groups = list(map(_text_variants if key in REPLY_KEYS else _reasoning_texts, replies))
    text = value.strip() if isinstance(value, str) else ""
    return bool(text) and text in [candidate for texts in groups for candidate in texts]


def _text_variants(message: Message) -> list[str]:
    """The text of a message, with its think blocks and without."""
    content: Any = message.get("content")
    # a string without think blocks has no parts, and stays a string
    parts = (isinstance(content, str) and parse_content_blocks(content)) or content
    return [join_parts(content, "text"), join_parts(parts, "text")]


def _reasoning_texts(message: Message) -> list[str]:
    """The reasoning under each reasoning key of a message, and that of its thinking parts."""
    content: Any = message.get("content")
    parts = (isinstance(content, str) and parse_content_blocks(content)) or content
    from_keys = [str(value).strip() for key, value in message.items() if key in REASONING_KEYS]
    return [*from_keys, "" if isinstance(parts, str) else join_parts(parts, "thinking")]


def join_parts(content: Any, kind: str) -> str:
    """Join the parts of type `kind`, or take a string as it is; either is stripped."""
    if isinstance(content, str):
        return content.strip()
    parts = [part for part in content or () if isinstance(part, Mapping)]
    return "".join(
        str(part[kind]) for part in parts if part.get("type") == kind and kind in part
    ).strip()


def count_dropped_keys(message: Message, notes: Counter[tuple[str, str]]) -> None:
    notes.update(("message", key) for key in message if key not in MESSAGE_KEYS)
    content = message.get("content")
    for part in content if isinstance(content, list) else []:
        if isinstance(part, Mapping):
            notes.update(("part", key) for key in part if key not in PART_KEYS)


def merge_text_parts(message: Message) -> Message:
    """Join the content of an assistant message into one string if it is all text parts.

    A `<think>` block in the joined string is then parsed as reasoning.
    """
    content: Any = message.get("content")
    if message["role"] != "assistant" or not isinstance(content, list):
        return message
    if not all(map(_is_plain_text_part, content)):
        return message
    return {**message, "content": "".join(part["text"] for part in content)}


def _is_plain_text_part(part: Plain) -> bool:
    """Whether a part is text alone, so that merging it with its neighbours loses nothing."""
    return (
        isinstance(part, Mapping)
        and part.get("type") == "text"
        and isinstance(part.get("text"), str)
        and not any(part.get(key) for key in PART_KEYS if key not in ("type", "text"))
        and not any(
            find_key_problem("part", key, value, PART_KEYS)
            for key, value in part.items()
            if key not in PART_KEYS
        )
    )


def quote_found(value: Plain) -> str:
    return f"found {excerpt(value)}"
