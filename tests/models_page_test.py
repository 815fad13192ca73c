"""docs/models.md is what the table says."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest

from tinker_cookbook import models
from tinker_cookbook.renderers import get_registered_renderer_names
from tinker_cookbook.tokenizer_utils import TRUST

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
        "| `openai/gpt-oss-120b` | 117B-A5.1B | yes | 131,072 | 2880 | `gpt_oss_no_sysprompt`,"
        " `gpt_oss_low_reasoning`, `gpt_oss_medium_reasoning`, `gpt_oss_high_reasoning` |"
        " (0.781) | 3.76e-4 | |"
    ) in lines


def test_what_users_of_a_family_must_know(builder: ModuleType) -> None:
    introduction, *sections = builder.page().split("\n## ")
    by_heading = {section.split("\n")[0]: section for section in sections}
    for heading in ("Qwen3", "Qwen3, mixtures of experts"):
        assert "The `qwen3` renderer leaves these to the model" in by_heading[heading]
    assert f"{TRUST}=1" in by_heading["Kimi-K2"]
    for heading in ("DeepSeek-V3.1", "Kimi-K2"):
        assert "engine cannot read the published files" in " ".join(by_heading[heading].split())
    assert sum("engine cannot read" in " ".join(section.split()) for section in sections) == 2
    assert sum("`<think>`" in section for section in sections) == 2
    left_out = introduction.split("left out**")[1].split("- **")[0]
    assert "`qwen3_vl`" in left_out and "`renderer_name=template`" in left_out
    known = get_registered_renderer_names()
    assert not any(f"`{name}`" in left_out for name in known)
