"""Parse rows of data sets into conversations. Every error gives the location and the bad value.

`row_formats.py` detects the format of a row, `known_keys.py` decides which keys are used, dropped
or rejected, and the renderers validate the messages themselves.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from tinker_cookbook.exceptions import DataFormatError
from tinker_cookbook.renderers.known_keys import TOOL_KEYS, find_key_problem
from tinker_cookbook.renderers.messages import LONE_SURROGATE, Message, get_text_content
from tinker_cookbook.renderers.row_formats import (
    EXPECTED_ROW,
    MESSAGES_KEY,
    RowFormat,
    detect_row_format,
    different_format_error,
    drop_nulls,
    identifies_format,
    parse_json_messages,
    to_row_dict,
)
from tinker_cookbook.renderers.row_messages import (
    add_system_prompt,
    check_row_keys,
    count_dropped_keys,
    errors_at,
    merge_text_parts,
    normalise_role,
    parse_message,
    quote_found,
)
from tinker_cookbook.renderers.row_summary import RowNotes
from tinker_cookbook.renderers.tool_declarations import openai_tools
from tinker_cookbook.utils import data_files
from tinker_cookbook.utils.files import existing_file
from tinker_cookbook.utils.json_types import JsonObject, Plain
from tinker_cookbook.utils.records import DataFile

if TYPE_CHECKING:
    from tinker_cookbook.renderers.base import Renderer

FORMAT_PROBE_ROWS = 100  # maximum number of rows read to detect a data set's format

SampleProblem = Literal["truncated", "empty", "too long", "tool call", "malformed"]
"""Why a sampled reply is not to be trained on, see `distillation.teacher_samples`."""
_SAMPLE_KEYS = frozenset({"index", "messages", "problem", "num_tokens"})


@dataclass(frozen=True)
class Chat:
    """A conversation and its source location ("chats.jsonl:17"), which error messages cite.

    tools: tool declarations in the format of OpenAI's API or of `ToolSpec`. notes: what was
    converted in the row and which of its keys were dropped, or why it is not to be trained on.
    """

    messages: list[Message]
    location: str
    tools: list[JsonObject] = field(default_factory=list)
    notes: RowNotes = field(default_factory=dict, compare=False)

    @property
    def is_excluded(self) -> bool:
        """Whether the conversation is not to be trained on, but to be counted."""
        return any(kind == "excluded" for kind, _ in self.notes)

    def messages_for(self, renderer: Renderer) -> list[Message]:
        """The messages with `renderer`'s tool declaration prepended. A system prompt becomes part
        of the declaration. Raises RendererError if the chat format does not support tools."""
        if not self.tools:
            return self.messages
        # Validate before the declaration is prepended: it shifts the indices, and errors must cite
        # each message by its index in the row.
        renderer.validate_messages(self.messages)
        first, rest = self.messages[0], self.messages[1:]
        if first["role"] not in ("system", "developer"):
            first, rest = Message(role="system", content=""), self.messages
        prefix = renderer.declare_tools(openai_tools(self.tools), get_text_content(first))
        # Either all messages have `trainable` or none does: train_on_what=customized requires it on
        # every message, and the other modes reject it.
        if any("trainable" in message for message in self.messages):
            for message in prefix:
                message["trainable"] = first.get("trainable", False)
        return [*prefix, *rest]


@dataclass(frozen=True)
class BadRow:
    """A row that could not be parsed into a conversation."""

    location: str
    problem: str


def is_jsonl(path: str) -> bool:
    """Whether `path` is a JSONL file. Training reads it in full; one bad line is an error."""
    return path.endswith(".jsonl")


def check_file_exists(path: str, key: str) -> None:
    """Raise ConfigurationError if `path` looks like a file, not a hub name, and does not exist.
    `key` is the configuration key that holds the path."""
    if is_jsonl(path) or (data_files.is_file_name(path) and not Path(path).expanduser().exists()):
        existing_file(path, key)


def read_chats(path: str | Path, key: str = "path", message_field: str = "messages") -> list[Chat]:
    """Read every conversation of a JSONL file, or of a JSON file that holds one array.

    `key` is the configuration key that holds the path, `message_field` the key of the messages in
    each row. Raises ConfigurationError if the file does not exist, DataFormatError (with file and
    line number) if a row cannot be parsed.
    """
    file = DataFile(str(existing_file(path, key)), str(path))
    parse = RowReader(message_field)
    chats = [parse(record.row, f"{path}:{record.line}") for record in file.records()]
    if not chats:
        raise DataFormatError(
            f"{path}: the file is empty; expected one object per line: {EXPECTED_ROW}"
        )
    return chats


class RowReader:
    """Parses the rows of one data set. The first row to identify a format sets it for all.

    Keys whose value is null are dropped, also inside tools and the arguments of tool calls, because
    a table (e.g. Arrow) gives every row the union of all keys and fills the missing ones with null.
    To keep a null, give tools or arguments as a JSON string.

    message_field: key of the list of messages.
    """

    def __init__(self, message_field: str = MESSAGES_KEY) -> None:
        self.message_field = message_field
        self.row_format: RowFormat | None = None

    @property
    def source_formats(self) -> list[str]:
        """The format that rows are converted from, as a list; [] if they hold messages already."""
        known = self.row_format
        return [known.conversion] if known is not None and known.conversion else []

    def __call__(self, row: Plain, location: str) -> Chat:
        """Parse and validate one row; the renderer validates the content of the messages.

        Raises DataFormatError prefixed with `location`.
        """
        with errors_at(location):
            cleaned = to_row_dict(row)
            assert isinstance(row, Mapping)  # to_row_dict rejects anything else
            try:
                detected = detect_row_format(cleaned, self.message_field, self.row_format)
            except DataFormatError:
                if self.message_field not in row:
                    raise
                # The key exists but its value is null, so `cleaned` lacks it. Restore it, to report
                # an empty list of messages rather than a missing key.
                cleaned[self.message_field] = None
                detected = detect_row_format(cleaned, self.message_field, self.row_format)
            if self.row_format is None:
                self.row_format = detected if identifies_format(detected, cleaned) else None
            elif detected != self.row_format:
                raise different_format_error(detected.name, self.row_format.name)
            return _parse_chat(
                cleaned, detected, location, _fields_with_dropped_nulls(row, cleaned, detected)
            )


def make_row_reader(rows: Iterable[Plain], message_field: str, name: str) -> RowReader:
    """Return a RowReader with the format of the first row that identifies one.

    Raises DataFormatError if no row identifies one.
    """
    reader = RowReader(message_field)
    # An empty or bad row 0 does not identify the format, so later rows are tried. If none does, the
    # error is the one of row 0.
    problem = "no rows"
    for number, row in enumerate(itertools.islice(rows, FORMAT_PROBE_ROWS)):
        try:
            cleaned = to_row_dict(row)
            detected = detect_row_format(cleaned, message_field)
            if identifies_format(detected, cleaned):
                reader.row_format = detected
                return reader
            detected.read_messages(cleaned)  # raises if the row is malformed, not just empty
            problem = problem if number else "row 0: the list of messages is empty"
        except (DataFormatError, RecursionError) as error:
            problem = f"row {number}: {error}" if not number else problem
    raise DataFormatError(f"data set {name}: {problem}")


def parse_row(row: Plain, location: str, message_field: str = MESSAGES_KEY) -> Chat:
    """Parse a single row outside a data set; see `RowReader`."""
    return RowReader(message_field)(row, location)


def _parse_chat(
    row: Mapping[str, Plain], row_format: RowFormat, location: str, nulls: Iterable[str] = ()
) -> Chat:
    messages = [  # 0-based indices, as in the renderers' errors
        parse_message(message, f"message {index}")
        for index, message in enumerate(row_format.read_messages(row))
    ]
    notes: Counter[tuple[str, str]] = Counter(("null", field_name) for field_name in nulls)
    if row_format.conversion:
        notes["form", row_format.conversion] += 1
    is_completion = row_format.name == "prompt/completion"
    prompt = parse_json_messages(row.get("prompt")) if is_completion else None
    if isinstance(prompt, list):
        # Every mode but last_assistant_message trains the replies inside the prompt as well, so the
        # summary of the data reports such rows.
        replies = sum(message["role"] == "assistant" for message in messages[: len(prompt)])
        notes["replies", "prompt"] += replies > 0
    messages = [normalise_role(message, notes) for message in messages]
    messages = add_system_prompt(row, messages, notes)
    check_row_keys(row, row_format.keys, messages, notes)
    for message in messages:
        count_dropped_keys(message, notes)
    messages = list(map(merge_text_parts, messages))
    if (problem := _sample_problem(row)) is not None:
        notes = Counter({("excluded", f"{problem} sample"): 1})
    return Chat(messages, location, _parse_tools(row.get("tools")), +notes)  # `+` removes zeros


def _sample_problem(row: Mapping[str, Plain]) -> str | None:
    """Why a row of sampled replies is not to be trained on; None if it may be. In other data the
    key has another meaning, e.g. a problem of mathematics."""
    problem = row.get("problem")
    is_sample = row.keys() >= _SAMPLE_KEYS and problem in get_args(SampleProblem)
    return problem if is_sample and isinstance(problem, str) else None


def _parse_tools(value: Plain) -> list[JsonObject]:
    """The tools of a row, given as a list or as a JSON string of one; [] if the value is empty."""
    tools: Plain = value or []
    if isinstance(tools, str):
        try:
            tools = json.loads(tools) or []
        except json.JSONDecodeError:
            raise DataFormatError(f"'tools' is not valid JSON, {quote_found(value)}") from None
    if not isinstance(tools, list):
        raise DataFormatError(f"'tools' must be a list of tools, {quote_found(value)}")
    if LONE_SURROGATE.search(json.dumps(tools, ensure_ascii=False, default=str)):
        raise DataFormatError(
            "'tools' contains an unpaired surrogate, which cannot be encoded; remove it"
        )
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
                f"{quote_found(tool)}"
            )
        _check_tool_keys(tool, function, f"tool {index}")
        checked.append(tool)
    return checked


def _check_tool_keys(
    tool: Mapping[str, Plain], function: Mapping[str, Plain], tool_name: str
) -> None:
    """Reject misspelt keys, which some chat templates would silently leave out."""
    for key, value in [*tool.items(), *function.items()]:
        if key not in TOOL_KEYS and (problem := find_key_problem("tool", key, value, TOOL_KEYS)):
            raise DataFormatError(f"{tool_name}: {problem}")
    for key in ("name", "description", "parameters"):
        if key in tool and tool[key] != function.get(key):
            raise DataFormatError(f"{tool_name}: {key!r} is outside 'function'; move it inside")


def _fields_with_dropped_nulls(
    row: Mapping[str, Plain], cleaned: Mapping[str, Plain], row_format: RowFormat
) -> list[str]:
    """Which of the fields "tools" and "arguments" have nulls in `row` but not in `cleaned`."""
    found: dict[str, None] = {}  # an ordered set
    if isinstance(row.get("tools"), list) and row["tools"] != cleaned["tools"]:
        found["tools"] = None
    lists = [
        value
        for key in row_format.keys
        if isinstance(value := parse_json_messages(row.get(key)), list)
    ]
    for message in itertools.chain.from_iterable(lists):
        calls = message.get("tool_calls") if isinstance(message, Mapping) else None
        for call in calls if isinstance(calls, list) else []:
            function = call.get("function") if isinstance(call, Mapping) else None
            arguments = function.get("arguments") if isinstance(function, Mapping) else None
            if arguments != drop_nulls(arguments):
                found["arguments"] = None
    return list(found)
