"""Formats in which data sets store conversations, detected from the keys of a row.

| keys of the row | converted to |
|---|---|
| `messages` of role/content | used as they are |
| `conversations` of from/value (ShareGPT) | messages; a `function_call` becomes tool calls |
| `instruction`, `input`, `output`, `history` (Alpaca) | user and assistant messages |
| `prompt`, `completion`: strings or lists of messages | both, concatenated |
| `question`, `answer`: strings | user and assistant messages |

`messages` may also hold from/value, and `conversations` role/content; `message_field=` names a list
under another key. A row with `messages` is read from these alone, because data sets repeat the
first question as `prompt`. In every format a row may also have `system` (a string) and `tools`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

from tinker_cookbook.exceptions import DataFormatError
from tinker_cookbook.renderers.known_keys import REPLY_KEYS
from tinker_cookbook.utils.json_types import JsonObject, Plain
from tinker_cookbook.utils.misc_utils import counted

MESSAGES_KEY = "messages"
EXPECTED_ROW = '{"messages": [{"role": "user", "content": "..."}, ...]}'
OTHER_FORMATS = (
    "'conversations' of from/value, 'instruction' and 'output', 'prompt' and 'completion', or"
    " 'question' and 'answer'"
)
ROLE_ALIASES = {
    **dict.fromkeys(("human", "prompter"), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "bard", "bing", "claude", "bot", "model"), "assistant"),
    **dict.fromkeys(("observation", "function", "tool_response", "ipython"), "tool"),
}
"""Names that data sets use for the roles, in lower case."""

Messages = list[Plain]


@dataclass(frozen=True)
class RowFormat:
    """A format of rows. Two are equal if they read the same keys in the same way.

    keys: the keys that hold the conversation. conversion: its description in the summary of the
    data, empty if messages are used as they are. read_messages: the messages of a row; raises
    DataFormatError, to which the caller adds the location.
    """

    name: str
    keys: tuple[str, ...]
    conversion: str
    read_messages: Callable[[Mapping[str, Plain]], Messages] = field(compare=False)


def to_row_dict(row: Plain, expected: str = EXPECTED_ROW) -> JsonObject:
    """A copy of a row without nulls. Raises DataFormatError if it is not a mapping."""
    cleaned = drop_nulls(row)
    if not isinstance(cleaned, dict):
        raise DataFormatError(f"found {excerpt(cleaned)}; expected {expected}")
    return cleaned


def different_format_error(found: str, first: str) -> DataFormatError:
    """The error of a row whose format is not that of the data set's first row."""
    return DataFormatError(
        f"found {found}, but the data set begins with {first}; all rows of a data set must have the"
        " same format"
    )


def detect_row_format(
    row: Mapping[str, Plain], message_field: str = MESSAGES_KEY, known: RowFormat | None = None
) -> RowFormat:
    """Detect the format of a row without nulls. The key `message_field` outranks all others.

    Raises DataFormatError, with the keys found, if no format or more than one matches. known: the
    format of the other rows, assumed for an empty list, which identifies none.
    """
    if message_field in row:
        return _list_format(row, message_field, known)
    found = ", ".join(map(repr, row)) or "an empty object"
    if message_field != MESSAGES_KEY:
        raise DataFormatError(
            f"no {message_field!r}; found {found}: set message_field= to the key of the messages"
        )
    pairs = (_ALPACA, _COMPLETION, _QUESTION)
    matches = [each for each in pairs if each.keys[0] in row and each.keys[1] in row]
    if "conversations" in row:
        matches.insert(0, _list_format(row, "conversations", known))
    if len(matches) == 1:
        return matches[0]
    if matches:
        names = " and ".join(match.name for match in matches)
        raise DataFormatError(
            f"both {names}; found {found}: rename or remove the keys of the other format"
            + (", or set message_field=conversations" if "conversations" in row else "")
        )
    hint = ""
    lists = [key for key, value in row.items() if _is_message(_first_message(value))]
    if {"chosen", "rejected"} <= row.keys():
        hint = " (preference pairs are not conversations to train on)"
    elif len(lists) == 1:
        hint = f" (message_field={lists[0]} reads that list)"
    raise DataFormatError(
        f"no 'messages'; found {found}{hint}; expected {EXPECTED_ROW} or {OTHER_FORMATS}"
    )


def _list_format(row: Mapping[str, Plain], key: str, known: RowFormat | None) -> RowFormat:
    first = _first_message(row[key])
    if first is None and known is not None and known.keys == (key,):
        return known
    if isinstance(first, Mapping) and "from" in first and "role" not in first:
        read, name = partial(_read_sharegpt, key), f"{key} of from/value"
    else:
        read, name = partial(_read_messages, key), f"{key} of role/content"
    converted = read.func is _read_sharegpt or key == "conversations"
    return RowFormat(name, (key,), f"{name}, read as messages" if converted else "", read)


