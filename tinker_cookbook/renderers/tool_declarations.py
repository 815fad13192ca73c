"""Tools as a tokenizer's own chat template declares them: asked of it, never embedded as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tinker_cookbook.exceptions import RendererError
from tinker_cookbook.renderers.messages import Message, ToolSpec

_PROMPT = "SYSTEM-PROMPT-HERE"  # the prompt's own text could look like the template's
QUESTION = "USER-HERE"


def openai_tools(tools: Sequence[ToolSpec]) -> list[dict[str, Any]]:
    """Tools in the form that chat templates read: `{"type": "function", "function": {...}}`."""
    return [
        dict(tool) if "function" in tool else {"type": "function", "function": tool}
        for tool in tools
    ]


def from_template(tokenizer: Any, conversation: Sequence[Any], **arguments: Any) -> str:
    """What the chat template writes, without a generation prompt.

    RendererError where there is no template, or it cannot read what it was given.
    """
    from jinja2 import TemplateError

    if not getattr(tokenizer, "chat_template", None):
        raise RendererError(
            "tools and the like are written in the words of the tokenizer's chat template, and this"
            " tokenizer has none; use the tokenizer of a chat model"
        )
    try:
        return tokenizer.apply_chat_template(list(conversation), tokenize=False, **arguments)
    except (TemplateError, TypeError, AttributeError, KeyError) as error:
        raise RendererError(
            "the chat template cannot declare these tools; each needs name, description and "
            f"parameters, a JSON schema ({error!s:.100})"
        ) from error


def declaring_system_message(
    tokenizer: Any, tools: list[dict[str, Any]], system_prompt: str, start: str, end: str
) -> Message:
    """The system message in which the chat template declares tools, the system prompt in its place.

    `start` and `end` are what the template writes around its content, in front of the user message
    `QUESTION`. RendererError where it declares them elsewhere, or ignores them.
    """
    conversation = [{"role": "user", "content": QUESTION}]
    if system_prompt:
        conversation.insert(0, {"role": "system", "content": _PROMPT})
    without = from_template(tokenizer, conversation)
    text = from_template(tokenizer, conversation, tools=tools)
    if text == without or not text.startswith(start) or not text.endswith(end):
        raise RendererError(
            "the tokenizer's chat template does not declare tools in a system message; use the "
            "renderer of its own family, or describe them in a system message of your own "
            "(calls are written and parsed alike)"
        )
    content = text.removeprefix(start).removesuffix(end)
    if system_prompt:  # else a tool's description could hold the mark
        content = content.replace(_PROMPT, system_prompt, 1)
    return Message(role="system", content=content)
