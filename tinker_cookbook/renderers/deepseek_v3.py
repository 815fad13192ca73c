"""DeepSeek-V3.1, one model that replies with or without thinking: two renderers.

    [BOS]system<｜User｜>Hello<｜Assistant｜></think>Hi.<｜end▁of▁sentence｜>

The header of a reply ends with `</think>`, or with `<think>` if the model is to think. A reply
after tool results has no header. Tokens equal those of the model's own chat template
(`deepseekv3_thinking`: with thinking=True), with these intentional differences:

1. Special tokens in content are text: `<｜User｜>` and similar tags in every role, and in user and
   tool messages, which are untrusted, also `<think>` and the tool tags. In system prompts (the
   developer's) and assistant messages (the model's) the tags of `markup` are tokens.
2. A reply that follows neither a user message nor a tool result (it comes first, or after the
   system prompt or another reply) has a header; the template leaves it out, also in the prompt.
3. Only one system message, at the start. The template appends later ones to it, which would change
   the tokens that earlier replies were sampled after; here they are an error, or user messages with
   system_role_as_user=True.
4. Reasoning in a reply that calls a tool or follows a tool result is dropped from history as in
   other replies; the template keeps a string that contains `</think>` unchanged.
5. `deepseekv3_thinking` writes the last reply after `<think>`, with its reasoning or with none, as
   it is sampled; the template renders complete conversations only without thinking. After tool
   results, where the template's prompt opens no think block, a reply with reasoning opens it.
6. A template without tools, such as the published one, cannot declare them.
7. Inside arguments, the tag that ends a call begins with a JSON escape.
"""

from __future__ import annotations

from typing import NamedTuple

from tinker_cookbook.exceptions import RendererError
from tinker_cookbook.renderers.base import (
    RenderContext,
    RenderedMessage,
    Renderer,
    require_text,
    text_chunk,
)
from tinker_cookbook.renderers.chat_template import QUESTION
from tinker_cookbook.renderers.messages import (
    Content,
    FunctionBody,
    Message,
    ToolCall,
    split_thinking,
)
from tinker_cookbook.renderers.parsing import TagParser, ThinkTags
from tinker_cookbook.renderers.tool_declarations import declaring_system_message
from tinker_cookbook.renderers.tool_sections import SectionParser, ToolSection
from tinker_cookbook.tokenizer_utils import Tokenizer
from tinker_cookbook.utils.json_types import JsonObject


def _read_call(name: str, arguments: str) -> ToolCall:
    if not name:
        raise ValueError("a tool call needs a function name")
    return ToolCall(function=FunctionBody(name=name, arguments=arguments))


_SECTION = ToolSection(
    opened="<｜tool▁calls▁begin｜>",
    closed="<｜tool▁calls▁end｜>",
    call_opened="<｜tool▁call▁begin｜>",
    separator="<｜tool▁sep｜>",
    call_closed="<｜tool▁call▁end｜>",
    head=lambda call: call.function.name,
    read=_read_call,
)


class _Reply(NamedTuple):
    """The text of an assistant message: the think tag that belongs to the header, and what the
    model samples. Neither includes the role token."""

    tag: str
    output: str


