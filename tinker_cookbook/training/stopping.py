"""Where a run can be stopped so that no finished step is lost and none is done twice.

Training that was submitted is finished: its rows are written, and the state behind it is saved.
What can be dropped is what a loop marks as such (`Journal.interruptible`: evaluations, rollouts
that nothing was trained on yet), and whatever a process does before its first step.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

from tinker_cookbook.checkpoint_utils import CheckpointManager, CheckpointRecord, PendingSave
from tinker_cookbook.utils import stop_signals
from tinker_cookbook.utils.json_types import Plain
from tinker_cookbook.utils.misc_utils import counted

if TYPE_CHECKING:
    from tinker_cookbook.service.api import TrainingClient


class GracefulStop:
    """What of a run has been submitted, written and saved, and what a stop makes of it.

    Steps are counts here: after `rows` rows, the steps 0 to rows - 1 are finished.
    """

    def __init__(
        self,
        checkpoints: CheckpointManager,
        start_step: int,
        total_steps: int | None,
        unit: str = "step",
        rows_are_kept: bool = False,
    ) -> None:
        """rows_are_kept: a written row is all that its step leaves behind, see `Journal`."""
        self._unit, self._rows_are_kept = unit, rows_are_kept
        self._signals = stop_signals.active()
        self._checkpoints = checkpoints
        self._start, self._total = start_step, total_steps
        self._rows = self._submitted = self._recorded = start_step
        self._last: tuple[TrainingClient, int, dict[str, Plain]] | None = None  # of submit_save
        self._pending: list[PendingSave] = []
        self._end: int | None = None  # steps of a checkpoint that the stop has asked for
        self._interruptible: asyncio.Task[object] | None = None
        try:
            self._loop: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
            self._task = asyncio.current_task()
        except RuntimeError:
            self._loop = self._task = None

    @property
    def requested(self) -> bool:
        return self._signals.requested is not None

    def watched(self) -> AbstractContextManager[None]:
        """While the block runs, signals are this run's."""
        return self._signals.watch(self._describe, self._wake)

    # ---- what the journal reports

    def commit(self, step: int) -> None:
        """An optimizer step of step index `step` was submitted."""
        self._submitted = max(self._submitted, step + 1)

    def submit_save(
        self, client: TrainingClient, steps: int, final: bool, loop_state: Mapping[str, Plain]
    ) -> PendingSave | None:
        """The checkpoint after `steps` steps that is due, or that a stop asks for."""
        last = self.requested and not final and self._end is None
        pending = self._checkpoints.submit(client, steps, final=final, last=last, **loop_state)
        self._last = client, steps, dict(loop_state)
        self._submitted = max(self._submitted, steps)
        if last:
            self._end = steps
        if pending is not None:
            self._pending.append(pending)
        return pending

    async def record(self, pending: PendingSave) -> CheckpointRecord:
        record = await self._checkpoints.finish(pending)
        self._pending.remove(pending)
        self._recorded = record.batch or 0
        return record

    def row_written(self, step: int) -> None:
        self._rows = min(step + 1, self._total or step + 1)
        if self._rows_are_kept:
            self._recorded = self._rows

    # ---- where it ends

    def end_here(self) -> None:
        """Raises CancelledError if a stop was asked for and nothing is under way."""
        if self.requested and self._nothing_under_way():
            raise asyncio.CancelledError("asked to stop")

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        self.end_here()
        outer, self._interruptible = self._interruptible, asyncio.current_task()
        try:
            yield
        finally:
            self._interruptible = outer

    def save(self) -> None:
        """At the end of the run: saves the last finished step, unless that has been done."""
        if self._rows == self._start or self._rows <= self._recorded:
            return
        pending = next((p for p in self._pending if p.record.batch == self._rows), None)
        if pending is None and self._last is not None:
            client, steps, loop_state = self._last
            if steps == self._rows == self._submitted:  # else the client is ahead of it
                pending = self.submit_save(client, steps, final=False, loop_state=loop_state)
        if pending is not None:
            # in a thread, because the event loop of this one runs the code that calls us
            with ThreadPoolExecutor(1) as pool:
                pool.submit(asyncio.run, self.record(pending)).result()

    def stopped(self, words: str) -> stop_signals.Stopped:
        """The exception to end the process with; threads that still hang are not waited for."""
        self._signals.end_soon(words)
        return self._signals.stopped(words)

    def last_words(self) -> str:
        """What was done, and how to go on."""
        of_total = "" if self._total is None else f" of {self._total}"
        if not self._rows:
            first = f"the first {self._unit}"
            return f"stopped before {first} was finished; the same command starts again"
        done = f"stopped after {self._rows}{of_total} {self._unit}s"
        if self._recorded == self._rows:
            return f"{done}; the same command resumes from there"
        from_there = (
            f"after {counted(self._recorded, self._unit)}" if self._recorded else "at the start"
        )
        return f"{done}, but not saved; the same command resumes {from_there}"

    # ---- in the signal handler, and right after it

    def _describe(self) -> str:
        if any(pending.record.final for pending in self._pending):
            return "finishing the final save"
        if self._can_drop():
            if self._rows == self._recorded:
                done = counted(self._rows, self._unit)
                return f"stopping, {done} saved" if self._rows else "stopping, nothing to save"
            return f"dropping what is not trained yet, saving {counted(self._rows, self._unit)}"
        under_way = max(self._submitted - self._rows, 1)
        return f"finishing {counted(under_way, self._unit)} under way, then saving"

    def _wake(self) -> None:
        if self._can_drop() and self._rows == self._start:
            self._signals.end_soon(self.last_words(), unless=lambda: self._submitted > self._start)
        if self._loop is not None:
            # between two turns of the loop, where the run is at an await and can be looked at
            self._loop.call_soon_threadsafe(self._drop)

    def _drop(self) -> None:
        if not self._can_drop():
            return
        task = self._interruptible or self._task
        if task is not None:
            task.cancel()

    def _can_drop(self) -> bool:
        """Whether nothing is lost if the run ends here and now."""
        begun = self._rows > self._start
        return self._nothing_under_way() and (self._interruptible is not None or not begun)

    def _nothing_under_way(self) -> bool:
        if self._end is not None:  # a loop that submits ahead and does not ask
            return self._rows >= self._end and not self._saving(self._end)
        return self._rows >= self._submitted and not self._pending

    def _saving(self, steps: int) -> bool:
        return any(pending.record.batch == steps for pending in self._pending)
