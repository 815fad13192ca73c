"""docs/models.md is what the table says."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest

from tinker_cookbook import models

SCRIPTS = Path(__file__).parent.parent / "scripts"


@pytest.fixture
def builder(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module("build_models_page")


def test_the_page_is_current(builder: ModuleType) -> None:
    written = builder.PAGE.read_text(encoding="utf-8")
    assert written == builder.page(), "run scripts/build_models_page.py"


def test_every_model_has_one_row(builder: ModuleType) -> None:
    rows = [line for line in builder.page().splitlines() if line.startswith("| `")]
    assert sorted(row.split("`")[1] for row in rows) == sorted(models.TABLE)
    assert all(row.count("|") == len(builder.COLUMNS) + 1 for row in rows)


def test_what_a_row_says(builder: ModuleType) -> None:
    lines = builder.page().splitlines()
    assert (
        "| `meta-llama/Llama-3.2-1B-Instruct` | 1B | | 131,072 | 2048 | `llama3` | 0.781 |"
        " 4.91e-4 | yes |"
    ) in lines
    assert (
        "| `openai/gpt-oss-120b` | 120b | yes | 131,072 | 2880 | `gpt_oss_no_sysprompt`,"
        " `gpt_oss_low_reasoning`, `gpt_oss_medium_reasoning`, `gpt_oss_high_reasoning` |"
        " (0.781) | 3.76e-4 | |"
    ) in lines
