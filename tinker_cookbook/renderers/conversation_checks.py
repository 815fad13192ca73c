"""What cannot stand in a conversation, whatever its format writes around each message."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tinker_cookbook.exceptions import RendererError
from tinker_cookbook.renderers.messages import Message, content_parts


def check_reasoning_comes_first(messages: Sequence[Message]) -> None:
    """Chat templates drop it without a word, where they take a string apart."""
    for i, message in enumerate(messages):
        content = message["content"]
        if message["role"] == "assistant" and isinstance(content, str) and "</think>" in content:
            before, opened, _ = content.partition("</think>")[0].partition("<think>")
            if opened and before.strip():
                raise RendererError(
                    f"message {i}: the text {before.strip()[:40]!r} in front of <think> would be "
                    "lost; give the content as parts (type text, type thinking)"
                )


def check_results_have_calls(messages: Sequence[Message], call_tag: str) -> None:
    waiting = 0.0  # calls without a result; how many a text holds is not told
    for i, message in enumerate(messages):
        if message["role"] == "assistant":
            text = "".join(part.get("text", "") for part in content_parts(message["content"]))
            calls = len(message.get("tool_calls", ())) + len(message.get("unparsed_tool_calls", ()))
            waiting = math.inf if call_tag in text else calls
        elif message["role"] == "tool":
            if not waiting:
                raise RendererError(
                    f"message {i}: a tool result without a call; the assistant's message before it "
                    "must have tool_calls, one for each result (results of calls written as plain "
                    "text are user messages)"
                )
            waiting -= 1


def results_in_call_order(messages: Sequence[Message]) -> list[Message]:
    """Each run of results in the order of its calls, where both have ids: formats that write no id
    show by the order alone which call a result answers. RendererError for an unknown id."""
    ordered = list(messages)
    ids: list[str] = []
    start = 0
    for i, message in enumerate(ordered):
        if message["role"] == "assistant":
            given = [call.id for call in message.get("tool_calls", ())]
            ids = [ident for ident in given if ident] if all(given) else []
            start = i + 1
        elif message["role"] != "tool":
            start = i + 1
        elif ids and (ident := message.get("tool_call_id")):
            if ident not in ids:
                raise RendererError(
                    f"message {i}: a tool result with the tool_call_id {ident!r}, which no call of "
                    "the assistant's message before it has"
                )
            run = ordered[start : i + 1]
            if all(result.get("tool_call_id") in ids for result in run):
                ordered[start : i + 1] = sorted(
                    run, key=lambda result: ids.index(result.get("tool_call_id", ""))
                )
    return ordered
