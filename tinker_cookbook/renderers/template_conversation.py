"""One conversation as its chat template writes it, and the tokens of that text."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any, cast

from tinker_cookbook.exceptions import RendererError
from tinker_cookbook.renderers.chat_template import ChatTemplate, reason_of
from tinker_cookbook.renderers.messages import Message, split_thinking, to_openai_message


class Conversation:
    """What a template makes of the beginnings of one conversation.

    Tags that must stay text are broken by `mark`, a character that occurs nowhere else, while the
    template works; `encode` takes it out again.
    """

    def __init__(self, template: ChatTemplate, messages: Sequence[Message]):
        self._template = template
        given = [self._openai(message) for message in messages]
        tools = cast(dict[str, Any], messages[0]).get("tools")
        everything = json.dumps([given, tools], ensure_ascii=False, default=str)
        private_use = map(chr, range(0xE000, 0xF8FF))
        self._mark = next(character for character in private_use if character not in everything)
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
        # Tools without a system prompt are declared without one
        self._skipped = int(bool(tools) and not given[0]["content"])

    def _openai(self, message: Message) -> dict[str, Any]:
        result = to_openai_message(message)
        if calls := message.get("tool_calls"):
            result["tool_calls"] = [call.model_dump(exclude_none=True) for call in calls]
            if not self._template.keeps_arguments:
                for call in result["tool_calls"]:
                    call["function"]["arguments"] = json.loads(call["function"]["arguments"])
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
        def apply(n: int, prompt: bool) -> str:
            return self._template.apply(self._messages[self._skipped : n], prompt, self._tools)

        try:
            text = apply(count, prompt)
        except Exception as error:  # whatever a template raises
            raise RendererError(
                f"message {self._first_refused(count)}: "
                f"the chat template refuses it: {reason_of(error)}"
            ) from error
        if f"\\u{ord(self._mark):04x}" in text:
            raise RendererError(
                "the chat template writes content as ASCII escapes, in which special-token "
                "strings cannot be told from special tokens; remove them from the messages"
            )
        for i, message in enumerate(self._messages[:count]):
            for call in message.get("tool_calls", []):
                if call["function"]["name"] not in text:
                    raise RendererError(
                        f"message {i}: the chat template leaves out the call of "
                        f"{call['function']['name']!r}; it has no form for calls, or none without "
                        "an id: give each call one"
                    )
        return text

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
        self._refuse_unlike_sampling(i, before, through)
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

    def _refuse_unlike_sampling(self, i: int, before: str, through: str) -> None:
        """RendererError unless the reply is a whole one that could be sampled behind `before`."""
        opened, end = self._template.opened, self._template.end_of_turn
        if not through.startswith(before):
            raise RendererError(
                f"message {i}: the chat template does not write this reply behind its own "
                "generation prompt, so there is no mask that matches sampling"
                + (f"; its prompt opens with {opened!r}, so must the reply" if opened else "")
            )
        reply = through.removeprefix(before)
        if not reply.endswith(end) or reply.count(end) > 1:
            raise RendererError(
                f"message {i}: the chat template does not end this turn with one {end!r}, "
                "where sampling stops"
            )
        message = self._messages[i]
        thinking, text = split_thinking(message["content"])
        reply = through.removeprefix(before.removesuffix(opened))
        for what, piece in [
            ("reasoning", message.get("reasoning_content", thinking)),
            ("text", text),
            *(("tool call", call["function"]["name"]) for call in message.get("tool_calls", [])),
        ]:
            if piece.strip() not in reply:
                raise RendererError(
                    f"message {i}: the chat template leaves out the {what} of this reply, so it "
                    "would not be trained; remove it, or use a renderer that knows it"
                )

    def _decode(self, tokens: list[int]) -> str:
        return self._template.tokenizer.decode(tokens, clean_up_tokenization_spaces=False)

    def encode(self, text: str) -> list[int]:
        """Tokens, as the tokenizer encodes the template's text, but for the broken tags.

        These are encoded between the others piece by piece, if this tokenizer has it so.
        """
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
