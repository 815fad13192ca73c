"""Tool declarations, rendered by the tokenizer's own chat template instead of copied from it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, cast

from tinker_cookbook.exceptions import RendererError
from tinker_cookbook.renderers.chat_template import QUESTION, Probes, apply_chat_template
from tinker_cookbook.renderers.messages import Message, ToolSpec
from tinker_cookbook.utils.json_types import JsonObject

# A placeholder for the system prompt, whose own text may occur in the template's.
_PROMPT = "SYSTEM-PROMPT-HERE"


def openai_tools(tools: Sequence[ToolSpec | JsonObject]) -> list[JsonObject]:
    """Convert tools to the format of chat templates: `{"type": "function", "function": {...}}`."""
    return [_openai_tool(cast(JsonObject, {**tool})) for tool in tools]  # a ToolSpec is JSON too


def _openai_tool(tool: JsonObject) -> JsonObject:
    """Accepts OpenAI's Responses API as well, which has "type" next to "name" and no `function`."""
    if "function" in tool:
        if not isinstance(tool["function"], Mapping):
            raise RendererError(f"a tool's 'function' must be an object, found {tool!r:.80}")
        return tool
    function = {key: value for key, value in tool.items() if (key, value) != ("type", "function")}
    return {"type": "function", "function": function}


def undeclared_tool(
    render: Callable[[list[JsonObject]], str], tools: list[JsonObject]
) -> str | None:
    """The quoted name of the first tool that is missing in what `render` makes of all tools.

    Names are replaced by probes, because a name may also be a word of the system prompt or format.
    """
    probes = Probes(json.dumps(tools, ensure_ascii=False, default=str))
    probed = [
        {**tool, "function": {**function, "name": probes.new(repr(function.get("name")))}}
        for tool in tools
        if isinstance(function := tool["function"], Mapping)
    ]
    return probes.first_missing(render(probed))


def declaring_system_message(
    tokenizer: Any, tools: list[JsonObject], system_prompt: str, start: str, end: str
) -> Message:
    """The system message in which the chat template declares tools, including the system prompt.

    `start` and `end` are what the template writes around its content, before a user message
    `QUESTION`. Raises RendererError if it declares tools elsewhere, or leaves one out.
    """
    conversation = [{"role": "user", "content": QUESTION}]
    if system_prompt:
        conversation.insert(0, {"role": "system", "content": _PROMPT})
    render = partial(apply_chat_template, tokenizer, conversation)
    text = render(tools)
    if undeclared_tool(render, tools) or not text.startswith(start) or not text.endswith(end):
        raise RendererError(
            "the tokenizer's chat template does not declare tools in a system message; use the "
            "renderer of its own family, or describe them in a system message of your own "
            "(tool calls are rendered and parsed either way)"
        )
    content = text.removeprefix(start).removesuffix(end)
    if system_prompt:  # without one, a tool's description might contain the placeholder
        content = content.replace(_PROMPT, system_prompt, 1)
    return Message(role="system", content=content)
