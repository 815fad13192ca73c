"""AIME: its copies on the hub and on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from tinker_cookbook.exceptions import DataFormatError
from tinker_cookbook.math_problems import problem_rows
from tinker_cookbook.math_problems.aime import (
    DEFAULT,
    HUB,
    YEARS,
    Year,
    aime_answer,
    chosen_years,
    read_aime,
)
from tinker_cookbook.utils.data_files import Rows, open_rows


def write(path: Path, answers: list[Any]) -> Path:
    rows = [{"problem": f"Which number is {a}?", "answer": a} for a in answers]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("written", "answer"),
    [
        ("025", "25"),
        ("0", "0"),
        ("000", "0"),
        (r"336^\circ", "336"),
        (r"336^{\circ}", "336"),
        (r"$336^\circ$", "336"),
        ("336°", "336"),
        (" 70. ", "70"),
        ("70.0", "70"),
        ("999", "999"),
        ("70.5", "70.5"),
        ("-3", "-3"),
        ("x", "x"),
    ],
)
def test_answers(written: str, answer: str) -> None:
    assert aime_answer(written) == answer


@pytest.mark.parametrize("answer", ["70.5", "-3", "1000", "x", "²"])
def test_answers_that_cannot_be(answer: str, tmp_path: Path) -> None:
    file = write(tmp_path / "aime2024.jsonl", ["7", answer])
    with pytest.raises(DataFormatError, match=r"answer of problem 2 is .* from 0 to 999"):
        read_aime(str(file), "2024")


def test_real_problems(shared_data: Path) -> None:
    path = str(shared_data / "datasets" / "aime")
    first: dict[Year, str] = {"2024": "204", "2025": "70"}
    for year, answer in first.items():
        problems = read_aime(path, year)
        assert len(problems) == 30 and problems[0].answer == answer
        assert all(str(int(each.answer)) == each.answer for each in problems)
    assert chosen_years(path, ()) == ("2024", "2025")


ROWS = {  # as the data cards have them: (rows, answer of the first)
    "HuggingFaceH4/aime_2024": [{"id": 60, "problem": "?", "solution": "s", "answer": "025"}],
    "Maxwell-Jia/AIME_2024": [{"ID": "2024-I-1", "Problem": "?", "Answer": 25}],
    "math-ai/aime24": [{"id": 1, "problem": "?", "solution": r"So \boxed{025}.", "url": "u"}],
    "math-ai/aime25": [{"problem": "?", "answer": "25", "id": "1"}],
    "opencompass/AIME2025": [{"question": "?", "answer": r"25^\circ"}],
    "MathArena/aime_2025": [{"problem_idx": 1, "problem": "?", "answer": 25, "problem_type": []}],
    "MathArena/aime_2026": [{"problem_idx": 1, "problem": "?", "answer": 25}],
}


@pytest.mark.parametrize("name", HUB)
def test_copies_on_the_hub(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = str(tmp_path / "copy.parquet")
    datasets.Dataset.from_list(ROWS[name]).to_parquet(table)
    asked: list[tuple[str, str | None, str]] = []

    def load(path: str, configuration: str | None, split: str, **_: Any) -> Rows:
        asked.append((path, configuration, split))
        return open_rows(table)

    monkeypatch.setattr(problem_rows, "open_rows", load)
    year = HUB[name].year
    by_name = read_aime(name, year)
    assert [(each.question, each.answer) for each in by_name] == [("?", "25")] * len(asked)
    assert {split for _, _, split in asked} == {"test" if name[:3] in ("mat", "ope") else "train"}
    parts = [configuration for _, configuration, _ in asked]
    assert parts == (["AIME2025-I", "AIME2025-II"] if name[:3] == "ope" else [None])
    if name == DEFAULT[year]:
        assert read_aime("hub", year) == by_name


def test_years() -> None:
    assert chosen_years("hub", ()) == YEARS == ("2024", "2025", "2026")
    assert chosen_years("hub", ("2026",)) == ("2026",)
    assert chosen_years("MathArena/aime_2026", ()) == ("2026",)
    assert chosen_years("org/other", ("2025",)) == ("2025",)
