"""Learn what a tokenizer's chat template does by rendering probe conversations with it.

A chat template is a Jinja program: there is nothing to read off it, and the models of one family
differ in details that decide about loss masks. So each property is measured, by rendering a small
conversation of `PROBE-...` words, which no template writes itself, and looking where they end up.
"""

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
from tinker_cookbook.renderers.parsing import partial_suffix_length
from tinker_cookbook.renderers.tool_sections import KIMI_SECTION
from tinker_cookbook.tokenizer_utils import Tokenizer
from tinker_cookbook.utils.error_text import first_line
from tinker_cookbook.utils.json_types import JsonObject, Plain

M = TypeVar("M")

QUESTION = "PROBE-QUESTION"
_QUESTION = {"role": "user", "content": QUESTION}
_REPLY = {"role": "assistant", "content": "PROBE-REPLY"}
_CALL_ID = "abcdefghi"  # nine characters, as Mistral's templates require
THINK = ("<think>", "</think>")


class TemplateError(RendererError):
    """The chat template raised an error; `reason` is the first line of its message."""

    def __init__(self, message: str, reason: str = ""):
        super().__init__(message)
        self.reason = reason


def apply_chat_template(
    tokenizer: Any,
    conversation: Sequence[Mapping[str, Plain]],
    tools: Plain = None,
    prompt: bool = False,
    **arguments: Plain | Callable[[str], str],
) -> str:
    """Render OpenAI-style messages with the tokenizer's chat template.

    Raises RendererError if the tokenizer has no template, and TemplateError for any exception that
    the template raises.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise RendererError(
            "this renderer takes some texts, such as tool declarations, from the tokenizer's chat"
            " template, and this tokenizer has none; use the tokenizer of a chat model"
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
            "the chat template cannot declare these tools; each needs a name, a description and "
            "parameters (a JSON schema)"
            if tools
            else "the chat template rejects a conversation without tools; use the tokenizer of a "
            "model that this renderer supports, or set renderer_name= to the model's own family"
        )
        raise TemplateError(f"{problem} ({reason:.100})", reason) from error


class Probes(Generic[M]):
    """Unique words that replace parts of a conversation, to see which parts a template writes.

    Finding a part's own words in the rendered text proves nothing: `add` may be a function's name
    or a word of the reply. A probe word occurs only where the template wrote the part that it
    replaces. `known`: all texts in which the probe words must not occur.
    """

    def __init__(self, known: str):
        self._stem = next(s for n in count() if (s := "Probe" + "q" * n) not in known)
        self.meanings: list[M] = []

    def new(self, meaning: M) -> str:
        """A new probe word. Letters and digits alone, so that no escaping changes it."""
        self.meanings.append(meaning)
        return f"{self._stem}{len(self.meanings) - 1}Z"

    def first_missing(self, text: str) -> M | None:
        """The meaning of the first probe that is missing in `text`; None if all are there."""
        found = set(map(int, re.findall(rf"{self._stem}(\d+)Z", text)))
        return next((m for n, m in enumerate(self.meanings) if n not in found), None)


class ChatTemplate:
    """A tokenizer's chat template and its measured properties.

    `arguments` are passed to every call of the template. `end_of_turn` is the token that ends a
    reply, `turn_suffix` what the template writes after it (in ChatML, a newline). `tags` are the
    tokenizer's added tokens, except white space, which is ordinary text (see TextEncoder).
    `special_guard` breaks the tags that are marked special, `all_tags_guard` every tag. `own_tags`
    are the tags that the developer's and the model's messages may use as tokens.
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
        self.special_guard, self.all_tags_guard = TagGuard(control), TagGuard(self.tags)
        self.splitter = re.compile("(" + "|".join(map(re.escape, self.tags)) + ")")
        self.end_of_turn, self.turn_suffix = self._find_end_of_turn()

    def _find_end_of_turn(self) -> tuple[str, str]:
        """The token that ends a reply, and what the template writes after it."""
        try:
            text = self.apply([_QUESTION, _REPLY])
        except TemplateError as error:
            raise RendererError(
                f"the chat template rejects a question and a reply: {error.reason}; "
                "write a renderer for this model and use register_renderer"
            ) from error
        _, found, tail = text.rpartition(_REPLY["content"])
        pieces = self.splitter.split(tail, maxsplit=1) if self.tags else [tail]
        if not found or len(pieces) == 1 or pieces[0].strip():
            raise RendererError(
                "the chat template ends a reply without a special token "
                f"(it writes {tail!r:.40}), so there is no stop sequence; "
                "write a renderer for this model and use register_renderer"
            )
        return pieces[1], pieces[2]

    @cached_property
    def turn_boundary(self) -> str | None:
        """`end_of_turn` if text can be encoded separately on its two sides; None if it cannot,
        because the tokenizer may match the tag differently with other characters next to it."""
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
        """Render OpenAI-style messages. Raises TemplateError if the template raises."""
        return apply_chat_template(self.tokenizer, messages, tools, prompt, **self._arguments)

    def try_apply(
        self, messages: Sequence[Mapping[str, Plain]], prompt: bool = False
    ) -> str | None:
        """As `apply`, but None if the template raises, as for a role that it does not know."""
        try:
            return self.apply(messages, prompt)
        except TemplateError:
            return None

    @cached_property
    def reply_prefix(self) -> str:
        """The part of the reply that the generation prompt already contains, such as `<think>⏎`.

        Parsing needs it, because a sampled reply lacks it.
        """
        prompt = self.try_apply([_QUESTION], prompt=True) or ""
        header, found, _ = self.apply([_QUESTION, _REPLY]).rpartition(_REPLY["content"])
        # `header` is all that a complete conversation has before the reply's text. What the prompt
        # has beyond it belongs to the reply.
        reply_prefix = prompt.removeprefix(header) if prompt.startswith(header) and found else ""
        # A template that gives a reply without reasoning an empty think block has that block in
        # `header`, so the prompt does not begin with it: look for an unclosed tag instead.
        begin, tag, rest = prompt.rpartition(THINK[0])
        if not reply_prefix and QUESTION in begin and THINK[1] not in rest:
            reply_prefix = tag + rest
        # A candidate counts only if a reply that begins with it is written right after the prompt.
        for reply in (_REPLY["content"], f"PROBE-THOUGHT\n{THINK[1]}\n\n{_REPLY['content']}"):
            begun = self.try_apply([_QUESTION, {**_REPLY, "content": reply_prefix + reply}]) or ""
            if begun.startswith(prompt + reply.partition("\n")[0]):
                return reply_prefix
        return ""

    @cached_property
    def keeps_arguments(self) -> bool:
        """Whether arguments given as a string are written unchanged. If not, they are passed to the
        template as a dict, because it would quote the string again."""
        return '{"PROBE":1}' in (self.try_apply(_call_conversation('{"PROBE":1}')) or "")

    @cached_property
    def writes_json_calls(self) -> bool:
        """Whether calls look like `<tool_call>⏎{"name": …, "arguments": …}⏎</tool_call>`."""
        arguments = '{"PROBE": 1}'
        block = f'<tool_call>\n{{"name": "PROBE-NAME", "arguments": {arguments}}}\n</tool_call>'
        return block in self._render_call(arguments)

    @cached_property
    def writes_kimi_calls(self) -> bool:
        """Whether calls are in a section as in Kimi K2, with ids that name the function."""
        function = FunctionBody(name="PROBE-NAME", arguments='{"PROBE": 1}')
        call = ToolCall(id="functions.PROBE-NAME:0", function=function)
        section = KIMI_SECTION.write(Message(role="assistant", content="", tool_calls=[call]))
        return section in self._render_call(function.arguments, call.id)

    def _render_call(self, arguments: str, call_id: str | None = _CALL_ID) -> str:
        given = arguments if self.keeps_arguments else json.loads(arguments)
        return self.try_apply(_call_conversation(given, call_id)) or ""

    @cached_property
    def is_stable(self) -> bool:
        """Whether later prompts keep every reply exactly as it was sampled.

        A template makes history unstable if it rewrites a reply once more messages follow: most
        often it drops the reasoning, or an empty think block. Tokens trained there would differ
        from the tokens that were sampled. Tried with and without a system prompt, reasoning and
        tool calls; conversations that the template rejects do not count against it.
        """
        thought = {**_REPLY, "content": "<think>\nPROBE-THOUGHT\n</think>\n\nPROBE-REPLY"}
        reasoned = {**_REPLY, "reasoning_content": "PROBE-THOUGHT"}
        system = {"role": "system", "content": "PROBE-SYSTEM"}
        heads = [[system, _QUESTION], [_QUESTION]]
        call = _call_conversation('{"PROBE":1}' if self.keeps_arguments else {"PROBE": 1})[1]
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
                    text = self.try_apply(messages[:i], prompt=not is_reply)
                    if text is None:
                        break  # the template rejects this kind of conversation
                    # After a reply comes what sampling leaves out, so compare up to its end. Every
                    # text must extend the one before, prompts and replies in turn.
                    if is_reply:
                        text = text.removesuffix(self.turn_suffix)
                    if not text.startswith(before):
                        return False
                    before = text
        return True


