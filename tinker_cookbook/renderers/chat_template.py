"""What can be found out about a tokenizer's chat template by asking it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from itertools import count
from typing import Any, Generic, TypeVar

from tinker_cookbook.exceptions import RendererError
from tinker_cookbook.renderers.encoding import TextEncoder
from tinker_cookbook.renderers.messages import FunctionBody, Message, ToolCall
from tinker_cookbook.renderers.parsing import held_back
from tinker_cookbook.renderers.tool_sections import KIMI_SECTION
from tinker_cookbook.tokenizer_utils import Tokenizer
from tinker_cookbook.utils.error_text import first_line
from tinker_cookbook.utils.json_types import JsonObject, Plain

M = TypeVar("M")

QUESTION = "PROBE-QUESTION"
_QUESTION = {"role": "user", "content": QUESTION}
_REPLY = {"role": "assistant", "content": "PROBE-REPLY"}
_CALL_ID = "abcdefghi"  # Mistral's have nine characters
THINK = ("<think>", "</think>")


class TemplateRefusal(RendererError):
    """A chat template raised at what it was asked; `reason` is the first line of its own words."""

    def __init__(self, message: str, reason: str = ""):
        super().__init__(message)
        self.reason = reason


def from_template(
    tokenizer: Any,
    conversation: Sequence[Mapping[str, Plain]],
    tools: Plain = None,
    prompt: bool = False,
    **arguments: Plain | Callable[[str], str],
) -> str:
    """What the tokenizer's chat template makes of OpenAI-style messages.

    RendererError where there is no template, TemplateRefusal where it raises, whatever it raises.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise RendererError(
            "tools and the like are written in the words of the tokenizer's chat template, and this"
            " tokenizer has none; use the tokenizer of a chat model"
        )
    try:
        return tokenizer.apply_chat_template(
            list(conversation),
            tools=tools,
            add_generation_prompt=prompt,
            tokenize=False,
            **arguments,
        )
    except Exception as error:
        reason = first_line(error)
        problem = (
            "the chat template cannot declare these tools; each needs name, description and "
            "parameters, a JSON schema"
            if tools
            else "the chat template refuses a conversation without tools; use the tokenizer of a "
            "model that this renderer is for, or set renderer_name= to the model's own family"
        )
        raise TemplateRefusal(f"{problem} ({reason:.100})", reason) from error


class Probes(Generic[M]):
    """Words that stand for parts of a conversation, to see which of them a template writes.

    That a part's own words occur in a text proves nothing: `add` is a function and a word. A probe
    occurs in no text but where it was put. `known`: all texts that it must not occur in.
    """

    def __init__(self, known: str):
        self._stem = next(s for n in count() if (s := "Probe" + "q" * n) not in known)
        self.meanings: list[M] = []

    def new(self, meaning: M) -> str:
        """Letters and digits alone, so that no escaping changes them."""
        self.meanings.append(meaning)
        return f"{self._stem}{len(self.meanings) - 1}Z"

    def first_missing(self, text: str) -> M | None:
        """The meaning of the first probe that `text` lacks; None if it has all."""
        found = set(map(int, re.findall(rf"{self._stem}(\d+)Z", text)))
        return next((m for n, m in enumerate(self.meanings) if n not in found), None)


