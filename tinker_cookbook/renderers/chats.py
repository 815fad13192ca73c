"""Conversations from plain data, checked: every error says where, and what was found there."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinker_cookbook.exceptions import DataFormatError
from tinker_cookbook.renderers.known_keys import (
    MESSAGE_KEYS,
    PART_KEYS,
    REASONING,
    REPLIES,
    ROW_KEYS,
    SYSTEM,
    TEXTS,
    TOOL_KEYS,
    refusal,
)
from tinker_cookbook.renderers.messages import (
    SURROGATE,
    Content,
    Message,
    get_text_content,
    parse_content_blocks,
)
from tinker_cookbook.renderers.row_account import Notes
from tinker_cookbook.renderers.row_formats import (
    EXPECTED,
    MESSAGES,
    RowFormat,
    role_meant,
    row_format,
    row_object,
    short,
    tells,
    turns_meant,
    without_nulls,
)
from tinker_cookbook.renderers.tool_declarations import openai_tools
from tinker_cookbook.utils import data_files
from tinker_cookbook.utils.files import existing_file
from tinker_cookbook.utils.json_types import JsonObject, Plain
from tinker_cookbook.utils.records import DataFile

if TYPE_CHECKING:
    from tinker_cookbook.renderers.base import Renderer

_LOOKED_AT = 100  # rows, for one that tells the form


@dataclass(frozen=True)
class Chat:
    """A conversation and where it stands, for messages to the user ("chats.jsonl:17").

    tools: those that are declared to the model, as OpenAI's API or `ToolSpec` has them. notes: what
    of the row was converted or is not read.
    """

    messages: list[Message]
    where: str
    tools: list[JsonObject] = field(default_factory=list)
    notes: Notes = field(default_factory=dict, compare=False)

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


def is_jsonl(path: str) -> bool:
    """Whether it names a file that training reads as a whole, and refuses for one bad line."""
    return path.endswith(".jsonl")


def check_file_exists(path: str, key: str) -> None:
    """ConfigurationError for what looks like a file, not like a name on the hub, and is not there.
    `key` is the configuration key that named it."""
    if is_jsonl(path) or (data_files.is_file_name(path) and not Path(path).expanduser().exists()):
        existing_file(path, key)


def read_chats(path: str | Path, key: str = "path", message_field: str = "messages") -> list[Chat]:
    """All conversations of a JSON file, one a line or in one array, in a form of `row_formats.py`.

    `key` is the configuration key that named the file, `message_field` the one in each row that
    holds the messages. Raises ConfigurationError for a file that is not there, DataFormatError
    (with file and line number) for one that cannot be read.
    """
    file = DataFile(str(existing_file(path, key)), str(path))
    read = RowReader(message_field)
    chats = [read(record.row, f"{path}:{record.line}") for record in file.records()]
    if not chats:
        raise DataFormatError(f"{path}: the file is empty; expected one object a line: {EXPECTED}")
    return chats


class RowReader:
    """The conversations of one data set's rows, all in the form of its first row.

    A row is a mapping of plain values. What is null in it is not there, inside tools and the
    arguments of calls too, as a table has every key of any row; to keep a null there, write tools
    or arguments as JSON in text. message_field: key of the list of messages.
    """

    def __init__(self, message_field: str = MESSAGES) -> None:
        self.message_field = message_field
        self.form: RowFormat | None = None

    @property
    def forms(self) -> list[str]:
        """How rows are read, where they are converted."""
        return [self.form.read_as] if self.form is not None and self.form.read_as else []

    def __call__(self, row: Plain, where: str) -> Chat:
        """The conversation of a row, checked, but for what its messages hold, which the renderer
        checks. DataFormatError that begins with `where`."""
        try:
            kept = row_object(row)
            assert isinstance(row, Mapping)  # or it would have been refused
            try:
                form = row_format(kept, self.message_field, self.form)
            except DataFormatError:
                if self.message_field not in row:
                    raise
                kept[self.message_field] = None  # a table has the column in every row
                form = row_format(kept, self.message_field, self.form)
            if self.form is None:
                self.form = form if tells(form, kept) else None
            elif form != self.form:
                raise DataFormatError(
                    f"{form.name}, but the data set begins with {self.form.name}; "
                    "one data set has one form"
                )
            return _chat(kept, form, where, _nulls_left_out(row, kept, form))
        except DataFormatError as error:
            raise DataFormatError(f"{where}: {error}") from error
        except RecursionError:
            raise DataFormatError(f"{where}: the row is nested too deeply") from None


def row_reader(rows: Iterable[Plain], message_field: str, name: str) -> RowReader:
    """A reader in the form of the first of `rows` that has one. DataFormatError where none has."""
    reader = RowReader(message_field)
    problem = "no rows"
    for number, row in enumerate(itertools.islice(rows, _LOOKED_AT)):
        try:
            kept = row_object(row)
            form = row_format(kept, message_field)
            if tells(form, kept):
                reader.form = form
                return reader
            form.turns(kept)  # says what is wrong
            problem = problem if number else "row 0: it begins with no message"
        except (DataFormatError, RecursionError) as error:
            problem = f"row {number}: {error}" if not number else problem
    raise DataFormatError(f"data set {name}: {problem}")


def row_chat(row: Plain, where: str, message_field: str = MESSAGES) -> Chat:
    """The conversation of one row that stands alone, see `RowReader`."""
    return RowReader(message_field)(row, where)


def _chat(row: Mapping[str, Plain], form: RowFormat, where: str, nulls: Iterable[str] = ()) -> Chat:
    messages = [  # counted from 0, as the renderers do
        _message(message, f"message {index}") for index, message in enumerate(form.turns(row))
    ]
    notes: Counter[tuple[str, str]] = Counter(("null", what) for what in nulls)
    if form.read_as:
        notes["form", form.read_as] += 1
    prompt = turns_meant(row.get("prompt")) if form.name == "prompt/completion" else None
    if isinstance(prompt, list):
        replies = sum(message["role"] == "assistant" for message in messages[: len(prompt)])
        notes["replies", "prompt"] += replies > 0
    messages = [_with_known_role(message, notes) for message in messages]
    system = None if _is_empty(row.get("system")) else row["system"]
    if system and _system_of(messages) != system:
        messages = _with_system(system, messages)
    elif system:
        notes["row", "system"] += 1
    _check_row_keys(row, form, messages, notes)
    for message in messages:
        _count_unread(message, notes)
    messages = list(map(_with_one_text, messages))
    return Chat(messages, where, _tools(row.get("tools")), +notes)


def _with_known_role(message: Message, notes: Counter[tuple[str, str]]) -> Message:
    role = message["role"]
    meant = role_meant(role)
    if meant == role:
        return message
    notes["role", f"{role} read as {meant}"] += 1
    return {**message, "role": meant}


def _system_of(messages: list[Message]) -> Content | None:
    first = messages[0]
    return first.get("content") if first["role"] in ("system", "developer") else None


def _with_system(system: Plain, messages: list[Message]) -> list[Message]:
    if not isinstance(system, str):
        raise DataFormatError(f"'system' must be text, {_found(system)}")
    if _system_of(messages) is not None:
        raise DataFormatError(
            "'system' beside messages that begin with another system message; keep one of them"
        )
    first = Message(role="system", content=system)
    if any("trainable" in message for message in messages):
        first["trainable"] = False
    return [first, *messages]


def _check_row_keys(
    row: Mapping[str, Plain],
    form: RowFormat,
    messages: list[Message],
    notes: Counter[tuple[str, str]],
) -> None:
    """Keys beside the conversation: refused, or noted as not read."""
    read = (*form.keys, *ROW_KEYS)
    for key, value in row.items():
        if key in read or _is_empty(value):
            continue
        problem = refusal("row", key, value, read)
        if key in REPLIES and messages[-1]["role"] != "assistant":
            problem = f"{key!r} is not read; make the reply the last message"
        if problem and not (key in TEXTS and _repeats(key, value, messages)):
            raise DataFormatError(problem)
        notes["row", key] += 1


def _is_empty(value: Plain) -> bool:
    return not value.strip() if isinstance(value, str) else value in (None, [], {})


def _repeats(key: str, value: Plain, messages: list[Message]) -> bool:
    """Whether the messages have a text, too, as what the key says, so that nothing is lost."""
    if key in SYSTEM:
        first = messages[0]
        found = [_texts(first)] if first["role"] in ("system", "developer") else []
    else:
        replies = [message for message in messages if message["role"] == "assistant"]
        found = list(map(_texts if key in REPLIES else _reasoning, replies))
    text = value.strip() if isinstance(value, str) else ""
    return bool(text) and text in [each for texts in found for each in texts]


def _texts(message: Message) -> list[str]:
    """The text of a message, with the reasoning in it and without."""
    content: Any = message.get("content")
    parts = (isinstance(content, str) and parse_content_blocks(content)) or content
    return [_joined(content, "text"), _joined(parts, "text")]


def _reasoning(message: Message) -> list[str]:
    """The reasoning of a message: all that it may have, and the whole of each kind."""
    content: Any = message.get("content")
    parts = (isinstance(content, str) and parse_content_blocks(content)) or content
    under_key = [str(value).strip() for key, value in message.items() if key in REASONING]
    return [*under_key, "" if isinstance(parts, str) else _joined(parts, "thinking")]


def _joined(content: Any, kind: str) -> str:
    """All parts of a kind; a string is text."""
    if isinstance(content, str):
        return content.strip()
    parts = [part for part in content or () if isinstance(part, Mapping)]
    return "".join(
        str(part[kind]) for part in parts if part.get("type") == kind and kind in part
    ).strip()


def _count_unread(message: Message, notes: Counter[tuple[str, str]]) -> None:
    notes.update(("message", key) for key in message if key not in MESSAGE_KEYS)
    content = message.get("content")
    for part in content if isinstance(content, list) else []:
        if isinstance(part, Mapping):
            notes.update(("part", key) for key in part if key not in PART_KEYS)


def _tools(value: Plain) -> list[JsonObject]:
    """The tools of a row: a list of them, as it is or as JSON in text; none where it is empty."""
    tools: Plain = value or []
    if isinstance(tools, str):
        try:
            tools = json.loads(tools) or []
        except json.JSONDecodeError:
            raise DataFormatError(f"'tools' is not JSON, {_found(value)}") from None
    if not isinstance(tools, list):
        raise DataFormatError(f"'tools' must be a list of tools, {_found(value)}")
    if SURROGATE.search(json.dumps(tools, ensure_ascii=False, default=str)):
        raise DataFormatError("'tools' hold half of a surrogate pair")
    checked: list[JsonObject] = []
    for index, tool in enumerate(tools):
        function = tool.get("function", tool) if isinstance(tool, dict) else None
        if (
            not isinstance(tool, dict)
            or not isinstance(function, Mapping)
            or not isinstance(function.get("name"), str)
        ):
            raise DataFormatError(
                f"tool {index} must be an object with name, description and parameters, "
                f"{_found(tool)}"
            )
        _check_tool_keys(tool, function, f"tool {index}")
        checked.append(tool)
    return checked


def _check_tool_keys(tool: Mapping[str, Plain], function: Mapping[str, Plain], where: str) -> None:
    """Near misses of keys that formats declare, which some would leave out."""
    for key, value in [*tool.items(), *function.items()]:
        if key not in TOOL_KEYS and (problem := refusal("tool", key, value, TOOL_KEYS)):
            raise DataFormatError(f"{where}: {problem}")
    for key in ("name", "description", "parameters"):
        if key in tool and tool[key] != function.get(key):
            raise DataFormatError(f"{where}: {key!r} beside 'function'; write it inside")


def _nulls_left_out(
    row: Mapping[str, Plain], kept: Mapping[str, Plain], form: RowFormat
) -> list[str]:
    """Whether "tools" or "arguments" of a row, as objects, hold a null that `kept` does not."""
    found: dict[str, None] = {}
    if isinstance(row.get("tools"), list) and row["tools"] != kept["tools"]:
        found["tools"] = None
    lists = [value for key in form.keys if isinstance(value := turns_meant(row.get(key)), list)]
    for message in itertools.chain.from_iterable(lists):
        calls = message.get("tool_calls") if isinstance(message, Mapping) else None
        for call in calls if isinstance(calls, list) else []:
            function = call.get("function") if isinstance(call, Mapping) else None
            arguments = function.get("arguments") if isinstance(function, Mapping) else None
            if arguments != without_nulls(arguments):
                found["arguments"] = None
    return list(found)


def _message(message: Plain, where: str) -> Message:
    if not isinstance(message, Mapping):
        raise DataFormatError(f"{where} must be an object with role and content, {_found(message)}")
    kept = dict(message)
    if not isinstance(kept.get("role"), str):
        raise DataFormatError(f"{where}: 'role' must be a string, {_found(message)}")
    # A message that only calls tools has no content in the form that APIs write.
    if not isinstance(kept.get("content"), str | list) and not kept.get("tool_calls"):
        raise DataFormatError(f"{where}: 'content' must be a string or a list, {_found(message)}")
    return kept  # type: ignore[return-value]


def _with_one_text(message: Message) -> Message:
    """An assistant's parts of text as one string, with its <think>, if any."""
    content: Any = message.get("content")
    if message["role"] != "assistant" or not isinstance(content, list):
        return message
    if not all(map(_is_text, content)):
        return message
    return {**message, "content": "".join(part["text"] for part in content)}


def _is_text(part: Plain) -> bool:
    """Text and nothing else that matters, so that it may become one string with those around it."""
    return (
        isinstance(part, Mapping)
        and part.get("type") == "text"
        and isinstance(part.get("text"), str)
        and not any(part.get(key) for key in PART_KEYS if key not in ("type", "text"))
        and not any(
            refusal("part", key, value, PART_KEYS)
            for key, value in part.items()
            if key not in PART_KEYS
        )
    )


def _found(value: Plain) -> str:
    return f"found {short(value)}"
