"""GSM8K as conversations: its splits, and how final answers are compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from recipes.chat_sl.gsm8k import FinalAnswers, Gsm8kChats, is_right
from recipes.chat_sl.train import CLI, DEFAULTS, data_of
from tinker_cookbook.exceptions import DataFormatError
from tinker_cookbook.supervised.chat_config import resolve_chat_config
from tinker_cookbook.supervised.exact_match import ExactMatchEvaluator
from tinker_cookbook.supervised.nll_evaluator import all_datums
from tinker_cookbook.supervised.testing import talk
from tinker_cookbook.supervised.types import ChatDatasetBuilderCommonConfig
from tinker_cookbook.tokenizer_utils import get_tokenizer

COMMON = ChatDatasetBuilderCommonConfig(
    model_name_for_tokenizer="nano", renderer_name="qwen3_instruct", max_length=512, batch_size=2
)


def solution(answer: str) -> str:
    return f"He has 6 * 12 = <<6*12=72>>72 of 100.\n#### {answer}"


def rows(split: str, count: int) -> list[tuple[str, str]]:
    return [(f"{split} question {n}?", solution(str(n))) for n in range(count)]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    for split, count in (("train", 4), ("test", 3)):
        lines = [json.dumps({"question": q, "answer": a}) for q, a in rows(split, count)]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines))
    return tmp_path


def builder(path: Path, **keys: Any) -> Gsm8kChats:
    return Gsm8kChats(path=str(path), common_config=COMMON, **keys)


def evaluator(data: Gsm8kChats) -> ExactMatchEvaluator:
    (build,) = data.default_evaluator_builders()
    made = build()
    assert isinstance(made, ExactMatchEvaluator)
    return made


@pytest.mark.parametrize(("test_size", "count"), [(2, 2), (200, 3), (0, 3)])
def test_loss_and_replies_are_measured_on_the_same_problems(
    directory: Path, test_size: int, count: int
) -> None:
    data = builder(directory, test_size=test_size, max_tokens=9)
    train, test = data()
    assert len(train) == 2 and test is not None
    made = evaluator(data)
    assert made.conversations == [talk(*texts) for texts in rows("test", count)]
    assert (made.name, made.max_tokens) == ("test", 9)
    decode = get_tokenizer("nano").decode
    texts = [decode(datum.model_input.to_ints()) for datum in all_datums(test)]
    assert len(texts) == count
    assert all(question in text for (question, _), text in zip(rows("test", count), texts))


def test_a_file_has_no_test_split(directory: Path) -> None:
    path = directory / "train.jsonl"
    data = builder(path, test_size=1)
    train, test = data()
    assert len(train) == 1 and test is not None and len(evaluator(data).conversations) == 1
    alone = builder(path, test_size=0)
    assert alone()[1] is None and alone.default_evaluator_builders() == []


def test_the_configuration_is_one_of_the_hub(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[tuple[str, str | None, str]] = []

    def open_rows(path: str, name: str | None, split: str) -> list[dict[str, str]]:
        opened.append((path, name, split))
        raise DataFormatError("seen")

    monkeypatch.setattr("tinker_cookbook.utils.data_files.open_rows", open_rows)
    for data in (Gsm8kChats(), Gsm8kChats(name="socratic"), builder(directory)):
        with pytest.raises(DataFormatError, match="seen"):
            data.open_splits()
    assert opened == [
        ("openai/gsm8k", "main", "train"),
        ("openai/gsm8k", "socratic", "train"),
        (str(directory), None, "train"),
    ]


def test_by_name_it_comes_with_its_evaluator() -> None:
    cli = CLI(dataset="gsm8k", model_name="nano")
    config = resolve_chat_config(cli, DEFAULTS, data_of(cli)).config
    assert isinstance(config.dataset_builder, Gsm8kChats)
    (build,) = config.evaluator_builders
    assert isinstance(build, FinalAnswers) and build.data == config.dataset_builder
    assert (build.data.test_size, build.data.max_tokens) == (200, 256)


@pytest.mark.parametrize(
    ("reply", "answer", "right"),
    [
        (solution("72"), "72", True),
        ("So he has **72**.", "72", True),
        ("72 of 100", "72", False),
        ("It is $1,200.00.", "1,200", True),
        ("He owes -3", "-3", True),
        ("I do not know.", "72", False),
        ("", "72", False),
        ("6 * 12 = 7", "72", False),
    ],
)
def test_the_last_number_is_the_answer(reply: str, answer: str, right: bool) -> None:
    assert is_right(reply, solution(answer)) is right


@pytest.mark.parametrize(
    ("answer", "problem"),
    [("72", "no '#### answer' at the end"), ("#### x", "could not convert")],
)
def test_a_problem_without_an_answer_is_refused(directory: Path, answer: str, problem: str) -> None:
    with (directory / "test.jsonl").open("a") as file:
        file.write("\n" + json.dumps({"question": "6 * 12?", "answer": answer}))
    with pytest.raises(DataFormatError) as error:
        evaluator(builder(directory))
    assert "test.jsonl:4: 'answer' has no final answer" in str(error.value)
    assert problem in str(error.value)


def test_every_real_solution_is_right(shared_data: Path) -> None:
    made = evaluator(builder(shared_data / "datasets/gsm8k", test_size=0))
    assert len(made.conversations) == 1319
    for _, reply in made.conversations:
        text = str(reply["content"])
        assert is_right(text, text) and not is_right(f"{text} or 0.5", text)
