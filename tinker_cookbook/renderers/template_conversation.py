"""Render prefixes of one conversation with a chat template, and encode them.

To train reply i, two texts are rendered: the generation prompt for it, and the conversation through
it. Both come from the template, so their difference is exactly what a model would have to sample.
A reply is encoded after its own prompt, because sampling has it there: a tokenizer may merge the
start of a reply with the end of its header, and a token that spans the two is never sampled.

Rendering alone does not show whether the template wrote everything: many leave out reasoning, or
all tool calls but the first, without an error. So the conversation is rendered once more with probe
words in place of these parts (`check_nothing_omitted`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, cast

from tinker_cookbook.exceptions import RendererError
from tinker_cookbook.renderers.chat_template import THINK, ChatTemplate, Probes, TemplateError
from tinker_cookbook.renderers.messages import (
    FunctionBody,
    Message,
    ToolCall,
    split_thinking,
    to_openai_message,
)
from tinker_cookbook.renderers.tool_sections import KIMI_SECTION, kimi_function_name
from tinker_cookbook.utils.json_types import JsonObject, Plain


class _ProbedPart(NamedTuple):
    """The part that a probe replaces: a message's "text", "reasoning", "call of 'f'" and so on."""

    message: int
    name: str


class Conversation:
    """One conversation as its template renders it, and the tokens of any prefix of it.

    Special-token strings in the messages must stay text. While the template renders, a marker
    breaks them: a private-use character that occurs nowhere in the conversation. `encode` removes
    it.
    """

    def __init__(self, template: ChatTemplate, messages: Sequence[Message]):
        self._template = template
        self._calls = [self._structured_calls(message) for message in messages]
        openai_messages = [self._to_openai(message) for message in messages]
        tools = cast(dict[str, Any], messages[0]).get("tools")
        self._all_text = json.dumps([openai_messages, tools], ensure_ascii=False, default=str)
        private_use = map(chr, range(0xE000, 0xF8FF))
        self._break_mark = next(
            character for character in private_use if character not in self._all_text
        )
        special, all_tags = template.special_guard, template.all_tags_guard
        self._tools = special.break_tags(tools, self._break_mark)
        self._messages: list[dict[str, Any]] = [
            {
                key: value if key == "role" else guard.break_tags(value, self._break_mark)
                for key, value in message.items()
            }
            for message in openai_messages
            # User and tool messages are untrusted; the other roles may use the model's own tags.
            for guard in [all_tags if message["role"] in ("user", "tool") else special]
        ]
        self._encoded_prefix: tuple[str, list[int]] = "", []  # a text and its tokens, see `encode`
        # A system message with tools but without text only carries the tools: it is not rendered.
        self._num_skipped = int(bool(tools) and not openai_messages[0]["content"])

    def _to_openai(self, message: Message) -> JsonObject:
        # A section of Kimi's with an unparsable call is written as text, in full: the template
        # could write only its valid calls.
        section = ""
        if message.get("unparsed_tool_calls") and self._template.writes_kimi_calls:
            section = KIMI_SECTION.write(message)
            message = cast(Message, {**message, "unparsed_tool_calls": [], "tool_calls": []})
        result = to_openai_message(message)
        result["content"] = f"{result['content']}{section}"
        if calls := self._structured_calls(message):
            result["tool_calls"] = [
                self._to_openai_call(call, json.loads(call.function.arguments)) for call in calls
            ]
        return result

    def _structured_calls(self, message: Message) -> list[ToolCall]:
        """The calls that the template writes itself; [] if `_to_openai` writes them as text."""
        if message.get("unparsed_tool_calls") and self._template.writes_kimi_calls:
            return []
        return message.get("tool_calls", [])

    def _to_openai_call(self, call: ToolCall, arguments: JsonObject) -> JsonObject:
        result = call.model_dump(exclude_none=True)
        if not self._template.keeps_arguments:
            result["function"]["arguments"] = arguments
        return result

    def prompt(self, count: int) -> str:
        """The first `count` messages and the generation prompt for a reply to them."""
        return self._apply(count, prompt=True)

    def complete(self, count: int) -> str:
        """The first `count` messages; if the last is a reply, up to its end-of-turn token."""
        text = self._apply(count, prompt=False)
        suffix = self._template.turn_suffix
        is_reply = self._messages[count - 1]["role"] == "assistant"
        ends_turn = text.endswith(self._template.end_of_turn + suffix)
        return text.removesuffix(suffix) if is_reply and ends_turn else text

    def _apply(self, count: int, prompt: bool) -> str:
        try:
            text = self._render(self._messages[:count], prompt)
        except TemplateError as error:
            raise RendererError(
                f"message {self._first_rejected(count)}: "
                f"the chat template rejects it: {error.reason}"
            ) from error
        # `tojson` with ensure_ascii writes the marker as an escape, where `encode` cannot find it.
        if f"\\u{ord(self._break_mark):04x}" in text:
            raise RendererError(
                "the chat template writes content as ASCII escapes, so that special-token strings "
                "in it cannot be distinguished from special tokens; remove them from the messages"
            )
        return text

    def _render(self, messages: Sequence[Mapping[str, Plain]], prompt: bool) -> str:
        return self._template.apply(messages[self._num_skipped :], prompt, self._tools)

    def check_nothing_omitted(self, trained: Sequence[int], prompt: bool = False) -> None:
        """Raise RendererError unless the template writes every tool call of the conversation and
        all parts of the `trained` replies.

        Replies of text alone need no second rendering: `_check_matches_sampling` has found their
        text after their prompt. Reasoning and calls might be missing while the same words occur
        elsewhere, so they are replaced by probes and the conversation is rendered again.
        """
        probes = Probes[_ProbedPart](self._all_text)
        messages = [
            self._with_probes(i, probes, i in trained)
            if i in trained or self._calls[i]
            else message
            for i, message in enumerate(self._messages)
        ]
        if all(part.name == "text" for part in probes.meanings):
            return
        try:
            text = self._render(messages, prompt)
        except TemplateError as error:
            raise RendererError(
                f"message {probes.meanings[0].message}: the chat template renders it, but rejects "
                "it with other words, names and values, so whether it leaves some out cannot be "
                f"checked ({error.reason}); use a renderer for this model"
            ) from error
        if missing := probes.first_missing(text):
            raise RendererError(
                f"message {missing.message}: the chat template leaves out the {missing.name}; "
                + (
                    "remove it, or use a renderer for this model"
                    if missing.name in ("text", "reasoning")
                    else "it has no format for tool calls, for several in one message, or for a "
                    "call without an id; give each call an id, or use a renderer for this model"
                )
            )

    def _with_probes(self, i: int, probes: Probes[_ProbedPart], is_trained: bool) -> dict[str, Any]:
        """Message `i` with probes for its calls and, if trained, for its text and reasoning."""
        message = dict(self._messages[i])
        if self._calls[i]:
            message["tool_calls"] = self._calls_with_probes(i, probes)
        if not is_trained:
            return message

        # White space and think tags stay where they are: templates split the content by them.
        def probed(text: str, name: str) -> str:
            words = text.strip()
            return text.replace(words, probes.new(_ProbedPart(i, name))) if words else text

        if "reasoning_content" in message:
            message["reasoning_content"] = probed(message["reasoning_content"], "reasoning")
        pieces = re.split("(</?think>)", message["content"])
        ends = pieces.index(THINK[1]) if THINK[1] in pieces else 0
        message["content"] = "".join(
            piece if piece in THINK else probed(piece, "reasoning" if n < ends else "text")
            for n, piece in enumerate(pieces)
        )
        return message

    def _calls_with_probes(self, i: int, probes: Probes[_ProbedPart]) -> list[Plain]:
        """The calls of message `i` with probes for the names and for all values of the arguments.

        An id that contains the function's name gets the probe as well, because a template may write
        the id alone.
        """
        calls: list[Plain] = []
        for call in self._calls[i]:
            name = call.function.name
            probe = probes.new(_ProbedPart(i, f"call of {name!r}"))
            new = partial(probes.new, _ProbedPart(i, f"arguments of {name!r}"))
            original = json.loads(call.function.arguments)
            # Empty arguments get a key and a value, so that it shows whether they are written.
            arguments = {k: _probes_like(v, new) for k, v in original.items()} or {new(): new()}
            function = FunctionBody(name=probe, arguments=json.dumps(arguments, ensure_ascii=False))
            call_id = call.id
            if call_id and kimi_function_name(call_id) == name:
                call_id = call_id.replace(f"{name}:", f"{probe}:")
            probed = ToolCall(id=call_id, function=function)
            calls.append(self._to_openai_call(probed, arguments))
        return calls

    def _first_rejected(self, count: int) -> int:
        """Index of the message at which the template starts to raise."""
        for n in range(self._num_skipped + 1, count):
            if self._template.try_apply(self._messages[self._num_skipped : n]) is None:
                return n - 1
        return count - 1

    def encode_reply(self, i: int) -> tuple[list[int], list[int]]:
        """Tokens of the generation prompt for reply `i`, and of the conversation through it.

        The second list always begins with the first, so the reply's tokens are what it has beyond
        it.
        """
        if i == self._num_skipped:
            raise RendererError(
                f"message {i}: no message comes before this reply, so it has no generation prompt; "
                "put a user message first"
            )
        before, through = self.prompt(i), self.complete(i + 1)
        self._check_matches_sampling(i, before, through)
        prompt, whole = self.encode(before), self.encode(through)
        if whole[: len(prompt)] == prompt:
            return prompt, whole
        # The tokenizer merges the end of the prompt with the start of the reply. Sampling never
        # does: the prompt is encoded first, and the reply is sampled after it. So encode the two
        # separately. Some tokenizers put a space before any text, hence the check.
        separate = prompt + self.encode(through.removeprefix(before))
        if self._decode(separate) != self._decode(whole):
            raise RendererError(
                f"message {i}: the tokenizer merges the start of the reply with its header, and "
                "cannot encode it separately; remove the white space that the reply begins with"
            )
        return prompt, separate

    def _check_matches_sampling(self, i: int, before: str, through: str) -> None:
        """Raise RendererError unless sampling after `before` could give the whole reply."""
        reply_prefix, end = self._template.reply_prefix, self._template.end_of_turn
        if not through.startswith(before):
            raise RendererError(
                f"message {i}: the chat template does not write this reply after its own "
                f"generation prompt, so no loss mask matches sampling; {self._suggest_fix(i)}"
            )
        reply = through.removeprefix(before)
        if not reply.endswith(end) or reply.count(end) > 1:
            raise RendererError(
                f"message {i}: the chat template does not end this turn with one {end!r}, "
                "at which sampling stops"
            )
        _, text = split_thinking(self._messages[i]["content"])
        reply = through.removeprefix(before.removesuffix(reply_prefix))
        if text.strip() not in reply:
            raise RendererError(
                f"message {i}: the chat template leaves out the text of this reply, so it would "
                "not be trained; use a renderer for this model"
            )

    def _suggest_fix(self, i: int) -> str:
        """A change with which the template writes reply `i` after its prompt, found by trying."""
        *before, reply = self._messages[: i + 1]
        reply_prefix = self._template.reply_prefix
        if reply_prefix and not reply["content"].startswith(reply_prefix):
            content = f"{reply_prefix}x\n{THINK[1]}\n\n{reply['content']}"
            if self._is_behind_prompt([*before, {**reply, "content": content}]):
                return f"its prompt ends with {reply_prefix!r}, so the reply must begin with it"
        has_system = before[0]["role"] == "system" and i > 1 and not self._num_skipped
        if has_system and self._is_behind_prompt([*before[1:], reply]):
            return "it does without the system message: remove that, or move it into a user message"
        how = "register_renderer, or renderer_name=module:Name"
        return f"write a renderer for this model and use {how}"

    def _is_behind_prompt(self, messages: Sequence[Mapping[str, Plain]]) -> bool:
        """Whether the template writes the last of `messages` after its generation prompt."""
        try:
            return self._render(messages, False).startswith(self._render(messages[:-1], True))
        except TemplateError:
            return False

    def _decode(self, tokens: list[int]) -> str:
        return self._template.tokenizer.decode(tokens, clean_up_tokenization_spaces=False)

    def encode(self, text: str) -> list[int]:
        """Encode text from the template as its tokenizer does, with broken tags as plain text.

        A text that extends the previous one is encoded only from their last common end of turn on,
        so that encoding the prefixes of a conversation, from short to long, costs as much as
        encoding it once. This is exact only where `turn_boundary` says that tokens on the two sides
        of an end-of-turn token do not depend on each other.
        """
        end = self._template.turn_boundary
        if end is None:
            return self._encode(text)
        end_id = self._template.encoder.id(end)
        prefix, prefix_tokens = self._encoded_prefix
        if prefix and text.startswith(prefix):
            # Encoded with the end-of-turn token in front, as in the whole text, then cut after it.
            more = self._encode(end + text.removeprefix(prefix))
            tokens = prefix_tokens + more[more.index(end_id) + 1 :]
        else:
            tokens = self._encode(text)
        # If the counts differ, the last end of turn in the text is not that of the tokens.
        if end in text and text.count(end) == tokens.count(end_id):
            after_turn = len(tokens) - tokens[::-1].index(end_id)
            self._encoded_prefix = text[: text.rindex(end) + len(end)], tokens[:after_turn]
        return tokens

    def _encode(self, text: str) -> list[int]:
        """Encode without the cache.

        A text with broken tags is split at the unbroken ones and encoded piece by piece, with the
        markers removed. That is right only if splitting changes nothing for this tokenizer, so the
        pieces with markers must first give the same tokens as the whole.
        """
        tokenizer, encoder = self._template.tokenizer, self._template.encoder
        whole = list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
        if self._break_mark not in text:
            return whole
        pieces = self._template.splitter.split(text)

        def piecewise(pieces: Iterable[str]) -> list[int]:
            encoded = (encoder.encode(p, [p] if i % 2 else ()) for i, p in enumerate(pieces))
            return [token for tokens in encoded for token in tokens]

        if piecewise(pieces) != whole:
            raise RendererError(
                "a message contains a special-token string, and this tokenizer cannot encode it as "
                "text; remove it from the messages"
            )
        return piecewise(piece.replace(self._break_mark, "") for piece in pieces)


def _probes_like(value: Plain, new: Callable[[], str]) -> Plain:
    """JSON of the same shape as `value`, with a probe in place of each value in it."""
    if isinstance(value, dict) and value:
        return {key: _probes_like(item, new) for key, item in value.items()}
    if isinstance(value, list) and value:
        return [_probes_like(item, new) for item in value]
    return new()
