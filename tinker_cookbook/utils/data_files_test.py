"""Local data that cannot be read: one line with file and line number, and nothing else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import datasets
import pytest

from tinker_cookbook.exceptions import ConfigurationError, DataError, DataFormatError
from tinker_cookbook.utils import data_files

ROW = '{"a": 1}\n'


def write(file: Path, text: str | bytes) -> str:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(file)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.jsonl", ROW * 8 + '{"a": 1,}\n' + ROW, ":9 is not JSON: "),
        ("x.jsonl", ROW * 2 + '{"a":', ":3 is not JSON: Expecting value at column 6"),
        ("x.jsonl", ROW * 2 + "\n" + "[1]\n", ":4 is not a JSON object: '[1]'"),
        ("x.jsonl", ROW.encode() + b'{"a": "\xff"}\n', ":2 is not JSON: "),
        ("x.jsonl", "", " has no rows"),
        ("x.jsonl", "\n \n", " has no rows"),
        ("x.json", "", " has no rows"),
        ("x.json", "[]", " has no rows"),
        ("x.json", '[{"a": 1},\n {"a": }]', ":2 is not JSON: Expecting value at column 8"),
        ("x.json", ROW * 2 + "{a}", ":3 is not JSON: "),
        ("x.csv", "", " has no rows"),
        ("x.csv", "a,b\n", " has no rows"),
        ("folder/train.jsonl", ROW + "{\n", ":2 is not JSON: "),
        ("folder/train.jsonl", "", " has no rows"),
    ],
)
def test_what_is_wrong_and_where(
    tmp_path: Path, name: str, text: str, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path / name, text)
    for path in {file, str(Path(file).parent) if "/" in name else file}:
        with pytest.raises(DataFormatError) as caught:
            data_files.open_rows(path)
        assert str(caught.value).startswith(f"{file}{message}")
        assert "HF_HUB_OFFLINE" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_other_files_that_cannot_be_read(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path / "x.parquet", "xx")
    with pytest.raises(ConfigurationError, match=r"x\.parquet: Parquet file size is 2 bytes"):
        data_files.open_rows(file)
    assert capfd.readouterr() == ("", "")


def test_no_bars_for_local_files_and_those_of_others_as_they_were(tmp_path: Path) -> None:
    file = write(tmp_path / "x.jsonl", ROW * 3)
    program = (
        "import sys; from tinker_cookbook.utils import data_files; print(len(data_files.open_rows(sys.argv[1])))\n"
        "import datasets; print(datasets.are_progress_bars_disabled())"
    )
    done = subprocess.run([sys.executable, "-c", program, file], capture_output=True, text=True)
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
        data_files.open_rows("me/some")
    with pytest.raises(DataError) as caught:
        data_files.open_rows(str(Path(write(tmp_path / "set" / "x.jsonl", ROW)).parent))
    assert str(caught.value).endswith("cannot be read: no way")
