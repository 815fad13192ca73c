"""The directory of one run: locking it, detecting an earlier run in it, and clearing it."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal, get_args

from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.utils.checkpoint_links import remove_links
from tinker_cookbook.utils.files import LOCKS_UNSUPPORTED, FileLock

logger = logging.getLogger(__name__)

LogDirBehavior = Literal["resume", "skip", "delete", "raise", "ask"]

LOCK_FILE = ".lock"
LOCK_POLL_SECONDS = 0.5
# A directory is treated as a run, which may be deleted, only if it has one of these files.
# config.json is not among them because model directories have one, too.
RUN_MARKER_FILES = ("code.diff", "metrics.jsonl", "checkpoints.jsonl")
# everything a run writes, except the links to its checkpoints (`remove_links`)
_RUN_ARTIFACT_PATTERNS = (
    *("metrics.jsonl*", "checkpoints.jsonl*", "config.json", "code*.diff", "logs.log*"),
    *("reference_logprobs.jsonl*", "teacher_checkpoints.jsonl*"),
    *("iteration_*", "timing_*", "trace_*", "inspect", "wandb", ".wandb-id"),
)


_current: ContextVar[Path | None] = ContextVar(
    "the directory of the run of this task", default=None
)


def current_run_directory() -> Path | None:
    """The directory of the run that this task belongs to, for evaluators that write files; None
    outside of a run. `Journal` enters it."""
    return _current.get()


@contextmanager
def in_run_directory(directory: Path) -> Iterator[None]:
    token = _current.set(directory)
    try:
        yield
    finally:
        _current.reset(token)


class RunLock:
    """Keeps a second process out of a run directory.

    The lock is flock(2), which the kernel releases when the process exits, even if it is killed.
    So the lock file may stay behind without blocking the next run, and no stale-pid heuristics are
    needed. Forked workers do not inherit the lock (`FileLock`).
    """

    def __init__(self, directory: Path) -> None:
        """Create and lock the directory. Raises ConfigurationError if another process holds it."""
        lock_file = directory / LOCK_FILE
        self._lock: FileLock | None = None
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock.take(lock_file, wait=False)
        except OSError as e:
            if e.errno in LOCKS_UNSUPPORTED:
                logger.warning(
                    "%s: this file system does not support locks (%s); do not start a second run"
                    " in this directory",
                    *(directory, e),
                )
                return
            reason = os.strerror(e.errno) if e.errno else str(e)
            raise ConfigurationError(
                f"log_path={directory} is not writable ({reason}); set another log_path"
            ) from None
        if self._lock is None:
            raise ConfigurationError(
                f"{directory} is in use by {_describe_holder(lock_file)}; wait until it ends or set"
                " another log_path"
            )
        self._lock.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))

    def release(self) -> None:
        """Release the lock; a second call does nothing."""
        if self._lock is not None:
            self._lock.close()


async def wait_for_lock(path: Path) -> FileLock | None:
    """Keep other processes from writing to a file or directory; wait for one that does.

    The lock file stands beside it. None, with a warning: the file system has no locks. Raises
    ConfigurationError if its directory cannot be written.
    """
    lock_file = path.with_name(f".{path.name}.lock")
    waiting = False
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        while (lock := FileLock.take(lock_file, wait=False)) is None:
            if not waiting:
                print(f"{path}: waiting for another process that writes to it", flush=True)
            waiting = True
            await asyncio.sleep(LOCK_POLL_SECONDS)
    except OSError as error:
        if error.errno in LOCKS_UNSUPPORTED:
            logger.warning(
                "%s: this file system does not support locks (%s); do not write to it in a second"
                " process",
                *(path, error),
            )
            return None
        raise ConfigurationError(
            f"{path} cannot be written ({error.strerror}); choose another path"
        ) from None
    return lock


def _describe_holder(lock_file: Path) -> str:
    try:
        holder = json.loads(lock_file.read_bytes())
        return f"process {holder['pid']} on {holder['host']}"
    except (OSError, ValueError, KeyError, TypeError):  # it has not written its pid yet
        return "another process"


def holds_run(directory: Path) -> bool:
    """Whether a run has written into this directory."""
    return any((directory / name).exists() for name in RUN_MARKER_FILES)


def choose_resume_or_delete(
    directory: Path, behavior: str | None, description: str
) -> Literal["resume", "delete"]:
    """Apply `behavior_if_log_dir_exists` to a directory that holds a run.

    behavior: None, "resume" or "skip": resume; "delete": delete; "raise": raise ConfigurationError;
    "ask" prompts on a terminal and resumes without one, so that a batch job never blocks on input.
    description: the run in the directory, for the prompt and the error.
    """
    if behavior not in (None, *get_args(LogDirBehavior)):
        choices = ", ".join(get_args(LogDirBehavior))
        raise ConfigurationError(
            f"behavior_if_log_dir_exists={behavior!r} is unknown; set one of {choices}"
        )
    if behavior == "raise":
        raise ConfigurationError(
            f"{directory} holds {description}; set another log_path, "
            "or behavior_if_log_dir_exists=resume or delete"
        )
    if behavior == "ask" and sys.stdin.isatty() and sys.stdout.isatty():
        answer = ""
        while answer not in ("resume", "delete", "quit"):
            question = f"{directory} holds {description}. resume, delete or quit? "
            word = input(question).strip().lower()
            answer = next(
                (a for a in ("resume", "delete", "quit") if word and a.startswith(word)), ""
            )
        if answer == "quit":
            raise ConfigurationError(f"{directory} was not changed; set another log_path")
        behavior = answer
    return "delete" if behavior == "delete" else "resume"


def clear_run_directory(directory: Path) -> None:
    """Delete what a run has written into its directory, except the lock file, which is held.

    Any other file belongs to the user and is kept. Raises ValueError if the directory holds no run.
    """
    if not holds_run(directory):
        raise ValueError(f"{directory} holds no run")
    remove_links(directory)
    for entry in directory.iterdir():
        if not any(fnmatchcase(entry.name, pattern) for pattern in _RUN_ARTIFACT_PATTERNS):
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def check_log_dir(
    log_dir: str | os.PathLike[str], behavior_if_exists: LogDirBehavior = "resume"
) -> None:
    """Handle an existing run directory; does nothing if the directory holds no run.

    resume, skip: keep it; delete: clear it, unless a process is using it; raise:
    ConfigurationError; ask: prompt on a terminal, keep it without one.
    """
    directory = Path(log_dir).expanduser()
    if not holds_run(directory):
        return
    if choose_resume_or_delete(directory, behavior_if_exists, "a run") == "delete":
        lock = RunLock(directory)
        try:
            clear_run_directory(directory)
        finally:
            lock.release()
