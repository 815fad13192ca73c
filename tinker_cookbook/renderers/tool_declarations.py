"""Tools as a tokenizer's own chat template declares them: asked of it, never embedded as text."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, cast

from tinker_cookbook.exceptions import RendererError
from tinker_cookbook.renderers.chat_template import QUESTION, Probes, apply_chat_template
from tinker_cookbook.renderers.messages import Message, ToolSpec
from tinker_cookbook.utils.json_types import JsonObject

_PROMPT = "SYSTEM-PROMPT-HERE"  # the prompt's own text could look like the template's


def openai_tools(tools: Sequence[ToolSpec | JsonObject]) -> list[JsonObject]:
    """Tools in the form that chat templates read: `{"type": "function", "function": {...}}`."""
    return [_openai_tool(cast(JsonObject, {**tool})) for tool in tools]  # a ToolSpec is JSON, too


def _openai_tool(tool: JsonObject) -> JsonObject:
    """OpenAI's Responses API writes "type" beside "name", without `function`."""
    if "function" in tool:
        if not isinstance(tool["function"], Mapping):
            raise RendererError(f"a tool's 'function' must be an object, found {tool!r:.80}")
        return tool
    function = {key: value for key, value in tool.items() if (key, value) != ("type", "function")}
    return {"type": "function", "function": function}


def undeclared_tool(ask: Callable[[list[JsonObject]], str], tools: list[JsonObject]) -> str | None:
    """The name, quoted, of the first tool that leaves no trace in what `ask` writes of all of them.

    Asked once, with probes for names: a name could be a word of the system prompt or the format.
    """
    probes = Probes(json.dumps(tools, ensure_ascii=False, default=str))
    probed = [
        {**tool, "function": {**function, "name": probes.new(repr(function.get("name")))}}
        for tool in tools
        if isinstance(function := tool["function"], Mapping)
    ]
    return probes.first_missing(ask(probed))


def declaring_system_message(
    tokenizer: Any, tools: list[JsonObject], system_prompt: str, start: str, end: str
) -> Message:
    """The system message in which the chat template declares tools, the system prompt in its place.

    `start` and `end` are what the template writes around its content, in front of the user message
    `QUESTION`. RendererError where it declares them elsewhere, or leaves one out.
    """
    conversation = [{"role": "user", "content": QUESTION}]
    if system_prompt:
        conversation.insert(0, {"role": "system", "content": _PROMPT})
    ask = partial(apply_chat_template, tokenizer, conversation)
    text = ask(tools)
    if undeclared_tool(ask, tools) or not text.startswith(start) or not text.endswith(end):
        raise RendererError(
            "the tokenizer's chat template does not declare tools in a system message; use the "
            "renderer of its own family, or describe them in a system message of your own "
            "(calls are written and parsed alike)"
        )
    content = text.removeprefix(start).removesuffix(end)
    if system_prompt:  # else a tool's description could hold the mark
        content = content.replace(_PROMPT, system_prompt, 1)
    return Message(role="system", content=content)
