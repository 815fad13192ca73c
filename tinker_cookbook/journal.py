"""What every loop needs around a step: directory, resume cursor, metrics row, checkpoints."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import logging
import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple

from tinker_cookbook.checkpoint_utils import (
    PERIODIC_TTL_SECONDS,
    CheckpointManager,
    CheckpointRecord,
    PendingSave,
    get_last_checkpoint,
    get_last_resumable_checkpoint,
)
from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.stopping import RunStop
from tinker_cookbook.utils import code_identity, jsonl, ml_log, trace
from tinker_cookbook.utils.display import Display, duration
from tinker_cookbook.utils.misc_utils import counted, runs_path
from tinker_cookbook.utils.plain_data import CLASS, comparable, plain
from tinker_cookbook.utils.run_config import CONFIG_CLASS, RECIPE, USER_CODE
from tinker_cookbook.utils.run_directory import RunLock, decide, differences, empty, holds_run

logger = logging.getLogger(__name__)

# these say how long a run is to be; a finished run is continued if one of them changed
LENGTH_KEYS = ("max_steps", "num_epochs")

# keys that do not change what was trained so far: they may differ when a run goes on, and they
# are not in the hash that names its directory. Patterns of dotted names, part by part: "*_every"
# is no key of data_builder's, which may well mean what is learned
FREE_KEYS = (
    *LENGTH_KEYS,
    "*_every",
    "*ttl_seconds",
    "*evaluator_builders",
    "limits.*_timeout",
    "engine",
    "display",
    "wandb_*",
    "log_path",
    "behavior_if_log_dir_exists",
)


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
    journal saves what is not saved, and the process exits with 130, 143 or 129. Only a `droppable`
    block, and what comes before the first step, is cancelled at once.

    `timed(name)` adds seconds to `time/<name>` of the present row, or of the next one when no step
    is open. `say(text)` prints a line without breaking the live display, and logs it.

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
    run of another config is refused with the keys that differ (ConfigurationError), FREE_KEYS and
    `also_free` (patterns of dotted keys) aside. What local data holds is part of the config:
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
        config: Any,
        *,
        recipe: str,
        total_steps: int | None = None,
        progress: Literal["sl", "rl"] = "sl",
        also_free: Collection[str] = (),
        headlines: Mapping[str, str] | None = None,
        rest_client: Any = None,
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
        self._keys = _Keys(config)
        fields = plain(config)
        about = {CONFIG_CLASS: fields.pop(CLASS, None)}
        if code := code_identity.user_code(fields | about):  # the program's own file included
            about[USER_CODE] = code
        self._config = {RECIPE: recipe, **fields, **about}
        self._recipe = recipe
        self._total_steps = total_steps
        self._progress = progress
        self._free = (*FREE_KEYS, *also_free)
        self._headlines = headlines
        self._rest_client = rest_client
        self._unit, self._rows_kept = unit, rows_kept
        self._finished = False
        self._timings: dict[str, float] = {}

    # ---- the run

    def __enter__(self) -> Journal:
        with ExitStack() as stack:
            place = self._take_directory(stack)
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
                save_every=self._keys.get("save_every", 0),
                rolling_save_every=self._keys.get("rolling_save_every", 0),
                ttl_seconds=self._keys.get("ttl_seconds", PERIODIC_TTL_SECONDS),
                total_steps=self._total_steps,
                rest_client=self._rest_client,
            )
            self._metrics = ml_log.setup_logging(
                self.log_path,
                wandb_project=self._keys.get("wandb_project", None),
                wandb_name=self._keys.get("wandb_name", None),
                config=self._config,
                show_metrics=False,
            )
            stack.callback(self._metrics.close)
            mode = self._keys.get("display", None) or "auto"
            self._display = Display(
                self._total_steps, mode, headlines=self._headlines, unit=self._unit
            )
            stack.callback(self._display.close)
            self._stop = RunStop(
                self._checkpoints,
                self.start_step,
                self._total_steps,
                self._unit,
                rows_are_kept=self._rows_kept is not None,
            )
            stack.enter_context(self._stop.watched())
            stack.enter_context(trace.listening(self._add_seconds))
            for line in place.remarks:
                self.say(line)
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
            self.say(f"finished: {done} in {seconds}{of_all}; everything is in {self.log_path}")
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

    def say(self, text: str) -> None:
        """One line for the person who watches; also into logs.log."""
        self._display.say(text)
        logger.info("%s", text)

    # ---- steps

    @contextmanager
    def step(self, i: int) -> Iterator[dict[str, Any]]:
        """The metrics row of step i (0-based), written when the block ends without an exception."""
        self._stop.end_here()
        if i != self._next_step:
            raise RuntimeError(f"row {i} out of order: row {self._next_step} is the next one")
        row: dict[str, Any] = {}
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
        self, training_client: Any, step: int, *, final: bool = False, **loop_state: Any
    ) -> PendingSave | None:
        """Submits the checkpoint due after `step` optimizer steps; None if none is due.

        loop_state: "epoch" and plain values of the loop's own, back in `resume.extra`.
        """
        if final:  # what "finished" meant: see _goes_on_after
            loop_state = {**self._length(), **loop_state}
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
            self.say(f"final weights: {record.sampler_path} (to train on: {record.state_path})")
        else:
            self._stop.end_here()
        return record

    # ---- stopping

    @property
    def stopping(self) -> bool:
        """Whether the user has asked to stop: a loop that submits ahead submits nothing more."""
        return self._stop.requested

    def droppable(self) -> AbstractContextManager[None]:
        """A block that a stop cancels at its next await, if no step is under way.

        For what is long and done again on resume, such as evaluations and rollouts. Within `step`,
        only before anything of the step has changed the weights: see `commit`.
        """
        return self._stop.droppable()

    @contextmanager
    def evaluating(self, step: int | None, seconds_after: Callable[[int], float]) -> Iterator[None]:
        """Around the evaluations before `step` (None: after the last): shown, and droppable.

        seconds_after: what the evaluations after a given step will take, for the ETA.
        """
        self._display.evaluations_after = seconds_after
        with self.droppable():
            self._display.evaluating(self._next_step if step is None else step)
            yield

    def commit(self, step: int) -> None:
        """Says that an optimizer step of step index `step` was submitted: a stop waits for it.

        `submit_save` says it as well; needed where rollouts are waited for in between.
        """
        self._stop.commit(step)

    # ---- the directory

    def _take_directory(self, stack: ExitStack) -> _Place:
        """The locked directory of this run, and where in the run to begin."""
        behavior = self._keys.get("behavior_if_log_dir_exists", None)
        remarks: list[str] = []
        for path in _numbered(self._base_directory()):
            lock = RunLock(path)
            release = stack.callback(lock.release)
            if not holds_run(path):
                self._refuse_foreign_files(path)
                return _Place(path, None, [*remarks, f"run directory: {path}"])
            last = self._last(path)
            finished = bool(last and last.final and not self._goes_on_after(last))
            contents = _describe(last, finished, self._unit)
            if decide(path, behavior, contents) == "delete":
                empty(path)
                return _Place(path, None, [f"deleted {contents} from {path}"])
            self._refuse_other_config(path)
            if finished:
                release()
                remarks = [f"{path} holds {contents}; this run gets a directory of its own"]
                continue
            self._refuse_past_the_end(path, last)
            resume, skipped = last, []
            if self._rows_kept is None:
                resume, skipped = get_last_resumable_checkpoint(path, self._rest_client)
            remarks = [*skipped, self._resume_remark(path, resume), *self._other_length(path)]
            return _Place(path, resume, remarks + self._other_code(path, contents, resume))
        raise AssertionError("unreachable")

    def _last(self, path: Path) -> CheckpointRecord | None:
        """Where the run in a directory has got to."""
        if self._rows_kept is None:
            return get_last_checkpoint(path)
        rows, total = self._rows_kept(path), self._total_steps
        finished = total is not None and rows > total
        return CheckpointRecord("rows", batch=total if finished else rows, final=finished)

    def _other_length(self, path: Path) -> list[str]:
        """What to know of a run that goes on with another end in sight than it began with."""
        there = json.loads((path / ml_log.CONFIG_FILE).read_bytes())
        changed = [
            f"{key} was {there.get(key)} and is {value} now"
            for key, value in self._length().items()
            if there.get(key) != value
        ]
        if not changed or self._config.get("lr_schedule") == "constant":
            return []
        return [
            f"{', '.join(changed)}: a learning-rate schedule spans"
            f" {counted(self._total_steps or 0, 'step')} from here on; the steps before followed"
            " the old one (another log_path starts afresh)"
        ]

    def _base_directory(self) -> Path:
        log_path = self._keys.get("log_path", None)
        if log_path is not None and not str(log_path).strip():
            raise ConfigurationError(
                "log_path= is empty; give a directory, or leave the key out for one in the runs"
                " directory"
            )
        if log_path is not None:
            return Path(log_path).expanduser().absolute()
        path = self._named_by(self._fixed(self._config))
        # before classes were known with their modules, the names of directories were others
        fixed = {k: v for k, v in self._fixed(self._config).items() if k != CONFIG_CLASS}
        older = self._named_by(code_identity.without_modules(fixed))
        return older if holds_run(older) and not holds_run(path) else path

    def _named_by(self, fixed: Mapping[str, Any]) -> Path:
        model = str(self._keys.get("model_name", None) or "").rstrip("/").rpartition("/")[2]
        text = json.dumps(fixed, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        name = "-".join(part for part in (self._recipe, model, digest) if part)
        return runs_path(re.sub(r"[^\w.+-]+", "_", name))

    def _fixed(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The part of a config that must be the same for a run to go on. A program of the user's
        own is part of it: two copies of a recipe may differ in all that matters."""
        fixed = _without(comparable(config), (*self._free, CONFIG_CLASS, USER_CODE))
        program = config.get(CONFIG_CLASS)
        return fixed | ({CONFIG_CLASS: program} if code_identity.modules([program]) else {})

    def _both_configs(self, path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
        """The one in a directory, and this one in the same form."""
        there = json.loads((path / ml_log.CONFIG_FILE).read_bytes())
        here = json.loads(jsonl.encode(self._config))
        if CONFIG_CLASS not in there:  # written before modules were known
            here = code_identity.without_modules(
                {key: value for key, value in here.items() if key != CONFIG_CLASS}
            )
        return there, here

    def _other_code(self, path: Path, contents: str, resume: CheckpointRecord | None) -> list[str]:
        """What to know of a run that goes on with edited code, or with other evaluations.

        ConfigurationError where the steps to come would be done by other code than those done.
        """
        there, here = self._both_configs(path)
        binding = code_identity.modules(self._fixed(self._config))
        code, before = self._config.get(USER_CODE, {}), there.get(USER_CODE, {})
        edited = code_identity.edited(before, {m: code[m] for m in code if m in binding})
        names = ", ".join(edited)
        if edited and resume and self._keys.get("behavior_if_log_dir_exists", None) != "resume":
            raise ConfigurationError(
                f"{path} holds {contents}, and {names} is not what it began with; restore it, set"
                " another log_path, or say behavior_if_log_dir_exists=resume to go on with the"
                " code as it is now, or =delete to start over"
            )
        remarks = (
            [f"{names} is not what it was: steps from here on are done by it"] if names else []
        )
        if CONFIG_CLASS not in there and code:
            unknown = ", ".join(sorted(code))
            remarks += [f"an earlier version began this run, unaware of the code of {unknown}"]
        evaluators = differences(_evaluators(there), _evaluators(here))
        evaluators += code_identity.edited(before, {m: code[m] for m in code if m not in binding})
        if evaluators and resume:
            remarks += [f"other evaluations from here on: {'; '.join(evaluators[:4])}"]
        return remarks

    def _length(self) -> dict[str, Any]:
        return {key: self._config[key] for key in LENGTH_KEYS if key in self._config}

    def _goes_on_after(self, last: CheckpointRecord) -> bool:
        """A longer run was asked for. The data alone never makes a finished run go on."""
        done = {key: last.extra[key] for key in LENGTH_KEYS if key in last.extra}
        more = self._total_steps is not None and (last.batch or 0) < self._total_steps
        return more and done != self._length()

    def _refuse_other_config(self, path: Path) -> None:
        try:
            there, here = self._both_configs(path)
        except (OSError, ValueError):
            raise ConfigurationError(
                f"{path} holds a run, but {ml_log.CONFIG_FILE} cannot be read; set another "
                "log_path, or behavior_if_log_dir_exists=delete"
            ) from None
        found = differences(self._fixed(there), self._fixed(here))
        if found:
            more = f" and {len(found) - 4} more" if len(found) > 4 else ""
            raise ConfigurationError(
                f"{path} holds a run of another config: {'; '.join(found[:4])}{more}; set another "
                "log_path, or behavior_if_log_dir_exists=delete"
            )

    def _refuse_foreign_files(self, path: Path) -> None:
        """A directory without a run may hold anything, but nothing that a run would overwrite."""
        file = path / ml_log.CONFIG_FILE
        if file.exists() and b'"recipe"' not in file.read_bytes():
            raise ConfigurationError(
                f"{file} belongs to something else and would be overwritten; set another log_path"
            )

    def _refuse_past_the_end(self, path: Path, last: CheckpointRecord | None) -> None:
        done = (last.batch or 0) if last else 0
        if self._total_steps is not None and done > self._total_steps:
            raise ConfigurationError(
                f"{path} holds a run that has done {counted(done, 'step')}, more than the "
                f"{self._total_steps} asked for; raise max_steps or set another log_path"
            )

    def _resume_remark(self, path: Path, last: CheckpointRecord | None) -> str:
        if last is None:
            return f"{path} holds a run without a checkpoint: starting it again at step 0"
        of_total = "" if self._total_steps is None else f" of {self._total_steps}"
        kept = "" if self._rows_kept else f" from checkpoint {last.name}"
        return f"resuming {path} at {self._unit} {last.batch}{of_total}{kept}"


class _Place(NamedTuple):
    path: Path
    resume: CheckpointRecord | None
    remarks: list[str]


class _Keys:
    """Optional keys of a config object or mapping."""

    def __init__(self, config: Any) -> None:
        self._config = config

    def get(self, key: str, default: Any) -> Any:
        if isinstance(self._config, Mapping):
            return self._config.get(key, default)
        return getattr(self._config, key, default)


def _evaluators(config: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in comparable(config).items() if fnmatchcase(k, "*evaluator_builders")}


def _without(config: Mapping[str, Any], patterns: Collection[str]) -> dict[str, Any]:
    """A nested config without the keys whose dotted names match, part by part."""
    split = [pattern.partition(".") for pattern in patterns]
    kept = {}
    for key, value in config.items():
        rests = [rest for first, _, rest in split if fnmatchcase(key, first)]
        if "" in rests:
            continue
        kept[key] = _without(value, rests) if rests and isinstance(value, Mapping) else value
    return kept


def _describe(last: CheckpointRecord | None, finished: bool, unit: str) -> str:
    if last is None:
        return "an unfinished run without a checkpoint"
    state = "a finished" if finished else "an unfinished"
    return f"{state} run of {counted(last.batch or 0, unit)}"


def _numbered(base: Path) -> Iterator[Path]:
    yield base
    for number in itertools.count(2):
        yield base.with_name(f"{base.name}-{number}")
