r"""Parse rows of preference data sets into labeled comparisons.

| keys of the row | values |
|---|---|
| `comparison`, `label` | prompt_conversation, completion_A, completion_B; "A", "B" or "Tie" |
| `prompt`, `chosen`, `rejected` | strings or lists of messages |
| `messages` or `conversations`, `chosen`, `rejected` | a list of messages; two messages |
| `chosen`, `rejected` | conversations that differ in their last message |
| `instruction`, `chosen_response`, `rejected_response` | strings |
| `context`, `response1`, `response2`, `overall_preference` | response1 is better below 0 |

Messages are role/content or from/value. Lists under `chosen` and `rejected` may repeat the prompt
of the row. A conversation may also be a string as in hh-rlhf, each turn after "\n\nHuman: " or
"\n\nAssistant: ". In every format a row may have `system`. A chosen completion becomes A.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple, TypeVar

from tinker_cookbook.exceptions import DataFormatError
from tinker_cookbook.preference.types import Comparison, Label, LabeledComparison
from tinker_cookbook.renderers import Message
from tinker_cookbook.renderers.chats import FORMAT_PROBE_ROWS
from tinker_cookbook.renderers.known_keys import MESSAGE_KEYS
from tinker_cookbook.renderers.row_formats import (
    different_format_error,
    differs,
    parse_json_messages,
    read_message_list,
    to_row_dict,
)
from tinker_cookbook.renderers.row_messages import (
    add_system_prompt,
    check_row_keys,
    count_dropped_keys,
    errors_at,
    is_empty,
    join_parts,
    merge_text_parts,
    normalise_role,
    parse_message,
    quote_found,
)
from tinker_cookbook.renderers.row_summary import RowNotes
from tinker_cookbook.supervised.datasets import IndexedRows
from tinker_cookbook.utils.data_files import where
from tinker_cookbook.utils.json_types import Plain

# Keys that may hold a part of the prompt, so that dropping them would train on another one.
_PARTS_OF_A_PROMPT = ("prompt", "question", "query", "instruction", "input", "context", "history")

Row = Mapping[str, Plain]
F = TypeVar("F")
Notes = Counter[tuple[str, str]]


class ParsedComparison(NamedTuple):
    """The comparison of a row, and what was converted or dropped in it."""

    labeled: LabeledComparison
    notes: RowNotes


@dataclass(frozen=True)
class ComparisonFormat:
    """A format of rows, identified by the keys that it requires.

    sides: the keys of the completions A and B, for error messages. read: the comparison of a row;
    raises DataFormatError, to which the caller adds the location.
    """

    keys: tuple[str, ...]
    sides: tuple[str, str]
    read: Callable[[Row, Notes], LabeledComparison] = field(compare=False)

    @property
    def name(self) -> str:
        return "/".join(self.keys)


class ComparisonReader:
    """Parses the rows of one data set. The first row with a known format sets it for all."""

    def __init__(self) -> None:
        self.row_format: ComparisonFormat | None = None

    @property
    def source_formats(self) -> list[str]:
        """The format of the rows, as a list; [] if no row has been read."""
        return [_describe(self.row_format)] if self.row_format is not None else []

    def __call__(self, row: Plain, location: str) -> ParsedComparison:
        """Parse and validate one row; the renderer validates the content of the messages.

        Keys whose value is null count as absent. Raises DataFormatError prefixed with `location`.
        """
        with errors_at(location):
            detected = detect_comparison_format(row)
            if self.row_format is None:
                self.row_format = detected
            elif detected != self.row_format:
                raise different_format_error(detected.name, self.row_format.name)
            return _parse_comparison(to_row_dict(row, EXPECTED), detected)


def make_comparison_reader(rows: IndexedRows[Row], name: str) -> ComparisonReader:
    """Return a ComparisonReader with the format of the first row that has a known one.

    Raises DataFormatError, with the keys of the first row, if none of the first rows has one.
    """
    reader = ComparisonReader()
    reader.row_format = detect_in_first_rows(rows, name, detect_comparison_format)
    return reader


def detect_in_first_rows(rows: IndexedRows[Row], name: str, detect: Callable[[Plain], F]) -> F:
    """The format that `detect` finds in the first row that has one; it raises DataFormatError for
    the other rows. Raises the error of the first row if none of the first rows has one."""
    problem = "no rows"
    for index in range(min(len(rows), FORMAT_PROBE_ROWS)):
        try:
            return detect(rows[index])
        except DataFormatError as error:
            problem = problem if index else f"{where(rows, index)}: {error}"
    raise DataFormatError(f"data set {name}: {problem}")


def detect_comparison_format(row: Plain) -> ComparisonFormat:
    """The first of the known formats whose keys are all in the row; null counts as absent.

    Raises DataFormatError with the keys found and the formats expected.
    """
    cleaned = to_row_dict(row, EXPECTED)
    for row_format in _FORMATS:
        if cleaned.keys() >= set(row_format.keys):
            return row_format
    raise unknown_format_error(cleaned, EXPECTED)


def unknown_format_error(row: Row, expected: str) -> DataFormatError:
    """The error of a row that lacks keys of every known format."""
    found = ", ".join(map(repr, row)) or "an empty object"
    return DataFormatError(f"found {found}; expected {expected}")


def parse_comparison(row: Plain, location: str = "row") -> LabeledComparison:
    """Parse a single row outside a data set; see `ComparisonReader`."""
    return ComparisonReader()(row, location).labeled


def read_messages(row: Row, key: str, role: str, notes: Notes) -> list[Message]:
    """The messages under a key: a list of messages, one message, or the text of one with `role`."""
    value = parse_json_messages(row[key])
    if isinstance(value, str):
        if role == "user" and _HH_TURN.match(value):
            raise DataFormatError(
                f"{key!r} holds turns of a conversation in one string, {quote_found(value)}; write"
                " it as a list of messages"
            )
        messages: list[Plain] = [{"role": role, "content": value}]
    else:
        messages = read_message_list(key, [value] if isinstance(value, Mapping) else value)
    return [
        normalise_role(parse_message(message, f"{key!r}, message {index}"), notes)
        for index, message in enumerate(messages)
    ]


def check_prompt_and_keys(
    row: Row,
    keys: tuple[str, ...],
    prompt: list[Message],
    completion: list[Message],
    notes: Notes,
) -> list[Message]:
    """Check the prompt and the other keys of a row; returns the prompt with the row's 'system'.

    keys: the keys of the row that are read.
    """
    if not any(map(_text, prompt)):
        raise DataFormatError("the prompt is empty")
    prompt = add_system_prompt(row, prompt, notes)
    if not is_empty(row.get("tools")):
        raise DataFormatError(
            "'tools' is not supported in preference data; write them into the system prompt"
        )
    check_row_keys(row, keys, [*prompt, *completion], notes)
    texts = [_text(message) for message in prompt]
    for key in _PARTS_OF_A_PROMPT:
        if key in row and key not in keys and all(differs(row[key], text) for text in texts):
            raise DataFormatError(
                f"{key!r} together with {' and '.join(map(repr, keys))} is not supported; write it"
                " into the prompt, or remove it"
            )
    return prompt


def check_completion(completion: list[Message], key: str) -> None:
    """Raise DataFormatError unless the completion ends with a non-empty assistant message."""
    last = completion[-1] if completion else None
    if last is None or last["role"] != "assistant":
        found = "is empty" if last is None else f"ends with a message of role {last['role']!r}"
        raise DataFormatError(f"{key!r} {found}; expected an assistant message at its end")
    if not last.get("tool_calls") and not _text(last):
        raise DataFormatError(f"{key!r}: the completion is empty")


def finish_messages(messages: list[Message], notes: Notes) -> list[Message]:
    """Count the dropped keys of the messages; join content that is a list of text parts."""
    for message in messages:
        count_dropped_keys(message, notes)
    return [merge_text_parts(message) for message in messages]


def _parse_comparison(row: Row, row_format: ComparisonFormat) -> ParsedComparison:
    notes: Notes = Counter({("form", _describe(row_format)): 1})
    labeled = row_format.read(row, notes)
    a, b = labeled.comparison.completion_A, labeled.comparison.completion_B
    for completion, key in zip((a, b), row_format.sides):
        check_completion(completion, key)
    prompt = labeled.comparison.prompt_conversation
    prompt = check_prompt_and_keys(row, row_format.keys, prompt, a, notes)
    prompt, a, b = (finish_messages(messages, notes) for messages in (prompt, a, b))
    if _without_dropped_keys(a) == _without_dropped_keys(b):
        raise DataFormatError(f"{' and '.join(map(repr, row_format.sides))} are equal")
    return ParsedComparison(LabeledComparison(Comparison(prompt, a, b), labeled.label), +notes)


def _describe(row_format: ComparisonFormat) -> str:
    return f"{row_format.name}, read as comparisons"


def _text(message: Message) -> str:
    """The reasoning and the text of a message, stripped."""
    content = message.get("content")
    if isinstance(content, str):
        return content.strip()
    return join_parts(content, "thinking") + join_parts(content, "text")


def _without_dropped_keys(messages: list[Message]) -> list[dict[str, Plain]]:
    """The messages for comparison, without keys such as ids and scores."""
    return [{key: m[key] for key in m if key in MESSAGE_KEYS} for m in messages]


# The formats


def _read_stored(row: Row, notes: Notes) -> LabeledComparison:
    inner, label = row["comparison"], row["label"]
    keys = ("prompt_conversation", "completion_A", "completion_B")
    if not isinstance(inner, Mapping) or not inner.keys() >= set(keys):
        raise DataFormatError(
            f"'comparison' must be an object with {', '.join(keys)}, {quote_found(inner)}"
        )
    if label not in ("A", "B", "Tie"):
        raise DataFormatError(f'\'label\' must be "A", "B" or "Tie", {quote_found(label)}')
    notes.update(("row", f"comparison.{key}") for key in inner if key not in keys)
    roles = ("user", "assistant", "assistant")
    sides = [read_messages(inner, key, role, notes) for key, role in zip(keys, roles)]
    return LabeledComparison(Comparison(*sides), label)


def _read_prompted(prompt_key: str, row: Row, notes: Notes) -> LabeledComparison:
    prompt = read_messages(row, prompt_key, "user", notes)
    chosen = read_messages(row, "chosen", "assistant", notes)
    rejected = read_messages(row, "rejected", "assistant", notes)
    if not (_is_completion(chosen) and _is_completion(rejected)):
        labeled = _split_conversations(chosen, rejected)
        found = labeled.comparison.prompt_conversation
        if not _is_same_prompt(prompt, found, isinstance(row[prompt_key], str)):
            raise DataFormatError(
                f"'chosen' and 'rejected' hold whole conversations, but they do not begin with"
                f" {prompt_key!r}; remove it, or correct one of them"
            )
        return labeled
    return LabeledComparison(Comparison(prompt, chosen, rejected), "A")


def _read_conversations(row: Row, notes: Notes) -> LabeledComparison:
    conversations = []
    for key in ("chosen", "rejected"):
        value = parse_json_messages(row[key])
        if isinstance(value, str):
            conversations.append(_parse_hh(value, key))
        else:
            conversations.append(read_messages(row, key, "assistant", notes))
    return _split_conversations(*conversations)


_HH_TURN = re.compile(r"(?:\A|\n\n)(Human|Assistant):")
_HH_ROLES = {"Human": "user", "Assistant": "assistant"}


def _parse_hh(text: str, key: str) -> list[Message]:
    before, *parts = _HH_TURN.split(text)
    if before.strip() or not parts:
        raise DataFormatError(
            f"{key!r} must be a list of messages, or a string of turns after '\\n\\nHuman: ' and"
            f" '\\n\\nAssistant: ' ({quote_found(text)}); a plain completion needs the key 'prompt'"
        )
    return [
        Message(role=_HH_ROLES[name], content=turn.strip())
        for name, turn in zip(parts[::2], parts[1::2])
    ]


def _read_responses(row: Row, notes: Notes) -> LabeledComparison:
    prompt = read_messages(row, "instruction", "user", notes)
    chosen, rejected = (
        read_messages(row, key, "assistant", notes)
        for key in ("chosen_response", "rejected_response")
    )
    return LabeledComparison(Comparison(prompt, chosen, rejected), "A")


def _read_rated(row: Row, notes: Notes) -> LabeledComparison:
    preference = row["overall_preference"]
    # `!=` finds NaN, which is neither a preference nor a tie
    if not isinstance(preference, int | float) or isinstance(preference, bool):
        raise DataFormatError(f"'overall_preference' must be a number, {quote_found(preference)}")
    if preference != preference:
        raise DataFormatError("'overall_preference' is NaN; expected a number")
    label: Label = "A" if preference < 0 else "B" if preference > 0 else "Tie"
    prompt = read_messages(row, "context", "user", notes)
    first, second = (
        read_messages(row, key, "assistant", notes) for key in ("response1", "response2")
    )
    return LabeledComparison(Comparison(prompt, first, second), label)


def _is_completion(messages: list[Message]) -> bool:
    """Whether the messages are all the model's or its tools', so that no prompt is among them."""
    return all(message["role"] in ("assistant", "tool") for message in messages)


def _split_conversations(chosen: list[Message], rejected: list[Message]) -> LabeledComparison:
    """The comparison of the last messages of two conversations that are equal before them."""
    check_completion(chosen, "chosen")
    check_completion(rejected, "rejected")
    prompt = chosen[:-1]
    if _without_dropped_keys(prompt) != _without_dropped_keys(rejected[:-1]):
        raise DataFormatError("'chosen' and 'rejected' differ before the last assistant message")
    return LabeledComparison(Comparison(prompt, chosen[-1:], rejected[-1:]), "A")


def _is_same_prompt(given: list[Message], found: list[Message], is_text: bool) -> bool:
    """Whether the prompt of a row is the one found in its conversations. A prompt that is a text
    may lack the system prompt of the conversations, but no other message."""
    if not is_text:
        return _without_dropped_keys(given) == _without_dropped_keys(found)
    turns = found[1:] if found[0]["role"] in ("system", "developer") else found
    return [(m["role"], _text(m)) for m in turns] == [("user", _text(given[0]))]


_PAIR = ("chosen", "rejected")
# In the order of detection: formats with more keys come before those with some of these keys.
_FORMATS = (
    ComparisonFormat(("comparison", "label"), ("completion_A", "completion_B"), _read_stored),
    *(
        ComparisonFormat((key, *_PAIR), _PAIR, partial(_read_prompted, key))
        for key in ("prompt", "messages", "conversations")
    ),
    ComparisonFormat(_PAIR, _PAIR, _read_conversations),
    ComparisonFormat(
        ("instruction", "chosen_response", "rejected_response"),
        ("chosen_response", "rejected_response"),
        _read_responses,
    ),
    ComparisonFormat(
        ("context", "response1", "response2", "overall_preference"),
        ("response1", "response2"),
        _read_rated,
    ),
)
EXPECTED = "the keys " + ", or ".join(each.name for each in _FORMATS)
