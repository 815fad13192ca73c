"""Rows are what the files say, whole or streamed; what cannot be read is named with its place."""

from __future__ import annotations

import bz2
import datetime
import gzip
import json
import lzma
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest
import zstandard

from tinker_cookbook.exceptions import ConfigurationError, DataError, DataFormatError
from tinker_cookbook.utils.data_files import open_rows, open_stream
from tinker_cookbook.utils.records import MAX_DEPTH, NumberText

ROW = '{"a": 1}\n'
CUT_OFF = gzip.compress(ROW.encode() * 99, mtime=0)[:-9]
MANY = 10_500  # rows of a kilobyte: more than the 10 MB that `datasets` looks at for types


@pytest.fixture(autouse=True)
def _fresh_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def write(file: Path, text: str | bytes) -> str:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(file)


def lines(*rows: Any) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def read(path: str | Path, **options: Any) -> list[dict[str, Any]]:
    """The rows, which are the same and stand in the same places when they are streamed."""
    rows, stream = open_rows(str(path), **options), list(open_stream(str(path), **options))
    assert [(placed.row, placed.where) for placed in stream] == [
        (row, rows.where(number)) for number, row in enumerate(rows)
    ]
    return list(rows)


def same(rows: Any, expected: Any) -> bool:
    """Also in types: 1 is not 1.0 and not True."""
    return repr(rows) == repr(expected)


# What the file says


MIXED = [
    {"a": "text"},
    {"a": [{"type": "text", "text": "part"}]},
    {"a": 5},
    {"a": "5"},
    {"a": 2.5},
    {"a": "2021-05-03"},
    {"a": {"x": 1}},
    {"a": {"y": None, "x": "1"}},
    {"a": None},
    {"b": True},
    {"a": 12345678901234567890123, "a b": {}},
]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.jsonl", lines(*MIXED)),
        ("x.ndjson", lines(*MIXED).replace("\n", "\r\n\r\n")),
        ("x.json", lines(*MIXED)),
        ("x.jsonl", b"\xef\xbb\xbf \n" + lines(*MIXED).rstrip().encode()),
        ("x.json", json.dumps(MIXED)),
        ("x.json", "\ufeff\n" + json.dumps(MIXED, indent=1) + "\n"),
        ("x.jsonl", json.dumps(MIXED)),
        ("x.json", "\n".join(json.dumps(row, indent=1) for row in MIXED[6:7] + MIXED)),
        ("x.jsonl.gz", gzip.compress(lines(*MIXED).encode(), mtime=0)),
        ("x.json.bz2", bz2.compress(json.dumps(MIXED).encode())),
        ("x.json.xz", lzma.compress(json.dumps(MIXED).encode())),
        ("x.jsonl.zst", zstandard.compress(lines(*MIXED).encode())),
    ],
)
def test_rows_of_any_kinds_are_as_the_file_says(
    tmp_path: Path, name: str, content: str | bytes
) -> None:
    file = write(tmp_path / "set" / name, content)
    for path in (file, tmp_path / "set"):
        assert same(read(path)[-len(MIXED) :], MIXED)
    assert open_rows(file).column_names == ["a", "b", "a b"]


def test_rows_have_places(tmp_path: Path) -> None:
    write(tmp_path / "set" / "a.jsonl", "\n" + ROW * 2)
    write(tmp_path / "set" / "b.json", '[\n{"a": 1}, {"a":\n\n 2}, {"a": 3}]')
    write(tmp_path / "set" / "c.jsonl", '{\n"a": 1}\n\n{\n"a": 2}\n')
    read(tmp_path / "set")
    rows = open_rows(f"{tmp_path}/set/")
    places = [rows.where(number).removeprefix(f"{tmp_path}/set/") for number in range(len(rows))]
    assert places[:2] == ["a.jsonl:2", "a.jsonl:3"]
    assert places[2:5] == ["b.json:2", "b.json:2", "b.json:4"]
    assert places[5:] == ["c.jsonl:1", "c.jsonl:4"]


@pytest.mark.parametrize("late", ['{"a": [5]}\n', '{"a": "x", "new": {"deep": 1}}\n', '{"a": 7}\n'])
def test_types_and_keys_may_be_new_in_a_later_block_or_file(tmp_path: Path, late: str) -> None:
    early = lines({"a": "x" * 1000}) * MANY
    write(tmp_path / "one" / "train.jsonl", early + late)
    write(tmp_path / "two" / "a.jsonl", ROW)
    write(tmp_path / "two" / "b.jsonl", late)
    for directory in ("one", "two"):
        rows = open_rows(str(tmp_path / directory))
        assert same(rows[len(rows) - 1], json.loads(late))
        *_, last = open_stream(str(tmp_path / directory))
        assert same(last.row, json.loads(late))


