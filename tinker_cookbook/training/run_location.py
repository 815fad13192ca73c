"""Where a run goes on: in a directory of its own, or in that of the same run, behind what is
done."""

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
from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.training.run_directory import RunLock, decide, empty, holds_run
from tinker_cookbook.training.run_identity import LENGTH_KEYS, RunIdentity
from tinker_cookbook.utils import ml_log
from tinker_cookbook.utils.misc_utils import counted

if TYPE_CHECKING:
    from tinker_cookbook.service.api import RestClient


class RunLocation(NamedTuple):
    """path: the directory, locked; resume: what to go on from, None at step 0; remarks: what a
    person should know of it."""

    path: Path
    resume: CheckpointRecord | None
    remarks: list[str]


@dataclass(frozen=True)
class RunLocator:
    """See `Journal` for what is resumed, continued or refused.

    rows_kept: for a run without checkpoints, how many rows of a directory it goes on behind.
    """

    identity: RunIdentity
    total_steps: int | None
    unit: str
    rows_kept: Callable[[Path], int] | None
    rest_client: RestClient | None

    def take(self, stack: ExitStack) -> RunLocation:
        """The locked directory of this run, and where in the run to begin."""
        behavior = self.identity.get("behavior_if_log_dir_exists", None)
        remarks: list[str] = []
        for path in _numbered(self.identity.directory()):
            lock = RunLock(path)
            release = stack.callback(lock.release)
            if not holds_run(path):
                _check_no_foreign_files(path)
                return RunLocation(path, None, [*remarks, f"run directory: {path}"])
            last = self._last(path)
            finished = bool(last and last.final and not self._goes_on_after(last))
            contents = _describe(last, finished, self.unit)
            if decide(path, behavior, contents) == "delete":
                empty(path)
                return RunLocation(path, None, [f"deleted {contents} from {path}"])
            self.identity.check_same_config(path)
            if not finished:
                return self._resumed(path, last, contents)
            release()
            remarks = [f"{path} holds {contents}; this run gets a directory of its own"]
        raise AssertionError("unreachable")

    def _resumed(self, path: Path, last: CheckpointRecord | None, contents: str) -> RunLocation:
        self._check_within_length(path, last)
        resume, skipped = last, list[str]()
        if self.rows_kept is None:
            resume, skipped = get_last_resumable_checkpoint(path, self.rest_client)
        remarks = [*skipped, self._resume_remark(path, resume), *self._other_length(path)]
        return RunLocation(path, resume, remarks + self.identity.other_code(path, contents, resume))

    def _last(self, path: Path) -> CheckpointRecord | None:
        """Where the run in a directory has got to."""
        if self.rows_kept is None:
            return get_last_checkpoint(path)
        rows, total = self.rows_kept(path), self.total_steps
        finished = total is not None and rows > total
        return CheckpointRecord("rows", batch=total if finished else rows, final=finished)

    def _goes_on_after(self, last: CheckpointRecord) -> bool:
        """A longer run was asked for. The data alone never makes a finished run go on."""
        done = {key: last.extra[key] for key in LENGTH_KEYS if key in last.extra}
        more = self.total_steps is not None and (last.batch or 0) < self.total_steps
        return more and done != self.identity.length()

    def _other_length(self, path: Path) -> list[str]:
        """What to know of a run that goes on with another end in sight than it began with."""
        changed = self.identity.changes_of_length(path)
        if not changed or self.identity.content.get("lr_schedule") == "constant":
            return []
        return [
            f"{', '.join(changed)}: a learning-rate schedule spans"
            f" {counted(self.total_steps or 0, 'step')} from here on; the steps before followed"
            " the old one (another log_path starts afresh)"
        ]

    def _check_within_length(self, path: Path, last: CheckpointRecord | None) -> None:
        done = (last.batch or 0) if last else 0
        if self.total_steps is not None and done > self.total_steps:
            raise ConfigurationError(
                f"{path} holds a run that has done {counted(done, 'step')}, more than the "
                f"{self.total_steps} asked for; raise max_steps or set another log_path"
            )

    def _resume_remark(self, path: Path, last: CheckpointRecord | None) -> str:
        if last is None:
            return f"{path} holds a run without a checkpoint: starting it again at step 0"
        of_total = "" if self.total_steps is None else f" of {self.total_steps}"
        kept = "" if self.rows_kept else f" from checkpoint {last.name}"
        return f"resuming {path} at {self.unit} {last.batch}{of_total}{kept}"


def _check_no_foreign_files(path: Path) -> None:
    """A directory without a run may hold anything, but nothing that a run would overwrite."""
    file = path / ml_log.CONFIG_FILE
    if file.exists() and b'"recipe"' not in file.read_bytes():
        raise ConfigurationError(
            f"{file} belongs to something else and would be overwritten; set another log_path"
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
