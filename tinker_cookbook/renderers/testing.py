"""For tests: tokenizers, messages in short, conversations, and examples as readable text."""

from __future__ import annotations

import json
import random
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

from tinker_cookbook.renderers import (
    FunctionBody,
    TextDelta,
    ThinkingDelta,
    ToolCall,
    ToolCallDelta,
    UnparsedToolCall,
)
from tinker_cookbook.renderers.base import Renderer, SupervisedExample
from tinker_cookbook.renderers.messages import split_thinking, to_openai_message
from tinker_cookbook.renderers.parsing import (
    Delta,
    MessageHeader,
    ParsedResponse,
    message_from_deltas,
)
from tinker_cookbook.tokenizer_utils import Tokenizer

DATA = Path(__file__).parents[3] / "shared" / "data"


@cache
def load(name: str) -> Tokenizer:
    from tinker_cookbook.tokenizer_utils import get_tokenizer

    if name == "nano":
        if not (Path(__file__).parents[1] / "nano" / "tokenizer.json").is_file():
            pytest.skip("nano is not built")
        return get_tokenizer("nano")
    if not (DATA / "tokenizers" / name).is_dir():
        pytest.skip("no ../shared/data")
    return get_tokenizer(str(DATA / "tokenizers" / name))


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def system(text: str) -> dict[str, Any]:
    return {"role": "system", "content": text}


def tool(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "tool", "content": text, **more}


def assistant(
    text: str, thinking: str | None = None, calls: Iterable[tuple[str, str]] = (), **more: Any
) -> dict[str, Any]:
    """`calls`: pairs of a function's name and its arguments, JSON in text."""
    content = text
    if thinking is not None:
        content = [{"type": "thinking", "thinking": thinking}, {"type": "text", "text": text}]
    message = {"role": "assistant", "content": content, **more}
    if calls:
        message["tool_calls"] = [{"function": {"name": n, "arguments": a}} for n, a in calls]
    return message


def rendered_ids(
    renderer: Renderer, messages: list[dict[str, Any]], mode: str = "last_assistant_message"
) -> list[int]:
    return renderer.build_supervised_example(messages, mode).model_input.to_ints()


def marked(tokenizer: Tokenizer, example: SupervisedExample, short: dict[str, str]) -> str:
    """Runs of tokens with weight 1 inside «», decoded run by run, tags shortened."""
    runs: list[tuple[float, list[int]]] = []
    for token, weight in zip(example.model_input.to_ints(), example.weights.tolist(), strict=True):
        assert weight in (0.0, 1.0)
        if not runs or runs[-1][0] != weight:
            runs.append((weight, []))
        runs[-1][1].append(token)
    text = "".join(f"«{tokenizer.decode(t)}»" if w else tokenizer.decode(t) for w, t in runs)
    for tag, sign in short.items():
        text = text.replace(tag, sign)
    return text.replace("\n", "⏎")


HI = [user("Hi"), assistant("Hello")]


TWO = [system("S"), user("Hi"), assistant("Hello"), user("Bye"), assistant("See you")]


CUSTOM = [{**m, "trainable": i in (0, 2)} for i, m in enumerate(TWO)]


TEXTS = [
    "",
    "Hello",
    "What is 37 + 58?",
    "two\nlines",
    "trailing newline\n",
    "trailing blanks  \n\n ",
    "para\n\n\npara",
    "  indented\n\tcode:\r\n    x = 1\n",
    "Größe, naïve, Ελληνικά, русский",
    "你好，世界。これはテスト",
    "🙂👩‍👩‍👧 é ñ\u00a0\u200b end",
    "مرحبا بالعالم",
    "{'json': [1, 2.5]} <b>html</b> a < b > c </x> <|x|>",
    "It's 1,234,567.89!!! ... ---",
    "a" * 200,
]


# Only user texts begin with white space: for replies see the difference tests.
USER_TEXTS = [*TEXTS, "\n", " ", "\n\nleading newlines", " \n mixed", "\t\ttabs"]


REPLIES = [text for text in TEXTS if text == text.lstrip()]