def test_cells_of_csv_are_strings(tmp_path: Path) -> None:
    text = 'q,a\n"x, ""y""\nz",007\nw,2021-05-03\n\nn,NA\nn,1e16\nn,\n'
    cells = ["007", "2021-05-03", "NA", "1e16", None]
    write(tmp_path / "c" / "x.csv", text)
    rows = read(tmp_path / "c")
    assert [row["a"] for row in rows] == cells and rows[0]["q"] == 'x, "y"\nz'
    assert open_rows(str(tmp_path / "c")).where(1).endswith("x.csv:4")
    packed = gzip.compress(text.replace(",", "\t").encode(), mtime=0)
    file = write(tmp_path / "t" / "x.tsv.gz", packed)
    for path in (file, tmp_path / "t"):
        assert [row["a"] for row in read(path)] == cells


def test_tables_are_as_they_are_stored(tmp_path: Path) -> None:
    rows = [{"a": {"x": 1, "y": None}, "d": datetime.date(2021, 5, 3)}, {"a": None, "d": None}]
    table = datasets.Dataset.from_list(rows)
    (tmp_path / "p").mkdir()
    table.to_parquet(str(tmp_path / "p" / "train.parquet"))
    table.save_to_disk(str(tmp_path / "saved"))
    for path in ("p/train.parquet", "p", "saved"):
        found = open_rows(str(tmp_path / path))
        assert list(found) == rows == [row for row, _ in open_stream(str(tmp_path / path))]
        assert found.where(1) == "row 1" and found.only("d")[0] == {"d": rows[0]["d"]}


def test_numbers_in_their_own_spelling(tmp_path: Path) -> None:
    text = '{"a": 1e16, "b": [0.00001, "1e5"], "c": 007}'.replace("007", "1.50")
    for name, content in (("x.jsonl", text), ("x.json", f"[{text}]")):
        (row,) = open_rows(write(tmp_path / name, content), numbers_as_text=True)
        assert row == {"a": "1e16", "b": ["0.00001", "1e5"], "c": "1.50"}
        assert isinstance(row["a"], NumberText) and not isinstance(row["b"][1], NumberText)


# Which files


def test_files_belong_to_splits_as_for_datasets(tmp_path: Path) -> None:
    for number in (1, 0):
        write(tmp_path / f"data/train-0000{number}-of-00002.jsonl", lines({"a": number}))
    write(tmp_path / "data/test-00000-of-00001.jsonl", lines({"a": "t"}))
    write(tmp_path / "data/.hidden.jsonl", "not read")
    path = str(tmp_path)
    for split, found in {
        "train": [0, 1],
        "test": ["t"],
        "all": [0, 1, "t"],
        "train[:1]": [0],
        "train[50%:]+test": [1, "t"],
        "test+train[-1:]": ["t", 1],
    }.items():
        assert [row["a"] for row in open_rows(path, split=split)] == found
        assert [placed.row["a"] for placed in open_stream(path, split=split)] == found
    for opened in (open_rows, open_stream):
        with pytest.raises(ConfigurationError, match=r"no split 'dev'; found train, test"):
            opened(path, split="dev")
        with pytest.raises(DataFormatError, match=r"split=train\[:0\] selects none of 3 rows"):
            opened(path, split="train[:0]")


def test_a_stream_of_a_part_of_one_file(tmp_path: Path) -> None:
    path = write(tmp_path / "x.json", '[{"a": 1}, {"a": 2}]')
    stream = open_stream(path, split="train[:1]")
    assert [list(stream) for _ in range(2)] == [[({"a": 1}, f"{path}:1")]] * 2


README = """---
configs:
- config_name: one
  default: true
  data_files:
  - split: train
    path: x/*.jsonl
  - split: test
    path: y.json
- config_name: two
  data_files: z.json
  field: data
dataset_info:
  config_name: one
  features:
  - name: a
    dtype: string
---
"""


