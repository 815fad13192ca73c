"""Graceful stop on a signal: no finished step is lost, and no step is done twice.

Steps that were submitted are completed: their rows are written, and the state after the last of
them is saved. Cancelled at once is only what a resumed run repeats anyway: the blocks that a loop
marks with `Journal.interruptible` (evaluations, and rollouts that no step was trained on yet), and
everything before the first step.
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
    """Tracks which steps of a run are submitted, written and saved, and ends the run on a signal.

    All numbers of steps are counts, not indices: with `_rows` = 3, steps 0 to 2 have their rows.
    `_submitted` >= `_rows` counts optimizer steps in flight, too; `_recorded` is the count in the
    last recorded checkpoint. The run ends without loss once all three are equal.
    """

    def __init__(
        self,
        checkpoints: CheckpointManager,
        start_step: int,
        total_steps: int | None,
        unit: str = "step",
        rows_are_checkpoints: bool = False,
        keeps_parts: bool = False,
    ) -> None:
        """rows_are_checkpoints: a written row is saved progress, for a run without checkpoints.
        keeps_parts: so is a part of a step, in files of its own."""
        self._keeps_parts = keeps_parts
        self._unit, self._rows_are_checkpoints = unit, rows_are_checkpoints
        self._signals = stop_signals.active()
        self._checkpoints = checkpoints
        self._start, self._total = start_step, total_steps
        self._rows = self._submitted = self._recorded = start_step
        # arguments of the last submit_save, from which the stop can make another save
        self._last_save: tuple[TrainingClient, int, dict[str, Plain]] | None = None
        self._pending: list[PendingSave] = []
        # count of steps in the last checkpoint, once a stop was requested and it was submitted
        self._end: int | None = None
        self._interruptible: asyncio.Task[object] | None = None
        try:
            self._loop: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
            self._task = asyncio.current_task()
        except RuntimeError:
            self._loop = self._task = None

    @property
    def requested(self) -> bool:
        return self._signals.requested is not None

    def watch_signals(self) -> AbstractContextManager[None]:
        """While the block runs, the first signal stops this run."""
        return self._signals.watch(self._describe_stop, self._on_signal)

    # ---- progress, as the journal reports it

    def commit(self, step: int) -> None:
        """Note that the optimizer step with index `step` was submitted."""
        self._submitted = max(self._submitted, step + 1)

    def submit_save(
        self, client: TrainingClient, steps: int, final: bool, loop_state: Mapping[str, Plain]
    ) -> PendingSave | None:
        """Submit the checkpoint after `steps` steps if one is due or a stop was requested."""
        # The first save after a signal is the run's last: a loop that submits ahead may call this
        # again for the steps in flight, and those need no checkpoint of their own.
        last = self.requested and not final and self._end is None
        pending = self._checkpoints.submit(client, steps, final=final, last=last, **loop_state)
        self._last_save = client, steps, dict(loop_state)
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
        if self._rows_are_checkpoints:
            self._recorded = self._rows

    # ---- ending the run

    def raise_if_stopping(self) -> None:
        """Raise CancelledError if a stop was requested and no step is in flight."""
        if self.requested and self._nothing_in_flight():
            raise asyncio.CancelledError("stop requested")

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        self.raise_if_stopping()
        outer, self._interruptible = self._interruptible, asyncio.current_task()
        try:
            yield
        finally:
            self._interruptible = outer

    def save_finished_steps(self) -> None:
        """At the end of a stopped run: save the state after the last finished step, if unsaved."""
        if self._rows == self._start or self._rows <= self._recorded:
            return
        pending = next((p for p in self._pending if p.record.batch == self._rows), None)
        if pending is None and self._last_save is not None:
            client, steps, loop_state = self._last_save
            # If steps without rows were submitted, the client's weights are past the last row: a
            # checkpoint of them would make the resumed run skip these rows.
            if steps == self._rows == self._submitted:
                pending = self.submit_save(client, steps, final=False, loop_state=loop_state)
        if pending is not None:
            # In a thread with an event loop of its own: this one's loop is running our caller, so
            # it cannot run the coroutine to its end before we return.
            with ThreadPoolExecutor(1) as pool:
                pool.submit(asyncio.run, self.record(pending)).result()

    def stop_exception(self, message: str) -> stop_signals.Stopped:
        """The exception that ends the process; the process does not wait for hanging threads."""
        self._signals.end_soon(message)
        return self._signals.stopped(message)

    def stop_message(self) -> str:
        """The line for the user: how many steps are done and saved, and how to resume."""
        of_total = "" if self._total is None else f" of {self._total}"
        if not self._rows and self._keeps_parts:
            return f"stopped within the first {self._unit}; the same command continues it"
        if not self._rows:
            return f"stopped before the first {self._unit} finished; the same command starts over"
        done = f"stopped after {self._rows}{of_total} {self._unit}s"
        if self._recorded == self._rows:
            return f"{done}; the same command resumes from there"
        position = (
            f"resumes after {counted(self._recorded, self._unit)}"
            if self._recorded
            else "starts over"
        )
        return f"{done}, but not saved; the same command {position}"

    # ---- in the signal handler, and right after it

    def _describe_stop(self) -> str:
        if any(pending.record.final for pending in self._pending):
            return "finishing the final save"
        if self._can_cancel_now():
            if self._rows == self._recorded:
                done = counted(self._rows, self._unit)
                nothing = "stopping" if self._keeps_parts else "stopping, nothing to save"
                return f"stopping, {done} saved" if self._rows else nothing
            return f"discarding rollouts in flight, saving {counted(self._rows, self._unit)}"
        in_flight = max(self._submitted - self._rows, 1)
        return f"finishing {counted(in_flight, self._unit)} in flight, then saving"

    def _on_signal(self) -> None:
        if self._can_cancel_now() and self._rows == self._start:
            # Nothing to save, so the process may end even if what runs now never awaits, e.g. while
            # it loads a model. Unless a step is submitted in the meantime: that one is completed.
            self._signals.end_soon(
                self.stop_message(), unless=lambda: self._submitted > self._start
            )
        if self._loop is not None:
            # Not here: the handler interrupts the main thread between any two instructions. The
            # event loop runs the callback while the run's tasks are at an await, so their state is
            # consistent. `_threadsafe` wakes a loop that is waiting for I/O.
            self._loop.call_soon_threadsafe(self._cancel_interruptible_task)

    def _cancel_interruptible_task(self) -> None:
        if not self._can_cancel_now():  # asked again: a step may have been submitted since
            return
        task = self._interruptible or self._task
        if task is not None:
            task.cancel()

    def _can_cancel_now(self) -> bool:
        """Whether the run can end right here without losing a step."""
        started = self._rows > self._start
        return self._nothing_in_flight() and (self._interruptible is not None or not started)

    def _nothing_in_flight(self) -> bool:
        if self._end is not None:
            # The last checkpoint is submitted. Steps after it that a loop has submitted ahead are
            # not waited for: the resumed run does them again.
            return self._rows >= self._end and not self._is_saving(self._end)
        return self._rows >= self._submitted and not self._pending

    def _is_saving(self, steps: int) -> bool:
        return any(pending.record.batch == steps for pending in self._pending)
