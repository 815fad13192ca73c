"""What can be found out about a tokenizer's chat template by asking it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from tinker_cookbook.exceptions import RendererError
from tinker_cookbook.renderers.encoding import TextEncoder
from tinker_cookbook.renderers.parsing import held_back
from tinker_cookbook.tokenizer_utils import Tokenizer

QUESTION = {"role": "user", "content": "PROBE-QUESTION"}
_REPLY = {"role": "assistant", "content": "PROBE-REPLY"}
_THINK = ("<think>", "</think>")


class ChatTemplate:
    """A tokenizer's chat template, called with `arguments` besides the conversation.

    `end_of_turn` is the token that ends a reply, `behind_turn` what the template writes behind it.
    `tags` are the tokenizer's added tokens, white space aside, which is ordinary text (TextEncoder
    says more). `control_guard` knows those marked special, `every_guard` all of them.
    """

    def __init__(self, tokenizer: Tokenizer, arguments: dict[str, Any]):
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
        control = [tag for tag in self.tags if special[tag] and tag not in _THINK]
        self.own_tags = tuple(tag for tag in self.tags if tag not in control)
        self.control_guard, self.every_guard = Guard(control), Guard(self.tags)
        self.splitter = re.compile("(" + "|".join(map(re.escape, self.tags)) + ")")
        self.end_of_turn, self.behind_turn = self._find_end_of_turn()

    def _find_end_of_turn(self) -> tuple[str, str]:
        """The token that ends a reply, and what the template writes behind it."""
        try:
            text = self.apply([QUESTION, _REPLY])
        except Exception as error:  # whatever a template raises
            raise RendererError(
                f"the chat template refuses a question and a reply: {reason_of(error)}; "
                "write a renderer for this model and use register_renderer"
            ) from error
        _, found, tail = text.rpartition(_REPLY["content"])
        pieces = self.splitter.split(tail, maxsplit=1) if self.tags else [tail]
        if not found or len(pieces) == 1 or pieces[0].strip():
            raise RendererError(
                "the chat template ends a reply with no token of its own "
                f"({tail!r:.40} stands behind it), so no stop token can be told; "
                "write a renderer for this model and use register_renderer"
            )
        return pieces[1], pieces[2]

    def apply(self, messages: Sequence[Any], prompt: bool = False, tools: Any = None) -> str:
        """What the chat template makes of OpenAI-style messages, whatever it raises included."""
        return self.tokenizer.apply_chat_template(
            list(messages),
            tools=tools,
            add_generation_prompt=prompt,
            tokenize=False,
            **self._arguments,
        )

    def probe(self, messages: Sequence[Any], prompt: bool = False) -> str | None:
        try:
            return self.apply(messages, prompt)
        except Exception:  # a template that raises does not know what it was asked
            return None

    @cached_property
    def opened(self) -> str:
        """What the generation prompt writes of the reply itself, such as `<think>⏎`."""
        prompt = self.probe([QUESTION], prompt=True) or ""
        header, found, _ = self.apply([QUESTION, _REPLY]).rpartition(_REPLY["content"])
        opened = prompt.removeprefix(header) if prompt.startswith(header) and found else ""
        begun = self.probe([QUESTION, {**_REPLY, "content": opened + _REPLY["content"]}]) or ""
        return opened if begun.startswith(prompt) else ""

    @cached_property
    def keeps_arguments(self) -> bool:
        """Whether arguments given as text are written as they are; else they go in as a dict."""
        return '{"PROBE":1}' in (self.probe(_call('{"PROBE":1}')) or "")

    @cached_property
    def writes_json_calls(self) -> bool:
        """Whether calls look like `<tool_call>⏎{"name": …, "arguments": …}⏎</tool_call>`."""
        arguments = '{"PROBE": 1}'
        block = f'<tool_call>\n{{"name": "PROBE-NAME", "arguments": {arguments}}}\n</tool_call>'
        call = _call(arguments if self.keeps_arguments else {"PROBE": 1})
        return block in (self.probe(call) or "")

    @cached_property
    def is_stable(self) -> bool:
        """Whether what is sampled stays as it is in later prompts, in all kinds of conversation
        that the template knows: with and without system prompt, reasoning and calls."""
        thought = {**_REPLY, "content": "<think>\nPROBE-THOUGHT\n</think>\n\nPROBE-REPLY"}
        reasoned = {**_REPLY, "reasoning_content": "PROBE-THOUGHT"}
        system = {"role": "system", "content": "PROBE-SYSTEM"}
        heads = [[system, QUESTION], [QUESTION]]
        call = _call('{"PROBE":1}' if self.keeps_arguments else {"PROBE": 1})[1:]
        result = {"role": "tool", "content": "PROBE-RESULT", "tool_call_id": "abcdefghi"}
        tails = [[reply, QUESTION] for reply in (_REPLY, thought, reasoned)]
        tails.append([*call, result, _REPLY, QUESTION])
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

    def break_tags(self, value: Any, mark: str) -> Any:
        """`value` with `mark` inside each tag in its strings, also in one that an end could begin
        and the template complete."""
        if isinstance(value, dict):
            return {self.break_tags(k, mark): self.break_tags(v, mark) for k, v in value.items()}
        if isinstance(value, list):
            return [self.break_tags(item, mark) for item in value]
        if not isinstance(value, str) or self._first_characters.isdisjoint(value):
            return value
        value = self._pattern.sub(lambda match: match[0][0] + mark + match[0][1:], value)
        if n := held_back(value, *self._tags):
            cut = len(value) - n + 1
            value = value[:cut] + mark + value[cut:]
        return value


def _call(arguments: Any) -> list[dict[str, Any]]:
    call = {"name": "PROBE-NAME", "arguments": arguments}
    calls = [{"type": "function", "id": "abcdefghi", "function": call}]
    return [QUESTION, {"role": "assistant", "content": "", "tool_calls": calls}]


def reason_of(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