def test_configurations_in_a_readme(tmp_path: Path) -> None:
    write(tmp_path / "README.md", README)
    write(tmp_path / "x/b.jsonl", lines({"a": "5"}))
    write(tmp_path / "x/a.jsonl", lines({"a": 5}))
    write(tmp_path / "y.json", '[{"a": []}]')
    write(tmp_path / "z.json", '{"meta": {"data": 3}, "data":\n [{"a": 1.5}, {"a": "x"}]}')
    assert same(read(tmp_path), [{"a": 5}, {"a": "5"}])
    assert read(tmp_path, name="one", split="test") == [{"a": []}]
    assert same(read(tmp_path, name="two"), [{"a": 1.5}, {"a": "x"}])
    assert open_rows(str(tmp_path), name="two").where(0) == f"{tmp_path}/z.json:2"
    with pytest.raises(ConfigurationError, match=r"'three' not found. Available: \['one', 'two'\]"):
        open_rows(str(tmp_path), name="three")
    write(tmp_path / "z.json", '{"dat": []}')
    with pytest.raises(DataFormatError, match=r"z\.json has no array of rows under 'data'"):
        open_rows(str(tmp_path), name="two")


def test_options_of_csv_in_a_readme(tmp_path: Path) -> None:
    head = "---\nconfigs:\n- config_name: default\n  data_files: x.csv\n  {}\n---\n"
    write(tmp_path / "x.csv", "a;b\n1;2\n")
    write(tmp_path / "README.md", head.format('sep: ";"'))
    assert read(tmp_path) == [{"a": "1", "b": "2"}]
    write(tmp_path / "README.md", head.format("skiprows: 1"))
    with pytest.raises(ConfigurationError, match="skiprows=1, which is not supported"):
        open_rows(str(tmp_path))


def test_a_directory_of_the_name_of_a_reader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "json" / "x.jsonl", ROW)
    write(tmp_path / "other.jsonl", ROW * 2)
    monkeypatch.chdir(tmp_path)
    assert read("json") == [{"a": 1}]


# The sequence


def test_the_order_of_a_shuffle_is_that_of_datasets(tmp_path: Path) -> None:
    table = [{"a": number} for number in range(50)]
    rows = open_rows(write(tmp_path / "x.jsonl", lines(*table)))
    assert list(rows.shuffle(seed=3)) == list(datasets.Dataset.from_list(table).shuffle(seed=3))
    part = rows.shuffle(seed=3).select(range(10, 12))
    assert [part.where(i).split(":")[1] for i in range(2)] == [str(row["a"] + 1) for row in part]
    with pytest.raises(IndexError):
        part[2]


def test_streams_are_shuffled_by_epoch_with_what_files_say(tmp_path: Path) -> None:
    for name, rows in (("a", range(20)), ("b", range(20, 40))):
        write(
            tmp_path / f"{name}.jsonl", lines(*({"a": [row] if row % 2 else row} for row in rows))
        )

    def epoch(number: int) -> list[Any]:
        stream = open_stream(str(tmp_path)).shuffle(seed=1, buffer_size=8)
        stream.set_epoch(number)
        return [row["a"] for row, _ in stream]

    first, second = epoch(0), epoch(1)
    assert first == epoch(0) != second
    expected = sorted(map(str, ([row] if row % 2 else row for row in range(40))))
    assert sorted(map(str, first)) == sorted(map(str, second)) == expected