def read_message_list(key: str, value: Plain) -> Messages:
    """The messages of a list of role/content or of from/value; `key` names it in errors."""
    row = {key: value}
    return _list_format(row, key, None).read_messages(row)


def identifies_format(row_format: RowFormat, row: Mapping[str, Plain]) -> bool:
    """Whether the row settles the format of its data set. An empty list of messages does not: it
    could hold role/content or from/value."""
    return len(row_format.keys) != 1 or _first_message(row[row_format.keys[0]]) is not None


def _first_message(value: Plain) -> Plain:
    """The first item of a list, or of a JSON string of one; None if there is none."""
    value = _parse_json_list(value)
    return value[0] if isinstance(value, list) and value else None


def _is_message(value: Plain) -> bool:
    return isinstance(value, Mapping) and ("role" in value or "from" in value)


def _parse_json_list(value: Plain) -> Plain:
    """Decode a JSON string of a list, as a CSV column holds it; return any other value as it is."""
    if isinstance(value, str) and value.lstrip()[:1] == "[":
        with suppress(ValueError, RecursionError):
            return json.loads(value)
    return value


def parse_json_messages(value: Plain) -> Plain:
    """Decode a JSON string of messages; return any other value, also any other list in a string,
    as it is."""
    return _parse_json_list(value) if _is_message(_first_message(value)) else value


