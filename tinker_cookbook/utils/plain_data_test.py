import dataclasses
import enum
import functools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chz
import numpy as np

from tinker_cookbook.utils.plain_data import comparable, plain, without_identities


class Color(enum.StrEnum):
    RED = "red"


@chz.chz
class Inner:
    size: int = 3


@chz.chz
class OtherInner:
    size: int = 3


@chz.chz
class Outer:
    inner: Any = chz.field(default_factory=Inner)
    rate: float = 1e-4
    color: Color = Color.RED
    path: Path = Path("a/b")
    builders: tuple[Any, ...] = (len, Inner)
    table: dict[str, Any] = chz.field(default_factory=lambda: {"k": np.float32(0.5)})


@dataclasses.dataclass
class Point:
    x: int


class Opaque:
    pass


def test_a_config_becomes_plain_data_in_the_order_of_its_fields() -> None:
    assert plain(Outer()) == {
        "class": f"{__name__}:Outer",
        "inner": {"class": f"{__name__}:Inner", "size": 3},
        "rate": 0.0001,
        "color": "red",
        "path": "a/b",
        "builders": ["builtins:len", f"{__name__}:Inner"],
        "table": {"k": 0.5},
    }
    assert list(plain(Outer()))[:3] == ["class", "inner", "rate"]


def test_classes_of_equal_fields_stay_apart() -> None:
    assert plain(Outer(inner=Inner())) != plain(Outer(inner=OtherInner()))


def test_other_values() -> None:
    assert plain(Point(x=1)) == {"class": f"{__name__}:Point", "x": 1}
    assert plain({"b", "a"}) == ["a", "b"]
    assert plain(functools.partial(int, base=2)) == {
        "partial": "builtins:int",
        "args": [],
        "keywords": {"base": 2},
    }
    assert plain(Opaque()) == {"class": f"{__name__}:Opaque", "repr": "Opaque"}
    assert plain([1 + 2j, np.ones(2)]) == ["(1+2j)", "array([1., 1.])"]
    assert plain(lambda: 0) == f"{__name__}:test_other_values.<locals>.<lambda>"
    assert plain([np.int64(3), True, None]) == [3, True, None]
    json.dumps(plain(Outer()), allow_nan=False)


def test_a_program_and_its_module_give_the_same_text(tmp_path: Path) -> None:
    package = tmp_path / "recipes"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "thing.py").write_text(
        "from tinker_cookbook.utils.plain_data import plain\n"
        "def f(): pass\n"
        "if __name__ == '__main__': print(plain(f))\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "recipes.thing"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout == "recipes.thing:f\n", done.stderr


@chz.chz
class File:
    path: str
    batch_size: int = 8

    def identity(self) -> dict[str, Any]:
        return {"path": {"bytes": Path(self.path).stat().st_size}}


@chz.chz
class NoFile:
    path: str

    def identity(self) -> dict[str, Any]:
        return {}


def test_identity_stands_for_the_field_of_the_same_name(tmp_path: Path) -> None:
    for name, text in (("a", "one"), ("moved", "one"), ("b", "three")):
        (tmp_path / name).write_text(text)
    a, moved, b = (plain([File(path=str(tmp_path / name))]) for name in ("a", "moved", "b"))
    assert a == [
        {
            "class": f"{__name__}:File",
            "path": str(tmp_path / "a"),
            "batch_size": 8,
            "identity": {"path": {"bytes": 3}},
        }
    ]
    assert a != moved and comparable({"data": a}) == comparable({"data": moved})
    assert comparable(a) == [{"class": "File", "batch_size": 8, "identity": {"path": {"bytes": 3}}}]
    assert comparable(a) != comparable(b)
    files = {"all": [File(path=str(tmp_path / "a"))]}
    assert without_identities(plain(files)) == plain(files, identities=False)
    (tmp_path / "a").write_text("grown")
    assert plain([File(path=str(tmp_path / "a"))]) != a


def test_a_class_of_this_package_may_move_to_another_module() -> None:
    """A newer version must go on with a run of an older one; a user's class is its module's."""
    a, b = ([{"class": f"tinker_cookbook.{m}:Chats", "n": 1}] for m in ("old", "new"))
    assert comparable(a) == comparable(b) == [{"class": "Chats", "n": 1}]
    assert comparable({"class": "my_env:Game"}) == {"class": "my_env:Game"}


def test_without_an_identity_every_field_counts() -> None:
    assert plain(NoFile(path="x")) == {"class": f"{__name__}:NoFile", "path": "x"}
    assert comparable(plain(NoFile(path="x"))) != comparable(plain(NoFile(path="y")))
    assert plain(NoFile) == f"{__name__}:NoFile"


class _Grader:
    def __init__(self, bonus: float) -> None:
        self.bonus = bonus

    def identity(self) -> dict[str, float]:
        return {"bonus": self.bonus}

    def grade(self) -> float:
        return self.bonus


def _grader_of(bonus: float) -> Callable[[], float]:
    def grade() -> float:
        return bonus

    return grade


def test_a_function_holds_what_its_closure_or_object_holds() -> None:
    """Another bonus is another run, though the function has the same name."""
    assert plain(_grader_of(0.5)) == plain(_grader_of(0.5)) != plain(_grader_of(0.9))
    assert plain(_Grader(1).grade) == plain(_Grader(1).grade) != plain(_Grader(2).grade)
    assert isinstance(plain(_grader_of), str)
