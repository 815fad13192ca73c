"""Code metrics: no import cycles, short functions, few holes in the types; and scripts/house.py,
which computes them, counts correctly. `.venv/bin/python scripts/house.py` prints the figures.
"""

import re
from collections.abc import Callable
from pathlib import Path
from statistics import median
from types import ModuleType

import pytest

MOST_HOLES = 8.0  # per 1,000 lines
LONGEST = 90  # lines of a function
MEDIAN = 8


@pytest.fixture
def house(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> ModuleType:
    monkeypatch.syspath_prepend(str(request.config.rootpath / "scripts"))
    import house

    return house


def test_no_import_circles(house: ModuleType) -> None:
    graph = house.import_graph()
    assert len(graph) > 150
    found = [house.describe_cycle(circle, graph) for circle in house.import_cycles(graph)]
    assert not found, "\n".join(found)


def test_functions_are_short(house: ModuleType) -> None:
    every = house.functions(house.source_files(*house.PACKAGES, *house.PROGRAMS))
    assert len(every) > 1000 and median(each.lines for each in every) <= MEDIAN
    assert [each for each in every if each.lines > LONGEST] == []


def test_few_holes_in_the_types(house: ModuleType) -> None:
    files = house.holes_by_file()
    print("\n" + house.format_table(house.holes_by_package(files)))
    total = house.sum_holes(files.values())
    assert total.lines > 20_000 and total.per_thousand <= MOST_HOLES


def test_nothing_is_imported_from_tests(house: ModuleType) -> None:
    """What several tests share stands in a testing.py."""
    folders = (*house.PACKAGES, *house.PROGRAMS, "tests")
    files = {file for folder in folders for file in (house.ROOT / folder).rglob("*.py")}
    assert len(files) > 350
    imports = re.compile(r"^\s*(?:from|import) .*\b\w+_test\b", re.MULTILINE)
    assert [(f.name, found) for f in files for found in imports.findall(f.read_text())] == []


# -- what counts


@pytest.fixture
def circles_of(house: ModuleType, tmp_path: Path) -> Callable[..., list[list[str]]]:
    """Of modules that are given as name=text in the package recipes, except for scripts."""

    def ask(**modules: str) -> list[list[str]]:
        for name, text in {"recipes": "", **modules}.items():
            path = tmp_path / ("scripts" if "program" in name else "recipes") / f"{name}.py"
            path = path.with_name("__init__.py") if name == "recipes" else path
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        return house.import_cycles(house.import_graph(tmp_path))

    return ask


LAZY = "def f():\n    from recipes.a import x\n"
TYPING = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from recipes import a\n"


@pytest.mark.parametrize("back", ["import recipes.a", "from . import a", LAZY, TYPING])
def test_every_kind_of_import_closes_a_circle(
    circles_of: Callable[..., list[list[str]]], back: str
) -> None:
    found = circles_of(a="from recipes.b import y", b="import recipes.c", c=back, d="import a")
    assert found == [["recipes.a", "recipes.b", "recipes.c"]]


def test_no_circle_without_a_way_back(circles_of: Callable[..., list[list[str]]]) -> None:
    assert circles_of(a="from recipes import b, c\nimport json", b="from .c import x", c="") == []


def test_programs_import_each_other_by_bare_names(
    circles_of: Callable[..., list[list[str]]],
) -> None:
    found = circles_of(program_a="import program_b", program_b="from program_a import x")
    assert found == [["program_a", "program_b"]]


def test_lines_of_functions(
    house: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(house, "ROOT", tmp_path)
    file = tmp_path / "x.py"
    file.write_text('@a\n@b\ndef f(\n    x,\n):\n    """One\n\n    two."""\n\n    def g(): ...\n')
    assert house.functions([file]) == [(5, "x.py:3 f"), (1, "x.py:10 g")]


@pytest.mark.parametrize(
    ("text", "holes"),
    [
        ("from typing import (\n    Any,\n    cast,\n)\nimport cast\n", 0),
        ("x: Any = cast(object, y)  # type: ignore[no-untyped-call]\n", 4),
        ('"""Any object"""\n# an object is cast\nobjects = broadcast = 1\n', 0),
        ("Anything: TypeAlias = Any\nx: Anything\n", 1),
        ("if True:\n    import typing; x: typing.Any\n    y: object\n", 2),
    ],
)
def test_holes(house: ModuleType, text: str, holes: int) -> None:
    assert house.count_holes(text) == (holes, text.count("\n"))
