"""Assembly: modes, bad input, the extension property, splitting, pickling."""

from __future__ import annotations

import copy
import pickle
import random
from collections.abc import Iterator
from typing import Any

import pytest
import tinker
import torch

from tinker_cookbook.exceptions import ConfigurationError, RendererError
from tinker_cookbook.renderers import (
    RenderedMessage,
    Renderer,
    TrainOnWhat,
    get_renderer,
    register_renderer,
    tokens_weights_from_strings_weights,
    unregister_renderer,
)
from tinker_cookbook.renderers.base import RenderContext, text_chunk
from tinker_cookbook.renderers.messages import Message
from tinker_cookbook.renderers.role_colon import RoleColonRenderer
from tinker_cookbook.renderers.testing import load, random_conversation
from tinker_cookbook.tokenizer_utils import Tokenizer

NAMES = ["role_colon", "qwen3", "qwen3_disable_thinking", "qwen3_instruct"]
USER = {"role": "user", "content": "Hi"}
REPLY = {"role": "assistant", "content": "Hello"}


@pytest.fixture(params=NAMES)
def renderer(request: pytest.FixtureRequest, tokenizer: Tokenizer) -> Renderer:
    return get_renderer(request.param, tokenizer)


def conversations(renderer: Renderer, count: int, seed: int = 0) -> Iterator[list[dict[str, Any]]]:
    rng = random.Random(seed)
    thinking = "disable" not in renderer.origin.renderer_name
    for _ in range(count):
        messages = random_conversation(rng, thinking=thinking and "tool" in renderer.roles)
        if "tool" not in renderer.roles:
            messages = [
                {"role": m["role"], "content": m["content"]}
                for m in messages
                if m["role"] != "tool"
            ]
        yield messages


def test_types(renderer: str) -> None:
    example = renderer.build_supervised_example([USER, REPLY])
    assert isinstance(example.model_input, tinker.ModelInput)
    assert example.weights.dtype == torch.float32
    assert example.weights.shape == (example.model_input.length,)
    assert len(example.model_input.chunks) == 1
    assert isinstance(renderer.build_generation_prompt([USER]), tinker.ModelInput)


def test_a_complete_example_begins_with_its_generation_prompt(renderer: str) -> None:
    for messages in conversations(renderer, 30):
        if messages[-1]["role"] == "assistant":
            tokens, weights = renderer.build_supervised_example(messages)
            prompt = renderer.build_generation_prompt(messages[:-1]).to_ints()
            assert tokens.to_ints()[: len(prompt)] == prompt
            assert weights.tolist() == [0.0] * len(prompt) + [1.0] * (tokens.length - len(prompt))


def successive_prompts(renderer: Renderer, messages: list[dict[str, Any]]) -> Iterator[list[int]]:
    for i, message in enumerate(messages):
        if message["role"] == "assistant" and i:
            yield renderer.build_generation_prompt(messages[:i]).to_ints()


def test_extension_property(renderer: str) -> None:
    """Where it is claimed it always holds; where it is not, a conversation shows why."""
    extends = True
    for messages in conversations(renderer, 60):
        previous: list[int] = []
        for prompt in successive_prompts(renderer, messages):
            extends &= prompt[: len(previous)] == previous
            previous = prompt
        if renderer.has_extension_property:
            whole = renderer.build_supervised_example(messages).model_input.to_ints()
            assert whole[: len(previous)] == previous
    if renderer.has_extension_property:
        assert extends
    else:
        sampled = [USER, *([{"role": "assistant", "content": "Hello"}])]
        prompt = renderer.build_generation_prompt([USER]).to_ints()
        reply = renderer.build_supervised_example(sampled).model_input.to_ints()
        later = renderer.build_generation_prompt([*sampled, USER]).to_ints()
        assert reply[: len(prompt)] == prompt
        assert later[: len(reply)] != reply


