"""The chat types that every renderer and recipe shares, and small helpers over them.

A message is a plain dict, so that a JSONL line or an API reply is one already. Content is a string,
or a list of typed parts. Tool calls are frozen objects; OpenAI-style dicts are accepted wherever a
renderer takes messages.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, NotRequired, TypedDict

from pydantic import BaseModel, ConfigDict, ValidationError

from tinker_cookbook.exceptions import RendererError
from tinker_cookbook.renderers.known_keys import (
    MESSAGE_KEYS,
    PART_KEYS,
    REASONING_KEYS,
    find_key_problem,
)
from tinker_cookbook.utils.json_types import JsonObject, Plain

Role = str
"""Mostly "system", "user", "assistant" or "tool"; each renderer lists the roles it knows."""


class TextPart(TypedDict):
    type: Literal["text"]
    text: str


class ThinkingPart(TypedDict):
    """Reasoning that the model writes before its reply."""

    type: Literal["thinking"]
    thinking: str


class ImagePart(TypedDict):
    """An image, as a path, URL or PIL image. Text renderers refuse it."""

    type: Literal["image"]
    image: Any


ContentPart = TextPart | ThinkingPart | ImagePart
Content = str | list[ContentPart]


class FunctionBody(BaseModel):
    """A function's name and its arguments, a JSON object as text."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    arguments: str


