"""docs/how-it-works.md names modules, classes and functions that exist."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from types import ModuleType

import pytest

import tinker_cookbook

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "how-it-works.md").read_text(encoding="utf-8")
_DIAGRAM = re.compile(r"^```mermaid\n(.*?)^```$", re.DOTALL | re.MULTILINE)
DIAGRAMS, PROSE = _DIAGRAM.findall(PAGE), _DIAGRAM.sub("", PAGE)
FILES = {"metrics.jsonl", "checkpoints.jsonl"}  # what a run writes
DOTTED = r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+"
MENTIONED = sorted(set(re.findall(f"`({DOTTED})`", PROSE)) - FILES)


def named(dotted: str) -> object:
    """What a path such as `rl.train.run` below tinker_cookbook is; ImportError or AttributeError
    where it is nothing."""
    found: object = tinker_cookbook
    for name in dotted.split("."):
        if isinstance(found, ModuleType) and not hasattr(found, name):
            found = importlib.import_module(f"{found.__name__}.{name}")
        else:
            found = getattr(found, name)
    return found


@pytest.mark.parametrize("dotted", MENTIONED)
def test_a_name_of_the_page_exists(dotted: str) -> None:
    named(dotted)


def test_a_name_that_does_not_exist_is_noticed() -> None:
    for dotted in ("rl.train.runs", "rl.trains", "engine.scheduler.Engine.submitted"):
        with pytest.raises((ImportError, AttributeError)):
            named(dotted)


def test_the_diagrams_use_the_names_of_the_text() -> None:
    """A diagram shortens `service.session.Session.sample` to `Session.sample`."""
    assert len(DIAGRAMS) == 3
    for diagram in DIAGRAMS:
        shortened = set(re.findall(DOTTED, diagram)) - FILES
        assert len(shortened) > 8
        for name in shortened:
            assert any(full == name or full.endswith(f".{name}") for full in MENTIONED), name


def test_links_lead_to_files() -> None:
    for target in re.findall(r"\]\(([^)]+)\)", PAGE):
        assert (ROOT / "docs" / target).exists(), target
