"""gpt-oss: the Harmony format, which writes replies to channels. Four renderers, one class.

    <|start|>system<|message|>…<|end|><|start|>user<|message|>Hello<|end|><|start|>assistant
    <|channel|>analysis<|message|>…<|end|><|start|>assistant<|channel|>final<|message|>Hi.<|return|>

(without the line break). The generation prompt ends with `<|start|>assistant`, and the model
samples the channel itself: `analysis` for reasoning, `commentary` for tool calls and text next to
them, `final` for the reply. Stop sequences: `<|return|>` after a reply, `<|call|>` after a tool
call. `gpt_oss_{low,medium,high}_reasoning` begin with the models' own system prompt,
`gpt_oss_no_sysprompt` has none. A system message of the conversation becomes a developer message.

The system prompt contains the current date, which the chat template takes from the clock. Here it
is fixed, by default to the day of the models' release: a run resumed tomorrow, a worker in another
time zone and a sampler months later all see the tokens that were trained. For another date:

    register_renderer("gpt_oss_2026", lambda t, _: GptOssRenderer(t, "medium", date(2026, 1, 31)))

Tokens equal those of the models' own chat template (system prompt, headings and tool declarations
are taken from the tokenizer's), with these intentional differences:

1. The date is fixed; the template writes today's.
2. Calls have the content type `<|constrain|>json`, as the models sample it; the template writes
   `json`. Arguments, a JSON string, are written unchanged (the template quotes a string again, and
   gives the same as here for an object); tool results are quoted, as in the template.
3. Special tokens in content are text in every role; the template lets them become tokens, and
   rejects some of them in replies.
4. Reasoning before the tool calls that lead to the last reply is kept, because the model had it in
   context when it sampled that reply. The template keeps it in the prompt for that reply, but not
   in the complete conversation. (Both drop it from earlier turns.)
5. Text next to a tool call is a message on the commentary channel, and is kept. The template treats
   it as reasoning, and rejects it if there is reasoning too.
6. Parallel calls are written one after the other, and each result under the name of its call
   (found by tool_call_id, by `name`, or by position). The template drops all calls but the first.
   Sampling stops at the first `<|call|>`, so a sampled reply has only one; in data with several,
   all of them are trained.
7. A second system message becomes a developer message in its place; the template drops it.
8. A developer message that begins with one of the format's headings is written unchanged.
9. An empty thinking part is dropped; the template writes an empty analysis message.
"""

from __future__ import annotations

import datetime
import json
import re
from functools import cached_property
from typing import Any, Literal, NamedTuple

from tinker_cookbook.exceptions import RendererError
from tinker_cookbook.renderers.base import (
    RenderContext,
    RenderedMessage,
    Renderer,
    require_text,
    text_chunk,
)
from tinker_cookbook.renderers.chat_template import QUESTION, apply_chat_template
from tinker_cookbook.renderers.gpt_oss_parsing import (
    CHANNEL,
    CONSTRAIN,
    CONTROL,
    END,
    FUNCTIONS,
    MESSAGE,
    START,
    HarmonyParser,
    marked_text,
    recipient_of,
)
from tinker_cookbook.renderers.messages import (
    Message,
    ThinkingAndText,
    has_tool_calls,
    split_thinking,
)
from tinker_cookbook.tokenizer_utils import Tokenizer
from tinker_cookbook.utils.json_types import JsonObject

RELEASE_DATE = datetime.date(2025, 8, 5)
ReasoningEffort = Literal["low", "medium", "high"]

_INSTRUCTIONS, _TOOLS = "# Instructions\n\n", "# Tools\n\n"
_HEADER_TAGS = (CHANNEL, CONSTRAIN, MESSAGE)
_NAME = re.compile(r"[^\s<]+")


