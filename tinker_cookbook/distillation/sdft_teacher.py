"""The teacher of self-distillation: the model's own weights, at step 0 or every few steps."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from tinker_cookbook.checkpoint_utils import means_checkpoint_is_lost
from tinker_cookbook.exceptions import CheckpointError
from tinker_cookbook.utils import jsonl

if TYPE_CHECKING:
    from tinker_cookbook.service.api import RestClient, SamplingClient, TrainingClient
    from tinker_cookbook.training.journal import Journal

logger = logging.getLogger(__name__)

FILE_NAME = "teacher_checkpoints.jsonl"


@dataclass(frozen=True)
class TeacherCheckpoint:
    """A line of the file. step: number of optimizer steps in the weights."""

    step: int
    path: str


class SelfTeacher:
    """The weights at the last multiple of `sync_every` steps (None: at step 0).

    They are saved in the service's store and listed in the run directory, because a resumed run
    starts with later weights. With sync_every=1 they are the student's own and nothing is saved.

    ttl_seconds: how long the store keeps a checkpoint after the next one is saved (None: forever).
    Raises CheckpointError if the run resumes and the store no longer has its teacher.
    """

    def __init__(
        self, journal: Journal, rest: RestClient, sync_every: int | None, ttl_seconds: int | None
    ) -> None:
        self._rest, self._sync_every, self._ttl_seconds = rest, sync_every, ttl_seconds
        self._file = journal.log_path / FILE_NAME
        self._client: SamplingClient | None = None
        # A new run in a used directory has another teacher; a resumed one repeats the later steps,
        # and saves the teacher anew if it is due at the first of them.
        start, is_due = journal.start_step, self._is_due(journal.start_step)
        is_kept = journal.resume is not None
        jsonl.keep_lines(self._file, lambda line: is_kept and line["step"] < start + (not is_due))
        saved = [TeacherCheckpoint(**line.value) for line in jsonl.read_lines(self._file)]
        self._current = saved[-1] if saved else None
        if sync_every != 1 and not is_due:
            self._keep_current(start)

    async def at(
        self, step: int, client: TrainingClient, student: SamplingClient
    ) -> SamplingClient:
        """The teacher of a step. student: a snapshot of the client's weights before the step."""
        if self._sync_every == 1:
            return student
        if self._is_due(step):
            await self._save(step, client)
        if self._client is None:
            assert self._current is not None  # saved at step 0, or found at the start
            self._client = await client.create_sampling_client(self._current.path)
        return self._client

    def _is_due(self, step: int) -> bool:
        return step == 0 or (self._sync_every is not None and step % self._sync_every == 0)

    async def _save(self, step: int, client: TrainingClient) -> None:
        saved = await client.save_weights_for_sampler(f"teacher-{step:06d}")
        superseded, self._current = self._current, TeacherCheckpoint(step, saved.path)
        jsonl.append_line(self._file, asdict(self._current))
        self._client = None
        if superseded is not None and self._ttl_seconds is not None:
            await self._let_expire(superseded.path, self._ttl_seconds)

    async def _let_expire(self, path: str, ttl_seconds: int) -> None:
        # Not deleted: a run that crashes now may resume from a checkpoint before the sync.
        try:
            await self._rest.set_checkpoint_ttl_from_tinker_path(path, ttl_seconds)
        except Exception as error:  # it only costs disk: not worth ending the run
            logger.warning("could not let the teacher %s expire: %s", path, error)

    def _keep_current(self, start_step: int) -> None:
        """Check that the teacher of a resumed run still exists, and let it not expire: the run may
        have saved the next one before it crashed."""
        way_out = "restore it, or start over with behavior_if_log_dir_exists=delete"
        checkpoint = self._current
        if checkpoint is None:
            raise CheckpointError(
                f"{self._file} lists no teacher for step {start_step}, from which the run resumes:"
                f" {way_out}"
            )
        try:
            self._rest.set_checkpoint_ttl_from_tinker_path(checkpoint.path, None).result()
        except Exception as error:
            if not means_checkpoint_is_lost(error):
                raise
            raise CheckpointError(
                f"the teacher of step {start_step}, {checkpoint.path} (listed in {self._file}), is"
                f" lost: {error}; {way_out}"
            ) from error
