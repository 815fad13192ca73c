"""Conversion between Inspect's messages, tools and logprobs and those of renderers and samplers."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from inspect_ai.model import (
    ChatMessage,
    ChatMessageAssistant,
    ChatMessageSystem,
    ChatMessageTool,
    Content,
    ContentReasoning,
    ContentText,
    Logprob,
    Logprobs,
    TopLogprob,
)
from inspect_ai.tool import ToolCall as InspectToolCall
from inspect_ai.tool import ToolChoice, ToolInfo

from tinker_cookbook.exceptions import EvalError
from tinker_cookbook.renderers.messages import (
    ContentPart,
    FunctionBody,
    Message,
    TextPart,
    ThinkingPart,
    ToolCall,
    ToolSpec,
    UnparsedToolCall,
    content_parts,
)
from tinker_cookbook.utils.json_types import JsonObject

if TYPE_CHECKING:
    from tinker import SampledSequence

    from tinker_cookbook.renderers import Renderer

_RAW = "raw_text"  # the argument that holds the text of a call that could not be parsed


def conversation(
    input: Sequence[ChatMessage], tools: Sequence[ToolInfo], renderer: Renderer
) -> list[Message]:
    """The messages to render, which declare the tools. Raises EvalError for images and audio, and
    RendererError if the renderer's format has no tools."""
    messages = [to_message(message) for message in input]
    if not tools:
        return messages
    system_prompt, rest = "", messages
    if input and isinstance(input[0], ChatMessageSystem):
        system_prompt, rest = input[0].text, messages[1:]
    specs = [to_tool_spec(tool) for tool in tools]
    return [*renderer.create_conversation_prefix_with_tools(specs, system_prompt), *rest]


def check_tool_choice(choice: ToolChoice) -> None:
    """Raise EvalError for a choice that sampling cannot enforce."""
    if choice not in ("auto", "none"):
        name = choice if isinstance(choice, str) else choice.name
        raise EvalError(
            f"tool_choice={name!r} cannot be enforced on a sampled reply; use 'auto' or 'none'"
        )


def to_tool_spec(tool: ToolInfo) -> ToolSpec:
    parameters = tool.parameters.model_dump(exclude_none=True)
    return ToolSpec(name=tool.name, description=tool.description, parameters=parameters)


def to_message(message: ChatMessage) -> Message:
    """An Inspect message in the form that renderers take."""
    if isinstance(message, ChatMessageTool):
        # Inspect's own providers, too, show an error in place of the result
        text = f"Error: {message.error.message}" if message.error else _plain_text(message)
        result = Message(role="tool", content=text)
        if message.tool_call_id:
            result["tool_call_id"] = message.tool_call_id
        if message.function:
            result["name"] = message.function
        return result
    if not isinstance(message, ChatMessageAssistant):
        return Message(role=message.role, content=_plain_text(message))
    result = Message(role="assistant", content=_parts(message))
    calls = message.tool_calls or []
    if parsed := [_renderer_call(call) for call in calls if call.parse_error is None]:
        result["tool_calls"] = parsed
    unparsed = [
        UnparsedToolCall(raw_text=str(call.arguments.get(_RAW, "")), error=call.parse_error)
        for call in calls
        if call.parse_error is not None
    ]
    if unparsed:
        result["unparsed_tool_calls"] = unparsed
    return result


def _renderer_call(call: InspectToolCall) -> ToolCall:
    arguments = json.dumps(call.arguments, ensure_ascii=False)
    return ToolCall(id=call.id, function=FunctionBody(name=call.function, arguments=arguments))


def _parts(message: ChatMessageAssistant) -> str | list[ContentPart]:
    """The reasoning and the text; a string if there is text alone."""
    if isinstance(message.content, str):
        return message.content
    parts: list[ContentPart] = []
    for content in message.content:
        if isinstance(content, ContentReasoning):
            parts.append(ThinkingPart(type="thinking", thinking=content.reasoning))
        else:
            parts.append(TextPart(type="text", text=_text_of(content)))
    if all(part["type"] == "text" for part in parts):
        return "".join(cast(TextPart, part)["text"] for part in parts)
    return parts


