"""One conversation as its chat template writes it, and the tokens of that text."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, cast

from tinker_cookbook.exceptions import RendererError
from tinker_cookbook.renderers.chat_template import THINK, ChatTemplate, Probes, TemplateRefusal
from tinker_cookbook.renderers.messages import (
    FunctionBody,
    Message,
    ToolCall,
    split_thinking,
    to_openai_message,
)
from tinker_cookbook.renderers.tool_sections import KIMI_SECTION, kimi_function_name
from tinker_cookbook.utils.json_types import JsonObject, Plain


class _Part(NamedTuple):
    """What a probe stands for: a message's "text", "reasoning", "call of 'f'" and the like."""

    message: int
    what: str


class Conversation:
    """What a template makes of the beginnings of one conversation.

    Tags that must stay text are broken by `mark`, a character that occurs nowhere else, while the
    template works; `encode` takes it out again.
    """

    def __init__(self, template: ChatTemplate, messages: Sequence[Message]):
        self._template = template
        self._calls = [self._written_calls(message) for message in messages]
        given = [self._openai(message) for message in messages]
        tools = cast(dict[str, Any], messages[0]).get("tools")
        self._known = json.dumps([given, tools], ensure_ascii=False, default=str)
        private_use = map(chr, range(0xE000, 0xF8FF))
        self._mark = next(character for character in private_use if character not in self._known)
        control, every = template.control_guard, template.every_guard
        self._tools = control.break_tags(tools, self._mark)
        self._messages: list[dict[str, Any]] = [
            {
                key: value if key == "role" else guard.break_tags(value, self._mark)
                for key, value in message.items()
            }
            for message in given
            for guard in [every if message["role"] in ("user", "tool") else control]
        ]
        self._through_turn: tuple[str, list[int]] = "", []  # see `encode`
        # Tools without a system prompt are declared without one
        self._skipped = int(bool(tools) and not given[0]["content"])

    def _openai(self, message: Message) -> JsonObject:
        section = ""
        if message.get("unparsed_tool_calls") and self._template.writes_kimi_calls:
            section = KIMI_SECTION.write(message)
            message = cast(Message, {**message, "unparsed_tool_calls": [], "tool_calls": []})
        result = to_openai_message(message)
        result["content"] = f"{result['content']}{section}"
        if calls := self._written_calls(message):
            result["tool_calls"] = [
                self._openai_call(call, json.loads(call.function.arguments)) for call in calls
            ]
        return result

    def _written_calls(self, message: Message) -> list[ToolCall]:
        """The calls that the template writes: none of a section that holds one it cannot write."""
        if message.get("unparsed_tool_calls") and self._template.writes_kimi_calls:
            return []
        return message.get("tool_calls", [])

    def _openai_call(self, call: ToolCall, arguments: JsonObject) -> JsonObject:
        result = call.model_dump(exclude_none=True)
        if not self._template.keeps_arguments:
            result["function"]["arguments"] = arguments
        return result

    def prompt(self, count: int) -> str:
        """The generation prompt behind the first `count` messages."""
        return self._apply(count, prompt=True)

    def complete(self, count: int) -> str:
        """The first `count` messages; a reply at the end up to its end-of-turn token."""
        text = self._apply(count, prompt=False)
        behind = self._template.behind_turn
        is_reply = self._messages[count - 1]["role"] == "assistant"
        ends = text.endswith(self._template.end_of_turn + behind)
        return text.removesuffix(behind) if is_reply and ends else text

    def _apply(self, count: int, prompt: bool) -> str:
        try:
            text = self._ask(self._messages[:count], prompt)
        except TemplateRefusal as refusal:
            raise RendererError(
                f"message {self._first_refused(count)}: "
                f"the chat template refuses it: {refusal.reason}"
            ) from refusal
        if f"\\u{ord(self._mark):04x}" in text:
            raise RendererError(
                "the chat template writes content as ASCII escapes, in which special-token "
                "strings cannot be told from special tokens; remove them from the messages"
            )
        return text

    def _ask(self, messages: Sequence[Mapping[str, Plain]], prompt: bool) -> str:
        return self._template.apply(messages[self._skipped :], prompt, self._tools)

    def check_nothing_omitted(self, trained: Sequence[int], prompt: bool = False) -> None:
        """RendererError unless the template writes every call of the conversation, and all of the
        replies that are `trained`, which it is known to write behind their prompts.

        Text alone needs no further look. Reasoning and calls, which could hide in other words, are
        asked for in one more rendering, with probes in their place.
        """
        probes = Probes[_Part](self._known)
        messages = [
            self._probed(i, probes, i in trained) if i in trained or self._calls[i] else message
            for i, message in enumerate(self._messages)
        ]
        if all(part.what == "text" for part in probes.meanings):
            return
        try:
            text = self._ask(messages, prompt)
        except TemplateRefusal as refusal:
            raise RendererError(
                f"message {probes.meanings[0].message}: the chat template writes it, but refuses "
                "it with other words, names and values, so it cannot be told whether it leaves "
                f"some out ({refusal.reason}); use a renderer that knows this model"
            ) from refusal
        if missing := probes.first_missing(text):
            raise RendererError(
                f"message {missing.message}: the chat template leaves out the {missing.what}; "
                + (
                    "remove it, or use a renderer that knows it"
                    if missing.what in ("text", "reasoning")
                    else "it has no form for calls, or for several in one message, or for one "
                    "without an id: give each call one"
                )
            )

    def _probed(self, i: int, probes: Probes[_Part], is_trained: bool) -> dict[str, Any]:
        """Message `i` with probes in place of its calls, and of what else it says if trained."""
        message = dict(self._messages[i])
        if self._calls[i]:
            message["tool_calls"] = self._probed_calls(i, probes)
        if not is_trained:
            return message

        def probed(text: str, what: str) -> str:
            words = text.strip()
            return text.replace(words, probes.new(_Part(i, what))) if words else text

        if "reasoning_content" in message:
            message["reasoning_content"] = probed(message["reasoning_content"], "reasoning")
        pieces = re.split("(</?think>)", message["content"])
        ends = pieces.index(THINK[1]) if THINK[1] in pieces else 0
        message["content"] = "".join(
            piece if piece in THINK else probed(piece, "reasoning" if n < ends else "text")
            for n, piece in enumerate(pieces)
        )
        return message

    def _probed_calls(self, i: int, probes: Probes[_Part]) -> list[Plain]:
        """The calls of message `i`, probes for their names and for the values of their arguments.

        An id that names its function names the probe: a template may write the id alone.
        """
        calls: list[Plain] = []
        for call in self._calls[i]:
            name = call.function.name
            probe = probes.new(_Part(i, f"call of {name!r}"))
            new = partial(probes.new, _Part(i, f"arguments of {name!r}"))
            given = json.loads(call.function.arguments)
            arguments = {k: _probed_value(v, new) for k, v in given.items()} or {new(): new()}
            function = FunctionBody(name=probe, arguments=json.dumps(arguments, ensure_ascii=False))
            call_id = call.id
            if call_id and kimi_function_name(call_id) == name:
                call_id = call_id.replace(f"{name}:", f"{probe}:")
            probed = ToolCall(id=call_id, function=function)
            calls.append(self._openai_call(probed, arguments))
        return calls

    def _first_refused(self, count: int) -> int:
        for n in range(self._skipped + 1, count):
            if self._template.probe(self._messages[self._skipped : n]) is None:
                return n - 1
        return count - 1

    def encode_reply(self, i: int) -> tuple[list[int], list[int]]:
        """Tokens of the generation prompt for reply `i`, and of everything through the reply."""
        if i == self._skipped:
            raise RendererError(
                f"message {i}: nothing stands before this reply, and a chat template "
                "prompts for a reply to something; put a user message first"
            )
        before, through = self.prompt(i), self.complete(i + 1)
        self._check_same_as_sampling(i, before, through)
        prompt, whole = self.encode(before), self.encode(through)
        if whole[: len(prompt)] == prompt:
            return prompt, whole
        apart = prompt + self.encode(through.removeprefix(before))
        if self._decode(apart) != self._decode(whole):
            raise RendererError(
                f"message {i}: the tokenizer joins the start of the reply to its header, and "
                "cannot encode it apart; remove the white space it begins with"
            )
        return prompt, apart

    def _check_same_as_sampling(self, i: int, before: str, through: str) -> None:
        """RendererError unless the reply is a whole one that could be sampled behind `before`."""
        opened, end = self._template.opened, self._template.end_of_turn
        if not through.startswith(before):
            raise RendererError(
                f"message {i}: the chat template does not write this reply behind its own "
                f"generation prompt, so there is no mask that matches sampling; {self._way_out(i)}"
            )
        reply = through.removeprefix(before)
        if not reply.endswith(end) or reply.count(end) > 1:
            raise RendererError(
                f"message {i}: the chat template does not end this turn with one {end!r}, "
                "where sampling stops"
            )
        _, text = split_thinking(self._messages[i]["content"])
        reply = through.removeprefix(before.removesuffix(opened))
        if text.strip() not in reply:
            raise RendererError(
                f"message {i}: the chat template leaves out the text of this reply, so it would "
                "not be trained; use a renderer that knows it"
            )

    def _way_out(self, i: int) -> str:
        """What makes the template write reply `i` behind its prompt, found by trying it."""
        *before, reply = self._messages[: i + 1]
        opened = self._template.opened
        if opened and not reply["content"].startswith(opened):
            content = f"{opened}x\n{THINK[1]}\n\n{reply['content']}"
            if self._is_behind_prompt([*before, {**reply, "content": content}]):
                return f"its prompt opens with {opened!r}, so must the reply"
        has_system = before[0]["role"] == "system" and i > 1 and not self._skipped
        if has_system and self._is_behind_prompt([*before[1:], reply]):
            return "without the system message it does: remove that, or let a user message say it"
        own = "register_renderer, or renderer_name=module:Name"
        return f"write a renderer for this model and use {own}"

    def _is_behind_prompt(self, messages: Sequence[Mapping[str, Plain]]) -> bool:
        """Whether the last of `messages` would be written behind its generation prompt."""
        try:
            return self._ask(messages, False).startswith(self._ask(messages[:-1], True))
        except TemplateRefusal:
            return False

    def _decode(self, tokens: list[int]) -> str:
        return self._template.tokenizer.decode(tokens, clean_up_tokenization_spaces=False)

    def encode(self, text: str) -> list[int]:
        """Tokens, as the tokenizer encodes the template's text, but for the broken tags.

        A text that extends the last one is encoded from the end of a turn on that both have: the
        beginnings of a conversation, from short to long, cost no more than the whole.
        """
        end = self._template.turn_boundary
        if end is None:
            return self._encode(text)
        end_id = self._template.encoder.id(end)
        begin, known = self._through_turn
        if begin and text.startswith(begin):
            more = self._encode(end + text.removeprefix(begin))
            tokens = known + more[more.index(end_id) + 1 :]
        else:
            tokens = self._encode(text)
        if end in text and text.count(end) == tokens.count(end_id):
            behind = len(tokens) - tokens[::-1].index(end_id)
            self._through_turn = text[: text.rindex(end) + len(end)], tokens[:behind]
        return tokens

    def _encode(self, text: str) -> list[int]:
        """`encode` from the start. The broken tags are encoded between the others piece by piece,
        if this tokenizer has it so."""
        tokenizer, encoder = self._template.tokenizer, self._template.encoder
        whole = list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
        if self._mark not in text:
            return whole
        pieces = self._template.splitter.split(text)

        def piecewise(pieces: Iterable[str]) -> list[int]:
            encoded = (encoder.encode(p, [p] if i % 2 else ()) for i, p in enumerate(pieces))
            return [token for tokens in encoded for token in tokens]

        if piecewise(pieces) != whole:
            raise RendererError(
                "a message holds a special-token string, and this tokenizer cannot encode it as "
                "text; remove it from the messages"
            )
        return piecewise(piece.replace(self._mark, "") for piece in pieces)


def _probed_value(value: Plain, new: Callable[[], str]) -> Plain:
    """JSON of the same shape, a probe for each value in it."""
    if isinstance(value, dict) and value:
        return {key: _probed_value(item, new) for key, item in value.items()}
    if isinstance(value, list) and value:
        return [_probed_value(item, new) for item in value]
    return new()
