"""Kimi K2: every reply begins with a think block; the ids of tool calls name their function.

    <|im_user|>user<|im_middle|>Hello<|im_end|>
    <|im_assistant|>assistant<|im_middle|><think>…</think>Hi.<|im_end|>      (without line breaks)

A conversation without a system message gets the default one of the tokenizer's own chat template.
In history, reasoning up to the latest reply without tool calls is replaced by an empty block.
Tokens equal those of the chat template of K2-Thinking, with these intentional differences:

1. Special tokens in content are text: `<|im_end|>` and similar tags in every role, and in user and
   tool messages, names and tool declarations also `<think>` and the tool tags. In system prompts
   (the developer's) and assistant messages (the model's) the tags of `markup` are tokens.
2. The final reply, and the tool calls that led to it, keep their reasoning, as they are sampled.
   The template empties it in every conversation that ends with a reply without tool calls.
3. Reasoning inside a string is reasoning; the template writes the string after an empty block.
4. A call whose id is missing, or does not name its function (`call_x1`), gets the id
   `functions.name:n`, where n counts the calls of the conversation from 0, and so does its result.
   The template writes the id alone, which would lose the function's name. A result without an id
   belongs to the first call without a result, of the function `name` if the result has one.
5. The name of an assistant message is always `assistant`, as in its generation prompt.
6. Inside arguments, the tag that ends a call begins with a JSON escape.

For K2-Instruct, whose template of July 2025 does not know reasoning, there are two more: the empty
think block in each reply, and tool messages (that template writes the arguments as a JSON string,
and the two characters `\\n` after the id of a result).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from tinker_cookbook.exceptions import RendererError
from tinker_cookbook.renderers.base import (
    RenderContext,
    RenderedMessage,
    Renderer,
    require_text,
    text_chunk,
)
from tinker_cookbook.renderers.chat_template import QUESTION, apply_chat_template
from tinker_cookbook.renderers.messages import (
    Message,
    split_thinking,
)
from tinker_cookbook.renderers.parsing import TagParser, ThinkTags
from tinker_cookbook.renderers.tool_sections import (
    KIMI_SECTION,
    SectionParser,
    kimi_function_name,
)
from tinker_cookbook.tokenizer_utils import Tokenizer
from tinker_cookbook.utils.json_types import JsonObject

_TOOL_DECLARE = "tool_declare"


class KimiK2Renderer(Renderer):
    """Extension property: no, because history drops reasoning that was sampled. With
    strip_thinking_from_history=False every reply is rendered as it was sampled, and it holds.

    A tool declaration is a message at the start with the role `tool_declare`. A second system
    message, and a conversation that begins with an assistant message, are rendered in place, as by
    the template.
    """

    roles = ("system", "user", "assistant", "tool", _TOOL_DECLARE)
    markup = ("<think>", "</think>", *KIMI_SECTION.tags)
    end_of_text = ("[EOS]",)
    call_tag = KIMI_SECTION.opened

    results_in_order = False  # results carry the ids of their calls
    reasoning_in_strings = True

    def __init__(self, tokenizer: Tokenizer, strip_thinking_from_history: bool = True):
        super().__init__(tokenizer)
        self.strip_thinking_from_history = strip_thinking_from_history
        self._system = self.encoder.id("<|im_system|>")
        self._user = self.encoder.id("<|im_user|>")
        self._assistant = self.encoder.id("<|im_assistant|>")
        self._middle = self.encoder.id("<|im_middle|>")
        self._end = self.encoder.id("<|im_end|>")

    @property
    def has_extension_property(self) -> bool:
        return not self.strip_thinking_from_history

    def get_stop_sequences(self) -> list[int]:
        return [self._end]

    def content_parser(self) -> TagParser:
        return SectionParser(ThinkTags(), KIMI_SECTION)

    def render_message(self, message: Message, ctx: RenderContext) -> RenderedMessage:
        role = message["role"]
        name, tags = message.get("name") or role, ()
        match role:
            case "assistant":
                name, tags = role, self.markup
                text = self._format_reply(message, ctx)
            case "tool":
                text = f"## Return of {message.get('tool_call_id')}\n{require_text(message, ctx)}"
            case _:
                tags = self.markup if role == "system" else ()
                text = require_text(message, ctx)
        start = {"assistant": self._assistant, "user": self._user}.get(role, self._system)
        header = [start, *self.encoder.encode(name), self._middle]
        if _lacks_system_message(message, ctx):
            header = [*self._default_system_message, *header]
        output = [*self.encoder.encode(text, tags), self._end]
        return RenderedMessage(header=text_chunk(header), output=[text_chunk(output)])

    def declare_tools(self, tools: list[JsonObject], system_prompt: str) -> list[Message]:
        """The declaration as the tokenizer's chat template writes it, then the system prompt if
        there is one."""
        start = f"<|im_system|>{_TOOL_DECLARE}<|im_middle|>"
        end = "<|im_end|>" + self._from_template()
        text = self._from_template(tools=tools)
        if not text.startswith(start) or not text.endswith(end):
            raise RendererError(
                "the tokenizer's chat template does not declare tools as Kimi K2's does; "
                "use the renderer of its own family"
            )
        content = text.removeprefix(start).removesuffix(end)
        prefix = [Message(role="system", content=system_prompt)] if system_prompt else []
        return [Message(role=_TOOL_DECLARE, content=content), *prefix]

    @cached_property
    def _default_system_message(self) -> list[int]:
        """Its tokens; [] if the template has no default system message."""
        start, end = "<|im_system|>system<|im_middle|>", f"<|im_end|>{_USER_MESSAGE}"
        text = self._from_template()
        if text == _USER_MESSAGE:
            return []
        if not text.startswith(start) or not text.endswith(end):
            raise RendererError(
                "the default system message of the tokenizer's chat template is not Kimi K2's; "
                "begin the conversation with a system message"
            )
        encode = self.encoder.encode
        content = encode(text.removeprefix(start).removesuffix(end))
        return [self._system, *encode("system"), self._middle, *content, self._end]

    def _from_template(self, **arguments: Any) -> str:
        return apply_chat_template(
            self.tokenizer, [{"role": "user", "content": QUESTION}], **arguments
        )

    def validate_messages(self, messages: Sequence[Message]) -> list[Message]:
        return _with_call_ids(super().validate_messages(messages))

    def _format_reply(self, message: Message, ctx: RenderContext) -> str:
        thinking, text = split_thinking(message["content"])
        if self.strip_thinking_from_history and ctx.idx <= ctx.last_answer_index:
            thinking = ""
        return f"<think>{thinking}</think>{text}{KIMI_SECTION.write(message)}"


_USER_MESSAGE = f"<|im_user|>user<|im_middle|>{QUESTION}<|im_end|>"


def _lacks_system_message(message: Message, ctx: RenderContext) -> bool:
    """Whether the default system message goes before this message: at the start of the
    conversation, or right after the tool declaration."""
    if message["role"] == "system":
        return False
    if ctx.idx == 0:
        return message["role"] != _TOOL_DECLARE
    declares = ctx.prev_message is not None and ctx.prev_message["role"] == _TOOL_DECLARE
    return ctx.idx == 1 and declares


def _with_call_ids(messages: list[Message]) -> list[Message]:
    """Copies in which every call has an id that names its function, and every result has an id.

    Raises RendererError for a result with an unknown id, or without an id if no call awaits one.
    """
    # Only ids seen so far: a later message must not change how an earlier one is rendered.
    taken: set[str | None] = set()
    written: dict[str, str] = {}  # original id -> id in the rendered conversation
    waiting: list[str] = []  # ids of calls without a result
    count = 0
    has_ids = True  # whether the calls of the latest assistant message have ids
    result: list[Message] = []
    for i, original in enumerate(messages):
        message = original.copy()
        if message["role"] == "tool":
            given = message.get("tool_call_id")
            if given not in written and not has_ids:
                given = None  # its calls have no ids, so match it by name and order
            if not given and not waiting:
                raise RendererError(
                    f"message {i}: a tool result without tool_call_id, and every call before it "
                    "has a result; set tool_call_id to the id of its call"
                )
            if given and given not in {*written, *written.values(), *waiting}:
                raise RendererError(
                    f"message {i}: tool_call_id={given!r} matches no call before it"
                )
            named = [call for call in waiting if kimi_function_name(call) == message.get("name")]
            call_id = written.get(given, given) if given else (named or waiting)[0]
            message["tool_call_id"] = call_id
            if call_id in waiting:
                waiting.remove(call_id)
        elif message["role"] == "assistant":
            waiting = []
            calls = message.get("tool_calls", [])
            has_ids = any(call.id for call in calls) or bool(message.get("unparsed_tool_calls"))
            taken |= {call.id for call in calls}
            given_ids: set[str | None] = set()
            for n, call in enumerate(calls, start=count):
                call_id = call.id or None
                if call_id is None or kimi_function_name(call_id) != call.function.name:
                    if call_id is not None and call_id in given_ids:
                        raise RendererError(f"message {i}: two tool calls have the id {call_id!r}")
                    given_ids.add(call_id)
                    while (call_id := f"functions.{call.function.name}:{n}") in taken:
                        n += 1
                    taken.add(call_id)
                written[call.id or call_id] = call_id
                waiting.append(call_id)
            if calls:
                message["tool_calls"] = [
                    call.model_copy(update={"id": call_id})
                    for call, call_id in zip(calls, waiting, strict=True)
                ]
            for call in message.get("unparsed_tool_calls", []):
                head, found, _ = call.raw_text.partition(KIMI_SECTION.separator)
                if found:
                    waiting.append(head.removeprefix(KIMI_SECTION.call_opened))
            count += len(calls)
        result.append(message)
    return result
