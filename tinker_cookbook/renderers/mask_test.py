"""Loss masks, marked by hand from the chat templates: «trained», the rest not.

⏎ is a newline, so that a whole conversation is one line. `[` and `]` stand for <|im_start|> and
<|im_end|> in the ChatML cases.
"""

from __future__ import annotations

from typing import Any

import pytest

from tinker_cookbook.renderers import get_renderer
from tinker_cookbook.renderers.testing import (
    CUSTOM,
    HI,
    TWO,
    assistant,
    load,
    marked,
    system,
    tool,
    user,
)

THOUGHT = [user("Hi"), assistant("Hello", "greet"), user("Bye"), assistant("See you", "part")]
CALL = [
    user("2+3?"),
    assistant("", "add", [("add", '{"a": 2, "b": 3}')]),
    tool("5"),
    assistant("It is 5."),
]
PARALLEL = [
    user("Both?"),
    assistant("Let me see.", None, [("f", "{}"), ("g", '{"x":1}')]),
    tool("1"),
    tool("2"),
    assistant("1 and 2"),
]
CASES = [
    # qwen3: the latest reply is framed by its reasoning, or by an empty block
    ("qwen3", "last_assistant_message", HI, "[user⏎Hi]⏎[assistant⏎«<think>⏎⏎</think>⏎⏎Hello]»"),
    (
        "qwen3",
        "last_assistant_message",
        TWO,
        "[system⏎S]⏎[user⏎Hi]⏎[assistant⏎Hello]⏎[user⏎Bye]⏎"
        "[assistant⏎«<think>⏎⏎</think>⏎⏎See you]»",
    ),
    (
        "qwen3",
        "all_assistant_messages",
        THOUGHT,
        "[user⏎Hi]⏎[assistant⏎«Hello]»⏎[user⏎Bye]⏎[assistant⏎«<think>⏎part⏎</think>⏎⏎See you]»",
    ),
    (
        "qwen3",
        "last_assistant_turn",
        CALL,
        "[user⏎2+3?]⏎[assistant⏎«<think>⏎add⏎</think>⏎⏎<tool_call>⏎"
        '{"name": "add", "arguments": {"a": 2, "b": 3}}⏎</tool_call>]»'
        "⏎[user⏎<tool_response>⏎5⏎</tool_response>]⏎"
        "[assistant⏎«<think>⏎⏎</think>⏎⏎It is 5.]»",
    ),
    (
        "qwen3",
        "all_messages",
        TWO,
        "[system⏎«S]»⏎[user⏎«Hi]»⏎[assistant⏎«Hello]»⏎[user⏎«Bye]»⏎"
        "[assistant⏎«<think>⏎⏎</think>⏎⏎See you]»",
    ),
    ("qwen3", "all_tokens", HI, "«[user⏎Hi]⏎[assistant⏎<think>⏎⏎</think>⏎⏎Hello]»"),
    (
        "qwen3",
        "all_user_and_system_messages",
        TWO,
        "[system⏎«S]»⏎[user⏎«Hi]»⏎[assistant⏎Hello]⏎[user⏎«Bye]»⏎"
        "[assistant⏎<think>⏎⏎</think>⏎⏎See you]",
    ),
    (
        "qwen3",
        "customized",
        CUSTOM,
        "[system⏎«S]»⏎[user⏎Hi]⏎[assistant⏎«Hello]»⏎[user⏎Bye]⏎"
        "[assistant⏎<think>⏎⏎</think>⏎⏎See you]",
    ),
    ("qwen3", "last_assistant_message", HI[:1], "[user⏎Hi]"),
    (
        "qwen3",
        "last_assistant_message",
        [*THOUGHT[:3], assistant("See you")],
        "[user⏎Hi]⏎[assistant⏎Hello]⏎[user⏎Bye]⏎[assistant⏎«<think>⏎⏎</think>⏎⏎See you]»",
    ),
    (
        "qwen3",
        "last_assistant_turn",
        PARALLEL,
        "[user⏎Both?]⏎[assistant⏎«Let me see.⏎<tool_call>⏎"
        '{"name": "f", "arguments": {}}⏎</tool_call>⏎<tool_call>⏎'
        '{"name": "g", "arguments": {"x":1}}⏎</tool_call>]»⏎'
        "[user⏎<tool_response>⏎1⏎</tool_response>⏎<tool_response>⏎2⏎</tool_response>]⏎"
        "[assistant⏎«<think>⏎⏎</think>⏎⏎1 and 2]»",
    ),
    ("qwen3", "last_assistant_message", [assistant("First")], "[assistant⏎«First]»"),
    # disable_thinking: the empty block belongs to the prompt
    (
        "qwen3_disable_thinking",
        "last_assistant_message",
        HI,
        "[user⏎Hi]⏎[assistant⏎<think>⏎⏎</think>⏎⏎«Hello]»",
    ),
    (
        "qwen3_disable_thinking",
        "all_assistant_messages",
        TWO,
        "[system⏎S]⏎[user⏎Hi]⏎[assistant⏎«Hello]»⏎[user⏎Bye]⏎"
        "[assistant⏎<think>⏎⏎</think>⏎⏎«See you]»",
    ),
    (
        "qwen3_disable_thinking",
        "last_assistant_turn",
        TWO,
        "[system⏎S]⏎[user⏎Hi]⏎[assistant⏎Hello]⏎[user⏎Bye]⏎"
        "[assistant⏎<think>⏎⏎</think>⏎⏎«See you]»",
    ),
    (
        "qwen3_disable_thinking",
        "all_assistant_messages",
        [THOUGHT[0], THOUGHT[1], user("Bye"), assistant("See you")],
        "[user⏎Hi]⏎[assistant⏎«Hello]»⏎[user⏎Bye]⏎[assistant⏎<think>⏎⏎</think>⏎⏎«See you]»",
    ),
    (
        "qwen3_disable_thinking",
        "last_assistant_message",
        PARALLEL,
        "[user⏎Both?]⏎[assistant⏎Let me see.⏎<tool_call>⏎"
        '{"name": "f", "arguments": {}}⏎</tool_call>⏎<tool_call>⏎'
        '{"name": "g", "arguments": {"x":1}}⏎</tool_call>]⏎'
        "[user⏎<tool_response>⏎1⏎</tool_response>⏎<tool_response>⏎2⏎</tool_response>]⏎"
        "[assistant⏎<think>⏎⏎</think>⏎⏎«1 and 2]»",
    ),
    (
        "qwen3_disable_thinking",
        "all_tokens",
        HI,
        "«[user⏎Hi]⏎[assistant⏎<think>⏎⏎</think>⏎⏎Hello]»",
    ),
    (
        "qwen3_disable_thinking",
        "all_user_and_system_messages",
        HI,
        "[user⏎«Hi]»⏎[assistant⏎<think>⏎⏎</think>⏎⏎Hello]",
    ),
    (
        "qwen3_disable_thinking",
        "last_assistant_message",
        [*HI, user("Bye")],
        "[user⏎Hi]⏎[assistant⏎Hello]⏎[user⏎Bye]",
    ),
    (
        "qwen3_disable_thinking",
        "last_assistant_message",
        [user("Hi"), assistant("")],
        "[user⏎Hi]⏎[assistant⏎<think>⏎⏎</think>⏎⏎«]»",
    ),
    (
        "qwen3_disable_thinking",
        "all_assistant_messages",
        [assistant("First")],
        "[assistant⏎<think>⏎⏎</think>⏎⏎«First]»",
    ),
    (
        "qwen3_disable_thinking",
        "last_assistant_turn",
        [system("S"), user("2+3?"), assistant("", None, [("add", '{"a": 2, "b": 3}')])],
        "[system⏎S]⏎[user⏎2+3?]⏎[assistant⏎<think>⏎⏎</think>⏎⏎«<tool_call>⏎"
        '{"name": "add", "arguments": {"a": 2, "b": 3}}⏎</tool_call>]»',
    ),
    # instruct: every message alike
    ("qwen3_instruct", "last_assistant_message", HI, "[user⏎Hi]⏎[assistant⏎«Hello]»"),
    (
        "qwen3_instruct",
        "all_assistant_messages",
        TWO,
        "[system⏎S]⏎[user⏎Hi]⏎[assistant⏎«Hello]»⏎[user⏎Bye]⏎[assistant⏎«See you]»",
    ),
    (
        "qwen3_instruct",
        "all_assistant_messages",
        THOUGHT,
        "[user⏎Hi]⏎[assistant⏎«<think>greet</think>Hello]»⏎[user⏎Bye]⏎"
        "[assistant⏎«<think>part</think>See you]»",
    ),
    (
        "qwen3_instruct",
        "last_assistant_turn",
        PARALLEL,
        "[user⏎Both?]⏎[assistant⏎«Let me see.⏎<tool_call>⏎"
        '{"name": "f", "arguments": {}}⏎</tool_call>⏎<tool_call>⏎'
        '{"name": "g", "arguments": {"x":1}}⏎</tool_call>]»⏎'
        "[user⏎<tool_response>⏎1⏎</tool_response>⏎<tool_response>⏎2⏎</tool_response>]⏎"
        "[assistant⏎«1 and 2]»",
    ),
    (
        "qwen3_instruct",
        "all_messages",
        PARALLEL[:4],
        "[user⏎«Both?]»⏎[assistant⏎«Let me see.⏎<tool_call>⏎"
        '{"name": "f", "arguments": {}}⏎</tool_call>⏎<tool_call>⏎'
        '{"name": "g", "arguments": {"x":1}}⏎</tool_call>]»⏎'
        "[user⏎«<tool_response>⏎1⏎</tool_response>»⏎«<tool_response>⏎2⏎</tool_response>]»",
    ),
    (
        "qwen3_instruct",
        "customized",
        CUSTOM,
        "[system⏎«S]»⏎[user⏎Hi]⏎[assistant⏎«Hello]»⏎[user⏎Bye]⏎[assistant⏎See you]",
    ),
    ("qwen3_instruct", "all_tokens", HI, "«[user⏎Hi]⏎[assistant⏎Hello]»"),
    ("qwen3_instruct", "last_assistant_message", [assistant("First")], "[assistant⏎«First]»"),
    (
        "qwen3_instruct",
        "last_assistant_message",
        [user("Hi"), assistant("")],
        "[user⏎Hi]⏎[assistant⏎«]»",
    ),
    # role_colon: a final reply trains the stop string to its end
    ("role_colon", "last_assistant_message", HI, "User: Hi⏎⏎Assistant:« Hello⏎⏎User:»"),
    (
        "role_colon",
        "all_assistant_messages",
        TWO,
        "System: S⏎⏎User: Hi⏎⏎Assistant:« Hello⏎⏎»User: Bye⏎⏎Assistant:« See you⏎⏎User:»",
    ),
    (
        "role_colon",
        "last_assistant_turn",
        TWO,
        "System: S⏎⏎User: Hi⏎⏎Assistant: Hello⏎⏎User: Bye⏎⏎Assistant:« See you⏎⏎User:»",
    ),
    (
        "role_colon",
        "last_assistant_message",
        [*HI, user("Bye")],
        "User: Hi⏎⏎Assistant: Hello⏎⏎User: Bye⏎⏎",
    ),
    (
        "role_colon",
        "all_messages",
        [*HI, user("Bye")],
        "User:« Hi⏎⏎»Assistant:« Hello⏎⏎»User:« Bye⏎⏎»",
    ),
    ("role_colon", "all_tokens", HI, "«User: Hi⏎⏎Assistant: Hello⏎⏎User:»"),
    (
        "role_colon",
        "all_user_and_system_messages",
        HI,
        "User:« Hi⏎⏎»Assistant: Hello⏎⏎User:",
    ),
    (
        "role_colon",
        "customized",
        CUSTOM,
        "System:« S⏎⏎»User: Hi⏎⏎Assistant:« Hello⏎⏎User:» Bye⏎⏎Assistant: See you⏎⏎User:",
    ),
    (  # where it stops is trained, also where the conversation goes on
        "role_colon",
        "all_assistant_messages",
        [*HI, user("Bye")],
        "User: Hi⏎⏎Assistant:« Hello⏎⏎User:» Bye⏎⏎",
    ),
    (
        "role_colon",
        "last_assistant_turn",
        [*HI, assistant("More")],
        "User: Hi⏎⏎Assistant:« Hello⏎⏎»Assistant:« More⏎⏎User:»",
    ),
    (
        "role_colon",
        "all_assistant_messages",
        [assistant("First"), *HI],
        "Assistant:« First⏎⏎»User: Hi⏎⏎Assistant:« Hello⏎⏎User:»",
    ),
    (
        "role_colon",
        "last_assistant_message",
        [user("Hi"), assistant("")],
        "User: Hi⏎⏎Assistant:« ⏎⏎User:»",
    ),
    (
        "role_colon",
        "all_user_and_system_messages",
        [system("S"), system("T"), *HI],
        "System:« S⏎⏎»System:« T⏎⏎»User:« Hi⏎⏎»Assistant: Hello⏎⏎User:",
    ),
    (
        "role_colon",
        "last_assistant_message",
        [user("Hi"), assistant("a\n\nb")],
        "User: Hi⏎⏎Assistant:« a⏎⏎b⏎⏎User:»",
    ),
]