class _DeepSeekV3Renderer(Renderer):
    """Headers, tools and roles, shared by both. They differ in `_format_reply` and in parsing."""

    markup = (
        "<think>",
        "</think>",
        *_SECTION.tags,
        "<｜tool▁output▁begin｜>",
        "<｜tool▁output▁end｜>",
    )

    call_tag = _SECTION.opened

    reasoning_in_strings = True

    def __init__(self, tokenizer: Tokenizer, system_role_as_user: bool = False):
        super().__init__(tokenizer)
        self.system_role_as_user = system_role_as_user
        self._bos = self.encoder.id("<｜begin▁of▁sentence｜>")
        self._end = self.encoder.id("<｜end▁of▁sentence｜>")
        self._user = self.encoder.id("<｜User｜>")
        self._assistant = self.encoder.id("<｜Assistant｜>")

    @property
    def bos_tokens(self) -> list[int]:
        return [self._bos]

    def get_stop_sequences(self) -> list[int]:
        return [self._end]

    def render_message(self, message: Message, ctx: RenderContext) -> RenderedMessage:
        encode = self.encoder.encode
        match message["role"]:
            case "assistant":
                after_tool = ctx.prev_message is not None and ctx.prev_message["role"] == "tool"
                reply = self._format_reply(message, ctx, after_tool)
                header = [] if after_tool else [self._assistant, *encode(reply.tag, self.markup)]
                text = reply.output + _SECTION.write(message)
                output = [*encode(text, self.markup), self._end]
            case "tool":
                header = encode("<｜tool▁output▁begin｜>", self.markup)
                end = encode("<｜tool▁output▁end｜>", self.markup)
                output = [*encode(require_text(message, ctx)), *end]
            case "system" if ctx.idx == 0:
                header, output = [], encode(require_text(message, ctx), self.markup)
            case "system" if not self.system_role_as_user:
                raise RendererError(
                    f"message {ctx.idx}: DeepSeek supports a system message only at the start; "
                    "append it to the first message or make it a user message"
                )
            case _:
                header, output = [self._user], encode(require_text(message, ctx))
        return RenderedMessage(header=text_chunk(header), output=[text_chunk(output)])

    def declare_tools(self, tools: list[JsonObject], system_prompt: str) -> list[Message]:
        """Raises RendererError if the template ignores tools, as the one of V3.1 does."""
        start, end = "<｜begin▁of▁sentence｜>", f"<｜User｜>{QUESTION}"
        return [declaring_system_message(self.tokenizer, tools, system_prompt, start, end)]

    def _format_reply(self, message: Message, ctx: RenderContext, after_tool: bool) -> _Reply:
        raise NotImplementedError


class DeepSeekV3Renderer(_DeepSeekV3Renderer):
    """Without thinking: the header of every reply ends with `</think>`, which has weight 0.
    Reasoning is dropped from history; a target with reasoning is rejected.

    Extension property: yes, a message is rendered the same at every position.
    """

    target_must_follow_prompt = True

    @property
    def has_extension_property(self) -> bool:
        return True

    def content_parser(self) -> TagParser:
        return SectionParser(None, _SECTION)

    def _format_reply(self, message: Message, ctx: RenderContext, after_tool: bool) -> _Reply:
        thinking, text = _split_thinking(message["content"])
        if ctx.is_last and thinking:
            raise RendererError(
                f"message {ctx.idx}: the reply contains reasoning, and deepseekv3 trains replies "
                "without it; remove it, or set renderer_name=deepseekv3_thinking"
            )
        return _Reply("</think>", text)


class DeepSeekV3ThinkingRenderer(_DeepSeekV3Renderer):
    """With thinking: the prompt opens the think block, the reply closes it. History is rendered
    without thinking.

    Extension property: no, because history drops reasoning that was sampled. With
    strip_thinking_from_history=False every reply is rendered as it was sampled, and it holds.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        strip_thinking_from_history: bool = True,
        system_role_as_user: bool = False,
    ):
        super().__init__(tokenizer, system_role_as_user)
        self.strip_thinking_from_history = strip_thinking_from_history

    @property
    def has_extension_property(self) -> bool:
        return not self.strip_thinking_from_history

    def content_parser(self) -> TagParser:
        return SectionParser(ThinkTags(), _SECTION, prompt_opens_think=True)

    def _format_reply(self, message: Message, ctx: RenderContext, after_tool: bool) -> _Reply:
        thinking, text = _split_thinking(message["content"])
        if self.strip_thinking_from_history and not ctx.is_last:
            return _Reply("</think>", text)
        if after_tool:
            return _Reply("", f"<think>{thinking}</think>{text}" if thinking else text)
        return _Reply("<think>", f"{thinking}</think>{text}")


def _split_thinking(content: Content) -> tuple[str, str]:
    """As `split_thinking`, but without stripping newlines around `</think>` in a string: this
    format has no padding there, and neither has the template."""
    if not isinstance(content, str) or "</think>" not in content:
        return split_thinking(content)
    thinking, _, text = content.partition("</think>")
    return thinking.removeprefix("<think>"), text