def _plain_text(message: ChatMessage) -> str:
    if isinstance(message.content, str):
        return message.content
    return "\n".join(_text_of(content) for content in message.content)


def _text_of(content: Content) -> str:
    if not isinstance(content, ContentText):
        raise EvalError(
            f"the task has a message with content of type {content.type!r}; this model takes text"
        )
    return content.text


def to_assistant_message(
    message: Message, model_name: str, stop_seqs: Sequence[str] = ()
) -> ChatMessageAssistant:
    """A parsed reply as an Inspect message, cut before the first of `stop_seqs` in it."""
    content: list[Content] = []
    calls = [_inspect_call(call) for call in message.get("tool_calls") or []]
    calls += [
        _unparsed_inspect_call(call, index)
        for index, call in enumerate(message.get("unparsed_tool_calls") or [])
    ]
    for part in content_parts(message["content"]):
        text = part["thinking"] if part["type"] == "thinking" else cast(TextPart, part)["text"]
        kept = cut_at_stop(text, stop_seqs)
        if part["type"] == "thinking":
            content.append(ContentReasoning(reasoning=kept))
        else:
            content.append(ContentText(text=kept))
        if kept != text:
            calls = []
            break
    only_text = len(content) == 1 and isinstance(content[0], ContentText)
    return ChatMessageAssistant(
        content=cast(ContentText, content[0]).text if only_text else content,
        tool_calls=calls or None,
        model=model_name,
        source="generate",
    )


def cut_at_stop(text: str, stop_seqs: Sequence[str]) -> str:
    """The text before the first stop sequence in it."""
    found = [index for stop in stop_seqs if (index := text.find(stop)) >= 0]
    return text[: min(found)] if found else text


def _inspect_call(call: ToolCall | Any) -> InspectToolCall:
    arguments: JsonObject = json.loads(call.function.arguments)
    return InspectToolCall(
        id=call.id or f"call_{uuid.uuid4().hex[:12]}",
        function=call.function.name,
        arguments=dict(arguments),
    )


def _unparsed_inspect_call(call: UnparsedToolCall, index: int) -> InspectToolCall:
    """Inspect answers a call with `parse_error` with that error, in place of a result."""
    return InspectToolCall(
        id=f"unparsed_{index}_{uuid.uuid4().hex[:12]}",
        function="unparsed",
        arguments={_RAW: call.raw_text},
        parse_error=call.error,
    )


def to_logprobs(sequence: SampledSequence, count: int, tokenizer: Any, top: bool) -> Logprobs:
    """The logprobs in nats of the first `count` tokens, the stop token included; see
    TokensWithLogprobs.

    top: with the most likely tokens at each position, which were asked of the sampler.
    """
    if sequence.logprobs is None:
        raise EvalError("logprobs=true: the service returned no logprobs")
    alternatives = sequence.topk_logprobs if top else None
    if top and alternatives is None:
        raise EvalError("top_logprobs: the service returned no alternatives")
    rows: list[Logprob] = []
    pairs = zip(sequence.tokens[:count], sequence.logprobs[:count], strict=True)
    for index, (token, logprob) in enumerate(pairs):
        text = _token_text(tokenizer, token)
        row = Logprob(token=text, logprob=logprob, bytes=_bytes(text))
        if alternatives is not None:
            row.top_logprobs = [
                TopLogprob(token=(t := _token_text(tokenizer, other)), logprob=p, bytes=_bytes(t))
                for other, p in alternatives[index] or ()
            ]
        rows.append(row)
    return Logprobs(content=rows)


def _token_text(tokenizer: Any, token: int) -> str:
    return tokenizer.decode([int(token)], skip_special_tokens=False)


def _bytes(text: str) -> list[int] | None:
    """None for a token that is a part of a character."""
    return None if "\N{REPLACEMENT CHARACTER}" in text else list(text.encode())
