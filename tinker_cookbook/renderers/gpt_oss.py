"""gpt-oss: the Harmony format, in which every message names its channel. Four renderers, one class.

    <|start|>system<|message|>…<|end|><|start|>user<|message|>Hello<|end|><|start|>assistant
    <|channel|>analysis<|message|>…<|end|><|start|>assistant<|channel|>final<|message|>Hi.<|return|>

(in one line). The generation prompt ends `<|start|>assistant`: the model writes the channel itself,
its reasoning to `analysis`, calls and words beside them to `commentary`, its reply to `final`.
Stops: `<|return|>` after a reply, `<|call|>` after a call. `gpt_oss_{low,medium,high}_reasoning`
begin with the model's own system prompt, `gpt_oss_no_sysprompt` without. What a conversation calls
`system` is the developer's message here.

The date. The system prompt holds the current date, and the chat template asks the clock. Here it is
`date`, by default the day of the models' release, always: a run resumed tomorrow, a worker in
another time zone and a sampler months later all see the tokens that were trained. For another one:

    register_renderer("gpt_oss_2026", lambda t, _: GptOssRenderer(t, "medium", date(2026, 1, 31)))

Tokens equal those of the models' own chat template (system prompt, headings and tool declarations
are taken from the tokenizer's), with these differences, all meant:

1. The date is fixed; the template's is today.
2. Calls have the content type `<|constrain|>json`, as models sample it, where the template has
   `json`. Their arguments, JSON in text, are written as they are (the template quotes text again,
   and equals this when given an object); tool results are quoted, as in the template.
3. Special tokens in content are text, everybody's; the template reads them as tokens, and refuses
   some in replies.
4. Reasoning before the calls of the turn that the last reply ends is kept, for the model had it
   before it when it wrote that reply. The template keeps it in the prompt for that reply but not in
   the complete conversation. (Both drop it from earlier turns.)
5. Words beside a call are a message on the commentary channel, and stay. The template takes them
   for reasoning, and refuses them beside reasoning.
6. Parallel calls are written one after the other, and each result under the name of its call
   (found by tool_call_id, by `name`, or by position). The template drops all calls but the first.
   Sampling ends at the first `<|call|>`, so no sampled reply holds two; data that does is trained
   through all of its calls.
7. A second system message is a developer message where it stands; the template drops it.
8. A developer message that begins with one of the format's headings is written as it is.
9. An empty thinking part is none; the template writes an empty analysis message.
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
    """`reasoning_effort` None: no system prompt. `date`: the one that the system prompt gives.

    The reasoning of earlier turns is dropped once they have their reply. A reply that is not the
    last ends with `<|end|>` instead of `<|return|>`; as no model writes this, it carries no weight
    (it belongs to the next header).

    A `prefill` has to open its channel itself (`<|channel|>final<|message|>Sure`), and what is then
    sampled has to be parsed with it in front.

    Extension property: no, for both reasons. Within one turn, from a question over calls to the
    reply, each prompt does extend the one before.
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
                recipient = _caller(message, ctx)
                text = json.dumps(require_text(message, ctx), ensure_ascii=False)
                header = f"{recipient} to=assistant{CHANNEL}commentary{MESSAGE}"
                return self._render(header, text, ctx)
            case "user":
                return self._render(f"user{MESSAGE}", require_text(message, ctx), ctx)
            case role:
                text = require_text(message, ctx)
                if role == "system" or not text.startswith((_INSTRUCTIONS, _TOOLS)):
                    if not text:
                        return RenderedMessage(output=[], header=text_chunk(self._opening(ctx)))
                    text = self._instructions.before + text + self._instructions.after
                return self._render(f"developer{MESSAGE}", text, ctx)

    def declare_tools(self, tools: list[JsonObject], system_prompt: str) -> list[Message]:
        """One developer message, instructions and declarations in the template's own rendering."""
        content = self._template(tools, with_instructions=bool(system_prompt)).developer
        if system_prompt:
            content = content.replace(QUESTION, system_prompt, 1)
        return [Message(role="developer", content=content)]

    def _decode(self, tokens: list[int]) -> str:
        return marked_text(tokens, self._control, super()._decode)

    def _render(self, header: str, text: str, ctx: RenderContext) -> RenderedMessage:
        start = self.encoder.encode(START + header, self.markup)
        return RenderedMessage(
            header=text_chunk([*self._opening(ctx), *start]),
            output=[text_chunk([*self.encoder.encode(text), self._end])],
        )

    def _render_assistant(self, message: Message, ctx: RenderContext) -> RenderedMessage:
        """The header ends where sampling begins; the reply's further headers are the model's."""
        thinking, text = _thinking_and_text(message)
        start = self.encoder.encode(f"{START}assistant", self.markup)
        written: list[list[int]] = []

        def write(header: str, body: str, *ending: int) -> None:
            tokens = self.encoder.encode(header + MESSAGE, _HEADER_TAGS)
            written.append([*tokens, *self.encoder.encode(body), *ending])

        if thinking and _keeps_thinking(message, ctx):
            write(f"{CHANNEL}analysis", thinking, self._end)
        if not has_tool_calls(message):
            ending = [self._return] if ctx.is_last else []  # in history the next header ends it
            write(f"{CHANNEL}final", text, *ending)
        elif text:
            write(f"{CHANNEL}commentary", text, self._end)
        for call in message.get("tool_calls", []):
            if not _NAME.fullmatch(call.function.name):
                raise RendererError(
                    f"message {ctx.idx}: {call.function.name!r} cannot be a function's name here; "
                    "use one without white space and '<'"
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
            header=text_chunk([*self._opening(ctx), *start]), output=[text_chunk(tokens)]
        )

    def _opening(self, ctx: RenderContext) -> list[int]:
        """What the framework writes before a message: the system prompt, or a past reply's end."""
        if ctx.prev_message is None:
            declares = bool(ctx.messages) and _declares_tools(ctx.messages[0])
            return self._system_tokens[declares]
        is_reply = ctx.prev_message["role"] == "assistant" and not has_tool_calls(ctx.prev_message)
        return [self._end] if is_reply else []

    @cached_property
    def _system_tokens(self) -> tuple[list[int], list[int]]:
        """The system prompt of a conversation without tools, and of one with."""
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
    def _instructions(self) -> _Frame:
        before, _, after = self._template(None, with_instructions=True).developer.partition(
            QUESTION
        )
        return _Frame(before, after)

    def _template(self, tools: list[Any] | None, with_instructions: bool) -> _Preamble:
        """What the tokenizer's chat template writes before the first question."""
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