@pytest.mark.parametrize("mode", [m for m in TrainOnWhat if "assistant" in m])
def test_split_examples_train_each_reply_behind_its_prompt(
    renderer: str, mode: TrainOnWhat
) -> None:
    for messages in conversations(renderer, 10):
        examples = renderer.build_supervised_examples(messages, mode)
        replies = [i for i, m in enumerate(messages) if m["role"] == "assistant"]
        last_user = max(i for i, m in enumerate(messages) if m["role"] == "user")
        if mode is TrainOnWhat.LAST_ASSISTANT_TURN:
            replies = [i for i in replies if i > last_user]
        if mode is TrainOnWhat.LAST_ASSISTANT_MESSAGE:
            replies = [i for i in replies if i == len(messages) - 1]
        if renderer.has_extension_property:
            assert len(examples) == 1
            expected = renderer.build_supervised_example(messages, mode)
            assert examples[0].model_input == expected.model_input
            assert examples[0].weights.tolist() == expected.weights.tolist()
            continue
        assert len(examples) == len(replies)
        for (tokens, weights), i in zip(examples, replies):
            prompt = renderer.build_generation_prompt(messages[:i]).to_ints()
            assert tokens.to_ints()[: len(prompt)] == prompt
            assert weights.tolist() == [0.0] * len(prompt) + [1.0] * (tokens.length - len(prompt))


@pytest.mark.parametrize("mode", ["all_messages", "all_tokens", "all_user_and_system_messages"])
def test_other_modes_are_not_split(tokenizer: str, mode: str) -> None:
    with pytest.raises(NotImplementedError, match=mode):
        get_renderer("qwen3", tokenizer).build_supervised_examples([USER, REPLY], mode)
    [example] = get_renderer("qwen3_instruct", tokenizer).build_supervised_examples(
        [USER, REPLY], mode
    )
    assert example.weights.sum() > 0


def test_default_modes(tokenizer: str) -> None:
    renderer = get_renderer("qwen3_instruct", tokenizer)
    messages = [USER, REPLY, USER, REPLY]
    single = renderer.build_supervised_example(messages).weights
    assert single.sum() == len(renderer.encoder.encode("Hello")) + 1
    [split] = renderer.build_supervised_examples([USER, REPLY, REPLY])
    assert split.weights.sum() == 2 * single.sum()


def test_prefill_and_other_roles(renderer: str) -> None:
    prompt = renderer.build_generation_prompt([USER])
    prefilled = renderer.build_generation_prompt([USER], prefill="Sure, ")
    sure = renderer.encoder.encode("Sure, ")
    assert prefilled.to_ints() == prompt.to_ints() + sure
    as_user = renderer.build_generation_prompt([USER, REPLY], role="user").to_ints()
    text = renderer.tokenizer.decode(as_user)
    assert text.endswith("User:" if isinstance(renderer, RoleColonRenderer) else "user\n")
    with pytest.raises(RendererError, match=r"message 1: unknown role 'robot'"):
        renderer.build_generation_prompt([USER], role="robot")


def test_prefilled_think_tag_is_a_token(tokenizer: str) -> None:
    renderer = get_renderer("qwen3", tokenizer)
    prompt = renderer.build_generation_prompt([USER], prefill="<think>\n").to_ints()
    assert prompt[-2] == tokenizer.convert_tokens_to_ids("<think>")


# Bad input


