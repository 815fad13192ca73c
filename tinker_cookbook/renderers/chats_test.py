"""Every kind of bad file gives one line that says where and what."""

import pytest

from tinker_cookbook.exceptions import ConfigurationError, DataFormatError
from tinker_cookbook.renderers.chats import read_chats, row_messages

GOOD = '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}'


def write(tmp_path, *lines, name="chats.jsonl"):
    path = tmp_path / name
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_lines_keep_their_numbers_and_blank_lines_are_ignored(tmp_path):
    path = write(tmp_path, "\ufeff" + GOOD, "", GOOD)  # some editors begin a file with a mark
    chats = read_chats(path)
    assert [chat.where for chat in chats] == [f"{path}:1", f"{path}:3"]
    assert chats[1].messages == [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
    ]


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("oops " * 40, "not JSON (Expecting value, column 1); found " + ("oops " * 16) + ";"),
        ('{"messages": [', "not JSON (Expecting value, column 15)"),
        ('{"conversations": []}', "no 'messages'; found 'conversations'"),
        ("{}", "no 'messages'; found an empty object"),
        ("[1, 2]", "found [1, 2]; expected"),
        ('{"messages": "hi"}', "'messages' must be a list of messages that is not empty; found"),
        ('{"messages": []}', "not empty; found []"),
        ('{"messages": ["hi"]}', 'message 0 must be an object with role and content, found "hi"'),
        ('{"messages": [{"content": "x"}]}', "message 0: 'role' must be a string, found {"),
        (
            '{"messages": [{"role": "user", "content": "x"}, {"role": "assistant"}]}',
            "message 1: 'content' must be a string or a list, found {",
        ),
        ('{"messages": [{"role": "user", "content": 3}]}', "'content' must be a string or a list"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, found):
    path = write(tmp_path, GOOD, line)
    with pytest.raises(DataFormatError) as error:
        read_chats(path)
    message = str(error.value)
    assert message.startswith(f"{path}:2")
    assert found in message
    assert "\n" not in message


def test_what_is_not_utf8_is_named(tmp_path):
    path = tmp_path / "latin.jsonl"
    path.write_bytes(GOOD.encode() + b"\n" + '{"messages": "é"}'.encode("latin-1"))
    with pytest.raises(DataFormatError, match=r"latin\.jsonl:2: not UTF-8"):
        read_chats(path)


def test_an_empty_file_is_refused(tmp_path):
    with pytest.raises(DataFormatError, match="the file is empty"):
        read_chats(write(tmp_path, "", "  "))


def test_a_missing_file_names_the_nearest(tmp_path):
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


def test_columns_without_a_value_are_left_out():
    """A table gives every message every field of any message."""
    call = {"function": {"name": "f", "arguments": "{}"}}
    row = {
        "text": [
            {"role": "user", "content": "a", "tool_calls": None, "name": None},
            {"role": "assistant", "content": None, "tool_calls": [call], "name": None},
        ]
    }
    assert row_messages(row, "row", "text") == [
        {"role": "user", "content": "a"},
        {"role": "assistant", "tool_calls": [call]},
    ]