class TagGuard:
    """Breaks tags inside message content, so that they are not encoded as special tokens.

    The template returns one string, in which a tag that a user typed looks the same as one that
    the template wrote. So a marker character is put into the typed tags before the template runs,
    and taken out when the text is encoded.
    """

    def __init__(self, tags: Sequence[str]):
        self._tags = [tag for tag in tags if len(tag) > 1]
        self._pattern = re.compile("|".join(map(re.escape, self._tags)))
        self._first_characters = {tag[0] for tag in self._tags}

    def break_tags(self, value: Plain, mark: str) -> Plain:
        """A copy of `value` with `mark` inside every tag in its strings.

        A string that ends with the beginning of a tag is broken there too, because the text that
        the template writes next could complete the tag.
        """
        if isinstance(value, dict):
            return {self._break_string(k, mark): self.break_tags(v, mark) for k, v in value.items()}
        if isinstance(value, list):
            return [self.break_tags(item, mark) for item in value]
        return self._break_string(value, mark) if isinstance(value, str) else value

    def _break_string(self, text: str, mark: str) -> str:
        if self._first_characters.isdisjoint(text):
            return text
        text = self._pattern.sub(lambda match: match[0][0] + mark + match[0][1:], text)
        if n := partial_suffix_length(text, *self._tags):
            cut = len(text) - n + 1
            text = text[:cut] + mark + text[cut:]
        return text


def _call_conversation(arguments: Plain, call_id: str | None = _CALL_ID) -> list[JsonObject]:
    call: JsonObject = {"name": "PROBE-NAME", "arguments": arguments}
    calls: list[Plain] = [{"type": "function", "id": call_id, "function": call}]
    return [{**_QUESTION}, {"role": "assistant", "content": "", "tool_calls": calls}]
