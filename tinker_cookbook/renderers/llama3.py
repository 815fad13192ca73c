"""`llama3`: the chat format of Llama 3, 3.1, 3.2 and 3.3 Instruct.

    [BOS]<|start_header_id|>user<|end_header_id|>⏎⏎Hello<|eot_id|><|start_header_id|>assistant…

Tokens equal those of the models' own chat templates, with these intentional differences:

1. No preamble. From 3.1 on, the templates begin every conversation with a system message with
   "Cutting Knowledge Date" and a date, in 3.2 the current one. Llama 3 has none. To have it, write
   it at the start of the system prompt, or set renderer_name=template.
2. Special tokens in content are text, in every role.
3. White space at the ends of a reply is kept, and a reply is encoded separately from its header, as
   it is sampled; the templates strip it. System and user messages are stripped as in them.

Tools are not supported: these models write a call as bare JSON, which cannot be distinguished from
a reply that is JSON.
"""

from __future__ import annotations

from collections.abc import Sequence

from tinker_cookbook.exceptions import RendererError
from tinker_cookbook.renderers.base import (
    RenderContext,
    RenderedMessage,
    Renderer,
    require_text,
    text_chunk,
)
from tinker_cookbook.renderers.messages import Message, has_tool_calls
from tinker_cookbook.tokenizer_utils import Tokenizer
from tinker_cookbook.utils.json_types import JsonObject

_NO_TOOLS = (
    "llama3 does not support tools, because a call would be bare JSON that looks like a "
    "reply; set renderer_name=template to train on calls, or use another model family to run tools"
)


class Llama3Renderer(Renderer):
    """Extension property: yes, a message is rendered the same at every position.

    A second system message, and a conversation that begins with an assistant message, are rendered
    in place, as by the templates.
    """

    roles = ("system", "user", "assistant")
    end_of_text = ("<|end_of_text|>",)

    def __init__(self, tokenizer: Tokenizer):
        super().__init__(tokenizer)
        self._bos = self.encoder.id("<|begin_of_text|>")
        self._start = self.encoder.id("<|start_header_id|>")
        self._end_header = self.encoder.id("<|end_header_id|>")
        self._end = self.encoder.id("<|eot_id|>")

    @property
    def bos_tokens(self) -> list[int]:
        return [self._bos]

    @property
    def has_extension_property(self) -> bool:
        return True

    def get_stop_sequences(self) -> list[int]:
        return [self._end]

    def declare_tools(self, tools: list[JsonObject], system_prompt: str) -> list[Message]:
        raise RendererError(_NO_TOOLS)

    def render_message(self, message: Message, ctx: RenderContext) -> RenderedMessage:
        text = require_text(message, ctx)
        if message["role"] != "assistant":
            text = text.strip()
        encode = self.encoder.encode
        header = [self._start, *encode(message["role"]), self._end_header, *encode("\n\n")]
        return RenderedMessage(
            header=text_chunk(header), output=[text_chunk([*encode(text), self._end])]
        )

    def validate_messages(self, messages: Sequence[Message]) -> list[Message]:
        for i, message in enumerate(messages or ()):
            if isinstance(message, dict) and message.get("role") == "tool":
                raise RendererError(f"message {i}: {_NO_TOOLS}")
        checked = super().validate_messages(messages)
        for i, message in enumerate(checked):
            if has_tool_calls(message):
                raise RendererError(f"message {i}: {_NO_TOOLS}")
        return checked
