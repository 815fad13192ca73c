"""`role_colon`: a plain transcript, for base models and any tokenizer.

    [BOS]System: …⏎⏎User: Hello⏎⏎Assistant: Hi there.⏎⏎User:

The header is `Role:`, the output ` text⏎⏎`, and the stop sequence is the string `⏎⏎User:`. So that
the model learns to stop, the `User:` after the last trained reply is trained too. A reply that
contains this string is cut there when it is parsed. Thinking parts and tools are not supported.
"""

from __future__ import annotations

from tinker_cookbook.exceptions import RendererError
from tinker_cookbook.renderers.base import (
    RenderContext,
    RenderedMessage,
    Renderer,
    require_text,
    text_chunk,
)
from tinker_cookbook.renderers.messages import Message, has_tool_calls
from tinker_cookbook.renderers.parsing import StopStringParser

_STOP = "\n\nUser:"


class RoleColonRenderer(Renderer):
    """Extension property: yes. Stop sequence: the string `⏎⏎User:`.

    A second system message, and a conversation that begins with an assistant message, are rendered
    in place.
    """

    roles = ("system", "user", "assistant")

    @property
    def bos_tokens(self) -> list[int]:
        bos = self.tokenizer.bos_token_id
        return [] if bos is None else [bos]

    @property
    def has_extension_property(self) -> bool:
        return True

    def get_stop_sequences(self) -> list[str]:
        return [_STOP]

    def render_message(self, message: Message, ctx: RenderContext) -> RenderedMessage:
        if has_tool_calls(message):
            raise RendererError(f"message {ctx.idx}: role_colon does not support tool calls")
        text = require_text(message, ctx)
        encode = self.encoder.encode
        return RenderedMessage(
            header=text_chunk(encode(f"{message['role'].capitalize()}:")),
            output=[text_chunk(encode(f" {text}\n\n"))],
            stop_overlap=text_chunk(encode("User:")) if message["role"] == "assistant" else None,
        )

    def content_parser(self) -> StopStringParser:
        return StopStringParser(_STOP, padding="\n\n")