class ChatTemplate:
    """A tokenizer's chat template, called with `arguments` besides the conversation.

    `end_of_turn` is the token that ends a reply, `behind_turn` what the template writes behind it.
    `tags` are the tokenizer's added tokens, white space aside, which is ordinary text (TextEncoder
    says more). `control_guard` knows those marked special, `every_guard` all of them.
    """

    def __init__(self, tokenizer: Tokenizer, arguments: JsonObject):
        if not getattr(tokenizer, "chat_template", None):
            raise RendererError(
                "this tokenizer has no chat template, which renderer_name=template needs; "
                "set renderer_name= to the model's own family, or to role_colon for a base model"
            )
        self.tokenizer: Any = tokenizer  # its annotations in transformers are too wide to help
        self.encoder = TextEncoder(tokenizer)
        self._arguments = arguments
        added = self.tokenizer.added_tokens_decoder.values()
        special = {token.content: token.special for token in added if token.content.strip()}
        self.tags = tuple(sorted(special, key=len, reverse=True))
        control = [tag for tag in self.tags if special[tag] and tag not in THINK]
        self.own_tags = tuple(tag for tag in self.tags if tag not in control)
        self.control_guard, self.every_guard = Guard(control), Guard(self.tags)
        self.splitter = re.compile("(" + "|".join(map(re.escape, self.tags)) + ")")
        self.end_of_turn, self.behind_turn = self._find_end_of_turn()

    def _find_end_of_turn(self) -> tuple[str, str]:
        """The token that ends a reply, and what the template writes behind it."""
        try:
            text = self.apply([_QUESTION, _REPLY])
        except TemplateRefusal as refusal:
            raise RendererError(
                f"the chat template refuses a question and a reply: {refusal.reason}; "
                "write a renderer for this model and use register_renderer"
            ) from refusal
        _, found, tail = text.rpartition(_REPLY["content"])
        pieces = self.splitter.split(tail, maxsplit=1) if self.tags else [tail]
        if not found or len(pieces) == 1 or pieces[0].strip():
            raise RendererError(
                "the chat template ends a reply with no token of its own "
                f"({tail!r:.40} stands behind it), so no stop token can be told; "
                "write a renderer for this model and use register_renderer"
            )
        return pieces[1], pieces[2]

    @cached_property
    def turn_boundary(self) -> str | None:
        """`end_of_turn` if the tokens before and behind it never depend on one another; None where
        words or other tags around it could swallow it."""
        end = self.end_of_turn
        added = self.tokenizer.added_tokens_decoder.values()
        token = next(token for token in added if token.content == end)
        within = any(end in tag for tag in self.tags if tag != end)
        return None if within or token.single_word or token.normalized else end

    def apply(
        self,
        messages: Sequence[Mapping[str, Plain]],
        prompt: bool = False,
        tools: Plain = None,
    ) -> str:
        """What the chat template makes of OpenAI-style messages; TemplateRefusal if it raises."""
        return from_template(self.tokenizer, messages, tools, prompt, **self._arguments)

    def probe(self, messages: Sequence[Mapping[str, Plain]], prompt: bool = False) -> str | None:
        """None where the template does not know what it was asked."""
        try:
            return self.apply(messages, prompt)
        except TemplateRefusal:
            return None

    @cached_property
    def opened(self) -> str:
        """What the generation prompt writes of the reply itself, such as `<think>⏎`."""
        prompt = self.probe([_QUESTION], prompt=True) or ""
        header, found, _ = self.apply([_QUESTION, _REPLY]).rpartition(_REPLY["content"])
        opened = prompt.removeprefix(header) if prompt.startswith(header) and found else ""
        # A template that reasons about nothing where it is given no reasoning hides it in `header`
        begin, tag, rest = prompt.rpartition(THINK[0])
        if not opened and QUESTION in begin and THINK[1] not in rest:
            opened = tag + rest
        for reply in (_REPLY["content"], f"PROBE-THOUGHT\n{THINK[1]}\n\n{_REPLY['content']}"):
            begun = self.probe([_QUESTION, {**_REPLY, "content": opened + reply}]) or ""
            if begun.startswith(prompt + reply.partition("\n")[0]):
                return opened
        return ""

    @cached_property
    def keeps_arguments(self) -> bool:
        """Whether arguments given as text are written as they are; else they go in as a dict."""
        return '{"PROBE":1}' in (self.probe(_call('{"PROBE":1}')) or "")

    @cached_property
    def writes_json_calls(self) -> bool:
        """Whether calls look like `<tool_call>⏎{"name": …, "arguments": …}⏎</tool_call>`."""
        arguments = '{"PROBE": 1}'
        block = f'<tool_call>\n{{"name": "PROBE-NAME", "arguments": {arguments}}}\n</tool_call>'
        return block in self._call_text(arguments)

    @cached_property
    def writes_kimi_calls(self) -> bool:
        """Whether calls stand in a section as Kimi K2 writes them, with ids that name functions."""
        function = FunctionBody(name="PROBE-NAME", arguments='{"PROBE": 1}')
        call = ToolCall(id="functions.PROBE-NAME:0", function=function)
        section = KIMI_SECTION.write(Message(role="assistant", content="", tool_calls=[call]))
        return section in self._call_text(function.arguments, call.id)

    def _call_text(self, arguments: str, call_id: str | None = _CALL_ID) -> str:
        given = arguments if self.keeps_arguments else json.loads(arguments)
        return self.probe(_call(given, call_id)) or ""

    @cached_property
    def is_stable(self) -> bool:
        """Whether what is sampled stays as it is in later prompts, in all kinds of conversation
        that the template knows: with and without system prompt, reasoning and calls."""
        thought = {**_REPLY, "content": "<think>\nPROBE-THOUGHT\n</think>\n\nPROBE-REPLY"}
        reasoned = {**_REPLY, "reasoning_content": "PROBE-THOUGHT"}
        system = {"role": "system", "content": "PROBE-SYSTEM"}
        heads = [[system, _QUESTION], [_QUESTION]]
        call = _call('{"PROBE":1}' if self.keeps_arguments else {"PROBE": 1})[1]
        result = {"role": "tool", "content": "PROBE-RESULT", "tool_call_id": _CALL_ID}
        tails: list[list[Mapping[str, Plain]]] = [
            [reply, _QUESTION] for reply in (_REPLY, thought, reasoned)
        ]
        for reply in ({**_REPLY, "content": ""}, thought, reasoned):
            tails.append([{**call, **reply}, result, _REPLY, _QUESTION])
        for head in heads:
            for tail in tails:
                messages = [*head, *tail]
                before = ""
                for i in range(len(head), len(messages) + 1):
                    is_reply = messages[i - 1]["role"] == "assistant"
                    text = self.probe(messages[:i], prompt=not is_reply)
                    if text is None:
                        break  # a kind of conversation that the template does not know
                    if is_reply:
                        text = text.removesuffix(self.behind_turn)
                    if not text.startswith(before):
                        return False
                    before = text
        return True


