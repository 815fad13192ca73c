"""The Weights & Biases run of a run directory: the same one however often training is resumed.

metrics.jsonl is the record of a run; wandb gets every row of it once:

- offline, wandb begins a new directory at every start, and its `sync` does not join directories of
  one id. So each start writes all earlier rows and tables into its new directory and removes the
  earlier ones: one directory holds the whole run. This also restores the rows that a killed process
  had not written yet.
- online, the service says after which step it continues (`run.step`): earlier rows are left out,
  missing ones are sent. What the service has of a step it keeps: if a finished run is made longer,
  its last row there stays that of the evaluation, without the training metrics of that step.
"""

from __future__ import annotations

import logging
import os
import shlex
import shutil
import threading
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.utils import jsonl
from tinker_cookbook.utils.error_text import first_line
from tinker_cookbook.utils.files import replace_file
from tinker_cookbook.utils.json_types import Plain
from tinker_cookbook.utils.misc_utils import install_line, python_command

logger = logging.getLogger(__name__)

CONNECT_SECONDS = 5.0  # to decide whether there is a network
INIT_SECONDS = 30.0
FINISH_SECONDS = 60.0  # to upload what is left; the rest stays on disk for `wandb sync`
MAX_SAMPLES = 16  # rows of a table
MAX_SAMPLE_CHARS = 4000  # of a text in a table; the middle of a longer one is left out
ID_FILE = ".wandb-id"
SAMPLES_FILE = "samples.jsonl"  # in the directory "wandb": tables, to write them again on resume

INTERRUPTED = 255  # the exit code by which wandb knows a Ctrl-C


