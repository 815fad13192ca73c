"""Qwen3: ChatML with reasoning in `<think>` and tool calls in `<tool_call>`. Three renderers.

    <|im_start|>user⏎Hello<|im_end|>⏎<|im_start|>assistant⏎<think>⏎…⏎</think>⏎⏎Hi.<|im_end|>

Tokens equal those of the models' own chat templates (`qwen3`: the hybrid template;
`qwen3_disable_thinking`: the same with enable_thinking=False; `qwen3_instruct`: the template of the
2507 models), with these intentional differences:

1. No newline after the last `<|im_end|>`: the model does not sample it.
2. Special tokens in content are text: `<|im_start|>` and similar tags in every role, and in user
   and tool messages, which are untrusted, also `<think>` and `<tool_call>`. In system prompts (the
   developer's) and assistant messages (the model's) the tags of `markup` are tokens.
3. A reply is encoded separately from its header, as it is sampled. The difference shows only if it
   begins with white space that the tokenizer would merge with the header's newline.
4. Newlines at the ends of a reply or its reasoning are kept, so that parsing is the inverse of
   rendering; the template strips them. (In string content with a `<think>` block they are padding,
   and are stripped.)
5. Reasoning is dropped from history if it is a thinking part. A string that contains `</think>` is
   kept whole; the template cuts the reasoning out.
6. A user message counts as a question even if it looks like a tool response.
7. qwen3_disable_thinking writes the empty think block also before a last reply that follows no user
   message: its generation prompt has it.
8. `qwen3_instruct` writes reasoning and text as they are, also in history, so that tokens stay as
   they were sampled; its template does not know reasoning.
9. Inside arguments, the tag that ends a call begins with a JSON escape; the template would end the
   call there.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
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
    Message,
    ToolCall,
    escape_tags_in_arguments,
    format_content_as_string,
    split_thinking,
)
from tinker_cookbook.renderers.parsing import TagParser, ThinkTags, ToolTags, read_json_tool_call
from tinker_cookbook.renderers.tool_declarations import declaring_system_message
from tinker_cookbook.tokenizer_utils import Tokenizer
from tinker_cookbook.utils.json_types import JsonObject

_EMPTY_BLOCK = "<think>\n\n</think>\n\n"


class _Reply(NamedTuple):
    """The text of an assistant message: what belongs to the header, the think block that the model
    samples, and the text after it."""

    header: str
    thinking: str
    text: str


class _ChatMLRenderer(Renderer):
    """Headers, tools and parsing, shared by all three. They differ in `_format_reply`.

    A second system message, and a conversation that begins with an assistant message, are rendered
    in place, as by the templates.
    """

    markup = (
        "<think>",
        "</think>",
        "<tool_call>",
        "</tool_call>",
        "<tool_response>",
        "</tool_response>",
    )
    end_of_text = ("<|endoftext|>",)
    call_tag = "<tool_call>"
    think_tags = ThinkTags(pad_open="\n", pad_close="\n", pad_after="\n\n")

    def __init__(self, tokenizer: Tokenizer):
        super().__init__(tokenizer)
        self._start = self.encoder.id("<|im_start|>")
        self._end = self.encoder.id("<|im_end|>")

    def get_stop_sequences(self) -> list[int]:
        return [self._end]

    def content_parser(self) -> TagParser:
        return TagParser(
            self.think_tags, ToolTags("<tool_call>", "</tool_call>", read_json_tool_call)
        )

    def render_message(self, message: Message, ctx: RenderContext) -> RenderedMessage:
        match message["role"]:
            case "assistant":
                return self._render_assistant(message, ctx)
            case "tool":
                return self._render_tool_result(message, ctx)
            case role:
                text = require_text(message, ctx)
                tags = self.markup if role == "system" else ()
                return self._render_text(f"{role}\n", text, tags, ctx)

    def declare_tools(self, tools: list[JsonObject], system_prompt: str) -> list[Message]:
        start = "<|im_start|>system\n"
        end = f"<|im_end|>\n<|im_start|>user\n{QUESTION}<|im_end|>\n"
        return [declaring_system_message(self.tokenizer, tools, system_prompt, start, end)]

    def _format_reply(self, message: Message, ctx: RenderContext) -> _Reply:
        raise NotImplementedError

    def _render_assistant(self, message: Message, ctx: RenderContext) -> RenderedMessage:
        reply = self._format_reply(message, ctx)
        blocks = [reply.text] if reply.text else []
        blocks += [_tool_call_block(call) for call in message.get("tool_calls", [])]
        blocks += [call.raw_text for call in message.get("unparsed_tool_calls", [])]
        header = self.encoder.encode(f"assistant\n{reply.header}", self.markup)
        output = self.encoder.encode(reply.thinking + "\n".join(blocks), self.markup)
        return RenderedMessage(
            header=text_chunk(self._header(ctx, header)),
            output=[text_chunk([*output, self._end])],
        )

    def _render_tool_result(self, message: Message, ctx: RenderContext) -> RenderedMessage:
        """Consecutive results share one user turn, as in the template."""
        tokens = [
            *self.encoder.encode("<tool_response>", self.markup),
            *self.encoder.encode(f"\n{require_text(message, ctx)}\n"),
            *self.encoder.encode("</tool_response>", self.markup),
        ]
        follows = ctx.prev_message is not None and ctx.prev_message["role"] == "tool"
        is_followed = ctx.next_message is not None and ctx.next_message["role"] == "tool"
        newline = self.encoder.encode("\n")
        header = newline if follows else self._header(ctx, self.encoder.encode("user\n"))
        return RenderedMessage(
            header=text_chunk(header),
            output=[text_chunk(tokens if is_followed else [*tokens, self._end])],
        )

    def _header(self, ctx: RenderContext, tokens: list[int]) -> list[int]:
        newline = self.encoder.encode("\n") if ctx.idx > 0 else []
        return [*newline, self._start, *tokens]

    def _render_text(
        self, header: str, text: str, tags: Sequence[str], ctx: RenderContext
    ) -> RenderedMessage:
        """Encode header and text together, as the template's text is encoded.

        If the tokenizer merges the header's newline with the text, that token belongs to the text.
        """
        tokens = self.encoder.encode(header + text, tags)
        header_alone = self.encoder.encode(header)
        cut = next(
            (i for i, (a, b) in enumerate(zip(header_alone, tokens)) if a != b), len(header_alone)
        )
        return RenderedMessage(
            header=text_chunk(self._header(ctx, tokens[:cut])),
            output=[text_chunk([*tokens[cut:], self._end])],
        )


class Qwen3Renderer(_ChatMLRenderer):
    """With thinking. The last reply begins with a think block, empty if it has no reasoning;
    replies since the last user message keep their reasoning, earlier ones lose it. The model opens
    the block itself, also in the Thinking-2507 models, whose own template opens it in the prompt.

    Extension property: no, because history drops reasoning that was sampled. With
    strip_thinking_from_history=False every reply has its block, and it holds.
    """

    reasoning_in_strings = True

    def __init__(self, tokenizer: Tokenizer, strip_thinking_from_history: bool = True):
        super().__init__(tokenizer)
        self.strip_thinking_from_history = strip_thinking_from_history

    @property
    def has_extension_property(self) -> bool:
        return not self.strip_thinking_from_history

    def _format_reply(self, message: Message, ctx: RenderContext) -> _Reply:
        thinking, text = split_thinking(message["content"])
        answers = ctx.in_last_assistant_turn and (ctx.is_last or bool(thinking))
        if answers or not self.strip_thinking_from_history:
            return _Reply("", f"<think>\n{thinking}\n</think>\n\n", text)
        content = message["content"]
        return _Reply("", "", content if isinstance(content, str) else text)


class Qwen3DisableThinkingRenderer(Qwen3Renderer):
    """Without thinking: the generation prompt ends with an empty think block, which is part of the
    last reply's header and has weight 0. A target with reasoning is rejected.

    Extension property: no, history lacks the block (yes with strip_thinking_from_history=False).
    """

    target_must_follow_prompt = True

    def _format_reply(self, message: Message, ctx: RenderContext) -> _Reply:
        thinking, text = split_thinking(message["content"])
        if ctx.is_last and thinking:
            raise RendererError(
                f"message {ctx.idx}: the reply contains reasoning, and qwen3_disable_thinking "
                "trains replies without it; remove it, or set renderer_name=qwen3"
            )
        if not thinking and (ctx.is_last or not self.strip_thinking_from_history):
            return _Reply(_EMPTY_BLOCK, "", text)
        return super()._format_reply(message, ctx)


class Qwen3InstructRenderer(_ChatMLRenderer):
    """The 2507 instruct models, and nano: no think block is ever added. Reasoning in a reply is
    written in place, without padding, and parsed with all its white space.

    Extension property: yes, a message is rendered the same at every position.
    """

    think_tags = ThinkTags(exact=True)

    @property
    def has_extension_property(self) -> bool:
        return True

    def _format_reply(self, message: Message, ctx: RenderContext) -> _Reply:
        return _Reply("", "", format_content_as_string(message["content"], separator=""))


def _tool_call_block(call: ToolCall) -> str:
    name = json.dumps(call.function.name, ensure_ascii=False)
    arguments = escape_tags_in_arguments(call, "</tool_call>")
    return f'<tool_call>\n{{"name": {name}, "arguments": {arguments}}}\n</tool_call>'
