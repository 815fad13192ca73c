from collections import Counter
from pathlib import Path

import pytest

from recipes.preference.constitutional.principles import (
    DEFAULT_PRINCIPLES,
    draw_principle,
    load_principles,
)
from tinker_cookbook.exceptions import ConfigurationError


def test_one_principle_per_line(tmp_path: Path) -> None:
    file = tmp_path / "principles.txt"
    file.write_text("# about tone\nThe reply is polite.\n\n  The reply is short.  \n")
    assert load_principles(str(file), "principles") == (
        "The reply is polite.",
        "The reply is short.",
    )
    assert load_principles(None, "principles") == DEFAULT_PRINCIPLES


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "principles=.*: the file has no principle; write one"),
        ("# nothing\n\n", "principles=.*: the file has no principle"),
        (None, "principles=.*missing.txt: no such file"),
    ],
)
def test_files_without_principles(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / ("missing.txt" if text is None else "principles.txt")
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigurationError, match=message):
        load_principles(str(path), "principles")


def test_every_principle_is_drawn_and_depends_on_the_seeds_alone() -> None:
    principles = ("a", "b", "c")
    drawn = [draw_principle(principles, 0, index) for index in range(300)]
    assert min(Counter(drawn).values()) > 70
    assert drawn == [draw_principle(principles, 0, index) for index in range(300)]
    assert drawn != [draw_principle(principles, 1, index) for index in range(300)]