class _Frame(NamedTuple):
    before: str
    after: str


class _Preamble(NamedTuple):
    system: str
    developer: str


def _thinking_and_text(message: Message) -> ThinkingAndText:
    """A string is a reply as it stands: think tags mean nothing in this format."""
    content = message["content"]
    return ThinkingAndText("", content) if isinstance(content, str) else split_thinking(content)


def _keeps_thinking(message: Message, ctx: RenderContext) -> bool:
    """A reply while it is the last; a call until a reply, other than the last, has followed."""
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


def _caller(message: Message, ctx: RenderContext) -> str:
    """Whose result a tool message is, e.g. `functions.f`."""
    asked = next((i for i in range(ctx.idx - 1, -1, -1) if _is_assistant(ctx, i)), None)
    calls = [] if asked is None else _recipients(ctx.messages[asked])
    if not calls:
        raise RendererError(
            f"message {ctx.idx}: a tool result without a call; "
            "the assistant's message before it must have tool_calls"
        )
    earlier = sum(m["role"] == "tool" for m in ctx.messages[(asked or 0) + 1 : ctx.idx])
    if earlier >= len(calls):
        raise RendererError(
            f"message {ctx.idx}: a tool result without a call; message {asked} has {len(calls)}"
        )
    if (given := message.get("tool_call_id")) and any(call.id for call in calls):
        found = [call.recipient for call in calls if call.id == given]
        problem = f"the tool_call_id {given!r}"
    elif name := message.get("name"):
        found = [c.recipient for c in calls if c.recipient in (name, FUNCTIONS + name)]
        problem = f"the name {name!r}"
    else:
        found = [call.recipient for call in calls[earlier : earlier + 1]]
        problem = f"no name, as result {earlier + 1} of {len(calls)}"
    if not found:
        raise RendererError(
            f"message {ctx.idx}: a tool result with {problem}, which no call of message {asked} has"
        )
    return found[0]


class _Recipient(NamedTuple):
    id: str | None
    recipient: str


def _is_assistant(ctx: RenderContext, index: int) -> bool:
    return ctx.messages[index]["role"] == "assistant"


def _recipients(message: Message) -> list[_Recipient]:
    calls = [
        _Recipient(call.id, FUNCTIONS + call.function.name)
        for call in message.get("tool_calls", [])
    ]
    for unparsed in message.get("unparsed_tool_calls", []):
        if recipient := recipient_of(unparsed.raw_text):
            calls.append(_Recipient(None, recipient))
    return calls