class Guard:
    """Breaks tags inside content, so that nothing takes them for tokens."""

    def __init__(self, tags: Sequence[str]):
        self._tags = [tag for tag in tags if len(tag) > 1]
        self._pattern = re.compile("|".join(map(re.escape, self._tags)))
        self._first_characters = {tag[0] for tag in self._tags}

    def break_tags(self, value: Plain, mark: str) -> Plain:
        """`value` with `mark` inside each tag in its strings, also in one that an end could begin
        and the template complete."""
        if isinstance(value, dict):
            return {self._broken(k, mark): self.break_tags(v, mark) for k, v in value.items()}
        if isinstance(value, list):
            return [self.break_tags(item, mark) for item in value]
        return self._broken(value, mark) if isinstance(value, str) else value

    def _broken(self, text: str, mark: str) -> str:
        if self._first_characters.isdisjoint(text):
            return text
        text = self._pattern.sub(lambda match: match[0][0] + mark + match[0][1:], text)
        if n := held_back(text, *self._tags):
            cut = len(text) - n + 1
            text = text[:cut] + mark + text[cut:]
        return text


def _call(arguments: Plain, call_id: str | None = _CALL_ID) -> list[JsonObject]:
    call: JsonObject = {"name": "PROBE-NAME", "arguments": arguments}
    calls: list[Plain] = [{"type": "function", "id": call_id, "function": call}]
    return [{**_QUESTION}, {"role": "assistant", "content": "", "tool_calls": calls}]
