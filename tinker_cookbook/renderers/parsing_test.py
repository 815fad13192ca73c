"""render ∘ parse = identity; streaming = whole at every cut; how responses end."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

from tinker_cookbook.exceptions import RendererError
from tinker_cookbook.renderers import (
    FunctionBody,
    ParseFailureKind,
    ParseTermination,
    TextDelta,
    ThinkingDelta,
    UnparsedToolCall,
    classify_parse_failure,
    get_renderer,
)
from tinker_cookbook.renderers.parsing import (
    StopStringParser,
    message_from_deltas,
    read_json_tool_call,
)
from tinker_cookbook.renderers.testing import (
    assert_streaming_equals_whole_at_every_cut,
    calls,
    deltas_as_text,
    early_deltas,
    load,
    render_reply,
    texts,
)
from tinker_cookbook.tokenizer_utils import Tokenizer

NAMES = ["qwen3", "qwen3_disable_thinking", "qwen3_instruct"]


@st.composite
def assistant_messages(draw: DrawFn, thinking: bool = True) -> dict[str, Any]:
    text = draw(texts)
    message = {"role": "assistant", "content": text}
    reasoning = draw(texts) if thinking else ""
    if reasoning:
        message["content"] = [{"type": "thinking", "thinking": reasoning}]
        if text:
            message["content"].append({"type": "text", "text": text})
    if found := draw(st.lists(calls, max_size=2)):
        message["tool_calls"] = found
    if draw(st.booleans()):
        raw = draw(st.sampled_from(['<tool_call>\n{"name": 1}\n</tool_call>', "<tool_call>{}x"]))
        message["unparsed_tool_calls"] = [raw]
    return message


def with_unparsed(message: dict[str, Any]) -> dict[str, Any]:
    """Raw texts become UnparsedToolCall with the error that parsing gives them."""
    if "unparsed_tool_calls" not in message:
        return message
    [raw] = message["unparsed_tool_calls"]
    if raw.endswith("</tool_call>"):
        error = 'a tool call needs a "name" that is a non-empty string'
    else:
        error = "no </tool_call> before the end of the response"
    return message | {"unparsed_tool_calls": [UnparsedToolCall(raw_text=raw, error=error)]}


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_parsing_gives_back_what_was_rendered(name: str, data: st.DataObject) -> None:
    renderer = get_renderer(name, load_any())
    message = with_unparsed(
        data.draw(assistant_messages(thinking=name != "qwen3_disable_thinking"))
    )
    parsed, termination = renderer.parse_response(render_reply(renderer, message))
    assert termination is ParseTermination.STOP_SEQUENCE
    assert parsed == message
    # and what was parsed renders to the same tokens
    assert render_reply(renderer, parsed) == render_reply(renderer, message)


@settings(max_examples=60, deadline=None)
@given(text=texts, eos=st.booleans())
def test_role_colon_parsing_gives_back_what_was_rendered(text: str, eos: bool) -> None:
    renderer = get_renderer("role_colon", load_any())
    tokens = render_reply(renderer, {"role": "assistant", "content": text})
    expected = ParseTermination.STOP_SEQUENCE
    if eos:  # a model that ends the text instead of starting the next turn
        overlap = renderer.encoder.encode("User:")
        tokens = [*tokens[: -len(overlap)], renderer.tokenizer.eos_token_id]
        expected = ParseTermination.EOS
    message, termination = renderer.parse_response(tokens)
    assert (message["content"], termination) == (text, expected)


def load_any() -> Tokenizer:
    try:
        return load("nano")
    except pytest.skip.Exception:
        return load("qwen3")


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_streaming_equals_whole_parsing_at_every_cut(name: str, data: st.DataObject) -> None:
    renderer = get_renderer(name, load_any())
    message = data.draw(assistant_messages(thinking=name != "qwen3_disable_thinking"))
    tokens = render_reply(renderer, with_unparsed(message))
    assert_streaming_equals_whole_at_every_cut(renderer, tokens)


@settings(max_examples=20, deadline=None)
@given(tokens=st.lists(st.integers(0, 1500), max_size=30))
def test_streaming_equals_whole_parsing_on_random_tokens(tokens: list[int]) -> None:
    """Invalid UTF-8, cut characters, tags anywhere."""
    renderer = get_renderer("qwen3", load_any())
    ids = [renderer.encoder.id(tag) for tag in renderer.markup]
    tokens = [ids[t % len(ids)] if t % 7 == 0 else t for t in tokens]
    stops = set(renderer.get_stop_sequences())
    tokens = [token for token in tokens if token not in stops]
    assert_streaming_equals_whole_at_every_cut(renderer, tokens)
    assert_streaming_equals_whole_at_every_cut(renderer, [*tokens, *stops])


@settings(max_examples=20, deadline=None)
@given(text=st.lists(st.sampled_from(["\n", "\n\n", "User", ":", " ", "a", "🙂"]), max_size=8))
def test_role_colon_streaming_equals_whole_parsing_at_every_cut(text: str) -> None:
    renderer = get_renderer("role_colon", load_any())
    tokens = renderer.encoder.encode("".join(text))
    assert_streaming_equals_whole_at_every_cut(renderer, tokens)


def test_streaming_gives_text_out_as_it_comes() -> None:
    renderer = get_renderer("qwen3", load_any())
    tokens = render_reply(
        renderer,
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "one two three four"},
                {"type": "text", "text": "five six seven 🙂🙂 eight"},
            ],
        },
    )
    deltas = early_deltas(renderer, tokens)
    assert sum(isinstance(delta, ThinkingDelta) for delta in deltas) >= 4
    assert sum(isinstance(delta, TextDelta) for delta in deltas) >= 5
    assert "\ufffd" not in deltas_as_text(deltas)


# Terminations


@pytest.mark.parametrize("name", NAMES)
def test_terminations_by_token(name: str) -> None:
    renderer = get_renderer(name, load_any())
    [stop] = renderer.get_stop_sequences()
    eos = renderer.encoder.id("<|endoftext|>")
    text = renderer.encoder.encode("Hello there")

    def termination(tokens: list[int]) -> ParseTermination:
        message, result = renderer.parse_response(tokens)
        assert message["content"] in ("Hello there", "")
        return result

    assert termination([*text, stop]) is ParseTermination.STOP_SEQUENCE
    assert termination([stop]) is ParseTermination.STOP_SEQUENCE
    assert termination([*text, eos]) is ParseTermination.EOS
    assert termination(text) is ParseTermination.MALFORMED
    assert termination([]) is ParseTermination.MALFORMED
    assert termination([*text, stop, *text]) is ParseTermination.MALFORMED
    assert termination([*text, stop, eos]) is ParseTermination.MALFORMED
    assert termination([*text, eos, *text]) is ParseTermination.MALFORMED
    with pytest.raises(RendererError, match="more than once"):
        termination([*text, stop, *text, stop])
    assert ParseTermination.EOS.is_clean and not ParseTermination.MALFORMED.is_clean
    assert ParseTermination.STOP_SEQUENCE.is_stop_sequence
    assert not ParseTermination.EOS.is_stop_sequence


@pytest.mark.parametrize(
    "text, eos, content, termination",
    [
        (" Hi\n\nUser:", False, "Hi", "stop_sequence"),
        ("Hi\n\nUser: more", False, "Hi", "stop_sequence"),
        (" Hi\n\n", True, "Hi", "eos"),
        (" Hi", True, "Hi", "eos"),
        (" Hi", False, "Hi", "malformed"),
        (" Hi\n\n", False, "Hi", "malformed"),
        (" Hi\n\nUser:", True, "Hi", "malformed"),
        (" Hi\n\nUser: a\n\nUser:", False, "Hi", "malformed"),
        ("  two\n\n\n", True, " two\n", "eos"),
        ("", True, "", "eos"),
    ],
)
def test_terminations_by_string(text: str, eos: bool, content: str, termination: str) -> None:
    renderer = get_renderer("role_colon", load_any())
    tokens = renderer.encoder.encode(text) + [renderer.tokenizer.eos_token_id] * eos
    message, found = renderer.parse_response(tokens)
    assert (message["content"], found) == (content, termination)


def test_stop_string_may_come_in_pieces() -> None:
    parser = StopStringParser("\n\nUser:", padding="\n\n")
    out = [parser.feed(c) for c in " a\n\nUs\n\nUser: b"]
    assert "".join(d.text for deltas in out for d in deltas) == "a\n\nUs"
    assert parser.finish() == [] and parser.stops == 1


def test_classification() -> None:
    def classify(text: str, *end: int) -> ParseFailureKind | None:
        renderer = get_renderer("qwen3", load_any())
        tokens = renderer.encoder.encode(text, renderer.markup)
        return classify_parse_failure(*renderer.parse_response([*tokens, *end]))

    [stop] = get_renderer("qwen3", load_any()).get_stop_sequences()
    good = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'
    assert classify(good, stop) is None
    assert classify(good) is ParseFailureKind.STRUCTURAL
    assert classify("<tool_call>{", stop) is ParseFailureKind.CONTENT
    assert classify("<tool_call>{") is ParseFailureKind.STRUCTURAL


# Tool calls


@pytest.mark.parametrize(
    "body, error",
    [
        ("{", "Expecting property name"),
        ("", "Expecting value"),
        ('["name"]', "must be a JSON object"),
        ('{"arguments": {}}', '"name" that is a non-empty string'),
        ('{"name": 1, "arguments": {}}', '"name" that is a non-empty string'),
        ('{"name": "", "arguments": {}}', '"name" that is a non-empty string'),
        ('{"name": "f", "arguments": {"x": NaN}}', "NaN is not valid JSON"),
        ('{"name": "f"}', '"arguments" that are a JSON object'),
        ('{"name": "f", "arguments": "{}"}', '"arguments" that are a JSON object'),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_tool_calls_that_cannot_be_read_are_kept(body: str, error: str) -> None:
    renderer = get_renderer("qwen3_instruct", load_any())
    text = f"Well.\n<tool_call>{body}</tool_call>"
    parser = renderer.content_parser()
    message = message_from_deltas(parser.feed(text) + parser.finish())
    assert message["content"] == "Well."
    assert "tool_calls" not in message
    [call] = message["unparsed_tool_calls"]
    assert call.raw_text == f"<tool_call>{body}</tool_call>"
    assert error in call.error


def test_arguments_keep_their_spelling() -> None:
    source = '{"b" :1,\n "a": "\\u00e9 \\"}{", "a": [ {"x":{}} ]}'
    body = f'\n {{ "arguments" : {source} , "name":"f" }}\n'
    call = read_json_tool_call(body)
    assert call.function == FunctionBody(name="f", arguments=source)
    assert read_json_tool_call('{"name": "f", "arguments": {}}').function.arguments == "{}"


def test_reasoning_that_is_cut_off_is_reasoning() -> None:
    renderer = get_renderer("qwen3", load_any())
    tokens = renderer.encoder.encode("<think>\nI wonder", renderer.markup)
    message, termination = renderer.parse_response(tokens)
    assert message["content"] == [{"type": "thinking", "thinking": "I wonder"}]
    assert termination is ParseTermination.MALFORMED


@pytest.mark.parametrize(
    "text, thinking, reply",
    [
        ("<think>\nhm\n</think>\n\nyes", "hm", "yes"),
        ("<think>hm</think>yes", "hm", "yes"),
        ("<think>hm</think>\nyes", "hm", "yes"),
        ("\n <think>\nhm\n</think>\n\nyes", "hm", "yes"),
        ("<think>\n\n</think>\n\nyes", "", "yes"),
        ("I say <think> aloud", "", "I say <think> aloud"),
        ("I <b>say</b> yes", "", "I <b>say</b> yes"),
        ("<think>\na\n</think>\n\nb<think>c</think>", "a", "b<think>c</think>"),
    ],
)
def test_think_blocks_as_models_write_them(text: str, thinking: str, reply: str) -> None:
    renderer = get_renderer("qwen3", load_any())
    message, _ = renderer.parse_response(renderer.encoder.encode(text, renderer.markup))
    if thinking:
        assert message["content"] == [
            {"type": "thinking", "thinking": thinking},
            {"type": "text", "text": reply},
        ]
    else:
        assert message["content"] == reply


@pytest.mark.parametrize("name", ["qwen3", "qwen3_disable_thinking"])
def test_a_reply_that_speaks_of_the_tag_is_kept_apart_from_reasoning(name: str) -> None:
    """As a string it would be split once it is history."""
    renderer = get_renderer(name, load_any())
    text = "The tag </think> closes."
    message, _ = renderer.parse_response(renderer.encoder.encode(text, renderer.markup))
    assert message["content"] == [{"type": "text", "text": text}]


def test_an_exact_block_keeps_what_is_around_and_inside_it() -> None:
    renderer = get_renderer("qwen3_instruct", load_any())
    question = {"role": "user", "content": "q"}
    for text in ("<think></think>Hi", "\n<think>a</think>Hi", "<think>a</think>\n\nHi", " Hi"):
        tokens = [*renderer.encoder.encode(text, renderer.markup), *renderer.get_stop_sequences()]
        message, _ = renderer.parse_response(tokens)
        prompt = renderer.build_generation_prompt([question]).to_ints()
        following = renderer.build_generation_prompt([question, message, question]).to_ints()
        assert following[: len(prompt) + len(tokens)] == [*prompt, *tokens], text


def test_tokens_of_a_tensor_are_read() -> None:
    import torch

    renderer = get_renderer("qwen3_instruct", load_any())
    tokens = [*renderer.encoder.encode("Hi"), *renderer.get_stop_sequences()]
    assert renderer.parse_response(torch.tensor(tokens)) == renderer.parse_response(tokens)


def test_text_around_tool_calls() -> None:
    renderer = get_renderer("qwen3", load_any())
    call = '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'
    text = f"First.\n{call}\n\n{call}\n Then.\n"
    message, _ = renderer.parse_response(renderer.encoder.encode(text, renderer.markup))
    assert message["content"] == "First.\n Then.\n"
    assert len(message["tool_calls"]) == 2