def random_conversation(rng: random.Random, thinking: bool) -> list[dict]:
    """1 to 8 turns of question, tool steps and reply, sometimes without the last reply."""
    messages = []
    if rng.random() < 0.5:
        messages.append({"role": "system", "content": rng.choice(USER_TEXTS)})
    turns = rng.randint(1, 8)
    for turn in range(turns):
        messages.append({"role": "user", "content": rng.choice(USER_TEXTS)})
        while rng.random() < 0.3:
            messages.append(random_reply(rng, thinking and rng.random() < 0.5))
            messages[-1]["tool_calls"] = [
                {
                    "type": "function",
                    "function": {
                        "name": rng.choice(["add", "search_web"]),
                        "arguments": json.dumps(
                            {"q": rng.choice(TEXTS), "n": rng.randint(0, 99)},
                            ensure_ascii=rng.random() < 0.5,
                        ),
                    },
                }
                for _ in range(rng.randint(1, 3))
            ]
            messages += [
                {"role": "tool", "content": rng.choice(USER_TEXTS)}
                for _ in messages[-1]["tool_calls"]
            ]
        if turn < turns - 1 or rng.random() < 0.8:
            is_last = turn == turns - 1
            messages.append(random_reply(rng, thinking and rng.random() < 0.5, is_last))
    return messages


def random_reply(rng: random.Random, thinking: bool, is_last: bool = False) -> dict:
    content = rng.choice(REPLIES)
    if not thinking:
        return {"role": "assistant", "content": content}
    reasoning = rng.choice([text.strip("\n") for text in TEXTS if text.strip("\n")])
    parts = [{"type": "thinking", "thinking": reasoning}, {"type": "text", "text": content}]
    return {"role": "assistant", "content": parts}


def template_ids(
    tokenizer: Tokenizer,
    messages: list[dict[str, Any]],
    template: str | None = None,
    prompt: bool = False,
    **kwargs: Any,
) -> list[int]:
    text = tokenizer.apply_chat_template(
        [to_openai(m) for m in messages],
        tokenize=False,
        add_generation_prompt=prompt,
        **({"chat_template": template} if template else {}),
        **kwargs,
    )
    return tokenizer(text, add_special_tokens=False)["input_ids"]


TAGS = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<|", "<tool_response>")


# Letters that grow into tags, white space that formats pad with, and characters of 2 to 4 bytes
pieces = st.sampled_from(
    [
        "<",
        "</",
        "think",
        ">",
        "<thin",
        "tool_call",
        "\n",
        "\n\n",
        " ",
        "é",
        "你",
        "🙂",
        "a",
        "{",
        '"',
    ]
)


texts = (
    st.one_of(st.text(max_size=12), st.lists(pieces, max_size=8).map("".join))
    .map(lambda text: unicodedata.normalize("NFC", text))  # the tokenizer's own normal form
    .filter(lambda text: not any(tag in text for tag in TAGS))
)


arguments = st.dictionaries(texts, st.one_of(texts, st.integers(), st.none()), max_size=3)


calls = st.builds(
    lambda name, value, indent, ascii: ToolCall(
        function=FunctionBody(
            name=name, arguments=json.dumps(value, indent=indent, ensure_ascii=ascii)
        )
    ),
    texts.filter(bool),
    arguments,
    st.sampled_from([None, 1]),
    st.booleans(),
).filter(lambda call: not any(tag in call.function.arguments for tag in TAGS))


def render_reply(renderer: Renderer, message: dict[str, Any]) -> list[int]:
    question = {"role": "user", "content": "q"}
    prompt = renderer.build_generation_prompt([question]).to_ints()
    whole = renderer.build_supervised_example([question, message]).model_input.to_ints()
    assert whole[: len(prompt)] == prompt
    return whole[len(prompt) :]


def assert_streaming_equals_whole_at_every_cut(renderer: Renderer, tokens: list[int]) -> None:
    given_out = ""
    for cut in range(len(tokens) + 1):
        whole = renderer.parse_response(tokens[:cut])
        header, *deltas, last = renderer.parse_response_streaming(iter(tokens[:cut]))
        assert header == MessageHeader("assistant")
        assert isinstance(last, ParsedResponse)
        assert last == whole
        think_closed = "</think>" if renderer.reasoning_in_strings else None
        assert message_from_deltas(deltas, think_closed) == whole.message
        # what is given out before the end is known is never taken back
        assert deltas_as_text(deltas).startswith(given_out)
        given_out = deltas_as_text(early_deltas(renderer, tokens[:cut]))
    assert deltas_as_text(deltas).startswith(given_out)