class GptOssRenderer(Renderer):
    """reasoning_effort: None for no system prompt. date: the date in the system prompt.

    The reasoning of a turn is dropped from history once the turn has its reply. A reply in history
    ends with `<|end|>` instead of `<|return|>`; the model does not sample it, so it has weight 0
    (it is part of the next message's header).

    A `prefill` must include its channel (`<|channel|>final<|message|>Sure`), and must be prepended
    to the sampled response before parsing.

    Extension property: no, for both reasons. Within one turn, from the question through tool calls
    to the reply, each prompt extends the one before.
    """

    roles = ("system", "developer", "user", "assistant", "tool")
    markup = CONTROL
    end_of_text = ("<|endoftext|>",)

    def __init__(
        self,
        tokenizer: Tokenizer,
        reasoning_effort: ReasoningEffort | None = None,
        date: datetime.date = RELEASE_DATE,
    ):
        super().__init__(tokenizer)
        self.reasoning_effort = reasoning_effort
        self.date = date
        self._control = {self.encoder.id(tag): tag for tag in CONTROL}
        self._return = self.encoder.id("<|return|>")
        self._call = self.encoder.id("<|call|>")
        self._end = self.encoder.id(END)

    def get_stop_sequences(self) -> list[int]:
        return [self._return, self._call]

    def content_parser(self) -> HarmonyParser:
        return HarmonyParser()

    def render_message(self, message: Message, ctx: RenderContext) -> RenderedMessage:
        match message["role"]:
            case "assistant":
                return self._render_assistant(message, ctx)
            case "tool":
                recipient = _called_function(message, ctx)
                text = json.dumps(require_text(message, ctx), ensure_ascii=False)
                header = f"{recipient} to=assistant{CHANNEL}commentary{MESSAGE}"
                return self._render(header, text, ctx)
            case "user":
                return self._render(f"user{MESSAGE}", require_text(message, ctx), ctx)
            case role:
                text = require_text(message, ctx)
                if role == "system" or not text.startswith((_INSTRUCTIONS, _TOOLS)):
                    if not text:
                        return RenderedMessage(
                            output=[], header=text_chunk(self._preceding_tokens(ctx))
                        )
                    text = self._instructions.before + text + self._instructions.after
                return self._render(f"developer{MESSAGE}", text, ctx)

    def declare_tools(self, tools: list[JsonObject], system_prompt: str) -> list[Message]:
        """One developer message with instructions and declarations as the template writes them."""
        content = self._template(tools, with_instructions=bool(system_prompt)).developer
        if system_prompt:
            content = content.replace(QUESTION, system_prompt, 1)
        return [Message(role="developer", content=content)]

    def _decode(self, tokens: list[int]) -> str:
        return marked_text(tokens, self._control, super()._decode)

    def _render(self, header: str, text: str, ctx: RenderContext) -> RenderedMessage:
        start = self.encoder.encode(START + header, self.markup)
        return RenderedMessage(
            header=text_chunk([*self._preceding_tokens(ctx), *start]),
            output=[text_chunk([*self.encoder.encode(text), self._end])],
        )

    def _render_assistant(self, message: Message, ctx: RenderContext) -> RenderedMessage:
        """The header ends where sampling begins; the model samples further headers itself."""
        thinking, text = _thinking_and_text(message)
        start = self.encoder.encode(f"{START}assistant", self.markup)
        written: list[list[int]] = []

        def write(header: str, body: str, *ending: int) -> None:
            tokens = self.encoder.encode(header + MESSAGE, _HEADER_TAGS)
            written.append([*tokens, *self.encoder.encode(body), *ending])

        if thinking and _keeps_thinking(message, ctx):
            write(f"{CHANNEL}analysis", thinking, self._end)
        if not has_tool_calls(message):
            ending = [self._return] if ctx.is_last else []  # in history, part of the next header
            write(f"{CHANNEL}final", text, *ending)
        elif text:
            write(f"{CHANNEL}commentary", text, self._end)
        for call in message.get("tool_calls", []):
            if not _NAME.fullmatch(call.function.name):
                raise RendererError(
                    f"message {ctx.idx}: unsupported function name {call.function.name!r}; "
                    "use a name without white space and '<'"
                )
            header = f" to={FUNCTIONS}{call.function.name}{CHANNEL}commentary {CONSTRAIN}json"
            write(header, call.function.arguments, self._call)
        for unparsed in message.get("unparsed_tool_calls", []):
            header, _, body = unparsed.raw_text.partition(MESSAGE)
            write(header, body, self._call)
        tokens = written[0]
        for more in written[1:]:
            tokens += start + more
        return RenderedMessage(
            header=text_chunk([*self._preceding_tokens(ctx), *start]), output=[text_chunk(tokens)]
        )

    def _preceding_tokens(self, ctx: RenderContext) -> list[int]:
        """Tokens before a message: the system prompt, or the `<|end|>` of a reply in history."""
        if ctx.prev_message is None:
            declares = bool(ctx.messages) and _declares_tools(ctx.messages[0])
            return self._system_tokens[declares]
        is_reply = ctx.prev_message["role"] == "assistant" and not has_tool_calls(ctx.prev_message)
        return [self._end] if is_reply else []

    @cached_property
    def _system_tokens(self) -> tuple[list[int], list[int]]:
        """The system prompt without and with tools, between which the template differs."""
        if self.reasoning_effort is None:
            return [], []
        tool = {"name": "f", "description": "", "parameters": {}}
        plain, tooled = (
            [
                *self.encoder.encode(f"{START}system{MESSAGE}", self.markup),
                *self.encoder.encode(self._template(tools, with_instructions=True).system),
                self._end,
            ]
            for tools in (None, [{"type": "function", "function": tool}])
        )
        return plain, tooled

    @cached_property
    def _instructions(self) -> _InstructionsFrame:
        before, _, after = self._template(None, with_instructions=True).developer.partition(
            QUESTION
        )
        return _InstructionsFrame(before, after)

    def _template(self, tools: list[Any] | None, with_instructions: bool) -> _Preamble:
        """Extract what the tokenizer's chat template writes before the first user message."""
        head = [{"role": "system", "content": QUESTION}] if with_instructions else []
        text = apply_chat_template(
            self.tokenizer,
            [*head, {"role": "user", "content": QUESTION}],
            tools=tools,
            reasoning_effort=self.reasoning_effort or "medium",
            strftime_now=self.date.strftime,
        )
        start = f"{START}system{MESSAGE}"
        between, end = (
            f"{END}{START}developer{MESSAGE}",
            f"{END}{START}user{MESSAGE}{QUESTION}{END}",
        )
        system, found, developer = text.partition(between)
        if not (found and system.startswith(start) and developer.endswith(end)):
            raise RendererError(
                "the tokenizer's chat template does not write the Harmony format; "
                "set renderer_name= to the model's own family"
            )
        return _Preamble(system.removeprefix(start), developer.removesuffix(end))


