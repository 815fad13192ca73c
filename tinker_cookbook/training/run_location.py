"""Where a run starts: in a new directory, or in an existing one at the step to resume from."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tinker_cookbook.checkpoint_utils import (
    CheckpointRecord,
    get_last_checkpoint,
    get_last_resumable_checkpoint,
)
from tinker_cookbook.exceptions import ConfigurationError, RunFinished
from tinker_cookbook.training.run_directory import (
    RunLock,
    choose_resume_or_delete,
    clear_run_directory,
    holds_run,
)
from tinker_cookbook.training.run_identity import LENGTH_KEYS, RunIdentity
from tinker_cookbook.utils import ml_log
from tinker_cookbook.utils.misc_utils import counted

if TYPE_CHECKING:
    from tinker_cookbook.service.api import RestClient


class RunLocation(NamedTuple):
    """The locked directory of a run, the checkpoint to resume from (None: start at step 0), and
    notices for the user."""

    path: Path
    resume: CheckpointRecord | None
    notices: list[str]


@dataclass(frozen=True)
class RunLocator:
    """Finds the directory of a run; `Journal` documents what is resumed, continued or rejected.

    count_done_rows: for a run without checkpoints, the number of rows in a directory that count as
    done.
    """

    identity: RunIdentity
    total_steps: int | None
    unit: str
    count_done_rows: Callable[[Path], int] | None
    rest_client: RestClient | None

    def acquire(self, stack: ExitStack) -> RunLocation:
        """Find and lock the directory of this run; the lock is released when `stack` closes."""
        behavior = self.identity.get("behavior_if_log_dir_exists", None)
        notices: list[str] = []
        for path in _numbered(self.identity.directory()):
            # Lock first and look then: what another process does to an unlocked directory between
            # the look and the lock would go unnoticed.
            lock = RunLock(path)
            release = stack.callback(lock.release)
            if not holds_run(path):
                _check_no_foreign_files(path)
                return RunLocation(path, None, [*notices, f"run directory: {path}"])
            last = self._last_progress(path)
            finished = bool(last and last.final and not self._is_extended(last))
            description = _describe(last, finished, self.unit)
            if choose_resume_or_delete(path, behavior, description) == "delete":
                clear_run_directory(path)
                return RunLocation(path, None, [f"deleted {description} from {path}"])
            self.identity.check_same_config(path)
            if not finished:
                return self._resume_in(path, last, description)
            if behavior == "skip":
                raise RunFinished(f"{path} holds {description}: nothing to do", path)
            release()
            notices = [f"{path} holds {description}; this run uses a new directory"]
        raise AssertionError("unreachable")

    def _resume_in(
        self, path: Path, last: CheckpointRecord | None, description: str
    ) -> RunLocation:
        self._check_within_length(path, last)
        resume, skipped = last, list[str]()
        if self.count_done_rows is None:
            resume, skipped = get_last_resumable_checkpoint(path, self.rest_client)
        notices = [*skipped, self._resume_notice(path, resume), *self._schedule_notices(path)]
        code_notices = self.identity.check_code(path, description, resume)
        return RunLocation(path, resume, notices + code_notices)

    def _last_progress(self, path: Path) -> CheckpointRecord | None:
        """How far the run in a directory has got: its last checkpoint, or its rows as a record."""
        if self.count_done_rows is None:
            return get_last_checkpoint(path)
        rows, total = self.count_done_rows(path), self.total_steps
        finished = total is not None and rows > total
        return CheckpointRecord("rows", batch=total if finished else rows, final=finished)

    def _is_extended(self, last: CheckpointRecord) -> bool:
        """Whether the user has asked for more steps than the finished run has done.

        Only a changed max_steps or num_epochs counts: data that has grown since, with the same
        keys, does not continue a finished run.
        """
        finished_length = {key: last.extra[key] for key in LENGTH_KEYS if key in last.extra}
        more = self.total_steps is not None and (last.batch or 0) < self.total_steps
        return more and finished_length != self.identity.run_length()

    def _schedule_notices(self, path: Path) -> list[str]:
        """Warn that a resumed run's learning-rate schedule changes with its length."""
        changed = self.identity.run_length_changes(path)
        if not changed or self.identity.config_json.get("lr_schedule") == "constant":
            return []
        return [
            f"{', '.join(changed)}: from here on the learning-rate schedule spans"
            f" {counted(self.total_steps or 0, 'step')}; earlier steps followed the old schedule"
            " (set another log_path to start over)"
        ]

    def _check_within_length(self, path: Path, last: CheckpointRecord | None) -> None:
        done = (last.batch or 0) if last else 0
        if self.total_steps is not None and done > self.total_steps:
            raise ConfigurationError(
                f"{path} holds a run of {counted(done, 'step')}, more than the requested"
                f" {self.total_steps}; raise max_steps or set another log_path"
            )

    def _resume_notice(self, path: Path, last: CheckpointRecord | None) -> str:
        if last is None:
            return f"{path} holds a run without a checkpoint: restarting at step 0"
        of_total = "" if self.total_steps is None else f" of {self.total_steps}"
        checkpoint = "" if self.count_done_rows else f" from checkpoint {last.name}"
        return f"resuming {path} at {self.unit} {last.batch}{of_total}{checkpoint}"


def _check_no_foreign_files(path: Path) -> None:
    """A new run may share its directory with other files, but must not overwrite any of them."""
    file = path / ml_log.CONFIG_FILE
    if file.exists() and b'"recipe"' not in file.read_bytes():
        raise ConfigurationError(
            f"{file} was not written by a run and would be overwritten; set another log_path"
        )


def _describe(last: CheckpointRecord | None, finished: bool, unit: str) -> str:
    if last is None:
        return "an unfinished run without a checkpoint"
    state = "a finished" if finished else "an unfinished"
    return f"{state} run of {counted(last.batch or 0, unit)}"


def _numbered(base: Path) -> Iterator[Path]:
    yield base
    for number in itertools.count(2):
        yield base.with_name(f"{base.name}-{number}")