@pytest.mark.parametrize(
    "messages, problem",
    [
        ([], "empty conversation"),
        ([USER, {"role": "assistant"}], "message 1: this assistant message has no content"),
        ([{"role": "user", "content": None}], "message 0: this user message has no content"),
        ([USER, {"role": "robot", "content": "x"}], "message 1: unknown role 'robot'"),
        ([USER, {"content": "x"}], "message 1: unknown role None"),
        ([{"role": "user", "content": 3}], "message 0: content must be a string or a list"),
        (["Hi"], "message 0: expected a dict"),
        ([USER, {"role": "user", "content": [{"type": "image", "image": "x.png"}]}], "message 1: "),
        ([{"role": "user", "content": [{"type": "audio"}]}], "message 0: unknown content part"),
        ([{"role": "user", "content": ["x"]}], "message 0: unknown content part 'x'"),
        ([{"role": "user", "content": [{"type": "text"}]}], "message 0: a text part without"),
        (
            [{"role": "user", "content": [{"type": "thinking", "thinking": "x"}]}],
            "message 0: a user message cannot have a thinking part",
        ),
        (
            [{**USER, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}],
            "message 0: a user message cannot have tool_calls",
        ),
    ],
)
def test_bad_messages_are_named(
    renderer: str, messages: list[dict[str, Any]], problem: str
) -> None:
    for build in (renderer.build_generation_prompt, renderer.build_supervised_example):
        with pytest.raises(RendererError) as caught:
            build(messages)
        assert problem in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "call, problem",
    [
        ("f()", "message 1: a tool call must look like"),
        ({"name": "f"}, "message 1: a tool call must look like"),
        ({"function": {"name": "f", "arguments": "{}", "x": 1}}, "message 1: a tool call must"),
        ({"function": {"name": "f", "arguments": {"x": "\ud83d"}}}, "message 1: the arguments of"),
        ({"function": {"name": "", "arguments": "{}"}}, "message 1: a tool call without a"),
        ({"function": {"name": "f", "arguments": '{"x": NaN}'}}, "message 1: the arguments of 'f'"),
        ({"function": {"name": "f", "arguments": "[" * 99999}}, "message 1: the arguments of 'f'"),
        ({"function": {"name": "f", "arguments": "{"}}, "message 1: the arguments of 'f' must be"),
        ({"function": {"name": "f", "arguments": "[]"}}, "message 1: the arguments of 'f' must be"),
    ],
)
def test_bad_tool_calls_are_named(tokenizer: str, call: dict[str, Any] | str, problem: str) -> None:
    renderer = get_renderer("qwen3", tokenizer)
    message = {"role": "assistant", "content": "", "tool_calls": [call]}
    with pytest.raises(RendererError) as caught:
        renderer.build_supervised_example([USER, message])
    assert problem in str(caught.value)


def test_content_may_be_missing_beside_tool_calls(tokenizer: str) -> None:
    renderer = get_renderer("qwen3", tokenizer)
    call = {"id": "1", "function": {"name": "f", "arguments": {"x": "é"}}}
    without = {"role": "assistant", "content": None, "tool_calls": [call]}
    tokens = renderer.build_supervised_example([USER, without]).model_input.to_ints()
    assert '{"name": "f", "arguments": {"x": "é"}}' in tokenizer.decode(tokens)


def test_reasoning_content_is_a_thinking_part(tokenizer: str) -> None:
    renderer = get_renderer("qwen3", tokenizer)
    parts = [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "Hello"}]
    given, expected = {**REPLY, "reasoning_content": "hm"}, {**REPLY, "content": parts}
    assert (
        renderer.build_supervised_example([USER, given]).model_input
        == renderer.build_supervised_example([USER, expected]).model_input
    )


def test_trainable_belongs_to_customized(renderer: str) -> None:
    marked = {**REPLY, "trainable": True}
    with pytest.raises(RendererError, match=r"message 1 has the key 'trainable'"):
        renderer.build_supervised_example([USER, marked])
    with pytest.raises(RendererError, match=r"message 0 has no key 'trainable'"):
        renderer.build_supervised_example([USER, marked], "customized")
    with pytest.raises(ConfigurationError, match=r"train_on_what='everything'.*all_tokens"):
        renderer.build_supervised_example([USER, REPLY], "everything")


def test_messages_are_not_changed(renderer: str) -> None:
    messages = [USER, {**REPLY, "reasoning_content": ""}]
    before = copy.deepcopy(messages)
    renderer.build_supervised_example(messages)
    renderer.build_generation_prompt(messages[:1])
    assert messages == before


@pytest.mark.parametrize(
    "message",
    [
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}],
        },
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "hm"}]},
        {"role": "tool", "content": "1"},
    ],
)
def test_role_colon_refuses_what_it_has_no_form_for(
    tokenizer: str, message: dict[str, Any]
) -> None:
    renderer = get_renderer("role_colon", tokenizer)
    with pytest.raises(RendererError, match="message 1"):
        renderer.build_supervised_example([USER, message])
    with pytest.raises(RendererError, match="no format for tools"):
        renderer.create_conversation_prefix_with_tools(
            [{"name": "f", "description": "", "parameters": {}}]
        )


def test_every_kind_of_system_message_is_trained_with_the_users() -> None:
    """A system message with tools is a developer's in gpt-oss, a declaration in Kimi."""
    for name, data, role in (
        ("gpt_oss_low_reasoning", "gpt-oss", "developer"),
        ("kimi_k2", "kimi-k2", "tool_declare"),
    ):
        renderer = get_renderer(name, load(data))
        messages = [{"role": role, "content": "Sum"}, USER, REPLY]
        tokens, weights = renderer.build_supervised_example(
            messages, "all_user_and_system_messages"
        )
        trained = [token for token, weight in zip(tokens.to_ints(), weights) if weight]
        assert "Sum" in renderer.tokenizer.decode(trained), name


