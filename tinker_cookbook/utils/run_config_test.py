"""Objects of a config.json, and values whose text would mean something else."""

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chz
import pytest

from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.utils.command_line import parse
from tinker_cookbook.utils.plain_data import plain


@chz.chz
class Part:
    size: int = 3
    name: str = "x"


@chz.chz
class OtherPart(Part):
    more: tuple[int, ...] = ()


@chz.chz
class Call:
    part: Part = chz.field(default_factory=Part)

    def __call__(self) -> int:
        return self.part.size


@dataclasses.dataclass
class Point:
    x: int
    of: Any = None


@chz.chz
class Config:
    parts: list[Part] = chz.field(default_factory=list)
    maybe: list[Part] | None = None
    calls: list[Callable[[], int]] = chz.field(default_factory=list)
    anything: Any = None
    texts: list[str] = chz.field(default_factory=list)
    table: dict[str, float] = chz.field(default_factory=dict)
    rate: float | None = 0.1
    log_path: str | None = None


class Opaque:
    pass


def function() -> int:
    return 7


def saved(config: Any, directory: Path) -> str:
    content = {"recipe": "r", **plain(config)}
    content["config_class"] = content.pop("class")
    (directory / "config.json").write_text(json.dumps(content))
    return f"config={directory / 'config.json'}"


FULL = Config(
    parts=[Part(size=1), OtherPart(name="a,b", more=(1, 2))],
    maybe=[Part()],
    calls=[
        Call(part=OtherPart(more=(3,))),
        function,
        functools.partial(int, "11", base=2),
        functools.partial(max, Point(1), key=function),
    ],
    anything=Point(x=1, of=[Part(), {"k": 2}]),
    texts=["None", "a,b", "[1]", ""],
    table={"a": 1e-9, "b": 2.0},
    rate=None,
)


@pytest.mark.parametrize("config", [Config(), FULL, Config(maybe=[], anything="text")])
def test_objects_come_back(tmp_path: Path, config: Config) -> None:
    again = parse(Config, [saved(config, tmp_path)])
    assert plain(again) == plain(config)
    assert [type(part) for part in again.parts] == [type(part) for part in config.parts]
    assert isinstance(again.anything, type(config.anything))


def test_what_came_back_works(tmp_path: Path) -> None:
    again = parse(Config, [saved(FULL, tmp_path), "parts.0.size=9"])
    assert again.parts[0].size == 9
    assert [call() for call in again.calls[:3]] == [3, 7, 3]
    assert parse(Config, [saved(Config(log_path="x"), tmp_path)]).log_path is None


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (Config(anything=Opaque()), r"anything is a .*:Opaque that was created in Python"),
        (Config(anything="3"), r'json: anything="3" cannot be read back \(it would be 3\)'),
        (Config(calls=[lambda: 1]), r"calls=.*<lambda>|calls\.0"),
    ],
)
def test_what_does_not_come_back_is_refused_by_name(
    tmp_path: Path, config: Any, message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        parse(Config, [saved(config, tmp_path)])


def test_a_json_file_of_keys_is_one_as_before(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text('{"rate": 5, "texts": ["a"]}')
    config = parse(Config, [f"config={tmp_path}/c.json"])
    assert (config.rate, config.texts) == (5.0, ["a"])
