"""Chat types that all renderers and recipes share, and helpers for them.

A message is a plain dict, so that JSON from a file or an API can be used as it is. Content is a
string or a list of typed parts. Tool calls are frozen objects; wherever a renderer takes messages,
OpenAI-style dicts are accepted too.
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
"""Usually "system", "user", "assistant" or "tool"; each renderer lists the roles it supports."""


class TextPart(TypedDict):
    type: Literal["text"]
    text: str


class ThinkingPart(TypedDict):
    """Reasoning that the model writes before its reply."""

    type: Literal["thinking"]
    thinking: str


class ImagePart(TypedDict):
    """An image, as a path, URL or PIL image. Text renderers reject it."""

    type: Literal["image"]
    image: Any


ContentPart = TextPart | ThinkingPart | ImagePart
Content = str | list[ContentPart]


class FunctionBody(BaseModel):
    """A function's name, and its arguments as a JSON string of an object."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    arguments: str


class ToolCall(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    type: Literal["function"] = "function"
    id: str | None = None
    function: FunctionBody


class UnparsedToolCall(BaseModel):
    """A tool call of the model that could not be parsed; `raw_text` includes its tags."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    raw_text: str
    error: str


class ToolSpec(TypedDict):
    """The declaration of a tool; `parameters` is a JSON schema."""

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

    A string that contains `</think>` is split as chat templates do, without padding newlines.
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

    If reasoning is removed, so are blank lines before the text and the newlines after it, which
    only separated the two.
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
    """The text of content without other parts. Raises RendererError if there are any."""
    if isinstance(content, str):
        return content
    other = [part["type"] for part in content if part["type"] != "text"]
    if other:
        raise RendererError(f"expected text content, found a part of type {other[0]!r}")
    return "".join(part["text"] for part in content if part["type"] == "text")


def format_content_as_string(content: Content, separator: str = "\n") -> str:
    """Content as one string, for people and graders, with reasoning in think tags."""
    if isinstance(content, str):
        return content
    formatters = {
        "text": lambda part: part["text"],
        "thinking": lambda part: f"<think>{part['thinking']}</think>",
        "image": lambda part: "<image>",
    }
    return separator.join(formatters[part["type"]](part) for part in content)


def parse_content_blocks(content: str) -> list[ContentPart] | None:
    """Split a string with closed think blocks into parts, white space kept; None if it has none.

    `format_content_as_string(parts, separator="")` is the inverse.
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
    """Whether the message calls a tool, in calls that could be parsed or not."""
    return bool(message.get("tool_calls") or message.get("unparsed_tool_calls"))


def to_tool_call(value: Any) -> ToolCall:
    """Convert an OpenAI-style dict to a ToolCall; its arguments may be a string or an object.

    Raises ValueError, with a message for the user, if the value is neither such a dict nor a
    ToolCall, or if its arguments are not a JSON object.
    """
    if isinstance(value, ToolCall):
        call = value
    else:
        try:
            function = dict(value["function"])
            if isinstance(function.get("arguments"), dict):
                function["arguments"] = json.dumps(function["arguments"], ensure_ascii=False)
            fields = {  # streamed calls have an `index`, which is not part of the call
                key: part for key, part in value.items() if key != "index" and part is not None
            }
            call = ToolCall.model_validate({**fields, "function": function})
        except (TypeError, KeyError, ValueError, ValidationError, RecursionError) as error:
            raise ValueError(
                "a tool call must look like "
                '{"function": {"name": ..., "arguments": "{...}"}}, found ' + f"{value!r:.120}"
            ) from error
    if not call.function.name:
        raise ValueError("a tool call without a function name")
    try:
        read_json_object(call.function.arguments, "the arguments")
    except ValueError:
        raise ValueError(
            f"the arguments of {call.function.name!r} must be a JSON object, "
            f"found {call.function.arguments!r:.120}"
        ) from None
    return call


def escape_tags_in_arguments(call: ToolCall, *tags: str) -> str:
    """A call's arguments with the first character of each of `tags` as a JSON escape.

    A closing tag inside the arguments would end the call when it is parsed; escaped, the JSON value
    stays the same.
    """
    arguments = call.function.arguments
    for tag in tags:
        arguments = arguments.replace(tag, f"\\u{ord(tag[0]):04x}{tag[1:]}")
    return arguments


def read_json_object(text: str, what: str) -> JsonObject:
    """Parse a JSON object. Raises ValueError with the reason; `what` names the text in it."""
    try:
        # JSONDecodeError is a ValueError whose message gives the position.
        value = json.loads(text, parse_constant=_reject_constant)
        written = json.dumps(value, ensure_ascii=False)
    except RecursionError:
        raise ValueError("the JSON is nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError(f"{what} must be a JSON object")
    if LONE_SURROGATE.search(written):
        raise ValueError(f"{what} contain an unpaired surrogate, which cannot be encoded")
    return value


def _reject_constant(constant: str) -> None:
    raise ValueError(f"{constant} is not valid JSON")


LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_ROLE_ALIASES = {
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


def _role_hint(role: Plain, roles: Sequence[Role]) -> str:
    name = str(role).lower()
    known_name = _ROLE_ALIASES.get(name, name)
    return f" (write {known_name!r})" if known_name in roles and known_name != role else ""


def normalise_message(message: Any, index: int, roles: Sequence[Role]) -> Message:
    """Validate a message and return a copy in the form that renderers expect.

    An assistant message with tool calls may lack content (as in OpenAI's API), and an assistant's
    `reasoning_content` (`thinking` in gpt-oss data, `reasoning` in the replies of some servers)
    becomes a thinking part. Keys without effect on tokens or weights (`id`, `timestamp`) are
    ignored; `known_keys.py` lists those that are rejected. Raises RendererError that cites `index`.
    """

    def message_error(problem: str) -> RendererError:
        return RendererError(f"message {index}: {problem}")

    if not isinstance(message, dict):
        raise message_error(f"expected a dict with role and content, found {message!r:.80}")
    role = message.get("role")
    if role not in roles:
        hint = _role_hint(role, roles)
        raise message_error(
            f"unknown role {role!r}{hint}; this renderer supports {', '.join(roles)}"
        )
    for key, value in message.items():
        if key not in MESSAGE_KEYS and (
            problem := find_key_problem("message", key, value, MESSAGE_KEYS, str(role))
        ):
            raise message_error(problem)
    content = message.get("content")
    for key in ("tool_calls", "unparsed_tool_calls"):
        if message.get(key) and role != "assistant":
            raise message_error(f"a {role} message cannot have {key}")
        if not isinstance(message.get(key) or [], list | tuple):
            raise message_error(f"{key} must be a list, found {message[key]!r:.80}")
    for key in ("name", "tool_call_id"):
        if not isinstance(message.get(key, ""), str | None):
            raise message_error(f"{key} must be a string, found {message[key]!r:.80}")
    if not isinstance(message.get("trainable", False), bool):
        raise message_error(
            f"'trainable' must be true or false, found {message['trainable']!r:.80}"
        )
    calls = message.get("tool_calls") or []
    if content is None and (calls or message.get("unparsed_tool_calls")):
        content = ""
    if content is None:
        raise message_error(f"this {role} message has no content")
    if not isinstance(content, str):
        if not isinstance(content, list):
            raise message_error(
                f"content must be a string or a list of parts, found {content!r:.80}"
            )
        for part in content:
            kind = part.get("type") if isinstance(part, dict) else None
            if kind in ("image_url", "input_image"):
                raise message_error(
                    f"a part of type {kind!r}; write an image as a part of type 'image'"
                )
            if kind not in ("text", "thinking", "image"):
                raise message_error(
                    f"unknown content part {part!r:.80}; use type text, thinking or image"
                )
            if kind != "image" and not isinstance(part.get(kind), str):
                raise message_error(f"a {kind} part without {kind!r}: {part!r:.80}")
            if kind == "thinking" and role != "assistant":
                raise message_error(f"a {role} message cannot have a thinking part")
            if problem := find_part_problem(part, str(role)):
                raise message_error(problem)
    by_key = {key: message[key] for key in REASONING_KEYS if message.get(key)}
    reasoning = next(iter(by_key.values()), None)
    if role != "assistant" and by_key:
        raise message_error(f"a {role} message cannot have reasoning, found {reasoning!r:.80}")
    if any(other != reasoning for other in by_key.values()):
        raise message_error(f"{' and '.join(map(repr, by_key))} differ; keep one of them")
    if reasoning and role == "assistant":
        if not isinstance(reasoning, str):
            raise message_error(f"its reasoning must be a string, found {reasoning!r:.80}")
        content = [ThinkingPart(type="thinking", thinking=reasoning), *content_parts(content)]
    result = {**message, "role": role, "content": content}
    for key in REASONING_KEYS:  # now in the content; left here, it would be added again
        result.pop(key, None)
    for key in ("tool_calls", "unparsed_tool_calls"):
        if not message.get(key):
            result.pop(key, None)
    if any(LONE_SURROGATE.search(text) for text in [*_texts(content), message.get("name") or ""]):
        raise message_error("an unpaired surrogate, which no tokenizer can encode; remove it")
    try:
        if calls:
            result["tool_calls"] = [to_tool_call(call) for call in calls]
        if message.get("unparsed_tool_calls"):
            result["unparsed_tool_calls"] = [
                _to_unparsed_call(call) for call in message["unparsed_tool_calls"]
            ]
    except ValidationError:
        raise message_error("unparsed_tool_calls must have raw_text and error") from None
    except ValueError as error:
        raise message_error(str(error)) from error
    return result  # type: ignore[return-value]


def find_part_problem(part: Mapping[str, Plain], role: Role) -> str | None:
    """The problem with a part that has more keys than its type uses; None if they may be lost."""
    kind = part.get("type")
    for key, value in part.items():
        if key in ("type", kind):
            continue
        if key in PART_KEYS:
            if value:
                return f"a {kind} part with {key!r}: {value!r:.40}; make it a separate part"
        elif problem := find_key_problem("part", key, value, PART_KEYS, role):
            return f"a content part: {problem}"
    return None


def _to_unparsed_call(call: Any) -> UnparsedToolCall:
    return UnparsedToolCall.model_validate(call)


def to_openai_message(message: Message) -> JsonObject:
    """The message in the format of OpenAI-compatible servers and of chat templates.

    Unparsed tool calls follow the text, as the model wrote them. Raises RendererError for images,
    which have a different format there.
    """
    content = message["content"]
    if any(part["type"] == "image" for part in content_parts(content)):
        raise RendererError(
            "images cannot be converted to OpenAI's format; pass them to the server directly"
        )
    thinking, text = ("", content) if isinstance(content, str) else split_thinking(content)
    unparsed = [
        _to_unparsed_call(call).raw_text for call in message.get("unparsed_tool_calls") or []
    ]
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
