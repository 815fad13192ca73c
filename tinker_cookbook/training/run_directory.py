"""The directory of one run: who may write into it, whose run it holds, and when it is emptied."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import socket
import sys
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal, get_args

from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.utils.checkpoint_links import remove_links
from tinker_cookbook.utils.files import FileLock

logger = logging.getLogger(__name__)

LogDirBehavior = Literal["resume", "delete", "raise", "ask"]

LOCK_FILE = ".lock"
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
# a directory with one of these holds a run; any other directory is never deleted (config.json
# would not do: a directory with a model has one, too)
RUN_FILES = ("code.diff", "metrics.jsonl", "checkpoints.jsonl")
# all that runs write, beside the links to their checkpoints
_WRITTEN = (
    *("metrics.jsonl*", "checkpoints.jsonl*", "config.json", "code*.diff", "logs.log*"),
    *("iteration_*", "timing_*", "trace_*", "wandb"),
)


class RunLock:
    """Keeps a second process out of a run directory.

    The lock is the operating system's (flock): it ends with the process that holds it, however
    that ends, so a file left behind by a killed process blocks nobody, and its forked workers do
    not hold it either.
    """

    def __init__(self, directory: Path) -> None:
        """Makes the directory and takes the lock. Raises ConfigurationError if another has it."""
        file = directory / LOCK_FILE
        self._lock: FileLock | None = None
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock.take(file, wait=False)
        except OSError as e:
            if e.errno in _NO_LOCKS:
                logger.warning("%s: this file system has no locks (%s)", directory, e)
                return
            reason = os.strerror(e.errno) if e.errno else str(e)
            raise ConfigurationError(
                f"log_path={directory} cannot be written to ({reason}); set another log_path"
            ) from None
        if self._lock is None:
            raise ConfigurationError(
                f"{directory} is in use by {_holder(file)}; wait for it or set another log_path"
            )
        self._lock.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))

    def release(self) -> None:
        """May be called twice."""
        if self._lock is not None:
            self._lock.close()


def _holder(file: Path) -> str:
    try:
        holder = json.loads(file.read_bytes())
        return f"process {holder['pid']} on {holder['host']}"
    except (OSError, ValueError, KeyError, TypeError):  # it is just starting
        return "another process"


def holds_run(directory: Path) -> bool:
    """True if some run has written into this directory."""
    return any((directory / name).exists() for name in RUN_FILES)


def decide(directory: Path, behavior: str | None, contents: str) -> Literal["resume", "delete"]:
    """What is to happen to a directory that holds a run.

    behavior: resume and delete are as they say, raise raises ConfigurationError, ask asks where
    there is a terminal; None and an ask that nobody could answer mean resume. contents: what the
    directory holds, for the question and the error.
    """
    if behavior not in (None, *get_args(LogDirBehavior)):
        choices = ", ".join(get_args(LogDirBehavior))
        raise ConfigurationError(
            f"behavior_if_log_dir_exists={behavior!r} is unknown; set one of {choices}"
        )
    if behavior == "raise":
        raise ConfigurationError(
            f"{directory} holds {contents}; set another log_path, "
            "or behavior_if_log_dir_exists=resume or delete"
        )
    if behavior == "ask" and sys.stdin.isatty() and sys.stdout.isatty():
        answer = ""
        while answer not in ("resume", "delete", "quit"):
            question = f"{directory} holds {contents}. resume, delete or quit? "
            word = input(question).strip().lower()
            answer = next(
                (a for a in ("resume", "delete", "quit") if word and a.startswith(word)), ""
            )
        if answer == "quit":
            raise ConfigurationError(f"{directory} was left as it is; set another log_path")
        behavior = answer
    return "delete" if behavior == "delete" else "resume"


def empty(directory: Path) -> None:
    """Deletes what a run writes into its directory, except the lock; anything else is the user's
    and stays."""
    if not holds_run(directory):
        raise ValueError(f"{directory} holds no run")
    remove_links(directory)
    for entry in directory.iterdir():
        if not any(fnmatchcase(entry.name, pattern) for pattern in _WRITTEN):
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def check_log_dir(
    log_dir: str | os.PathLike[str], behavior_if_exists: LogDirBehavior = "resume"
) -> None:
    """Decides what happens to a run directory that is there already; nothing if it is not.

    resume: keep it; delete: empty it (only if it holds a run and no process is using it); raise:
    ConfigurationError; ask: ask on a terminal, keep it where there is none.
    """
    directory = Path(log_dir).expanduser()
    if not holds_run(directory):
        return
    if decide(directory, behavior_if_exists, "a run") == "delete":
        lock = RunLock(directory)
        try:
            empty(directory)
        finally:
            lock.release()
