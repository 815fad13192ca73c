"""A directory gets its name only when it is complete, whatever happens."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from collections import namedtuple
from pathlib import Path

import pytest

from tinker_cookbook.exceptions import ConfigurationError, StorageError
from tinker_cookbook.weights.output_directory import check_space, new_directory


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_it_appears_when_the_block_ends(tmp_path: Path) -> None:
    output = tmp_path / "new" / "out"
    with new_directory(output, "output") as partial:
        (partial / "file").write_text("x")
        assert not output.exists()
    assert names(output.parent) == ["out"] and names(output) == ["file"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_nothing_is_left_after(error: type[BaseException], tmp_path: Path) -> None:
    with pytest.raises(error), new_directory(tmp_path / "out", "output") as partial:
        (partial / "file").write_text("x")
        raise error
    assert names(tmp_path) == []


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    pid = os.fork()
    if pid == 0:
        with new_directory(tmp_path / "out", "output") as partial:
            (partial / "old").write_text("x")
            os._exit(9)
    os.waitpid(pid, 0)
    assert names(tmp_path) == [".out.lock", ".out.partial"]
    lines: list[str] = []
    with new_directory(tmp_path / "out", "output", lines.append) as partial:
        (partial / "file").write_text("x")
    assert names(tmp_path) == ["out"] and names(tmp_path / "out") == ["file"]
    assert lines == [f"removed {tmp_path / '.out.partial'}, which an interrupted export had left"]


def test_two_at_once(tmp_path: Path) -> None:
    with (
        new_directory(tmp_path / "out", "output"),
        pytest.raises(ConfigurationError, match="another process is writing it"),
        new_directory(tmp_path / "out", "output"),
    ):
        pass
    assert names(tmp_path) == ["out"]


def test_existing_output(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("kept")
    (tmp_path / "file").write_text("kept")
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("full", "file", "link"):
        with (
            pytest.raises(
                ConfigurationError, match=f"{name} exists: set output to a new directory"
            ),
            new_directory(tmp_path / name, "output"),
        ):
            pass
    (tmp_path / "empty").mkdir()
    with new_directory(tmp_path / "empty", "output") as partial:
        (partial / "x").write_text("new")
    assert (tmp_path / "empty" / "x").read_text() == "new"


def test_it_appeared_meanwhile(tmp_path: Path) -> None:
    with (
        pytest.raises(ConfigurationError, match="exists"),
        new_directory(tmp_path / "out", "output"),
    ):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "theirs").write_text("kept")
    assert names(tmp_path) == ["out"] and names(tmp_path / "out") == ["theirs"]


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        pytest.raises(
            StorageError, match=r"output=.*out cannot be written: No space left"
        ) as error,
        new_directory(tmp_path / "out", "output"),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert "\n" not in str(error.value) and names(tmp_path) == []
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, 5_000_000_000))
    check_space(tmp_path / "out", 4_900_000_000, "output")
    with pytest.raises(
        StorageError, match=r"needs 6.00 GB, but .* has 5.00 GB free: free space or"
    ):
        check_space(tmp_path / "a" / "b", 6_000_000_000, "output")


def test_a_parent_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with (
        pytest.raises(StorageError, match="cannot be written"),
        new_directory(tmp_path / "file" / "out", "output"),
    ):
        pass


def test_threads_wait_for_nobody(tmp_path: Path) -> None:
    """Different outputs in one directory do not exclude each other."""
    started, errors = threading.Barrier(2, timeout=10), []

    def write(name: str) -> None:
        try:
            with new_directory(tmp_path / name, "output"):
                started.wait()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(name,)) for name in ("a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == [] and names(tmp_path) == ["a", "b"]
