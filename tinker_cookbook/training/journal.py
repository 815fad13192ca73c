"""What every loop needs around a step: directory, resume cursor, metrics row, checkpoints."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal

from tinker_cookbook.checkpoint_utils import (
    PERIODIC_TTL_SECONDS,
    CheckpointManager,
    CheckpointRecord,
    PendingSave,
)
from tinker_cookbook.training.run_identity import RunIdentity
from tinker_cookbook.training.run_location import RunLocator
from tinker_cookbook.training.stopping import GracefulStop
from tinker_cookbook.utils import jsonl, ml_log, trace
from tinker_cookbook.utils.display import Display, duration
from tinker_cookbook.utils.json_types import Plain
from tinker_cookbook.utils.misc_utils import counted
from tinker_cookbook.utils.ml_log import MetricValue

if TYPE_CHECKING:
    from tinker_cookbook.service.api import RestClient, TrainingClient

logger = logging.getLogger(__name__)


class Journal:
    """A run on disk, as a context manager around the training loop.

        with Journal(config, recipe="sl_basic", total_steps=n) as journal:
            client = ...  # from journal.resume.state_path if journal.resume else a new one
            for i in range(journal.start_step, n):
                with journal.step(i) as row:
                    with journal.timed("forward_backward"):
                        ...
                    row["train_mean_nll"] = ...
                    pending = journal.submit_save(client, i + 1, epoch=epoch)
                await journal.finish(pending)
            await journal.finish(journal.submit_save(client, n, final=True))

    Entering it finds the directory of the run (below), locks it, writes config.json and
    code.diff, sends Python's logging to logs.log and starts the display. Then these hold:

    log_path: Path     the directory of the run
    start_step: int    the first step to do; 0 for a new run
    resume: CheckpointRecord | None   what to go on from: `.state_path` and `.extra`
    continued: bool    the run had finished, with fewer steps. The row of its final weights, at
                       i == start_step, is a row of a training step now: evaluate before that step

    `step(i)` yields the metrics row of step i, a dict. When the block ends without an exception
    the row gets `progress` (or, with progress="rl", `progress/batch` and `progress/done_frac`) and
    `time/total` in seconds, and is on disk before the block is left. Rows are written once and in
    order; a row at i == total_steps is allowed, for evaluations of the final weights. Everything
    that depends on the clock lies under `time/`: all else of a resumed run equals an
    uninterrupted one.

    Steps are counted from 0 in rows, on the screen and in directories (iteration_000007); step 7
    begins with the weights after 7 steps, which are checkpoint 000007.

    The first Ctrl-C, SIGTERM or SIGHUP (cli_utils.cli, stop_signals.handled) ends the run where no
    finished step is lost: `finish` and `step` raise once every submitted step has its row, the
    journal saves what is not saved, and the process exits with 130, 143 or 129. Only an
    `interruptible` block, and what comes before the first step, is cancelled at once.

    `timed(name)` adds seconds to `time/<name>` of the present row, or of the next one when no step
    is open. `log_line(text)` prints a line without breaking the live display, and logs it.

    `submit_save(client, step, final=False, **loop_state)` submits the checkpoint that is due
    after `step` optimizer steps (None if none is); call it right after submitting the optim_step
    of step index `step - 1` and before submitting anything of the next step, so that it holds
    exactly `step` steps. `await finish(pending)` waits for it and records it; it may be given
    None. A record must not be on disk before the rows of its steps, or a crash in between would
    lose them: `finish` for a save after N steps raises RuntimeError until row N - 1 is written.
    The record of the final save marks the run as finished.

    Keys of the config that the journal reads, all optional: model_name, log_path,
    behavior_if_log_dir_exists (resume, delete, raise, ask), save_every, rolling_save_every (steps,
    0: never), ttl_seconds, wandb_project, wandb_name, display.

    The directory is log_path, or else <runs directory>/<recipe>-<model>-<hash of the config>. An
    unfinished run of the same config in it is resumed, from its newest checkpoint that the service
    still has. A finished one is continued if max_steps or num_epochs changed and total_steps is
    larger than what it did; otherwise this run gets a new directory with a number behind it. A
    run of another config is refused with the keys that differ (ConfigurationError), those aside
    that may change (`keys_that_may_change`). What local data holds is part of the config:
    see `identity` in utils/plain_data.py. So are the modules of the user's own code, but not what
    is in their files: an unfinished run whose code was edited is refused with the names of the
    files, and goes on with behavior_if_log_dir_exists=resume; before its first checkpoint, and
    where only evaluators were edited, it goes on in any case and says so. A directory in use by
    another process is refused as well.
    """

    log_path: Path
    start_step: int
    resume: CheckpointRecord | None
    continued: bool

    def __init__(
        self,
        config: object,
        *,
        recipe: str,
        total_steps: int | None = None,
        progress: Literal["sl", "rl"] = "sl",
        headlines: Mapping[str, str] | None = None,
        rest_client: RestClient | None = None,
        unit: str = "step",
        rows_kept: Callable[[Path], int] | None = None,
    ) -> None:
        """headlines: metric name -> label, more figures for the display.

        rows_kept: for a run without checkpoints, which keeps what comes of each step by itself:
        how many rows of a directory it goes on behind. A last row at total_steps, of the figures of
        all, finishes it. unit: what a step is called.

        rest_client: `service.create_rest_client()`. Without it, a checkpoint that is gone is not
        noticed before the loop loads it, and no checkpoint is ever deleted.
        """
        self.identity = RunIdentity(config, recipe)
        self._total_steps = total_steps
        self._progress = progress
        self._headlines = headlines
        self._rest_client = rest_client
        self._unit, self._rows_kept = unit, rows_kept
        self._finished = False
        self._timings: dict[str, float] = {}

    # ---- the run

    def __enter__(self) -> Journal:
        with ExitStack() as stack:
            finder = RunLocator(
                self.identity, self._total_steps, self._unit, self._rows_kept, self._rest_client
            )
            place = finder.take(stack)
            self.log_path, self.resume = place.path, place.resume
            self.continued = bool(place.resume and place.resume.final)
            self.start_step = self._next_step = (place.resume.batch or 0) if place.resume else 0
            # rows that were written after the last checkpoint: their steps are done again
            jsonl.keep_lines(
                self.log_path / ml_log.METRICS_FILE,
                lambda row: row.get("step", -1) < self.start_step,
            )
            self._checkpoints = CheckpointManager(
                self.log_path,
                save_every=self.identity.get("save_every", 0),
                rolling_save_every=self.identity.get("rolling_save_every", 0),
                ttl_seconds=self.identity.get("ttl_seconds", PERIODIC_TTL_SECONDS),
                total_steps=self._total_steps,
                rest_client=self._rest_client,
            )
            self._metrics = ml_log.setup_logging(
                self.log_path,
                wandb_project=self.identity.get("wandb_project", None),
                wandb_name=self.identity.get("wandb_name", None),
                config=self.identity.content,
                show_metrics=False,
            )
            stack.callback(self._metrics.close)
            mode = self.identity.get("display", None) or "auto"
            self._display = Display(
                self._total_steps, mode, headlines=self._headlines, unit=self._unit
            )
            stack.callback(self._display.close)
            self._stop = GracefulStop(
                self._checkpoints,
                self.start_step,
                self._total_steps,
                self._unit,
                rows_are_kept=self._rows_kept is not None,
            )
            stack.enter_context(self._stop.watched())
            stack.enter_context(trace.listening(self._add_seconds))
            for line in place.remarks:
                self.log_line(line)
            self._started = time.perf_counter()
            self._display.start(self.start_step)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        stopped = self._stop.requested and (
            error is None or isinstance(error, asyncio.CancelledError)
        )
        try:
            if stopped and not self._finished:
                self._stop.save()
            self._display.close()
            words = self._closing_words(error, stopped)
        finally:
            self._stack.close()
        if stopped:
            raise self._stop.stopped(words) from None

    def _closing_words(self, error: BaseException | None, stopped: bool) -> str:
        seconds = duration(time.perf_counter() - self._started)
        last = min(self._next_step, self._total_steps or self._next_step)
        done = counted(last - self.start_step, self._unit)
        if self._finished and error is None:
            of_all = f" ({last} in all)" if self.start_step else ""
            self.log_line(
                f"finished: {done} in {seconds}{of_all}; everything is in {self.log_path}"
            )
            return "stopped; the run is finished"
        words = self._stop.last_words()
        if stopped:
            logger.info("%s (%s in %s)", words, done, seconds)
        elif error is not None:
            expected = isinstance(error, KeyboardInterrupt | asyncio.CancelledError)
            logger.info(
                "stopped after %s in %s by %s",
                *(done, seconds, type(error).__name__),
                exc_info=None if expected else error,
            )
        return words

    @property
    def total_steps(self) -> int | None:
        return self._total_steps

    def log_line(self, text: str) -> None:
        """One line for the person who watches; also into logs.log."""
        self._display.log_line(text)
        logger.info("%s", text)

    # ---- steps

    @contextmanager
    def step(self, i: int) -> Iterator[dict[str, MetricValue]]:
        """The metrics row of step i (0-based), written when the block ends without an exception."""
        self._stop.end_here()
        if i != self._next_step:
            raise RuntimeError(f"row {i} out of order: row {self._next_step} is the next one")
        row: dict[str, MetricValue] = {}
        started = time.perf_counter()
        yield row
        for key, value in self._progress_fields(i).items():
            row.setdefault(key, value)
        self._timings["time/total"] = time.perf_counter() - started
        row.update(self._timings)
        self._timings = {}
        self._metrics.log_metrics(row, step=i)
        self._next_step = i + 1
        if self._rows_kept is not None and i == self._total_steps:
            self._finished = True
        self._stop.row_written(i)
        logger.info("%s", self._display.update(i, row))

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Adds the seconds of the block to `time/<name>` of the present or the next row."""
        with trace.span(name, self._add_seconds):
            yield

    def _add_seconds(self, name: str, seconds: float) -> None:
        key = f"time/{name}"
        self._timings[key] = self._timings.get(key, 0.0) + seconds

    def _progress_fields(self, i: int) -> dict[str, float]:
        if self._progress == "rl":
            fields: dict[str, float] = {"progress/batch": i}
            if self._total_steps:
                fields["progress/done_frac"] = min((i + 1) / self._total_steps, 1.0)
            return fields
        return {"progress": i / self._total_steps} if self._total_steps else {}

    # ---- checkpoints

    def submit_save(
        self,
        training_client: TrainingClient,
        step: int,
        *,
        final: bool = False,
        **loop_state: Plain,
    ) -> PendingSave | None:
        """Submits the checkpoint due after `step` optimizer steps; None if none is due.

        loop_state: "epoch" and plain values of the loop's own, back in `resume.extra`.
        """
        if final:  # what "finished" meant: see RunLocator._goes_on_after
            loop_state = {**self.identity.length(), **loop_state}
        return self._stop.submit_save(training_client, step, final, loop_state)

    async def finish(self, pending: PendingSave | None) -> CheckpointRecord | None:
        """Waits until the checkpoint exists and records it."""
        if pending is None:
            self._stop.end_here()
            return None
        steps = pending.record.batch or 0
        if steps > self._next_step:
            raise RuntimeError(
                f"the save after {counted(steps, 'step')} cannot be recorded before row {steps - 1}"
                " is written"
            )
        with self.timed("save_checkpoint"):
            record = await self._stop.record(pending)
        self._finished = self._finished or bool(record.final)
        logger.info("saved checkpoint %s: %s", record.name, record.state_path)
        if record.final:
            self.log_line(
                f"final weights: {record.sampler_path} (to train on: {record.state_path})"
            )
        else:
            self._stop.end_here()
        return record

    # ---- stopping

    @property
    def stopping(self) -> bool:
        """Whether the user has asked to stop: a loop that submits ahead submits nothing more."""
        return self._stop.requested

    def interruptible(self) -> AbstractContextManager[None]:
        """A block that a stop cancels at its next await, if no step is under way.

        For what is long and done again on resume, such as evaluations and rollouts. Within `step`,
        only before anything of the step has changed the weights: see `commit`.
        """
        return self._stop.interruptible()

    @contextmanager
    def evaluating(self, step: int | None, seconds_after: Callable[[int], float]) -> Iterator[None]:
        """Around the evaluations before `step` (None: after the last): shown, and droppable.

        seconds_after: what the evaluations after a given step will take, for the ETA.
        """
        self._display.evaluations_after = seconds_after
        with self.interruptible():
            self._display.evaluating(self._next_step if step is None else step)
            yield

    def commit(self, step: int) -> None:
        """Says that an optimizer step of step index `step` was submitted: a stop waits for it.

        `submit_save` says it as well; needed where rollouts are waited for in between.
        """
        self._stop.commit(step)
