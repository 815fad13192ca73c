import errno
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from tinker_cookbook.exceptions import DataFormatError, StorageError
from tinker_cookbook.utils import jsonl


def values(path: Path) -> list[dict]:
    return [line.value for line in jsonl.read_lines(path)]


def strict(text: str) -> dict:
    def refuse(name: str) -> NoReturn:
        raise AssertionError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_what_is_appended_reads_back_exactly(tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    rows = [{"step": 0, "loss": 0.1 + 0.2, "text": "é\n"}, {"step": 1, "nested": {"a": [1, None]}}]
    for row in rows:
        jsonl.append_line(file, row)
    assert values(file) == rows
    assert len(file.read_text().splitlines()) == 2


def test_non_finite_floats_are_valid_json_and_come_back(tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    jsonl.append_line(file, {"a": math.nan, "b": math.inf, "c": -math.inf, "d": [math.nan]})
    strict(file.read_text())
    back = jsonl.restore_floats(values(file)[0])
    assert math.isnan(back["a"]) and back["b"] == math.inf and back["c"] == -math.inf


@pytest.mark.parametrize("cut", [1, 5, 11])
def test_a_torn_last_line_is_left_out_then_cut_off(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, cut: int
) -> None:
    file = tmp_path / "x.jsonl"
    jsonl.append_line(file, {"step": 0})
    jsonl.append_line(file, {"step": 12345})
    file.write_bytes(file.read_bytes()[: -1 - cut])
    assert values(file) == [{"step": 0}]
    assert "partial line" in caplog.text
    jsonl.append_line(file, {"step": 2})
    assert file.read_bytes() == b'{"step": 0}\n{"step": 2}\n'


def test_a_last_line_that_only_lacks_its_newline_counts(tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    file.write_bytes(b'{"step": 0}\n{"step": 1}')
    assert values(file) == [{"step": 0}, {"step": 1}]
    jsonl.append_line(file, {"step": 2})
    assert file.read_bytes() == b'{"step": 0}\n{"step": 1}\n{"step": 2}\n'


@pytest.mark.parametrize("bad", ["{oops}", "[1]", "{'a': 1}", "[" * 100_000 + "]" * 100_000])
def test_a_broken_line_before_the_last_names_file_and_line(tmp_path: Path, bad: str) -> None:
    file = tmp_path / "x.jsonl"
    file.write_text('{"a": 1}\n' + bad + '\n{"a": 2}\n')
    with pytest.raises(DataFormatError) as e:
        jsonl.read_lines(file)
    assert f"{file}:2" in str(e.value) and bad[:80] in str(e.value)


def test_keep_lines_keeps_the_bytes_of_what_stays(tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    file.write_bytes(b'{"step":0,  "x": 1.10}\n{"step": 1}\n{"step": 2}\n{"st')
    assert jsonl.keep_lines(file, lambda row: row["step"] < 1) == 2
    assert file.read_bytes() == b'{"step":0,  "x": 1.10}\n'
    assert [p.name for p in tmp_path.iterdir()] == ["x.jsonl"]


def test_a_missing_file_is_an_empty_one(tmp_path: Path) -> None:
    assert jsonl.read_lines(tmp_path / "none.jsonl") == []
    assert jsonl.keep_lines(tmp_path / "none.jsonl", lambda row: True) == 0
    assert not (tmp_path / "none.jsonl").exists()


def test_half_a_surrogate_pair_is_written_and_comes_back(tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    rows = [{"a\udfff": "\ud800 é 🙂 \\ud800"}, {"b": 1}]
    jsonl.append_line(file, rows[0])
    jsonl.append_line(file, rows[1])
    assert values(file) == rows


def test_written_lines_replace_the_file_at_once_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    jsonl.write_lines(file, [{"a": 1}, {"a": [1, math.nan]}])
    assert file.read_bytes() == b'{"a":1}\n{"a":[1,"NaN"]}\n'

    def failing() -> Iterator[dict[str, int]]:
        yield {"a": 2}
        raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        jsonl.write_lines(file, failing())
    assert values(file) == [{"a": 1}, {"a": [1, "NaN"]}]
    assert [p.name for p in tmp_path.iterdir()] == ["x.jsonl"]


@pytest.mark.parametrize(
    ("code", "remedy"), [(errno.ENOSPC, "free space"), (errno.EROFS, "make it writable")]
)
def test_what_the_disk_does_not_take_leaves_the_file_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, remedy: str
) -> None:
    file = tmp_path / "x.jsonl"
    jsonl.append_line(file, {"step": 0})

    def refuse(_: int) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        with pytest.raises(
            StorageError, match=rf"x\.jsonl cannot be written: .*; {remedy} and run"
        ):
            jsonl.append_line(file, {"step": 1})
    assert file.read_text() == '{"step": 0}\n'
