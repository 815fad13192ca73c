"""Conversations from OpenAssistant's trees, equal from both formats."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from recipes.chat_sl.oasst import Conversations, Oasst
from tinker_cookbook.exceptions import ConfigurationError, DataFormatError
from tinker_cookbook.supervised.testing import talk
from tinker_cookbook.supervised.types import ChatDatasetBuilderCommonConfig

COMMON = ChatDatasetBuilderCommonConfig(
    model_name_for_tokenizer="nano", renderer_name="qwen3_instruct", max_length=512, batch_size=8
)
Row = dict[str, Any]


def prompter(text: str, *replies: Row, **fields: Any) -> Row:
    return {"text": text, "role": "prompter", "lang": "en", "replies": [*replies], **fields}


def assistant(text: str, *replies: Row, **fields: Any) -> Row:
    return prompter(text, *replies, **{"role": "assistant", **fields})


# Of each tree, the conversation that ought to be taken.
TREES: list[tuple[Row, list[str] | None]] = [
    (
        prompter(
            "a",
            assistant("unranked"),
            assistant("second", rank=1),
            assistant("b", prompter("c1"), prompter("c2", assistant("d2")), rank=0),
        ),
        ["a", "b"],  # the first of the unranked prompts has no reply, though another has
    ),
    (
        prompter(
            "a",
            assistant("deleted", prompter("e", assistant("f")), rank=0, deleted=True),
            assistant("rejected", rank=1, review_result=False),
            assistant("b", prompter("c", assistant("d1"), assistant("d2", rank=5)), rank=2),
        ),
        ["a", "b", "c", "d2"],
    ),
    (prompter("a", assistant("b", review_result=None, deleted=None), assistant("b2")), ["a", "b"]),
    (prompter("no reply"), None),
    (prompter("deleted", assistant("b"), deleted=True), None),
    (prompter("hallo", assistant("tag", lang="de"), lang="de"), ["hallo", "tag"]),
]
NOTES = [
    "6 trees, 3 conversations of 8 messages",
    "left out: 1 tree in other languages than en, 2 trees without a reply, 6 messages deleted or"
    " rejected, or below such a message, 8 messages outside the best-ranked conversations",
]


def flat(rows: Iterable[Row]) -> list[Row]:
    """The messages of trees as a table, each after the message that it replies to."""
    table: list[Row] = []

    def add(message: Row, parent: str | None) -> None:
        fields = {key: value for key, value in message.items() if key != "replies"}
        name = f"id {len(table)}"
        table.append({"rank": None, **fields, "message_id": name, "parent_id": parent})
        for reply in message["replies"]:
            add(reply, name)

    for row in rows:
        add(row, None)
    return table


def write(path: Path, rows: Iterable[Row]) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def write_trees(path: Path, prompts: Iterable[Row]) -> Path:
    return write(path, [{"message_tree_id": "x", "prompt": prompt} for prompt in prompts])


def read(path: Path, **keys: Any) -> Conversations:
    return Oasst(path=str(path), common_config=COMMON, **keys).read_conversations()


@pytest.fixture(params=["trees", "table", "shuffled table", "csv"])
def small(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    prompts = [prompt for prompt, _ in TREES]
    if request.param == "trees":
        return write_trees(tmp_path / "trees.jsonl", prompts)
    table = flat(prompts)
    if request.param == "csv":
        path = tmp_path / "table.csv"
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(dict.fromkeys(key for row in table for key in row)))
            writer.writeheader()
            writer.writerows(table)
        return path
    if request.param == "shuffled table":  # replies before the messages that they reply to
        table.sort(key=lambda row: row["parent_id"] is None)
    return write(tmp_path / "table.jsonl", table)


def test_the_best_ranked_reply_at_each_turn(small: Path) -> None:
    expected = [talk(*texts) for prompt, texts in TREES if texts and prompt["lang"] == "en"]
    found = read(small)
    assert [chat.messages for chat in found.chats] == expected
    assert found.notes == NOTES
    assert [chat.messages for chat in read(small, lang="de").chats] == [talk("hallo", "tag")]
    everything = read(small, lang=None)
    assert [chat.messages for chat in everything.chats] == [*expected, talk("hallo", "tag")]
    assert "languages" not in "".join(everything.notes)
    with pytest.raises(
        ConfigurationError, match=r"data\.lang=fr: .* tree: set one of en \(5\), de \(1"
    ):
        read(small, lang="fr")


def test_messages_without_their_parent_are_counted(tmp_path: Path) -> None:
    table = flat([prompter("a", assistant("b"))])
    lost = {**table[1], "message_id": "lost", "parent_id": "absent"}
    ring = [
        {**table[1], "message_id": "x", "parent_id": "y"},
        {**table[0], "message_id": "y", "parent_id": "x"},
    ]
    found = read(write(tmp_path / "table.jsonl", [*table, lost, *ring]))
    assert [chat.messages for chat in found.chats] == [talk("a", "b")]
    assert found.notes[1] == "left out: 3 messages below no prompt"


def test_a_chain_longer_than_python_can_recurse(tmp_path: Path) -> None:
    roles = ["prompter", "assistant"]
    chain = [
        {"text": str(n), "role": roles[n % 2], "lang": "en", "message_id": str(n)}
        | ({"parent_id": str(n - 1)} if n else {})
        for n in range(3000)
    ]
    (chat,) = read(write(tmp_path / "table.jsonl", chain)).chats
    assert len(chat.messages) == 3000


PROMPT = prompter("a", assistant("b"))


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        ([{"messages": []}], "found 'messages'; expected trees ('prompt' with 'replies') or mess"),
        ([{"prompt": "Hi"}], "rows.jsonl:1: message: Input should be a valid dictionary"),
        ([{"prompt": PROMPT}, {"text": "a"}], "rows.jsonl:2: no 'prompt'; all rows must be trees"),
        (
            [{"prompt": prompter("a", assistant("b", role="human"))}],
            "rows.jsonl:1: replies.0.role: Input should be 'prompter' or 'assistant', found \"hum",
        ),
        ([{"prompt": assistant("a")}], "rows.jsonl:1: the tree begins with a message of the assis"),
        ([{"prompt": prompter("a", prompter("b"))}], "rows.jsonl:1: the prompter replies to the p"),
        ([{"prompt": prompter("a")}], "none of 1 tree has a reply of the assistant"),
        ([PROMPT], "found 'text', 'role', 'lang', 'replies'; expected trees"),
        (flat([PROMPT])[1:], "every message has a 'parent_id', so no tree begins"),
        (flat([PROMPT]) * 2, "rows.jsonl:3: 'message_id' must be unique, found \"id 0\""),
        ([flat([PROMPT])[0], {"text": "b", "role": "assistant"}], "rows.jsonl:2: 'message_id' mus"),
    ],
)
def test_what_is_refused(tmp_path: Path, rows: list[Row], problem: str) -> None:
    with pytest.raises(DataFormatError) as error:
        read(write(tmp_path / "rows.jsonl", rows))
    assert problem in str(error.value) and "\n" not in str(error.value)


def test_held_out_trees_and_the_report(tmp_path: Path) -> None:
    path = write_trees(tmp_path / "trees.jsonl", [prompt for prompt, _ in TREES])
    train, test = Oasst(path=str(path), common_config=COMMON, test_size=1)()
    assert test is not None and train.report is not None and test.report is not None
    assert (train.report.num_conversations, test.report.num_conversations) == (2, 1)
    lines = train.report.lines()
    assert [line for line in NOTES if f"{path}: {line}" not in lines] == []
    with pytest.raises(ConfigurationError, match=r"test_size=3: .* has 3 conversations; expe"):
        Oasst(path=str(path), common_config=COMMON, test_size=3)()


def test_the_real_trees(shared_data: Path, tmp_path: Path) -> None:
    path = shared_data / "datasets/oasst/en_100_tree.jsonl"
    prompts = [json.loads(line)["prompt"] for line in path.read_text().splitlines()]
    found = read(path)
    assert found.notes == [
        "100 trees, 100 conversations of 284 messages",
        "left out: 883 messages outside the best-ranked conversations",
    ]
    for prompt, chat in zip(prompts, found.chats, strict=True):
        level = [prompt]
        for message in chat.messages:
            best = min((each.get("rank", 99) for each in level), default=99)
            (taken,) = [
                each
                for each in level
                if each["text"] == message["content"] and each.get("rank", 99) == best
            ]
            assert message["role"] == ("user" if taken["role"] == "prompter" else "assistant")
            level = taken["replies"]
        assert chat.messages[-1]["role"] == "assistant"
    table = read(write(tmp_path / "table.jsonl", flat(prompts)))
    assert [chat.messages for chat in table.chats] == [chat.messages for chat in found.chats]
    assert table.notes == found.notes