def test_a_file_that_changes_behind_the_rows(tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    rows = open_rows(write(file, lines({"a": 1}, {"a": 2})))
    write(file, lines({"a": 3}, {"a": 2}))
    assert rows[1] == {"a": 2}
    with pytest.raises(DataFormatError, match=r":1 is not the line .*: the file was changed"):
        rows[0]
    file.unlink()
    with pytest.raises(DataError, match=r"x\.jsonl:2 cannot be read again: No such file"):
        rows[1]


# What cannot be read


DEEP = "[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.jsonl", ROW * 8 + '{"a": 1,}\n' + ROW, ":9 is not JSON: "),
        ("x.jsonl", ROW * 2 + '{"a":', ":3 is not JSON: Expecting value at column 6"),
        ("x.jsonl", ROW * 2 + "\n" + "[1]\n", ":4 is not a JSON object: '[1]'; expected one"),
        ("x.jsonl", ROW.encode() + b'{"a": "\xff"}\n', ":2 is not JSON: not UTF-8 text"),
        ("x.jsonl", ROW.encode("utf-16"), ":1 is not JSON: not UTF-8 text"),
        ("x.jsonl", '{"a":\n' + ROW * 2, ":1 is not JSON: Expecting value"),
        ("x.jsonl", ROW + f'{{"b": {DEEP}}}', ":2 is not JSON: lists and objects are nested"),
        ("x.jsonl", ROW + "[" * 100_000 + "]" * 100_000, ":2 is not JSON: lists and objects are"),
        ("x.jsonl", ROW + f'{{"a": {"9" * 5000}}}', ":2 is not JSON: Exceeds the limit"),
        ("x.jsonl", "", " has no rows"),
        ("x.jsonl", "\n \n", " has no rows"),
        ("x.json", "", " has no rows"),
        ("x.json", "[]", " has no rows"),
        ("x.json", '[{"a": 1},\n {"a": }]', ":2 is not JSON: Expecting value at column 8"),
        ("x.json", '[{"a": 1}\n {"a": 2}]', ":2 is not JSON: Expecting ',' delimiter at column 2"),
        ("x.json", '[{"a": 1},\n]', ":2 is not JSON: Illegal trailing comma at column 1"),
        ("x.json", '[{"a": 1},\n', ":2 is not JSON: Expecting value at column 1"),
        ("x.json", '[{"a": 1}]\n[]', ":2 is not JSON: Extra data at column 1"),
        ("x.json", '[{"a": 1},\n 5]', ":2 is not a JSON object: '5'"),
        ("x.json", f'[{{"a": 1}},\n {{"a": {DEEP}}}]', ":2 is not JSON: lists and objects are"),
        ("x.json", '["a", "b"]', ":1 is not a JSON object: '\"a\"'"),
        ("x.json", ROW * 2 + "{a}", ":3 is not JSON: "),
        ("x.json", '{\n"a": 1\n"b": 2}', ":3 is not JSON: Expecting ',' delimiter at column 1"),
        ("x.jsonl.gz", CUT_OFF, " cannot be read: Compressed file"),
        ("x.jsonl.zst", b"nothing of zstd", " cannot be read: "),
        ("x.csv", "", " has no rows"),
        ("x.csv", "a,b\n", " has no rows"),
        ("x.csv", "a,b\n1,2\n1,2,3\n", ":3 has 3 cells for 2 columns; put"),
        ("x.csv", 'a,b\n1,2\n1,"2\n', ":3 is not CSV: unexpected end of data"),
        ("x.csv", "a,a\n1,2\n", ":1 has the column 'a' twice"),
        ("x.csv", "a\ncaf\u00e9\n".encode("latin-1"), " is not UTF-8 text"),
        ("folder/train.jsonl", ROW + "{\n", ":2 is not JSON: "),
        ("folder/train.jsonl", "", " has no rows"),
    ],
)
def test_what_is_wrong_and_where(
    tmp_path: Path, name: str, text: str | bytes, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path / name, text)
    for path in {file, str(Path(file).parent) if "/" in name else file}:
        for read_all in (open_rows, lambda path: list(open_stream(path))):
            with pytest.raises(DataFormatError) as caught:
                read_all(path)
            assert str(caught.value).startswith(f"{file}{message}")
            assert "HF_HUB_OFFLINE" not in str(caught.value) and "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_one_of_several_files_may_be_empty_but_not_all(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", "")
    write(tmp_path / "b.jsonl", "")
    with pytest.raises(DataFormatError, match=r"a\.jsonl has no rows, nor have the 1 others"):
        open_rows(str(tmp_path))
    write(tmp_path / "b.jsonl", ROW)
    assert read(tmp_path) == [{"a": 1}]


def test_other_files_that_cannot_be_read(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path / "x.parquet", "xx")
    with pytest.raises(ConfigurationError, match=r"x\.parquet: Parquet file size is 2 bytes"):
        open_rows(file)
    with pytest.raises(ConfigurationError, match=r"cannot read \.zip files; expected one"):
        open_rows(write(tmp_path / "x.zip", "xx"))
    assert capfd.readouterr() == ("", "")


def test_no_bars_for_local_files_and_those_of_others_as_they_were(tmp_path: Path) -> None:
    table = datasets.Dataset.from_list([{"a": 1}] * 3)
    table.to_parquet(tmp_path / "x.parquet")
    program = (
        "import sys; from tinker_cookbook.utils.data_files import open_rows\n"
        "print(len(open_rows(sys.argv[1])))\n"
        "import datasets; print(datasets.are_progress_bars_disabled())"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "x.parquet")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout.split() == ["3", "False"]
    assert "train split" not in done.stderr


def test_offline_is_the_reason_for_names_on_the_hub_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)

    def fail(*args: object, **keys: object) -> None:
        raise RuntimeError("no way")

    monkeypatch.setattr(datasets, "load_dataset_builder", fail)
    with pytest.raises(DataError, match=r"no way \(HF_HUB_OFFLINE is set"):
        open_rows("me/some")
    with pytest.raises(DataError) as caught:
        open_rows(str(Path(write(tmp_path / "set" / "x.jsonl", ROW)).parent))
    assert str(caught.value).endswith("cannot be read: no way")


def test_a_string_without_an_end_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataFormatError, match="Unterminated string starting at column"):
        open_rows(write(tmp_path / "y.json", '[{"a": "'))