class WandbRun:
    """Start, or continue, the wandb run of a run directory. An error of wandb after the start is
    reported once and never ends the training."""

    def __init__(
        self,
        log_dir: Path,
        project: str,
        name: str | None,
        earlier: Sequence[Mapping[str, Any]],
    ) -> None:
        """name: None for that of the directory. earlier: the rows of metrics.jsonl.

        Raises ConfigurationError if wandb is not installed, or refuses the key or the project.
        """
        try:
            import wandb  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise ConfigurationError(
                f"wandb_project={project!r} needs the package wandb; install it with: "
                + install_line("wandb")
            ) from None
        self._wandb, self._directory, self._off = wandb, log_dir / "wandb", False
        self._environment = {  # else wandb writes into the home directory
            "WANDB_DATA_DIR": str(self._directory / "data"),
            "WANDB_CACHE_DIR": str(self._directory / "cache"),
        }
        stale = [*self._directory.glob("offline-run-*"), self._directory / "data"]
        with _set_defaults(self._environment):
            self._run = self._start(log_dir, project, name or log_dir.resolve().name)
        if self._run.disabled:  # WANDB_MODE=disabled: what an earlier start wrote is kept
            self._off = True
            return
        self._print_place()
        self._next = self._run.step or 0
        with self._reported():
            for directory in stale:  # the new run gets all that they hold, from our own files
                shutil.rmtree(directory, ignore_errors=True)
            self._repeat(earlier)

    def _start(self, log_dir: Path, project: str, name: str) -> Any:
        wandb = self._wandb
        settings = wandb.Settings(
            console="off",  # wandb's capture of the terminal breaks the live display
            silent=True,
            init_timeout=INIT_SECONDS,
            finish_timeout=FINISH_SECONDS,
            finish_timeout_raises=True,
        )

        def start(mode: str) -> Any:
            return wandb.init(
                project=project,
                name=name,
                dir=str(log_dir),
                id=_wandb_id(log_dir),
                # an offline directory holds the whole run: it continues none
                resume=None if mode == "offline" else "allow",
                mode=mode,
                settings=settings,
            )

        try:
            mode, self._reason = self._choose_mode(wandb.setup(settings=settings).settings)
            try:
                return start(mode)
            except wandb.errors.CommError as error:
                if isinstance(error, wandb.errors.AuthenticationError) or _mode_is_set():
                    raise
                self._reason = first_line(error)
                return start("offline")
        except Exception as error:  # a wrong key, no such project: the user has to fix it
            raise ConfigurationError(
                f"wandb_project={project!r}: wandb could not start ({first_line(error)}); run"
                " `wandb login` or set WANDB_MODE=offline"
            ) from error

    def _choose_mode(self, settings: Any) -> tuple[str, str]:
        """wandb's mode, and the reason if it is offline although the user has not said so."""
        if settings.mode != "online":  # by WANDB_MODE or `wandb offline`
            return settings.mode, ""
        has_key = self._wandb.login(prompt=False, verify=False)
        if _mode_is_set():
            if not has_key:  # wandb would ask for it, on the terminal
                raise self._wandb.errors.UsageError("WANDB_MODE=online needs a key")
        elif not has_key:
            return "offline", "no key (run `wandb login`)"
        elif not is_reachable(settings.base_url):
            return "offline", f"{settings.base_url} does not answer"
        return "online", ""

    def _print_place(self) -> None:
        if self._run.url:
            line = f"wandb: {self._run.url}"
        else:
            reason = f", {self._reason}" if self._reason else ""
            line = f"wandb: offline{reason}; to upload: {self._sync_command()}"
        print(line, flush=True)
        logger.info("%s", line)

    def _sync_command(self) -> str:
        return f"{python_command()} -m wandb sync {shlex.quote(str(self._directory))}"

    def _repeat(self, earlier: Sequence[Mapping[str, Any]]) -> None:
        """Log what the earlier starts have logged and this wandb run lacks, in order."""
        steps = [row["step"] for row in earlier if isinstance(row.get("step"), int)]
        end = max(steps, default=-1) + 1
        samples = self._directory / SAMPLES_FILE
        # A table of a step without a row is made again with the step.
        jsonl.keep_lines(samples, lambda line: line["step"] < end)
        tables = [line.value for line in jsonl.read_lines(samples)]
        for row in earlier:
            step = row.get("step")
            if not isinstance(step, int):
                continue
            for table in tables:
                if table["step"] == step:
                    self._log_table(table["name"], table["rows"], step)
            self._log_numbers({key: row[key] for key in row if key != "step"}, step)

    def config(self, config: Plain, files: Iterable[Path]) -> None:
        """Set the run's config, and store copies of small files with the run."""
        if self._off:
            return
        with self._reported():
            self._run.config.update(config, allow_val_change=True)
            for file in files:
                # copied, because wandb's own way is a link, which breaks if the run is moved
                copy = shutil.copy(file, self._run.dir)
                self._run.save(copy, base_path=self._run.dir, policy="now")

    def log(self, row: Mapping[str, Plain], step: int | None) -> None:
        if self._off:
            return
        with self._reported():
            self._log_numbers(row, step)

    def log_samples(self, name: str, rows: Iterable[Mapping[str, Plain]], step: int) -> None:
        """Log a table of at most MAX_SAMPLES samples as `samples/<name>`."""
        if self._off:
            return
        with self._reported():
            shortened = [
                {key: _shorten(value) for key, value in row.items()}
                for row in islice(rows, MAX_SAMPLES)
            ]
            if shortened:
                table = {"step": step, "name": name, "rows": shortened}
                jsonl.append_line(self._directory / SAMPLES_FILE, table)
                self._log_table(name, shortened, step)

    def _log_numbers(self, row: Mapping[str, Plain], step: int | None) -> None:
        numbers = {key: value for key, value in row.items() if isinstance(value, int | float)}
        if step is None or step >= self._next:  # wandb refuses earlier steps
            self._run.log(numbers, step=step)

    def _log_table(self, name: str, rows: Sequence[Mapping[str, Plain]], step: int) -> None:
        if step < self._next:
            return
        columns = list(dict.fromkeys(key for row in rows for key in row))
        data = [[row.get(column) for column in columns] for row in rows]
        with _set_defaults(self._environment):
            table = self._wandb.Table(columns=columns, data=data, allow_mixed_types=True)
            self._run.log({f"samples/{name}": table}, step=step)

    def finish(self, exit_code: int) -> None:
        """End the run: 0 finished, INTERRUPTED, others failed. Takes FINISH_SECONDS at most."""
        try:
            self._run.finish(exit_code=exit_code)
        except TimeoutError:
            logger.warning("wandb: the upload is not complete; later: %s", self._sync_command())
        except Exception as error:
            self._report(error)

    @contextmanager
    def _reported(self) -> Iterator[None]:
        """Report an error; nothing more is sent after the first, but a resumed run sends it all."""
        try:
            yield
        except Exception as error:
            self._report(error)

    def _report(self, error: Exception) -> None:
        if not self._off:
            self._off = True
            logger.warning(
                "wandb: %s: %s; the run goes on without it, and metrics.jsonl has every row",
                *(type(error).__name__, first_line(error)),
            )


def is_reachable(url: str, timeout: float = CONNECT_SECONDS) -> bool:
    """Whether an HTTP server answers, whatever it says, within `timeout` seconds.

    In a thread, because looking up a name has no time limit of its own.
    """
    import httpx

    answered = threading.Event()

    def ask() -> None:
        try:
            httpx.head(url, timeout=timeout, verify=False)  # nothing is sent: no key, no data
            answered.set()
        except (httpx.HTTPError, httpx.InvalidURL, OSError):
            pass
        finally:
            done.set()

    done = threading.Event()
    threading.Thread(target=ask, daemon=True).start()
    done.wait(timeout)
    return answered.is_set()


def _mode_is_set() -> bool:
    return bool(os.environ.get("WANDB_MODE"))


def _wandb_id(log_dir: Path) -> str:
    file = log_dir / ID_FILE
    if not file.exists():
        replace_file(file, uuid.uuid4().hex[:12])
    return file.read_text()


def _shorten(value: Plain) -> Plain:
    if not isinstance(value, str) or len(value) <= MAX_SAMPLE_CHARS:
        return value
    half = MAX_SAMPLE_CHARS // 2
    return f"{value[:half]} ... {value[-half:]}"


@contextmanager
def _set_defaults(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables that the user has not set."""
    unset = [key for key in values if key not in os.environ]
    os.environ.update({key: values[key] for key in unset})
    try:
        yield
    finally:
        for key in unset:
            os.environ.pop(key, None)