def test_results_stand_in_the_order_of_their_calls(tokenizer: str) -> None:
    """No id is written in this format: the order alone tells which call a result answers."""
    renderer = get_renderer("qwen3", tokenizer)
    calls = [{"id": i, "function": {"name": f"f{i}", "arguments": "{}"}} for i in ("a", "b")]
    asked = {"role": "assistant", "content": "", "tool_calls": calls}

    def prompt(*ids: str) -> tinker.ModelInput:
        results = [{"role": "tool", "content": f"of {i}", "tool_call_id": i} for i in ids]
        return renderer.build_generation_prompt([USER, asked, *results, REPLY, USER])

    assert prompt("b", "a") == prompt("a", "b")
    assert "of b" in tokenizer.decode(prompt("b").to_ints())  # the other was not answered
    with pytest.raises(RendererError, match="message 3: tool_call_id='z' matches no call"):
        prompt("a", "z")


# Pickling, and renderers of one's own


def test_pickling_goes_by_names(renderer: str) -> None:
    data = pickle.dumps(renderer)
    assert len(data) < 500
    again = pickle.loads(data)
    assert type(again) is type(renderer)
    assert again.origin == renderer.origin
    assert again.build_generation_prompt([USER]) == renderer.build_generation_prompt([USER])
    with pytest.raises(pickle.PicklingError, match="get_renderer"):
        pickle.dumps(type(renderer)(renderer.tokenizer))


class ShoutRenderer(Renderer):
    """The least a format needs."""

    def render_message(self, message: Message, ctx: RenderContext) -> RenderedMessage:
        ids = self.tokenizer.encode(message["content"].upper(), add_special_tokens=False)
        return RenderedMessage(output=[text_chunk(ids)], header=text_chunk([0]))

    def get_stop_sequences(self) -> list[int]:
        return [0]


class LateHeaderRenderer(ShoutRenderer):
    """Its prompt ends with tokens 1 2, which a complete message has at the start of its output."""

    def render_message(self, message: Message, ctx: RenderContext) -> RenderedMessage:
        if not message["content"]:
            return RenderedMessage(output=[], header=text_chunk([1, 2]))
        return RenderedMessage(output=[text_chunk([1, 2, 3, 4])])


def test_no_weight_falls_on_the_prompt_of_the_target(tokenizer: str) -> None:
    renderer = LateHeaderRenderer(tokenizer)
    last, other = "last_assistant_turn", "all_assistant_messages"
    messages = [USER, REPLY, REPLY]
    assert renderer.build_supervised_example(messages, last).weights.tolist() == (
        [0.0] * 6 + [1.0] * 6
    )
    assert renderer.build_supervised_example(messages, other).weights.tolist() == (
        [0.0] * 4 + [1.0] * 8
    )


def test_a_renderer_of_ones_own(tokenizer: str) -> None:
    register_renderer("shout", lambda tokenizer, _: ShoutRenderer(tokenizer))
    try:
        renderer = get_renderer("shout", tokenizer)
        tokens, weights = renderer.build_supervised_example([USER, REPLY])
        assert tokenizer.decode(tokens.to_ints()[1:]).endswith("HELLO")
        message, termination = renderer.parse_response([*tokens.to_ints()[-1:], 0])
        assert termination.is_stop_sequence and message["content"]
        assert pickle.loads(pickle.dumps(renderer)).build_generation_prompt([USER])
        assert weights[0] == 0 and weights[-1] == 1
    finally:
        unregister_renderer("shout")


def test_tokens_weights_from_strings_weights() -> None:
    tokenizer = load("llama-3.1-instruct")
    tokens, weights = tokens_weights_from_strings_weights(
        [("Hello", 0.0), (" world<|eot_id|>", 0.5)], tokenizer
    )
    assert tokenizer.decode(tokens) == "<|begin_of_text|>Hello world<|eot_id|>"
    assert weights.tolist() == [0.0, 0.0, 0.5, 0.5]
    assert (tokens.dtype, weights.dtype) == (torch.int64, torch.float32)
