"""Known answers are what the file says, whatever type a reader of tables would give the column."""

from __future__ import annotations

import datetime
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import datasets
import pytest

from tinker_cookbook.exceptions import DataFormatError
from tinker_cookbook.math_problems.math_grading import grade_answer
from tinker_cookbook.math_problems.problem_rows import Columns, read_problems

COLUMNS = Columns("problem", "answer")


@pytest.fixture(autouse=True)
def _fresh_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def answers(path: Path) -> list[str]:
    return [problem.answer for problem in read_problems(str(path), COLUMNS)]


@pytest.mark.parametrize(
    ("spelled", "known"),
    [
        ("0.00001", "0.00001"),
        ("1e-05", "0.00001"),
        ("1e16", "10000000000000000"),
        ("1E+16", "10000000000000000"),
        ("1234567", "1234567"),
        ("1234567.0", "1234567"),
        ("2.5", "2.5"),
        ("2.50", "2.50"),
        ("3.14159265358979323846", "3.14159265358979323846"),
        ("-12345678901234567890123", "-12345678901234567890123"),
        ("6.02e80", r"6.02 \times 10^{80}"),
        ("1e-999999999", r"1 \times 10^{-999999999}"),
        ('"2021-05-03"', "2021-05-03"),
        ('"1e16"', "1e16"),
        ('"007"', "007"),
        ('" x "', "x"),
        ("true", "True"),
    ],
)
def test_known_answers(tmp_path: Path, spelled: str, known: str) -> None:
    """Alone, and in a column with all other types."""
    line = f'{{"problem": "q?", "answer": {spelled}}}'
    others = [json.dumps({"problem": "o?", "answer": value}) for value in (1, 0.5, "s")]
    for name, text in {
        "a.jsonl": line,
        "b.jsonl": "\n".join([*others, line]),
        "c.json": f"[{', '.join([line, *others])}]",
    }.items():
        path = tmp_path / name
        path.write_text(text)
        found = {problem.question: problem.answer for problem in read_problems(str(path), COLUMNS)}
        assert found["q?"] == known


def test_known_answers_of_csv(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("problem,answer\na?,007\nb?,2021-05-03\nc?,NA\nd?,1.50\ne?,\n5,1e-05\n")
    assert answers(path) == ["007", "2021-05-03", "NA", "1.50", "1e-05"]


@pytest.mark.parametrize(
    ("values", "known"),
    [
        ([1e16, 1e-05, 1234567.0, 2.5], ["10000000000000000", "0.00001", "1234567", "2.5"]),
        ([1234567, None], ["1234567"]),
        ([datetime.date(2021, 5, 3)], ["2021-05-03"]),
        ([Decimal("1.50")], ["1.50"]),
    ],
)
def test_known_answers_of_tables(tmp_path: Path, values: list[Any], known: list[str]) -> None:
    rows = [{"problem": "q?", "answer": value} for value in values]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "x.parquet")
    assert answers(tmp_path / "x.parquet") == known


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ('["6"]', r"\['6'\]"),
        ('{"value": 6}', r"\{'value': '6'\}"),
        ('"\\ud83d"', "an unpaired surrogate"),
        ("Infinity", "inf"),
    ],
)
def test_answers_that_are_none(tmp_path: Path, answer: str, found: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(f'{{"problem": "p?", "answer": 1}}\n{{"problem": "q?", "answer": {answer}}}\n')
    with pytest.raises(DataFormatError, match=rf":2: 'answer' is {found}; expected text"):
        answers(path)


def test_a_timestamp_in_a_table_is_refused(tmp_path: Path) -> None:
    """What a right reply to it would be cannot be told: a day, or a day and an hour."""
    rows = [{"problem": "q?", "answer": datetime.datetime(2021, 5, 3)}]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "x.parquet")
    with pytest.raises(DataFormatError, match=r"row 0: 'answer' is datetime.* as text"):
        answers(tmp_path / "x.parquet")


def test_the_cases_that_were_wrong(shared_cases: Path) -> None:
    directory = shared_cases / "own_problems_numbers_dates"
    known = answers(directory / "floats.jsonl") + answers(directory / "dates.jsonl")
    replies = ["0.00001", "10000000000000000", "1234567", "2.5", "2021-05-03", "1999-12-31"]
    assert all(grade_answer(reply, truth) for reply, truth in zip(replies, known, strict=True))
    assert not grade_answer("1234568", known[2])
