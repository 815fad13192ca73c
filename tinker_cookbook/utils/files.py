"""Locks between processes, and atomic writes: a reader or a crash never sees half a file."""

from __future__ import annotations

import difflib
import errno
import fcntl
import logging
import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, ClassVar, Self

from tinker_cookbook.exceptions import ConfigurationError, StorageError

logger = logging.getLogger(__name__)

_NOT_SUPPORTED = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_REFUSED = (errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)


@contextmanager
def disk_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn an error of the disk into a StorageError: one line with the file and what to do."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        if error.errno not in (*_FULL, *_REFUSED):
            raise
        remedy = "free space" if error.errno in _FULL else "make it writable"
        raise StorageError(
            f"{path} cannot be written: {os.strerror(error.errno)}; {remedy} and run the same"
            " command; it resumes"
        ) from error


# the errors of file systems without locks
LOCKS_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)


class FileLock:
    """A flock(2) held until it is closed or garbage-collected, or the process dies.

    A forked child does not hold the locks of its parent.
    """

    _open: ClassVar[weakref.WeakSet[FileLock]] = weakref.WeakSet()

    def __init__(self, descriptor: int):
        self._descriptor = descriptor
        self._open.add(self)

    @classmethod
    def take(cls, path: Path, *, shared: bool = False, wait: bool = True) -> FileLock | None:
        """Take the lock; None if another process holds it and `wait` is False.

        An exclusive lock creates the file, a shared one does not. Raises OSError if the file cannot
        be opened or its file system has no locks.
        """
        flags = os.O_RDONLY if shared else os.O_RDWR | os.O_CREAT
        mode = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
        while True:
            lock = cls(os.open(path, flags, 0o666))
            try:
                fcntl.flock(lock._descriptor, mode)
            except OSError as error:
                lock.close()
                # file systems that emulate flock with record locks report "held" as EACCES
                if not wait and error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                    return None
                raise
            # If the file was removed between open and flock, locking it excludes nobody.
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(lock._descriptor), os.stat(path)):
                    return lock
            lock.close()

    @property
    def closed(self) -> bool:
        return self._descriptor < 0

    def write(self, text: str) -> None:
        """Replace the content of the locked file by `text`."""
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, text.encode(), 0)

    def close(self) -> None:
        """Release the lock; harmless if already released."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    __del__ = close

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @classmethod
    def _after_fork(cls) -> None:
        """Close inherited locks: a child would keep them after its parent was killed."""
        for lock in list(cls._open):
            lock.close()


os.register_at_fork(after_in_child=FileLock._after_fork)


def replace_file(path: str | os.PathLike[str], data: bytes | str) -> None:
    """Write the whole file atomically: readers, and a crash, see the old content or the new."""
    with replacing(path) as file:
        file.write(data.encode() if isinstance(data, str) else data)


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Open a file that replaces `path` when the block ends without an exception.

    Raises StorageError if the disk is full or read-only. One writer at a time: the temporary file
    beside `path` always has the same name.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with disk_errors(path):
            with open(temporary, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()  # on a full disk it would only take up space
        raise
    sync_directory(path.parent)


def sync_directory(path: str | os.PathLike[str]) -> None:
    """fsync a directory, so that a rename or a new file in it survives a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as e:
        if e.errno not in _NOT_SUPPORTED:
            raise
        logger.debug("no fsync of directory %s: %s", path, e)  # some network file systems
    finally:
        os.close(descriptor)


def existing_file(path: str | Path, key: str) -> Path:
    """The path of an existing file; ConfigurationError with similar names if there is none."""
    path = Path(path).expanduser()
    if not path.is_file():
        raise ConfigurationError(_no_such_file(path, key))
    return path


def _no_such_file(path: Path, key: str) -> str:
    if path.is_dir():
        return f"{key}={path} is a directory; expected a JSONL file"
    folder = path.parent
    if not folder.is_dir():
        return f"{key}={path}: no such file, and no directory {folder}"
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_file())
    near = (
        difflib.get_close_matches(path.name, names, n=3)
        or [name for name in names if name.endswith(".jsonl")][:3]
    )
    hint = f"; there is {', '.join(near)}" if near else ""
    return f"{key}={path}: no such file{hint}"
