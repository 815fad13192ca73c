"""SciKnowEval's rows, in the shapes that its README describes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from recipes.sdft.sciknoweval import (
    INSTRUCTION,
    SciKnowEval,
    chosen_letter,
    is_same_choice,
    read_question,
)
from tinker_cookbook.exceptions import ConfigurationError, DataFormatError
from tinker_cookbook.renderers import get_text_content
from tinker_cookbook.supervised.types import ChatDatasetBuilderCommonConfig


def mcq(number: int, key: str = "B", domain: str = "Chemistry") -> dict[str, Any]:
    return {
        "question": f"Which of these has {number} protons?",
        "choices": {"text": ["one", "two"], "label": ["A", "B"]},
        "answerKey": key,
        "answer": "",
        "type": "mcq-2-choices",
        "domain": domain,
        "details": {"level": "L1", "task": "t", "subtask": "s", "source": "own"},
    }


def open_question(answer: Any) -> dict[str, Any]:
    return {
        "question": "What is water?",
        "choices": {"text": [], "label": []},
        "answerKey": "",
        "answer": answer,
        "type": "open-ended-qa",
        "domain": "Chemistry",
    }


def texts(row: dict[str, Any]) -> list[str]:
    return [get_text_content(message) for message in read_question(row).messages]


def test_questions_with_and_without_choices() -> None:
    question = f"Which of these has 3 protons?\n\nA. one\nB. two\n\n{INSTRUCTION}"
    assert texts(mcq(3)) == [question, "The answer is B: two"]
    assert texts(open_question("H2O")) == ["What is water?", "H2O"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (mcq(1, key="E"), "'answerKey' is 'E'; expected one of A, B"),
        (open_question(""), "type 'open-ended-qa' has no answer as text"),
        (open_question([["a", "b"]]), "has no answer as text"),
        ({**mcq(1), "question": None}, "'question' is None; expected a text"),
        ({**mcq(1), "choices": {"text": ["x"], "label": []}}, "has 1 texts and 0 labels"),
    ],
)
def test_rows_without_a_usable_answer(row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataFormatError, match=message):
        read_question(row)


@pytest.mark.parametrize(
    ("reply", "letter"),
    [
        ("The answer is B: two", "B"),
        ("A cell has C. So the answer is (D).", "D"),
        ("I first thought the answer is A, but the **Answer is: C**", "C"),
        ("The answer is a mixture", None),
        ("B", None),
    ],
)
def test_the_letter_of_a_reply(reply: str, letter: str | None) -> None:
    assert chosen_letter(reply) == letter
    assert is_same_choice(reply, "The answer is B: two") == (letter == "B")
    assert not is_same_choice(reply, "The answer is 1: two")  # no letter to compare with


def builder(path: Path, **keys: Any) -> SciKnowEval:
    common = ChatDatasetBuilderCommonConfig(
        model_name_for_tokenizer="nano",
        renderer_name="qwen3_instruct",
        max_length=512,
        batch_size=2,
    )
    return SciKnowEval(path=str(path), common_config=common, **keys)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "sciknoweval_test_v2.jsonl"
    rows = [mcq(n, domain="Biology" if n % 2 else "Chemistry") for n in range(8)]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, open_question("H2O")]))
    return path


def test_rows_are_held_out_by_a_seed(file: Path) -> None:
    train, test = builder(file, test_size=3)()
    assert test is not None
    assert len(train.get_batch(0)) == 4 and len(train) == 3
    assert len(test.get_batch(0)) == 6
    held_out: list[set[str]] = []
    for seed in (0, 0, 1):
        _, rows = builder(file, test_size=3, shuffle_seed=seed).open_splits()
        held_out.append({row["question"] for row in rows or ()})
    assert held_out[0] == held_out[1] != held_out[2]


def test_the_evaluation_asks_the_held_out_choices(file: Path) -> None:
    data = builder(file, test_size=8)
    (build,) = data.default_evaluator_builders()
    _, test = data.open_splits()
    assert test is not None
    expected = [row["question"] for row in test if row["choices"]["text"]]
    asked = [get_text_content(chat[0]) for chat in build().conversations]
    assert [text.partition("\n")[0] for text in asked] == expected
    assert builder(file, test_size=0).default_evaluator_builders() == []


def test_a_domain(file: Path) -> None:
    train, test = builder(file, domain="Biology", test_size=0).open_splits()
    assert test is None and [row["domain"] for row in train] == ["Biology"] * 4
    with pytest.raises(ConfigurationError, match="has none of it; set one of Biology, Chemistry"):
        builder(file, domain="Maths").open_splits()