def drop_nulls(value: Plain) -> Plain:
    """A copy without the keys whose value is null, at any depth."""
    if isinstance(value, Mapping):
        return {key: drop_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [drop_nulls(item) for item in value]
    return value


def _read_messages(key: str, row: Mapping[str, Plain]) -> Messages:
    value = drop_nulls(_parse_json_list(row[key]))
    if not isinstance(value, list) or not value:
        raise DataFormatError(
            f"{key!r} must be a non-empty list of messages; found {excerpt(row[key])}"
        )
    return value


def _read_sharegpt(key: str, row: Mapping[str, Plain]) -> Messages:
    messages: Messages = []
    calls = results = 0  # calls of the latest `function_call`, and the results seen since
    for index, turn in enumerate(_read_messages(key, row)):
        place = f"message {index}"
        if not isinstance(turn, Mapping) or not isinstance(sender := turn.get("from"), str):
            raise DataFormatError(f"{place}: 'from' must be a string, found {excerpt(turn)}")
        if not isinstance(text := turn.get("value"), str):
            raise DataFormatError(f"{place}: 'value' must be a string, found {excerpt(turn)}")
        for other in ("role", "content", "tool_calls"):
            if turn.get(other) is not None:
                raise DataFormatError(
                    f"{place}: {other!r} together with 'from' and 'value'; keep one format"
                )
        rest = {name: value for name, value in turn.items() if name not in ("from", "value")}
        role = canonical_role(sender)
        if role != "tool":
            _check_no_missing_results(calls, results, place)
            calls = results = 0
        if role == "function_call":
            tool_calls = _parse_function_call(text, place)
            calls = len(tool_calls)
            messages.append({"role": "assistant", "content": "", "tool_calls": tool_calls, **rest})
            continue
        results += role == "tool"
        messages.append({"role": role, "content": text, **rest})
    _check_no_missing_results(calls, results, "the end")
    return messages


def _check_no_missing_results(calls: int, results: int, place: str) -> None:
    """Reject one result for several calls: it cannot be assigned to any of them."""
    if calls and results and results != calls:
        raise DataFormatError(
            f"{place}: {counted(results, 'result')} for {counted(calls, 'call')} of a "
            "'function_call'; write one 'observation' per call"
        )


def _parse_function_call(text: str, place: str) -> list[dict[str, Plain]]:
    """The tool calls of a `function_call`: JSON of `{"name", "arguments"}` or of a list of them."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    calls = value if isinstance(value, list) else [value]
    for call in calls:
        if not isinstance(call, dict) or call.keys() != {"name", "arguments"}:
            raise DataFormatError(
                f"{place}: a 'function_call' must be JSON with name and arguments, or a list of "
                f"these, found {excerpt(text)}"
            )
    return [{"type": "function", "function": call} for call in calls]


def _read_alpaca(row: Mapping[str, Plain]) -> Messages:
    texts: dict[str, str] = {}
    for key in ("instruction", "input", "output"):
        if not isinstance(text := row.get(key, ""), str):
            raise DataFormatError(f"{key!r} must be a string, found {excerpt(text)}")
        texts[key] = text
    if "output" not in row or not (texts["instruction"] or texts["input"]):
        raise DataFormatError("'instruction' and 'output' must be non-empty strings")
    if row.get("context") and row["context"] != texts["input"]:
        preposition = "into" if texts["input"] else "as"
        raise DataFormatError(f"'context' is not supported; write it {preposition} 'input'")
    messages: Messages = []
    for pair in _parse_history(row.get("history")):
        pair_texts = _as_strings(pair)
        if len(pair_texts) != 2:
            raise DataFormatError(
                f"'history' must be a list of [question, answer] pairs, found {excerpt(pair)}"
            )
        messages += _question_and_answer(*pair_texts)
    question = "\n\n".join(filter(None, (texts["instruction"], texts["input"])))
    return messages + _question_and_answer(question, texts["output"])


def _parse_history(value: Plain) -> list[Plain]:
    if isinstance(value, str) and value:
        with suppress(ValueError):
            value = json.loads(value)
    if not value:
        return []
    if not isinstance(value, list):
        raise DataFormatError(
            f"'history' must be a list of [question, answer] pairs, found {excerpt(value)}"
        )
    return value


def _read_completion(row: Mapping[str, Plain]) -> Messages:
    for key in ("history", "instruction", "input"):
        value = row.get(key)
        if value and str(value).strip() not in ("", "[]", str(row["prompt"]).strip()):
            raise DataFormatError(
                f"{key!r} together with 'prompt' and 'completion' is not supported; write it into"
                " 'prompt'"
            )
    messages: Messages = []
    for key, role in (("prompt", "user"), ("completion", "assistant")):
        value = drop_nulls(parse_json_messages(row.get(key)))
        if isinstance(value, str):
            messages.append({"role": role, "content": value})
        elif isinstance(value, list) and value:
            messages += value
        else:
            raise DataFormatError(
                f"{key!r} must be a string or a list of messages, found {excerpt(value)}"
            )
    return messages


def _read_question(row: Mapping[str, Plain]) -> Messages:
    texts: list[str] = []
    for key in ("question", "answer"):
        if not isinstance(text := row.get(key), str) or not text.strip():
            raise DataFormatError(f"{key!r} must be a non-empty string, found {excerpt(text)}")
        texts.append(text)
    question, answer = texts
    for key in _PARTS_OF_A_QUESTION:
        if differs(row.get(key), question):
            raise DataFormatError(
                f"{key!r} together with 'question' and 'answer' is not supported; write it into"
                " 'question'"
            )
    for key in sorted(REPLY_KEYS - {"answer"}):
        if differs(row.get(key), answer):
            raise DataFormatError(
                f"{key!r} together with 'question' and 'answer': either may be the reply; remove"
                " one of the two"
            )
    return _question_and_answer(question, answer)


def differs(value: Plain, text: str) -> bool:
    """Whether a value is neither empty nor equal to the text, white space aside."""
    return value not in (None, [], {}) and str(value).strip() not in ("", text.strip())


def _question_and_answer(question: str, answer: str) -> Messages:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _as_strings(value: Plain) -> list[str]:
    """The items of a list of strings; [] if the value is anything else."""
    if not isinstance(value, list | tuple):
        return []
    strings = [item for item in value if isinstance(item, str)]
    return strings if len(strings) == len(value) else []


_ALPACA = RowFormat(
    "instruction/input/output",
    ("instruction", "output", "input", "history"),
    "instruction/input/output, read as user and assistant messages",
    _read_alpaca,
)
_COMPLETION = RowFormat(
    "prompt/completion",
    ("prompt", "completion"),
    "prompt/completion, read as user and assistant messages",
    _read_completion,
)
_QUESTION = RowFormat(
    "question/answer",
    ("question", "answer"),
    "question/answer, read as user and assistant messages",
    _read_question,
)
# Keys that belong to the question, so that dropping them would train an answer to another one.
_PARTS_OF_A_QUESTION = (
    *("context", "contexts", "passage", "passages", "story", "article", "paragraph", "background"),
    *("document", "documents", "text", "evidence", "facts", "schema", "table", "code", "image"),
    *("choices", "options", "history", "prompt", "query", "instruction", "input"),
)


def canonical_role(role: str) -> str:
    """The name of the role here: `user` for `human`, `assistant` for `gpt` and `Assistant`. An
    unknown role is returned as it is, for the renderer to reject."""
    name = role.lower()
    known = ("system", "user", "assistant", "tool", "function_call")
    return ROLE_ALIASES.get(name, name if name in known else role)


def excerpt(value: Plain) -> str:
    """The value as JSON, cut to 80 characters, for error messages."""
    return json.dumps(value, ensure_ascii=False, default=str)[:80]
