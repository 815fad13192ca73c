from __future__ import annotations

import asyncio
import json
from pathlib import Path

import numpy as np
import pytest

from tinker_cookbook.utils import logtree
from tinker_cookbook.utils.testing import HOSTILE, Elements, shown

HOSTILE_TEXT = " ".join(HOSTILE)


@logtree.scope_header_decorator
async def grade(number: int) -> int:
    await asyncio.sleep(0.01 * (3 - number))
    logtree.log_text(f"graded {number}")
    return number


@logtree.scope_header_decorator("Summary")
def summary() -> None:
    logtree.table_from_dict({"mean": np.float32(0.5), "best": "2"}, caption="rewards")


async def told() -> logtree.Scope:
    with logtree.init_trace("Evaluation") as tree:
        logtree.log_text("begins")
        assert await asyncio.gather(grade(1), grade(2)) == [1, 2]
        with logtree.scope_header("Problem"):
            logtree.table([{"try": 1, "reward": 0.5}, {"try": 2, "note": "best"}])
            logtree.details("a\nb", summary="reply")
        summary()
    return tree


async def test_sections_of_tasks_hold_what_was_logged_in_them(tmp_path: Path) -> None:
    logtree.write_trace_json(await told(), tmp_path / "tree.json")
    assert json.loads((tmp_path / "tree.json").read_text()) == {
        "title": "Evaluation",
        "children": [
            {"text": "begins"},
            {"title": "grade", "children": [{"text": "graded 1"}]},
            {"title": "grade", "children": [{"text": "graded 2"}]},
            {
                "title": "Problem",
                "children": [
                    {
                        "columns": ["try", "reward", "note"],
                        "rows": [[1, 0.5, None], [2, None, "best"]],
                        "caption": None,
                    },
                    {"summary": "reply", "text": "a\nb"},
                ],
            },
            {
                "title": "Summary",
                "children": [
                    {
                        "columns": ["key", "value"],
                        "rows": [["mean", 0.5], ["best", "2"]],
                        "caption": "rewards",
                    }
                ],
            },
        ],
    }


async def test_as_text() -> None:
    assert logtree.as_text(await told()) == "\n".join(
        [
            "begins",
            "grade:",
            "  graded 1",
            "grade:",
            "  graded 2",
            "Problem:",
            "  try 1, reward 0.5, note None",
            "  try 2, reward None, note best",
            "  reply: a\nb",
            "Summary:",
            "  rewards",
            "  key mean, value 0.5",
            "  key best, value 2",
        ]
    )


@pytest.mark.parametrize("raises", [False, True])
def test_the_page_shows_everything_as_text(tmp_path: Path, raises: bool) -> None:
    path = tmp_path / "some" / "page.html"
    try:
        with logtree.init_trace("Page", path=path):
            with logtree.scope_header(HOSTILE_TEXT):
                logtree.log_text(HOSTILE_TEXT)
                logtree.details(HOSTILE_TEXT, summary="long")
                logtree.table([{"reply": HOSTILE_TEXT}], caption="replies")
            if raises:
                raise ValueError("afterwards")
    except ValueError:
        assert raises
    found = Elements(path.read_bytes().decode())
    text = shown(HOSTILE_TEXT)
    assert (found.texts["h1"], found.texts["h2"]) == (["Page"], [text])
    assert (found.texts["summary"], found.texts["pre"]) == (["long"], [text])
    assert (found.texts["p"], found.texts["td"]) == ([text, "replies"], [text])


def test_where_nothing_is_written(tmp_path: Path) -> None:
    logtree.log_text("nowhere")
    with logtree.scope_header("nowhere"):
        logtree.log_text("nowhere")
    with logtree.init_trace("tree") as tree:
        for enable in (True, False):
            with logtree.optional_enable_logging(enable), logtree.scope_header(f"{enable}"):
                logtree.log_text("here")
    assert tree.children == [logtree.Scope("True", [logtree.Text("here")])]
    with (
        pytest.raises(KeyError),
        logtree.init_trace("tree", tmp_path / "no.html", write_on_error=False),
    ):
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_collecting_beside_a_tree_and_alone() -> None:
    with logtree.init_trace("tree") as tree:
        with logtree.collecting("nothing"):
            pass
        with logtree.collecting("step") as step:
            logtree.log_text("word")
    assert tree.children == [step] and logtree.as_text(step) == "word"
    with logtree.collecting("alone") as alone:
        logtree.log_text("word")
    assert alone.children == [logtree.Text("word")]