class _InstructionsFrame(NamedTuple):
    before: str
    after: str


class _Preamble(NamedTuple):
    system: str
    developer: str


def _thinking_and_text(message: Message) -> ThinkingAndText:
    """Think tags inside a string are text: they have no meaning in this format."""
    content = message["content"]
    return ThinkingAndText("", content) if isinstance(content, str) else split_thinking(content)


def _keeps_thinking(message: Message, ctx: RenderContext) -> bool:
    """Whether to keep reasoning: in the last reply, and in the tool calls that lead to it."""
    if not has_tool_calls(message):
        return ctx.is_last
    later = ctx.messages[ctx.idx + 1 : -1]
    return all(m["role"] != "assistant" or has_tool_calls(m) for m in later)


def _declares_tools(message: Message) -> bool:
    content = message["content"]
    if message["role"] != "developer" or not isinstance(content, str):
        return False
    return content.startswith(_TOOLS) or (
        content.startswith(_INSTRUCTIONS) and f"\n\n{_TOOLS}" in content
    )


def _called_function(message: Message, ctx: RenderContext) -> str:
    """The recipient of the call that a tool result belongs to, e.g. `functions.f`."""
    caller = next((i for i in range(ctx.idx - 1, -1, -1) if _is_assistant(ctx, i)), None)
    calls = [] if caller is None else _call_targets(ctx.messages[caller])
    if not calls:
        raise RendererError(
            f"message {ctx.idx}: a tool result without a call; "
            "the assistant message before it must have tool_calls"
        )
    earlier = sum(m["role"] == "tool" for m in ctx.messages[(caller or 0) + 1 : ctx.idx])
    if earlier >= len(calls):
        raise RendererError(
            f"message {ctx.idx}: a tool result without a call; message {caller} has {len(calls)}"
        )
    if (given := message.get("tool_call_id")) and any(call.id for call in calls):
        found = [call.recipient for call in calls if call.id == given]
        label = f"tool_call_id={given!r}"
    elif name := message.get("name"):
        found = [c.recipient for c in calls if c.recipient in (name, FUNCTIONS + name)]
        label = f"name={name!r}"
    else:
        found = [call.recipient for call in calls[earlier : earlier + 1]]
        label = f"neither name nor id (result {earlier + 1} of {len(calls)})"
    if not found:
        raise RendererError(
            f"message {ctx.idx}: a tool result with {label} matches no call of message {caller}"
        )
    return found[0]


class _CallTarget(NamedTuple):
    id: str | None
    recipient: str


def _is_assistant(ctx: RenderContext, index: int) -> bool:
    return ctx.messages[index]["role"] == "assistant"


def _call_targets(message: Message) -> list[_CallTarget]:
    calls = [
        _CallTarget(call.id, FUNCTIONS + call.function.name)
        for call in message.get("tool_calls", [])
    ]
    for unparsed in message.get("unparsed_tool_calls", []):
        if recipient := recipient_of(unparsed.raw_text):
            calls.append(_CallTarget(None, recipient))
    return calls
