from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path

import pytest

from recipes.prompts import Conversation, load_prompts
from tinker_cookbook.exceptions import ConfigurationError, DataFormatError
from tinker_cookbook.renderers import Message
from tinker_cookbook.utils.json_types import Plain

QUESTION = {"role": "user", "content": "Why?"}
REPLY = {"role": "assistant", "content": "So."}
OTHER = {"role": "assistant", "content": "No."}


def load(name: str | None, number: int = 10, seed: int = 0) -> list[Conversation]:
    return load_prompts(name, "prompts", number, seed, "nano")


def write(tmp_path: Path, rows: Sequence[Plain]) -> str:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "Why?"}, [QUESTION]),
        ({"prompt": [QUESTION, REPLY, QUESTION]}, [QUESTION, REPLY, QUESTION]),
        ({"messages": [QUESTION, REPLY]}, [QUESTION]),
        ({"messages": [QUESTION, REPLY, QUESTION, OTHER]}, [QUESTION, REPLY, QUESTION]),
        ({"instruction": "Why?", "output": "So."}, [QUESTION]),
        ({"prompt": "Why?", "completion": "So."}, [QUESTION]),
        ({"prompt": "Why?", "chosen": "So.", "rejected": "No."}, [QUESTION]),
        ({"chosen": [QUESTION, REPLY], "rejected": [QUESTION, OTHER]}, [QUESTION]),
    ],
)
def test_formats_of_rows(tmp_path: Path, row: Plain, expected: Conversation) -> None:
    assert load(write(tmp_path, [row])) == [expected]


def test_a_text_file_holds_a_prompt_per_line(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("one\n\n two \nthree\n")
    found = load(str(path))
    assert sorted(str(each[0]["content"]) for each in found) == ["one", "three", "two"]
    assert load(str(path), number=2) == found[:2]


def test_more_prompts_add_to_the_fewer(tmp_path: Path) -> None:
    path = write(tmp_path, [{"prompt": f"{n}?"} for n in range(20)])
    for name in (path, None):
        few, many = load(name, 5), load(name, 12)
        assert many[:5] == few and len(many) == 12
        assert load(name, 5, seed=1) != few
    assert len(load(path, 100)) == 20


def test_nano_gets_sums() -> None:
    (prompt,) = load(None, 1)
    assert prompt[0]["role"] == "user" and any(map(str.isdigit, str(prompt[0]["content"])))


def test_rows_that_cannot_be_used_are_skipped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{"messages": [QUESTION, REPLY]}, {"messages": [REPLY]}]
    with caplog.at_level(logging.WARNING):
        assert load(write(tmp_path, rows)) == [[Message(role="user", content="Why?")]]
    assert "1 rows cannot be used" in caplog.text and "no message of the user" in caplog.text
    with pytest.raises(DataFormatError, match=r"no row can be used as a prompt; the first: .*user"):
        load(write(tmp_path, [{"messages": [REPLY]}]))


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("missing.jsonl", ConfigurationError, "prompts=missing.jsonl: no such file"),
        ("missing.txt", ConfigurationError, "prompts=missing.txt: no such file"),
    ],
)
def test_missing_files(name: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        load(name)


def test_files_without_prompts(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(DataFormatError, match="the file is empty; expected one prompt per line"):
        load(str(tmp_path / "empty.txt"))
    with pytest.raises(DataFormatError, match="'question'"):
        load(write(tmp_path, [{"question": "Why?"}]))


def test_prompts_of_hh_rlhf(shared_data: Path) -> None:
    """Multi-turn dialogues: each ends with what the person said last."""
    path = shared_data / "datasets" / "hh-rlhf" / "harmless-base-test.jsonl.gz"
    for prompt in load(str(path), 50):
        assert prompt[-1]["role"] == "user" and prompt[0]["role"] == "user"
