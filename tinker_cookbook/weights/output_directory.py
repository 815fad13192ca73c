"""Directories that appear under their name only when they are complete."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tinker_cookbook.exceptions import ConfigurationError, StorageError
from tinker_cookbook.utils.files import LOCKS_UNSUPPORTED, FileLock, sync_directory

_DISK_ERRORS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG),
    *(errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ENOTDIR, errno.EEXIST),
)
_SPARE = 16 * 2**20  # bytes for the small files beside the weights


@contextmanager
def new_directory(
    output: Path, key: str, log_line: Callable[[str], None] = lambda text: None
) -> Iterator[Path]:
    """A temporary directory beside `output`, which gets that name when the block ends.

    After an exception or Ctrl-C it is removed; what a killed process left is removed by the next
    one with the same output, and said by `log_line`. key: the config key of output, for errors.
    ConfigurationError if output exists or another process writes it; StorageError if the disk is
    full or read-only.
    """
    output = output.expanduser().absolute()
    check_free(output, key)
    partial = output.with_name(f".{output.name}.partial")
    lock_file = output.with_name(f".{output.name}.lock")
    with _disk_errors(output, key):
        output.parent.mkdir(parents=True, exist_ok=True)
        with _lock(lock_file, output, key):
            try:
                if partial.exists():
                    shutil.rmtree(partial)
                    log_line(f"removed {partial}, which an interrupted export had left")
                try:
                    partial.mkdir()
                    yield partial
                    _sync(partial)
                    check_free(output, key)  # it may have appeared meanwhile
                    os.rename(partial, output)  # also over an empty directory
                    sync_directory(output.parent)
                except BaseException:
                    shutil.rmtree(partial, ignore_errors=True)
                    raise
            finally:
                with suppress(OSError):
                    lock_file.unlink()


def check_free(output: Path, key: str) -> None:
    """ConfigurationError unless there is nothing, or an empty directory, under that name."""
    output = output.expanduser()
    if output.is_symlink() or output.is_file() or (output.is_dir() and any(output.iterdir())):
        raise ConfigurationError(
            f"{key}={output} exists: set {key} to a new directory, or remove that one"
        )


def check_space(output: Path, needed: int, key: str) -> None:
    """StorageError unless `needed` bytes fit on the disk of `output`."""
    output = output.expanduser().absolute()
    existing = next(folder for folder in output.parents if folder.is_dir())
    free = shutil.disk_usage(existing).free
    if needed + _SPARE > free:
        raise StorageError(
            f"{key}={output} needs {file_size(needed)}, but {existing} has {file_size(free)} free:"
            f" free space or set {key} to a directory on another disk"
        )


def file_size(count: int) -> str:
    """A number of bytes as people read it: 2.06 MB, 16.38 GB."""
    for limit, unit in ((1e9, "GB"), (1e6, "MB")):
        if count >= limit:
            return f"{count / limit:.2f} {unit}"
    return f"{count / 1e3:.2f} kB"


@contextmanager
def _lock(file: Path, output: Path, key: str) -> Iterator[None]:
    try:
        lock = FileLock.take(file, wait=False)
    except OSError as error:
        if error.errno not in LOCKS_UNSUPPORTED:
            raise
        yield
        return
    if lock is None:
        raise ConfigurationError(
            f"{key}={output}: another process is writing it; wait for it or set another {key}"
        )
    with lock:
        yield


def _sync(directory: Path) -> None:
    for folder, _, names in os.walk(directory):
        for name in names:
            with open(Path(folder, name), "rb") as file:
                os.fsync(file.fileno())
        sync_directory(folder)


@contextmanager
def _disk_errors(output: Path, key: str) -> Iterator[None]:
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        raise StorageError(
            f"{key}={output} cannot be written: {error.strerror}; nothing was left there; free"
            f" space or set {key} to a directory that is writable"
        ) from error
