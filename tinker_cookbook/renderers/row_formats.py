"""The forms in which data sets write conversations, recognised by the keys of a row.

| a row has | read as |
|---|---|
| `messages` of role/content | as it stands |
| `conversations` of from/value (ShareGPT) | messages; `function_call`: a call of tools |
| `instruction`, `input`, `output`, `history` (Alpaca) | user and assistant messages |
| `prompt`, `completion`: texts or lists of messages | one behind the other |

Either list may have the form of the other, and `message_field=` gives it another name.
Where there are `messages`, the rest is not read: data sets repeat the first question as `prompt`.
Beside each form a row may have `system` (text) and `tools`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

from tinker_cookbook.exceptions import DataFormatError
from tinker_cookbook.utils.json_types import JsonObject, Plain
from tinker_cookbook.utils.misc_utils import counted

MESSAGES = "messages"
EXPECTED = '{"messages": [{"role": "user", "content": "..."}, ...]}'
OTHER_FORMS = (
    "'conversations' of from/value, 'instruction' and 'output', or 'prompt' and 'completion'"
)
ROLES = {
    **dict.fromkeys(("human", "prompter"), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "bard", "bing", "claude", "bot", "model"), "assistant"),
    **dict.fromkeys(("observation", "function", "tool_response", "ipython"), "tool"),
}
"""Names that data sets have for the roles. Upper case is no other role."""

Turns = list[Plain]


@dataclass(frozen=True)
class RowFormat:
    """A form of rows. Two are equal that read the same keys in the same way.

    keys: of a row, that hold its conversation. read_as: for the account of the data; empty where
    messages stand as they are read. turns: the messages of a row, DataFormatError without a place.
    """

    name: str
    keys: tuple[str, ...]
    read_as: str
    turns: Callable[[Mapping[str, Plain]], Turns] = field(compare=False)


def row_object(row: Plain) -> JsonObject:
    """A row without nulls. DataFormatError for what is no mapping."""
    kept = without_nulls(row)
    if not isinstance(kept, dict):
        raise DataFormatError(f"found {short(kept)}; expected {EXPECTED}")
    return kept


def row_format(
    row: Mapping[str, Plain], message_field: str = MESSAGES, known: RowFormat | None = None
) -> RowFormat:
    """The form of a row without nulls. DataFormatError, with the keys found, where it has none or
    more than one; `messages`, or a key that was asked for, goes before all. known: that of the
    other rows, for a list that is empty and so does not tell."""
    if message_field in row:
        return _list_format(row, message_field, known)
    found = ", ".join(map(repr, row)) or "an empty object"
    if message_field != MESSAGES:
        raise DataFormatError(
            f"no {message_field!r}; found {found}: message_field= names the list of messages"
        )
    forms = [form for form in (_ALPACA, _COMPLETION) if form.keys[0] in row and form.keys[1] in row]
    if "conversations" in row:
        forms.insert(0, _list_format(row, "conversations", known))
    if len(forms) == 1:
        return forms[0]
    if forms:
        names = " and ".join(form.name for form in forms)
        raise DataFormatError(
            f"both {names}; found {found}: rename or remove the keys that are not meant"
            + (", or set message_field=conversations" if "conversations" in row else "")
        )
    hint = ""
    lists = [key for key, value in row.items() if _is_turn(_first(value))]
    if {"chosen", "rejected"} <= row.keys():
        hint = " (pairs of preferences are no conversations to imitate)"
    elif len(lists) == 1:
        hint = f" (message_field={lists[0]} reads that list)"
    raise DataFormatError(
        f"no 'messages'; found {found}{hint}; expected {EXPECTED} or {OTHER_FORMS}"
    )


def _list_format(row: Mapping[str, Plain], key: str, known: RowFormat | None) -> RowFormat:
    first = _first(row[key])
    if first is None and known is not None and known.keys == (key,):
        return known
    if isinstance(first, Mapping) and "from" in first and "role" not in first:
        turns, name = partial(_sharegpt, key), f"{key} of from/value"
    else:
        turns, name = partial(_messages, key), f"{key} of role/content"
    converted = turns.func is _sharegpt or key == "conversations"
    return RowFormat(name, (key,), f"{name}, read as messages" if converted else "", turns)


def tells(form: RowFormat, row: Mapping[str, Plain]) -> bool:
    """Whether a row in this form tells that others have it, too: an empty list could be any."""
    return len(form.keys) != 1 or _first(row[form.keys[0]]) is not None


def _first(value: Plain) -> Plain:
    """The first turn of what may be a list of them; None where there is none."""
    value = _list_meant(value)
    return value[0] if isinstance(value, list) and value else None


def _is_turn(value: Plain) -> bool:
    return isinstance(value, Mapping) and ("role" in value or "from" in value)


def _list_meant(value: Plain) -> Plain:
    """The list that a text holds as JSON, as a column of CSV has it; any other value as it is."""
    if isinstance(value, str) and value.lstrip()[:1] == "[":
        with suppress(ValueError, RecursionError):
            return json.loads(value)
    return value


def turns_meant(value: Plain) -> Plain:
    """The turns that a text holds as JSON; any other value as it is."""
    return _list_meant(value) if _is_turn(_first(value)) else value


def without_nulls(value: Plain) -> Plain:
    """Without the keys whose value is null, however deep."""
    if isinstance(value, Mapping):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [without_nulls(item) for item in value]
    return value


def _messages(key: str, row: Mapping[str, Plain]) -> Turns:
    value = without_nulls(_list_meant(row[key]))
    if not isinstance(value, list) or not value:
        raise DataFormatError(
            f"{key!r} must be a list of messages that is not empty; found {short(row[key])}"
        )
    return value


def _sharegpt(key: str, row: Mapping[str, Plain]) -> Turns:
    messages: Turns = []
    calls = results = 0  # of the turn that calls, which has gone before
    for index, turn in enumerate(_messages(key, row)):
        where = f"message {index}"
        if not isinstance(turn, Mapping) or not isinstance(sender := turn.get("from"), str):
            raise DataFormatError(f"{where}: 'from' must be a string, found {short(turn)}")
        if not isinstance(text := turn.get("value"), str):
            raise DataFormatError(f"{where}: 'value' must be a string, found {short(turn)}")
        for other in ("role", "content", "tool_calls"):
            if turn.get(other) is not None:
                raise DataFormatError(f"{where}: {other!r} beside 'from' and 'value'; keep one")
        rest = {name: value for name, value in turn.items() if name not in ("from", "value")}
        role = role_meant(sender)
        if role != "tool":
            _check_no_missing_results(calls, results, where)
            calls = results = 0
        if role == "function_call":
            found = _calls(text, where)
            calls = len(found)
            messages.append({"role": "assistant", "content": "", "tool_calls": found, **rest})
            continue
        results += role == "tool"
        messages.append({"role": role, "content": text, **rest})
    _check_no_missing_results(calls, results, "the end")
    return messages


def _check_no_missing_results(calls: int, results: int, where: str) -> None:
    """One text that answers several calls belongs to none of them."""
    if calls and results and results != calls:
        raise DataFormatError(
            f"{where}: {counted(results, 'result')} behind {counted(calls, 'call')} of a "
            "'function_call'; write an 'observation' for each"
        )


def _calls(text: str, where: str) -> list[dict[str, Plain]]:
    """The calls of a `function_call`: the JSON of `{"name", "arguments"}`, or of a list of them."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    calls = value if isinstance(value, list) else [value]
    for call in calls:
        if not isinstance(call, dict) or call.keys() != {"name", "arguments"}:
            raise DataFormatError(
                f"{where}: a 'function_call' must be the JSON of name and arguments, or of a list "
                f"of these, found {short(text)}"
            )
    return [{"type": "function", "function": call} for call in calls]


