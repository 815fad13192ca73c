import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tinker_cookbook.exceptions import StorageError
from tinker_cookbook.utils.files import FileLock, replace_file, sync_directory


def test_a_lock_is_held_until_it_is_closed(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    first = FileLock.take(file, wait=False)
    assert first is not None and not first.closed
    first.write("a longer text")
    first.write("mine")
    assert file.read_text() == "mine"
    assert FileLock.take(file, wait=False) is None
    assert FileLock.take(file, shared=True, wait=False) is None
    first.close()
    first.close()
    assert first.closed
    with FileLock.take(file, shared=True) as a, FileLock.take(file, shared=True) as b:  # type: ignore[union-attr]
        assert a is not b and FileLock.take(file, wait=False) is None
    assert file.read_text() == "mine"


def test_a_shared_lock_makes_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        FileLock.take(tmp_path / "none", shared=True)


def test_a_lock_on_a_file_that_was_removed_is_taken_again(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    first = FileLock.take(file)
    assert first is not None
    taken: list[FileLock | None] = []
    waiter = threading.Thread(target=lambda: taken.append(FileLock.take(file)))
    waiter.start()
    waiter.join(0.2)  # it has the file open, and waits
    file.unlink()
    first.close()
    waiter.join(10)
    assert taken[0] is not None and file.exists()
    assert FileLock.take(file, wait=False) is None


def test_a_forgotten_lock_is_free(tmp_path: Path) -> None:
    FileLock.take(tmp_path / "lock")
    assert FileLock.take(tmp_path / "lock", wait=False) is not None


def test_a_file_is_replaced_at_once_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "x.json"
    replace_file(file, "old")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
        words = "x.json cannot be written: No space left on device; free space and run the same"
        with pytest.raises(StorageError, match=words):
            replace_file(file, "new")
    assert file.read_text() == "old"
    replace_file(file, b"new")
    assert file.read_bytes() == b"new" and os.listdir(tmp_path) == ["x.json"]


def test_only_a_missing_ability_to_sync_a_directory_is_forgiven(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(code: int) -> Callable[[int], None]:
        def fsync(_: int) -> None:
            raise OSError(code, os.strerror(code))

        return fsync

    monkeypatch.setattr(os, "fsync", fail(errno.EINVAL))
    sync_directory(tmp_path)
    monkeypatch.setattr(os, "fsync", fail(errno.EIO))
    with pytest.raises(OSError, match="Input/output error"):
        sync_directory(tmp_path)
