"""Every kind of bad file gives one line that says where and what."""

import json
from pathlib import Path
from typing import Any

import pytest

from tinker_cookbook.exceptions import ConfigurationError, DataFormatError, RendererError
from tinker_cookbook.renderers import get_renderer
from tinker_cookbook.renderers.chats import Chat, parse_row, read_chats
from tinker_cookbook.renderers.testing import load

GOOD = '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}'


def write(tmp_path: Path, *lines: str, name: str = "chats.jsonl") -> Path:
    path = tmp_path / name
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_lines_keep_their_numbers_and_blank_lines_are_ignored(tmp_path: Path) -> None:
    path = write(tmp_path, "\ufeff" + GOOD, "", GOOD)  # some editors begin a file with a mark
    chats = read_chats(path)
    assert [chat.location for chat in chats] == [f"{path}:1", f"{path}:3"]
    assert chats[1].messages == [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
    ]


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("oops " * 40, "not JSON: Expecting value at column 1; expected one JSON object per line"),
        ('{"messages": [', "not JSON: Expecting value at column 1"),
        ('{"talk": []}', "no 'messages'; found 'talk'"),
        ("{}", "no 'messages'; found an empty object"),
        ("[1, 2]", "is not a JSON object: '[1, 2]'; expected"),
        ('{"messages": "hi"}', "'messages' must be a non-empty list of messages; found"),
        ('{"messages": []}', "non-empty list of messages; found []"),
        ('{"messages": ["hi"]}', 'message 0 must be an object with role and content, found "hi"'),
        ('{"messages": [{"content": "x"}]}', "message 0: 'role' must be a string, found {"),
        (
            '{"messages": [{"role": "user", "content": "x"}, {"role": "assistant"}]}',
            "message 1: 'content' must be a string or a list, found {",
        ),
        ('{"messages": [{"role": "user", "content": 3}]}', "'content' must be a string or a list"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, found: str) -> None:
    path = write(tmp_path, GOOD, line)
    with pytest.raises(DataFormatError) as error:
        read_chats(path)
    message = str(error.value)
    assert message.startswith(f"{path}:2")
    assert found in message
    assert "\n" not in message


def test_what_is_not_utf8_is_named(tmp_path: Path) -> None:
    path = tmp_path / "latin.jsonl"
    path.write_bytes(GOOD.encode() + b"\n" + '{"messages": "é"}'.encode("latin-1"))
    with pytest.raises(DataFormatError, match=r"latin\.jsonl:2 is not JSON: not UTF-8"):
        read_chats(path)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataFormatError, match="the file is empty"):
        read_chats(write(tmp_path, "", "  "))


def test_a_missing_file_names_the_nearest(tmp_path: Path) -> None:
    write(tmp_path, GOOD, name="my_chats.jsonl")
    write(tmp_path, GOOD, name="other.txt")
    with pytest.raises(ConfigurationError) as error:
        read_chats(tmp_path / "my_chat.jsonl")
    assert (
        str(error.value) == f"path={tmp_path}/my_chat.jsonl: no such file; there is my_chats.jsonl"
    )
    with pytest.raises(ConfigurationError, match=r"no such file; there is my_chats\.jsonl"):
        read_chats(tmp_path / "zzz.jsonl")
    with pytest.raises(ConfigurationError, match=r"file_path=.*no directory"):
        read_chats(tmp_path / "nowhere" / "x.jsonl", key="file_path")
    with pytest.raises(ConfigurationError, match="is a directory"):
        read_chats(tmp_path)


def test_columns_without_a_value_are_left_out() -> None:
    """A table gives every message every field of any message, and every call all arguments."""
    call = {"function": {"name": "f", "arguments": {"x": 1, "y": None}}}
    row = {
        "text": [
            {"role": "user", "content": "a", "tool_calls": None, "name": None},
            {"role": "assistant", "content": None, "tool_calls": [call], "name": None},
        ],
        "tools": None,
    }
    call = {"function": {"name": "f", "arguments": {"x": 1}}}
    expected = {"role": "assistant", "tool_calls": [call]}
    chat = parse_row(row, "row", "text")
    assert chat == Chat([{"role": "user", "content": "a"}, expected], "row", [])


# Tools