class ToolCall(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    type: Literal["function"] = "function"
    id: str | None = None
    function: FunctionBody


class UnparsedToolCall(BaseModel):
    """A tool call that the model wrote and that could not be read; `raw_text` includes its tags."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    raw_text: str
    error: str


class ToolSpec(TypedDict):
    """A tool as it is declared to the model; `parameters` is a JSON schema."""

    name: str
    description: str
    parameters: JsonObject


class Message(TypedDict):
    role: Role
    content: Content
    tool_calls: NotRequired[list[ToolCall]]
    unparsed_tool_calls: NotRequired[list[UnparsedToolCall]]
    trainable: NotRequired[bool]
    tool_call_id: NotRequired[str]
    name: NotRequired[str]


class ThinkingAndText(NamedTuple):
    thinking: str
    text: str


def content_parts(content: Content) -> list[ContentPart]:
    """Content as a list of parts; a string is one text part."""
    return [TextPart(type="text", text=content)] if isinstance(content, str) else list(content)


def split_thinking(content: Content) -> ThinkingAndText:
    """The joined thinking parts and the joined text parts.

    A string that holds `</think>` is split as chat templates split it, padding newlines dropped.
    """
    if isinstance(content, str):
        if "</think>" not in content:
            return ThinkingAndText("", content)
        before, after = content.split("</think>", 1)
        return ThinkingAndText(before.split("<think>")[-1].strip("\n"), after.lstrip("\n"))
    thinking = "".join(part["thinking"] for part in content if part["type"] == "thinking")
    return ThinkingAndText(
        thinking, "".join(part["text"] for part in content if part["type"] == "text")
    )


def get_text_content(message: Message) -> str:
    """The text of a message without its reasoning.

    Where reasoning was left out, so are the blank lines around the reply that followed it.
    """
    content = message["content"]
    if isinstance(content, str):
        return content
    text = "".join(part["text"] for part in content if part["type"] == "text")
    if not any(part["type"] == "thinking" for part in content):
        return text
    text = re.sub(r"\A(?:[^\S\n]*\n)+", "", text)
    words = text.rstrip()
    return words + text[len(words) :].partition("\n")[0]


def ensure_text(content: Content) -> str:
    """Content that must be text alone: a string, or text parts. RendererError otherwise."""
    if isinstance(content, str):
        return content
    other = [part["type"] for part in content if part["type"] != "text"]
    if other:
        raise RendererError(f"text content expected, found a part of type {other[0]!r}")
    return "".join(part["text"] for part in content if part["type"] == "text")


def format_content_as_string(content: Content, separator: str = "\n") -> str:
    """Content for people and graders to read: every part in order, reasoning inside think tags."""
    if isinstance(content, str):
        return content
    shown = {
        "text": lambda part: part["text"],
        "thinking": lambda part: f"<think>{part['thinking']}</think>",
        "image": lambda part: "<image>",
    }
    return separator.join(shown[part["type"]](part) for part in content)


def parse_content_blocks(content: str) -> list[ContentPart] | None:
    """A string with closed think blocks as a list of parts, whitespace kept; None if it has none.

    `format_content_as_string(parts, separator="")` gives the string back.
    """
    pieces = re.split(r"<think>(.*?)</think>", content, flags=re.DOTALL)
    if len(pieces) == 1:
        return None
    parts: list[ContentPart] = []
    for i, piece in enumerate(pieces):
        if i % 2:
            parts.append(ThinkingPart(type="thinking", thinking=piece))
        elif piece:
            parts.append(TextPart(type="text", text=piece))
    return parts


def has_tool_calls(message: Message) -> bool:
    """Whether it calls a tool, in words that can be read or not."""
    return bool(message.get("tool_calls") or message.get("unparsed_tool_calls"))


def to_tool_call(value: Any) -> ToolCall:
    """A ToolCall from itself or from an OpenAI-style dict, whose arguments may be a JSON object.

    ValueError, in words for a user, when it is neither or its arguments are not a JSON object.
    """
    if isinstance(value, ToolCall):
        call = value
    else:
        try:
            function = dict(value["function"])
            if isinstance(function.get("arguments"), dict):
                function["arguments"] = json.dumps(function["arguments"], ensure_ascii=False)
            fields = {  # `index`: of a stream
                key: part for key, part in value.items() if key != "index" and part is not None
            }
            call = ToolCall.model_validate({**fields, "function": function})
        except (TypeError, KeyError, ValueError, ValidationError, RecursionError) as error:
            raise ValueError(
                "a tool call must look like "
                '{"function": {"name": ..., "arguments": "{...}"}}, found ' + f"{value!r:.120}"
            ) from error
    if not call.function.name:
        raise ValueError("a tool call without a function's name")
    try:
        read_json_object(call.function.arguments, "the arguments")
    except ValueError:
        raise ValueError(
            f"the arguments of {call.function.name!r} must be a JSON object, "
            f"found {call.function.arguments!r:.120}"
        ) from None
    return call


def escape_tags_in_arguments(call: ToolCall, *tags: str) -> str:
    """A call's arguments in which no string holds one of `tags`, which would end the call: each
    begins with a JSON escape instead, so that the value is the same."""
    arguments = call.function.arguments
    for tag in tags:
        arguments = arguments.replace(tag, f"\\u{ord(tag[0]):04x}{tag[1:]}")
    return arguments


def read_json_object(text: str, what: str) -> JsonObject:
    """The JSON object in `text`. ValueError otherwise, in words: `what` is no object, or where the
    JSON breaks off."""
    try:
        # JSONDecodeError is a ValueError, and says where and what
        value = json.loads(text, parse_constant=_no_json)
        written = json.dumps(value, ensure_ascii=False)
    except RecursionError:
        raise ValueError("the JSON is nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError(f"{what} must be a JSON object")
    if LONE_SURROGATE.search(written):
        raise ValueError(f"{what} hold half of a surrogate pair")
    return value


def _no_json(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_ROLES_ELSEWHERE = {
    "human": "user",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "developer": "system",
    "function": "tool",
    "ipython": "tool",
}


def _texts(content: Content) -> list[str]:
    return [str(part.get(part["type"], "")) for part in content_parts(content)]


def _role_meant(role: Plain, roles: Sequence[Role]) -> str:
    name = str(role).lower()
    meant = _ROLES_ELSEWHERE.get(name, name)
    return f" (write {meant!r})" if meant in roles and meant != role else ""


def normalise_message(message: Any, index: int, roles: Sequence[Role]) -> Message:
    """A copy of `message` in the form that renderers read, or a RendererError naming `index`.

    An assistant message with tool calls may lack content (as OpenAI writes it), and an assistant's
    `reasoning_content` (`thinking` in gpt-oss data, `reasoning` in some replies of servers) becomes
    a thinking part. Keys that say nothing of tokens or weights (`id`, `timestamp`) are not read;
    `known_keys.py` lists those that are refused.
    """

    def refuse(problem: str) -> RendererError:
        return RendererError(f"message {index}: {problem}")

    if not isinstance(message, dict):
        raise refuse(f"expected a dict with role and content, found {message!r:.80}")
    role = message.get("role")
    if role not in roles:
        hint = _role_meant(role, roles)
        raise refuse(f"unknown role {role!r}{hint}; this renderer knows {', '.join(roles)}")
    for key, value in message.items():
        if key not in MESSAGE_KEYS and (
            problem := find_key_problem("message", key, value, MESSAGE_KEYS, str(role))
        ):
            raise refuse(problem)
    content = message.get("content")
    for key in ("tool_calls", "unparsed_tool_calls"):
        if message.get(key) and role != "assistant":
            raise refuse(f"a {role} message cannot have {key}")
        if not isinstance(message.get(key) or [], list | tuple):
            raise refuse(f"{key} must be a list, found {message[key]!r:.80}")
    for key in ("name", "tool_call_id"):
        if not isinstance(message.get(key, ""), str | None):
            raise refuse(f"{key} must be text, found {message[key]!r:.80}")
    if not isinstance(message.get("trainable", False), bool):
        raise refuse(f"'trainable' must be true or false, found {message['trainable']!r:.80}")
    calls = message.get("tool_calls") or []
    if content is None and (calls or message.get("unparsed_tool_calls")):
        content = ""
    if content is None:
        raise refuse(f"this {role} message has no content")
    if not isinstance(content, str):
        if not isinstance(content, list):
            raise refuse(f"content must be text or a list of parts, found {content!r:.80}")
        for part in content:
            kind = part.get("type") if isinstance(part, dict) else None
            if kind in ("image_url", "input_image"):
                raise refuse(f"an image in the form {kind!r}; write it as a part of type 'image'")
            if kind not in ("text", "thinking", "image"):
                raise refuse(f"unknown content part {part!r:.80}")
            if kind != "image" and not isinstance(part.get(kind), str):
                raise refuse(f"a {kind} part without {kind!r}: {part!r:.80}")
            if kind == "thinking" and role != "assistant":
                raise refuse(f"a {role} message cannot have a thinking part")
            if problem := find_part_problem(part, str(role)):
                raise refuse(problem)
    given = {key: message[key] for key in REASONING_KEYS if message.get(key)}
    reasoning = next(iter(given.values()), None)
    if role != "assistant" and given:
        raise refuse(f"a {role} message cannot have reasoning, found {reasoning!r:.80}")
    if any(other != reasoning for other in given.values()):
        raise refuse(f"{' and '.join(map(repr, given))} differ; keep one of them")
    if reasoning and role == "assistant":
        if not isinstance(reasoning, str):
            raise refuse(f"its reasoning must be text, found {reasoning!r:.80}")
        content = [ThinkingPart(type="thinking", thinking=reasoning), *content_parts(content)]
    result = {**message, "role": role, "content": content}
    for key in REASONING_KEYS:  # in content now; it must not be read again
        result.pop(key, None)
    for key in ("tool_calls", "unparsed_tool_calls"):
        if not message.get(key):
            result.pop(key, None)
    if any(LONE_SURROGATE.search(text) for text in [*_texts(content), message.get("name") or ""]):
        raise refuse("half of a surrogate pair, which no tokenizer can encode; remove it")
    try:
        if calls:
            result["tool_calls"] = [to_tool_call(call) for call in calls]
        if message.get("unparsed_tool_calls"):
            result["unparsed_tool_calls"] = [
                _unparsed(call) for call in message["unparsed_tool_calls"]
            ]
    except ValidationError:
        raise refuse("unparsed_tool_calls must hold raw_text and error") from None
    except ValueError as error:
        raise refuse(str(error)) from error
    return result  # type: ignore[return-value]


def find_part_problem(part: Mapping[str, Plain], role: Role) -> str | None:
    """What a part of content says beside its text that would be lost; None where nothing is."""
    kind = part.get("type")
    for key, value in part.items():
        if key in ("type", kind):
            continue
        if key in PART_KEYS:
            if value:
                return f"a {kind} part with {key!r}: {value!r:.40}; make it a part of its own"
        elif problem := find_key_problem("part", key, value, PART_KEYS, role):
            return f"a part of its content: {problem}"
    return None


def _unparsed(call: Any) -> UnparsedToolCall:
    return UnparsedToolCall.model_validate(call)


def to_openai_message(message: Message) -> JsonObject:
    """The message as OpenAI-compatible servers and chat templates take it.

    Calls that could not be read stand behind the text, as the model wrote them. RendererError for
    images, which have another form there.
    """
    content = message["content"]
    if any(part["type"] == "image" for part in content_parts(content)):
        raise RendererError("an image, which has no form here; give it to the server yourself")
    thinking, text = ("", content) if isinstance(content, str) else split_thinking(content)
    unparsed = [_unparsed(call).raw_text for call in message.get("unparsed_tool_calls") or []]
    result: JsonObject = {
        "role": message["role"],
        "content": "\n".join(piece for piece in (text, *unparsed) if piece),
    }
    if thinking:
        result["reasoning_content"] = thinking
    if calls := message.get("tool_calls"):
        result["tool_calls"] = [to_tool_call(call).model_dump() for call in calls]
    if "tool_call_id" in message:
        result["tool_call_id"] = message["tool_call_id"]
    if "name" in message:
        result["name"] = message["name"]
    return result