def assert_arguments_may_hold(renderer: Renderer, tag: str) -> None:
    """A call whose arguments speak of a tag of the format is read back with the same value."""
    value = {"text": f"write {tag} here"}
    call = {"id": "functions.f:0", "function": {"name": "f", "arguments": value}}
    message = {"role": "assistant", "content": "", "tool_calls": [call]}
    parsed, _ = renderer.parse_response(render_reply(renderer, message))
    (found,) = parsed["tool_calls"]
    assert json.loads(found.function.arguments) == value
    assert "unparsed_tool_calls" not in parsed


def early_deltas(renderer: Renderer, tokens: list[int]) -> list[Delta]:
    """What a stream yields behind its header before it learns that the tokens are over."""
    seen, consumed = [], []

    def source() -> Iterator[int]:
        yield from tokens
        consumed.append(True)

    for delta in renderer.parse_response_streaming(source()):
        if consumed:
            break
        seen.append(delta)
    return seen[1:]


def deltas_as_text(deltas: Iterable[Delta]) -> str:
    """Deltas as one string in which kinds cannot be confused."""
    out = ""
    for delta in deltas:
        match delta:
            case TextDelta(text):
                out += "".join(f"t{c}" for c in text)
            case ThinkingDelta(thinking):
                out += "".join(f"r{c}" for c in thinking)
            case ToolCallDelta(call):
                out += f"c{call}"
    return out


def conversation_with_forged_tags(
    rng: random.Random, forged: list[str], thinking: float = 0.4
) -> list[dict]:
    """1 to 8 turns of question, tool steps and reply; `forged` strings stand in many texts."""

    def text(choices: list[str]) -> str:
        chosen = rng.choice(choices)
        if rng.random() < 0.15:
            cut = rng.randint(0, len(chosen))
            chosen = chosen[:cut] + rng.choice(forged) + chosen[cut:]
        return chosen

    def reply(calls: Iterable[tuple[str, str]] = ()) -> dict:
        thought = text(TEXTS) if rng.random() < thinking else None
        return assistant(text(USER_TEXTS), thought, calls)

    def call() -> tuple[str, str]:
        value = {"q": text(TEXTS), "n": rng.randint(0, 99)}
        name = rng.choice(["add", "search_web", "größe"])
        return name, json.dumps(value, ensure_ascii=rng.random() < 0.5)

    messages = [system(text(USER_TEXTS))] if rng.random() < 0.5 else []
    for _ in range(rng.randint(1, 8)):
        messages.append(user(text(USER_TEXTS)))
        while rng.random() < 0.3:
            messages.append(reply([call() for _ in range(rng.randint(1, 3))]))
            messages += [tool(text(USER_TEXTS)) for _ in messages[-1]["tool_calls"]]
        messages.append(reply())
    return messages