ADD = {"name": "add", "description": "Adds.", "parameters": {"type": "object", "properties": {}}}
USER, REPLY = {"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}
SYSTEM = {"role": "system", "content": "Be brief."}


def chat_with(tools: Any, *messages: dict[str, Any]) -> Chat:
    return parse_row({"messages": list(messages), "tools": tools}, "row")


def test_text_parts_of_a_reply_are_one_string() -> None:
    """So that reasoning in it is found as in a string."""
    parts = [{"type": "text", "text": "<think>Hm</think>"}, {"type": "text", "text": "2"}]
    chat = chat_with(None, USER, {"role": "assistant", "content": parts})
    assert chat.messages[1]["content"] == "<think>Hm</think>2"
    parts[0]["id"] = 1
    chat = chat_with(None, USER, {"role": "assistant", "content": parts})
    assert chat.messages[1]["content"] == "<think>Hm</think>2"
    assert chat.notes == {("part", "id"): 1}
    parts[0]["train"] = False  # for the renderer to refuse
    chat = chat_with(None, USER, {"role": "assistant", "content": parts})
    assert chat.messages[1]["content"] == parts


@pytest.mark.parametrize("head", [[], [SYSTEM]])
@pytest.mark.parametrize(
    "tools",
    [
        [ADD],
        [{"type": "function", "function": ADD}],
        [{"type": "function", **ADD}],
        json.dumps([ADD]),
    ],
    ids=["specs", "openai", "responses", "text"],
)
@pytest.mark.parametrize("name", ["qwen3_instruct", "template"])
def test_tools_are_declared_as_the_renderer_does_it(
    name: str, tools: list[dict[str, Any]] | str, head: list[dict[str, str]], tokenizer: str
) -> None:
    renderer = get_renderer(name, tokenizer)
    messages = chat_with(tools, *head, USER, REPLY).messages_for(renderer)
    prompt = head[0]["content"] if head else ""
    prefix = renderer.create_conversation_prefix_with_tools([ADD], prompt)
    assert messages == [*prefix, USER, REPLY]
    text = tokenizer.decode(renderer.build_generation_prompt(messages[:-1]).to_ints())
    expected = tokenizer.apply_chat_template(
        [*head, USER],
        tools=[{"type": "function", "function": ADD}],
        tokenize=False,
        add_generation_prompt=True,
    )
    assert text == expected


@pytest.mark.parametrize("tools", [None, [], "", "[]"])
def test_no_tools_change_nothing(tools: list[object] | str | None, tokenizer: str) -> None:
    chat = chat_with(tools, SYSTEM, USER, REPLY)
    assert chat.messages_for(get_renderer("role_colon", tokenizer)) is chat.messages


def test_a_declaration_is_trained_as_its_system_message_is(tokenizer: str) -> None:
    marked = [{**message, "trainable": True} for message in (SYSTEM, USER, REPLY)]
    renderer = get_renderer("qwen3_instruct", tokenizer)
    for messages, expected in ((marked, [True] * 3), (marked[1:], [False, True, True])):
        found = chat_with([ADD], *messages).messages_for(renderer)
        assert [message["trainable"] for message in found] == expected


def test_tools_are_declared_for_training_where_calls_cannot_be_read_back() -> None:
    """Llama's calls are bare JSON: no environment can run them, but data may hold them."""
    tokenizer = load("llama-3.1-instruct")
    renderer = get_renderer("template", tokenizer)
    with pytest.raises(RendererError, match="cannot be parsed"):
        renderer.create_conversation_prefix_with_tools([ADD])
    messages = chat_with([ADD], SYSTEM, USER, REPLY).messages_for(renderer)
    text = tokenizer.decode(renderer.build_supervised_example(messages).model_input.to_ints())
    assert '"name": "add"' in text and "Be brief." in text


def test_a_developers_message_is_the_system_prompt() -> None:
    renderer = get_renderer("gpt_oss_low_reasoning", load("gpt-oss"))
    developer = {"role": "developer", "content": "Be brief."}
    found = chat_with([ADD], developer, USER, REPLY).messages_for(renderer)
    assert found == chat_with([ADD], SYSTEM, USER, REPLY).messages_for(renderer)


def test_tools_inside_a_message_are_not_overlooked(tokenizer: str) -> None:
    messages = [{**SYSTEM, "tools": [ADD]}, USER, REPLY]
    with pytest.raises(RendererError, match="message 0: 'tools' inside a message is not supported"):
        get_renderer("qwen3", tokenizer).build_supervised_example(messages)
    get_renderer("template", tokenizer).build_supervised_example(messages)


def test_a_format_without_tools_refuses_them(tokenizer: str) -> None:
    with pytest.raises(RendererError, match="no format for tools"):
        chat_with([ADD], USER, REPLY).messages_for(get_renderer("role_colon", tokenizer))


def test_bad_messages_are_counted_without_the_declaration(tokenizer: str) -> None:
    chat = chat_with([ADD], USER, {"role": "robot", "content": "x"})
    with pytest.raises(RendererError, match=r"^message 1: unknown role 'robot'"):
        chat.messages_for(get_renderer("qwen3_instruct", tokenizer))


def test_the_older_name_of_tools_is_not_overlooked() -> None:
    with pytest.raises(DataFormatError, match="row: 'functions' is not supported; write them as"):
        parse_row({"messages": [USER], "functions": [ADD]}, "row")
    parse_row({"messages": [USER], "functions": None}, "row")


@pytest.mark.parametrize(
    ("tools", "problem"),
    [
        ("{", "row: 'tools' is not valid JSON, found"),
        ({"name": "f"}, "row: 'tools' must be a list of tools, found {"),
        ([{**ADD, "description": "\ud83d"}], "row: 'tools' contains an unpaired surrogate"),
        (3, "row: 'tools' must be a list of tools, found 3"),
        (["add"], 'row: tool 0 must be an object with name, description and parameters, found "'),
        (
            [{"name": "f", "description": "Adds.", "input_schema": {"type": "object"}}],
            "row: tool 0: 'input_schema' is not supported; write it as 'parameters'",
        ),
        (
            [{"name": "f", "parametres": {"type": "object"}}],
            "row: tool 0: unknown key 'parametres'; did you mean 'parameters'?",
        ),
        (
            [ADD, {"type": "function", "function": {"name": "f", "Parameters": {"x": {}}}}],
            "row: tool 1: unknown key 'Parameters'; did you mean 'parameters'?",
        ),
        (
            [{**ADD, "required": ["x"]}],
            "row: tool 0: 'required' is not supported; write it inside 'parameters'",
        ),
        (
            [{"function": {"name": "f"}, "parameters": {"type": "object"}}],
            "row: tool 0: 'parameters' is outside 'function'; move it inside",
        ),
        ([ADD, {"function": {}}], "row: tool 1 must be an object with name"),
    ],
)
def test_bad_tools_are_named(tools: object, problem: str) -> None:
    with pytest.raises(DataFormatError) as error:
        chat_with(tools, USER, REPLY)
    assert str(error.value).startswith(problem)