SHORT = {"<|im_start|>": "[", "<|im_end|>": "]"}


@pytest.mark.parametrize("name, mode, messages, expected", CASES)
def test_mask(
    name: str, mode: str, messages: list[dict[str, Any]], expected: str, tokenizer: str
) -> None:
    example = get_renderer(name, tokenizer).build_supervised_example(messages, mode)
    assert marked(tokenizer, example, SHORT) == expected


@pytest.mark.parametrize("name", ["gpt2", "llama-3.1-instruct"])
def test_role_colon_mask_with_a_beginning_of_text_token(name: str) -> None:
    tokenizer = load(name)
    renderer = get_renderer("role_colon", tokenizer)
    bos = tokenizer.bos_token
    example = renderer.build_supervised_example(HI, "all_tokens")
    assert marked(tokenizer, example, SHORT) == f"{bos}«User: Hi⏎⏎Assistant: Hello⏎⏎User:»"
    assert renderer.build_generation_prompt(HI[:1]).to_ints()[0] == tokenizer.bos_token_id


def test_a_newline_joined_to_the_header_counts_as_content() -> None:
    """Qwen3 has one token for the newlines in `user⏎` + `⏎⏎x`: it is the user's."""
    tokenizer = load("qwen3")
    renderer = get_renderer("qwen3", tokenizer)
    example = renderer.build_supervised_example([user("\n\nx")], "all_messages")
    assert marked(tokenizer, example, SHORT) == "[user«⏎⏎⏎x]»"


def test_long_masks_equal_prefix_differences(tokenizer: str) -> None:
    """Where every message looks alike, the mask is what each reply adds to its prompt."""
    renderer = get_renderer("qwen3_instruct", tokenizer)
    messages = [*TWO, *PARALLEL]
    tokens, weights = renderer.build_supervised_example(messages, "all_assistant_messages")
    expected = [0.0] * tokens.length
    for i, message in enumerate(messages):
        if message["role"] == "assistant":
            start = renderer.build_generation_prompt(messages[:i]).length
            end = renderer.build_supervised_example(messages[: i + 1]).model_input.length
            expected[start:end] = [1.0] * (end - start)
    assert weights.tolist() == expected
