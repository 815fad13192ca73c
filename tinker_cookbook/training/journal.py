"""Bookkeeping around training steps: run directory, resume, metrics rows, checkpoints, stops."""

from __future__ import annotations

import asyncio
import logging
import shlex
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
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
from tinker_cookbook.training.run_directory import in_run_directory
from tinker_cookbook.training.run_identity import RunIdentity
from tinker_cookbook.training.run_location import RunLocator
from tinker_cookbook.training.stopping import GracefulStop
from tinker_cookbook.utils import jsonl, ml_log, trace
from tinker_cookbook.utils.display import Display, duration
from tinker_cookbook.utils.json_types import Plain
from tinker_cookbook.utils.misc_utils import counted
from tinker_cookbook.utils.ml_log import MetricValue, Sample

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

    Entering the context finds and locks the run directory (see below), writes config.json and
    code.diff, sends Python's logging to logs.log and starts the display. It sets:

    log_path: Path     the run directory
    start_step: int    index of the first step to do; 0 for a new run
    resume: CheckpointRecord | None   the checkpoint to resume from: `.state_path` and `.extra`
    continued: bool    whether the run had finished and now does more steps. Its last row, at
                       i == start_step, evaluated the final weights and is replaced by that of a
                       training step: evaluate before that step

    `step(i)` yields the metrics row of step i, a dict. When the block ends without an exception,
    the row gets `progress` (or, with progress="rl", `progress/batch` and `progress/done_frac`) and
    `time/total` in seconds, and is written to disk. Rows are written once and in order. A row at
    i == total_steps is allowed, for evaluations of the final weights. All values that depend on the
    clock are under `time/`; all others are the same in a resumed and in an uninterrupted run.

    Steps are counted from 0 in rows, on the screen and in directories (iteration_000007); step 7
    begins with the weights after 7 steps, which are checkpoint 000007.

    The first Ctrl-C, SIGTERM or SIGHUP (cli_utils.cli, stop_signals.handled) ends the run without
    losing a finished step: `finish` and `step` raise once every submitted step has its row, the
    journal saves what is unsaved, and the process exits with 130, 143 or 129. Only an
    `interruptible` block, and anything before the first step, is cancelled at once.

    `timed(name)` adds seconds to `time/<name>` of the open row, or of the next one if no step is
    open. `log_line(text)` prints a line without breaking the live display, and logs it.

    `submit_save(client, step, final=False, **loop_state)` submits the checkpoint that is due
    after `step` optimizer steps (None if none is due). Call it right after submitting the
    optim_step of step index `step - 1` and before submitting anything of the next step, so that
    the checkpoint holds exactly `step` steps. `await finish(pending)` waits for it and records it;
    `pending` may be None. `finish` for a save after N steps raises RuntimeError until row N - 1 is
    written: a crash between record and row would lose the row, because the run resumes after the
    recorded checkpoint. The record of the final save marks the run as finished.

    Config keys that the journal reads, all optional: model_name, log_path,
    behavior_if_log_dir_exists (resume, skip, delete, raise, ask), save_every, rolling_save_every
    (steps, 0: never), ttl_seconds, wandb_project, wandb_name, display.

    The run directory is log_path, or else <runs directory>/<recipe>-<model>-<hash of the config>.
    What happens if it holds a run already:

    - an unfinished run with the same config is resumed from its newest checkpoint that the service
      still has;
    - a finished run is continued if max_steps or num_epochs changed and total_steps is larger than
      the steps it has done; otherwise this run gets a new directory with a number appended, or,
      with behavior_if_log_dir_exists=skip, entering raises RunFinished;
    - a run with another config raises ConfigurationError with the keys that differ. Keys in
      `changeable_keys` are not compared. The content of local data is part of the config: see
      `identity` in utils/plain_data.py;
    - an unfinished run whose own code (the user's modules that the config names) was edited raises
      ConfigurationError with the files; behavior_if_log_dir_exists=resume resumes it. Before its
      first checkpoint, or if only evaluators were edited, it resumes with a notice;
    - a directory in use by another process raises ConfigurationError.
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
        count_done_rows: Callable[[Path], int] | None = None,
        keeps_parts: bool = False,
    ) -> None:
        """headlines: metric name -> label, additional metrics for the display.

        count_done_rows: for a run without checkpoints, whose steps store their own results: the
        number of rows in a directory that count as done, after which it resumes. A last row at
        total_steps, with the results over all steps, finishes it. keeps_parts: such a step also
        keeps its parts when it is stopped. unit: the display's word for a step.

        rest_client: `service.create_rest_client()`. Without it, a missing checkpoint is not noticed
        until the loop loads it, and no checkpoint is ever deleted.
        """
        self.identity = RunIdentity(config, recipe)
        self._total_steps = total_steps
        self._progress = progress
        self._headlines = headlines
        self._rest_client = rest_client
        self._unit, self._count_done_rows = unit, count_done_rows
        self._keeps_parts = keeps_parts
        self._finished = False
        self._timings: dict[str, float] = {}

    # ---- the run

    def __enter__(self) -> Journal:
        with ExitStack() as stack:
            locator = RunLocator(
                self.identity,
                self._total_steps,
                self._unit,
                self._count_done_rows,
                self._rest_client,
            )
            location = locator.acquire(stack)
            self.log_path, self.resume = location.path, location.resume
            stack.enter_context(in_run_directory(self.log_path))
            self.continued = bool(self.resume and self.resume.final)
            self.start_step = self._next_step = (self.resume.batch or 0) if self.resume else 0
            # Drop the rows after the checkpoint: their steps are done again and append new rows.
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
                config=self.identity.config_json,
                show_metrics=False,
            )
            self._metrics.set_exit_code(1)  # until `__exit__` knows better
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
                rows_are_checkpoints=self._count_done_rows is not None,
                keeps_parts=self._keeps_parts,
            )
            stack.enter_context(self._stop.watch_signals())
            stack.enter_context(trace.listening(self._add_seconds))
            for line in location.notices:
                self.log_line(line)
            self._started = time.perf_counter()
            self._display.start(self.start_step)
            # only now: an error above closes everything that was opened, and releases the lock
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
                self._stop.save_finished_steps()
            self._display.close()
            message = self._log_closing_line(error, stopped)
        finally:
            if stopped and not self._finished:
                error = asyncio.CancelledError()
            self._metrics.set_exit_code(ml_log.exit_code_of(error))
            self._stack.close()
        if stopped:
            raise self._stop.stop_exception(message) from None

    def _log_closing_line(self, error: BaseException | None, stopped: bool) -> str:
        """Log how the run ended; returns the message of `Stopped`, for a run that was stopped."""
        seconds = duration(time.perf_counter() - self._started)
        last = min(self._next_step, self._total_steps or self._next_step)
        done = counted(last - self.start_step, self._unit)
        if self._finished and error is None:
            in_all = f" ({last} in all)" if self.start_step else ""
            self.log_line(f"finished: {done} in {seconds}{in_all}; results are in {self.log_path}")
            if self._count_done_rows is None:  # a training run, with final weights
                for line in self._what_next():
                    self.log_line(line)
            return "stopped; the run is finished"
        message = self._stop.stop_message()
        if stopped:
            logger.info("%s (%s in %s)", message, done, seconds)
        elif error is not None:
            expected = isinstance(error, KeyboardInterrupt | asyncio.CancelledError)
            logger.info(
                "stopped after %s in %s by %s",
                *(done, seconds, type(error).__name__),
                exc_info=None if expected else error,
            )
        return message

    def _what_next(self) -> list[str]:
        """The commands that evaluate and export what was trained."""
        run = shlex.quote(str(self.log_path))
        url = self.identity.get("base_url", None)
        server = f" base_url={shlex.quote(url)}" if url else ""
        return [
            "to evaluate: ./scripts/run tinker_cookbook.eval.run_inspect_evals"
            f" model_path={run}{server} tasks=...",
            "to export: ./scripts/run tinker_cookbook.weights.export"
            f" checkpoint={run}{server} output=...",
        ]

    @property
    def total_steps(self) -> int | None:
        return self._total_steps

    def log_line(self, text: str) -> None:
        """Print a line without breaking the live display, and log it to logs.log."""
        self._display.log_line(text)
        logger.info("%s", text)

    def log_samples(self, name: str, rows: Iterable[Sample], step: int | None) -> None:
        """Log a table of samples of a step (None: of the final weights), if a logger shows tables;
        `rows` is not iterated over otherwise."""
        if step is None:
            step = self._total_steps if self._total_steps is not None else self._next_step
        self._metrics.log_samples(name, rows, step)

    # ---- steps

    @contextmanager
    def step(self, i: int) -> Iterator[dict[str, MetricValue]]:
        """The metrics row of step i (0-based), written when the block ends without an exception."""
        self._stop.raise_if_stopping()
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
        if self._count_done_rows is not None and i == self._total_steps:
            self._finished = True
        # after the write: a stop counts this step as finished from here on
        self._stop.row_written(i)
        logger.info("%s", self._display.update(i, row))

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Add the block's seconds to `time/<name>` of the open row, or of the next one."""
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
        """Submit the checkpoint due after `step` optimizer steps; None if none is due.

        loop_state: "epoch", and the loop's own plain values, which `resume.extra` returns.
        """
        if final:
            # the length that this run was asked for: RunLocator._is_extended compares a later one
            loop_state = {**self.identity.run_length(), **loop_state}
        return self._stop.submit_save(training_client, step, final, loop_state)

    async def finish(self, pending: PendingSave | None) -> CheckpointRecord | None:
        """Wait until the checkpoint exists, then record it in checkpoints.jsonl."""
        if pending is None:
            self._stop.raise_if_stopping()
            return None
        steps = pending.record.batch or 0
        # A resumed run drops no row before its checkpoint and does no step before it again, so a
        # checkpoint may be recorded only after the rows of all its steps.
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
            self._stop.raise_if_stopping()
        return record

    # ---- stopping

    @property
    def stopping(self) -> bool:
        """Whether a stop was requested: a loop that submits ahead then submits nothing more."""
        return self._stop.requested

    def interruptible(self) -> AbstractContextManager[None]:
        """A block that a stop cancels at its next await, if no step is in flight.

        For long work that a resumed run repeats, such as evaluations and rollouts. Use it inside
        `step` only before anything of the step has changed the weights: see `commit`.
        """
        return self._stop.interruptible()

    @contextmanager
    def evaluating(self, step: int | None, seconds_after: Callable[[int], float]) -> Iterator[None]:
        """Context of the evaluations before `step` (None: after the last): displayed, and cancelled
        by a stop.

        seconds_after: estimated seconds of all evaluations after a given step, for the ETA.
        """
        self._display.evaluations_after = seconds_after
        with self.interruptible():
            self._display.evaluating(self._next_step if step is None else step)
            yield

    def commit(self, step: int) -> None:
        """Note that an optimizer step of step index `step` was submitted: a stop waits for it.

        `submit_save` does this, too. Needed only if the loop awaits rollouts between the two.
        """
        self._stop.commit(step)