def _alpaca(row: Mapping[str, Plain]) -> Turns:
    texts: dict[str, str] = {}
    for key in ("instruction", "input", "output"):
        if not isinstance(text := row.get(key, ""), str):
            raise DataFormatError(f"{key!r} must be text, found {short(text)}")
        texts[key] = text
    if "output" not in row or not (texts["instruction"] or texts["input"]):
        raise DataFormatError("'instruction' and 'output' must have a text each")
    if row.get("context") and row["context"] != texts["input"]:
        where = "into" if texts["input"] else "as"
        raise DataFormatError(f"'context' is not read; write it {where} 'input'")
    messages: Turns = []
    for pair in _history(row.get("history")):
        texts_of_pair = _texts(pair)
        if len(texts_of_pair) != 2:
            raise DataFormatError(
                f"'history' must be a list of pairs of question and answer, found {short(pair)}"
            )
        messages += _question_and_answer(*texts_of_pair)
    question = "\n\n".join(filter(None, (texts["instruction"], texts["input"])))
    return messages + _question_and_answer(question, texts["output"])


def _history(value: Plain) -> list[Plain]:
    if isinstance(value, str) and value:
        with suppress(ValueError):
            value = json.loads(value)
    if not value:
        return []
    if not isinstance(value, list):
        raise DataFormatError(
            f"'history' must be a list of pairs of question and answer, found {short(value)}"
        )
    return value


def _completion(row: Mapping[str, Plain]) -> Turns:
    for key in ("history", "instruction", "input"):
        value = row.get(key)
        if value and str(value).strip() not in ("", "[]", str(row["prompt"]).strip()):
            raise DataFormatError(
                f"{key!r} beside 'prompt' and 'completion' is not read; write it into 'prompt'"
            )
    messages: Turns = []
    for key, role in (("prompt", "user"), ("completion", "assistant")):
        value = without_nulls(turns_meant(row.get(key)))
        if isinstance(value, str):
            messages.append({"role": role, "content": value})
        elif isinstance(value, list) and value:
            messages += value
        else:
            raise DataFormatError(
                f"{key!r} must be text or a list of messages, found {short(value)}"
            )
    return messages


def _question_and_answer(question: str, answer: str) -> Turns:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _texts(value: Plain) -> list[str]:
    """The items of a list of texts; [] of any other value."""
    if not isinstance(value, list | tuple):
        return []
    found = [item for item in value if isinstance(item, str)]
    return found if len(found) == len(value) else []


_ALPACA = RowFormat(
    "instruction/input/output",
    ("instruction", "output", "input", "history"),
    "instruction/input/output, read as user and assistant messages",
    _alpaca,
)
_COMPLETION = RowFormat(
    "prompt/completion",
    ("prompt", "completion"),
    "prompt/completion, read as user and assistant messages",
    _completion,
)


def role_meant(role: str) -> str:
    """The role's name here: `user` for `human`, `assistant` for `gpt` and `Assistant`."""
    name = role.lower()
    known = ("system", "user", "assistant", "tool", "function_call")
    return ROLES.get(name, name if name in known else role)


def short(value: Plain) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)[:80]
