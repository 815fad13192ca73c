"""The program of AIME; its data is tested in math_problems, evaluations in eval."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from recipes.math_rl import aime
from tinker_cookbook.cli_utils import parse
from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.utils.ml_log import read_metrics


def write(path: Path, answers: list[Any]) -> Path:
    rows = [{"problem": f"Which number is {a}?", "answer": a} for a in answers]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(*words: str) -> None:
    asyncio.run(aime.main(parse(aime.CLI, list(words))))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["path=other.jsonl"], "path=other.jsonl is one set of problems, and no year= is set"),
        (["path=org/other", "year=2024,2025"], "one set of problems, and year=2024,2025 are 2"),
        (["path=MathArena/aime_2026", "year=2025"], "has the problems of 2026, not of 2025"),
        (["path={}/aime2024.jsonl", "year=2025"], "has the problems of 2024, not of 2025"),
        (["path={}", "year=2026"], "has the problems of 2024, not of 2026"),
        (["path={}", "year=2024,2024"], "a year is given twice"),
        (["path={}", "num_samples=0"], "num_samples=0: expected 1 or more"),
        (["path={}", "num_samples=2", "k=1,4"], "k=1,4: pass@k needs 1 to num_samples=2"),
        (["path={}", "tasks=gsm8k"], r"tasks=\['gsm8k'\]: here it follows from year="),
    ],
)
def test_refusals(words: list[str], message: str, tmp_path: Path) -> None:
    write(tmp_path / "aime2024.jsonl", ["1"])
    with pytest.raises(ConfigurationError, match=message):
        run(*(word.format(tmp_path) for word in words))
    assert not list(tmp_path.glob("*/config.json"))


def test_pass_at_k_of_two_years(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "aime2024.jsonl", ["025", "70"])
    write(tmp_path / "aime2026.jsonl", [204])
    directory = tmp_path / "run"
    words = [f"path={tmp_path}", "num_samples=2", "max_tokens=4", f"log_path={directory}"]
    run(*words)
    last = read_metrics(directory)[-1]
    for year, samples in (("2024", 4), ("2026", 2)):
        assert last[f"aime{year}/num_samples"] == samples
        assert {f"aime{year}/pass@{k}" for k in (1, 2)} <= last.keys()
    assert "aime2024/pass@2_stderr" in last
    assert "inspect_ai view --log-dir" in capsys.readouterr().out

    with pytest.raises(ConfigurationError, match="run with a different config: temperature"):
        run(*words, "temperature=0.5")
    write(tmp_path / "aime2026.jsonl", [205])
    with pytest.raises(ConfigurationError, match="different config"):
        run(*words)
    again = [f"config={directory / 'config.json'}", f"log_path={tmp_path / 'again'}", "year=2024"]
    run(*again)
    assert "aime2026/pass@1" not in read_metrics(tmp_path / "again")[-1]
