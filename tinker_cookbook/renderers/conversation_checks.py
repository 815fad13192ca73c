"""What cannot stand in a conversation, whatever its format writes around each message."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tinker_cookbook.exceptions import RendererError
from tinker_cookbook.renderers.messages import Message, content_parts


def refuse_text_before_reasoning(messages: Sequence[Message]) -> None:
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


def refuse_results_without_call(messages: Sequence[Message], call_tag: str, in_order: bool) -> None:
    waiting = 0.0  # calls without a result; how many a text holds is not told
    ids: list[str | None] = []  # theirs
    for i, message in enumerate(messages):
        if message["role"] == "assistant":
            text = "".join(part.get("text", "") for part in content_parts(message["content"]))
            calls = len(message.get("tool_calls", ())) + len(message.get("unparsed_tool_calls", ()))
            waiting = math.inf if call_tag in text else calls
            ids = [call.id for call in message.get("tool_calls", ())]
        elif message["role"] == "tool":
            if not waiting:
                raise RendererError(
                    f"message {i}: a tool result without a call; "
                    "the assistant's message before it must have tool_calls, one for each result"
                )
            waiting -= 1
            expected, ids = (ids or [None])[0], ids[1:]
            given = message.get("tool_call_id")
            if in_order and expected and given and given != expected:
                raise RendererError(
                    f"message {i}: a result with the tool_call_id {given!r} where that of the call "
                    f"is {expected!r}; results must stand in the order of their calls"
                )
