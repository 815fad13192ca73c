"""Checks of whole conversations that several chat formats share."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tinker_cookbook.exceptions import RendererError
from tinker_cookbook.renderers.messages import Message, content_parts


def check_reasoning_comes_first(messages: Sequence[Message]) -> None:
    """Raise RendererError for text before a `<think>` block inside a string.

    Chat templates that split such a string silently drop that text.
    """
    for i, message in enumerate(messages):
        content = message["content"]
        if message["role"] == "assistant" and isinstance(content, str) and "</think>" in content:
            before, opened, _ = content.partition("</think>")[0].partition("<think>")
            if opened and before.strip():
                raise RendererError(
                    f"message {i}: the text {before.strip()[:40]!r} before <think> would be "
                    "lost; give the content as parts (type text, type thinking)"
                )


def check_results_have_calls(messages: Sequence[Message], call_tag: str) -> None:
    """Raise RendererError for a tool result that no call of the preceding assistant message awaits.

    `call_tag` opens a tool call in text. A text that contains it may hold any number of calls.
    """
    waiting = 0.0  # calls without a result so far; infinite if the text may hold calls
    for i, message in enumerate(messages):
        if message["role"] == "assistant":
            text = "".join(part.get("text", "") for part in content_parts(message["content"]))
            calls = len(message.get("tool_calls", ())) + len(message.get("unparsed_tool_calls", ()))
            waiting = math.inf if call_tag in text else calls
        elif message["role"] == "tool":
            if not waiting:
                raise RendererError(
                    f"message {i}: a tool result without a call; the assistant message before it "
                    "must have tool_calls, one per result (write the results of calls that are "
                    "plain text as user messages)"
                )
            waiting -= 1


def results_in_call_order(messages: Sequence[Message]) -> list[Message]:
    """Sort consecutive tool results into the order of their calls, if both have ids.

    Formats that write no ids show by order alone which call a result belongs to. Raises
    RendererError for an unknown id.
    """
    ordered = list(messages)
    ids: list[str] = []
    start = 0  # of the current run of results
    for i, message in enumerate(ordered):
        if message["role"] == "assistant":
            call_ids = [call.id for call in message.get("tool_calls", ())]
            ids = [ident for ident in call_ids if ident] if all(call_ids) else []
            start = i + 1
        elif message["role"] != "tool":
            start = i + 1
        elif ids and (ident := message.get("tool_call_id")):
            if ident not in ids:
                raise RendererError(
                    f"message {i}: tool_call_id={ident!r} matches no call of the assistant message "
                    "before it"
                )
            run = ordered[start : i + 1]
            if all(result.get("tool_call_id") in ids for result in run):
                ordered[start : i + 1] = sorted(
                    run, key=lambda result: ids.index(result.get("tool_call_id", ""))
                )
    return ordered