class Template:
    """A chat template's ids, with control strings in content told apart from the template's own.

    They are hidden behind private characters while the template runs, and encoded, like all plain
    text, by a tokenizer that has no added tokens. Markup in system and assistant content stays.
    """

    def __init__(self, name: str, markup: list[str], template: str | None = None) -> None:
        self.tokenizer = load(name)
        self.added = self.tokenizer.get_added_vocab()
        self.markup = markup
        self.control = [tag for tag in self.added if tag not in markup]
        self.plain = plain_tokenizer(name)
        self.template = template
        self.hidden = {tag: chr(0xE000 + i) for i, tag in enumerate(self.added)}
        self.shown = {character: tag for tag, character in self.hidden.items()}
        self.split = re.compile("(" + "|".join(map(re.escape, self.added)) + ")")

    def text(self, messages: list[dict], **kwargs: Any) -> str:
        """With control strings still hidden."""
        if self.template is not None:
            kwargs["chat_template"] = self.template
        return self.tokenizer.apply_chat_template(
            [self.openai(message) for message in messages], tokenize=False, **kwargs
        )

    def ids(self, text: str) -> list[int]:
        ids: list[int] = []
        for i, piece in enumerate(self.split.split(text)):
            piece = re.sub("[\ue000-\uf8ff]", lambda found: self.shown[found[0]], piece)
            ids += [self.added[piece]] if i % 2 else self.plain.encode(piece).ids
        return ids

    def hide(self, text: str, role: str) -> str:
        for tag in self.control if role in ("system", "assistant") else self.added:
            text = text.replace(tag, self.hidden[tag])
        return text

    def escape(self, arguments: str) -> str:
        """The tags that end a call, as the renderers write them inside arguments."""
        for tag in self.markup:
            if tag.endswith(("call▁end｜>", "calls▁end｜>", "call_end|>", "section_end|>")):
                arguments = arguments.replace(tag, tag.replace("<", "\\u003c"))
        return arguments

    def openai(self, message: dict) -> dict:
        role, content = message["role"], message["content"]
        thinking, text = split_thinking(content) if isinstance(content, list) else ("", content)
        result = {**message, "content": self.hide(text, role)}
        for key in ("name", "tool_call_id"):
            if key in message:
                result[key] = self.hide(message[key], "user")
        if thinking:
            result["reasoning_content"] = self.hide(thinking, role)
        if calls := message.get("tool_calls"):
            result["tool_calls"] = [
                {
                    **call,
                    "type": "function",
                    "function": {
                        "name": self.hide(call["function"]["name"], role),
                        "arguments": self.hide(self.escape(call["function"]["arguments"]), role),
                    },
                }
                for call in calls
            ]
        return result


@cache
def plain_tokenizer(name: str) -> tokenizers.Tokenizer:
    from tokenizers import Tokenizer

    whole = json.loads((DATA / "tokenizers" / name / "tokenizer.json").read_text("utf-8"))
    return Tokenizer.from_str(json.dumps(whole | {"added_tokens": [], "post_processor": None}))


def replies_of(messages: list[dict]) -> Iterator[int]:
    return (i for i, message in enumerate(messages) if message["role"] == "assistant")


def count_kinds(counts: Counter, messages: list[dict], forged: list[str]) -> None:
    source = json.dumps(messages, ensure_ascii=False)
    counts["complete"] += 1
    counts["with_system"] += messages[0]["role"] == "system"
    counts["with_calls"] += any("tool_calls" in m for m in messages)
    counts["with_parallel_calls"] += any(len(m.get("tool_calls", [])) > 1 for m in messages)
    counts["with_reasoning"] += '"thinking": ' in source
    counts["with_special_strings"] += any(tag in source for tag in forged)
    counts["ending_in_a_call"] += "tool_calls" in messages[-1]


@st.composite
def assistant_messages(
    draw: DrawFn,
    name: str,
    broken: tuple[str, ...],
    call_id: Callable[[str, int], str | None] = lambda name, i: None,
) -> dict[str, Any]:
    text = draw(texts)
    message = {"role": "assistant", "content": text}
    if name not in ("deepseekv3", "deepseekv3_disable_thinking") and (thought := draw(texts)):
        message["content"] = [{"type": "thinking", "thinking": thought}]
        if text:
            message["content"].append({"type": "text", "text": text})
    if values := draw(st.lists(arguments, max_size=3)):
        names = [draw(texts.filter(bool)) for _ in values]
        message["tool_calls"] = [
            ToolCall(
                id=call_id(n, i),
                function=FunctionBody(name=n, arguments=json.dumps(v, ensure_ascii=False)),
            )
            for i, (n, v) in enumerate(zip(names, values))
        ]
    if draw(st.booleans()):
        raw, error = draw(st.sampled_from(broken))
        message["unparsed_tool_calls"] = [UnparsedToolCall(raw_text=raw, error=error)]
    return message


def to_openai(message: dict) -> dict:
    plain = {k: v for k, v in message.items() if k != "tool_calls"}
    return to_openai_message(plain) | {k: v for k, v in message.items() if k == "tool_calls"}
