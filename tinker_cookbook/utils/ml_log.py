"""Log the metrics and configuration of a run to files, the terminal and Weights & Biases."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self, SupportsFloat

from tinker_cookbook.utils import jsonl
from tinker_cookbook.utils.code_state import code_state
from tinker_cookbook.utils.display import is_terminal, metrics_table, short
from tinker_cookbook.utils.files import disk_errors, replace_file
from tinker_cookbook.utils.plain_data import plain
from tinker_cookbook.utils.wandb_run import INTERRUPTED, WandbRun

METRICS_FILE = "metrics.jsonl"
CONFIG_FILE = "config.json"
CODE_FILE = "code.diff"
LOG_FILE = "logs.log"


MetricValue = str | SupportsFloat | None  # bools, numpy and torch scalars are numbers
Metrics = Mapping[str, MetricValue]
Sample = Mapping[str, MetricValue]  # a sampled reply: "prompt", "reply", and e.g. "reward"


class Logger(ABC):
    """A destination for the metrics and the configuration of a run; a context manager."""

    @abstractmethod
    def log_metrics(self, metrics: Metrics, step: int | None = None) -> None:
        """Log one row of metrics."""

    def log_hparams(self, config: Any) -> None:  # noqa: B027 (most loggers ignore it)
        """Log the configuration, of any type that `plain_data.plain` accepts."""

    def log_samples(self, name: str, rows: Iterable[Sample], step: int) -> None:  # noqa: B027
        """Log samples, for loggers that show tables; others do not iterate over `rows`."""

    def set_exit_code(self, code: int) -> None:  # noqa: B027
        """Say how the program ends, before `close`: 0, exit_code_of(error), or another."""

    def close(self) -> None:  # noqa: B027 (most loggers hold nothing open)
        """Release files and connections; nothing may be logged afterwards."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.set_exit_code(exit_code_of(error))
        self.close()


class MultiplexLogger(Logger):
    """Forward everything to each of several loggers, in order; the last one is closed first."""

    def __init__(self, loggers: Sequence[Logger]) -> None:
        self.loggers = list(loggers)

    def log_metrics(self, metrics: Metrics, step: int | None = None) -> None:
        for logger in self.loggers:
            logger.log_metrics(metrics, step)

    def log_hparams(self, config: Any) -> None:
        for logger in self.loggers:
            logger.log_hparams(config)

    def log_samples(self, name: str, rows: Iterable[Sample], step: int) -> None:
        for logger in self.loggers:
            logger.log_samples(name, rows, step)

    def set_exit_code(self, code: int) -> None:
        for logger in self.loggers:
            logger.set_exit_code(code)

    def close(self) -> None:
        while self.loggers:
            self.loggers.pop().close()


def setup_logging(
    log_dir: str | os.PathLike[str],
    wandb_project: str | None = None,
    wandb_name: str | None = None,
    config: Any | None = None,
    do_configure_logging_module: bool = True,
    show_metrics: bool = True,
) -> MultiplexLogger:
    """Make the logger of a run: metrics.jsonl, a table per row on stdout, and wandb if asked for.

    Also writes config.json and code.diff when a config is given, and sends Python's logging (INFO
    and above) to logs.log. Raises ConfigurationError if wandb is asked for but cannot start.
    """
    directory = Path(log_dir).expanduser()
    directory.mkdir(parents=True, exist_ok=True)
    logger = MultiplexLogger([JsonLogger(directory)])
    try:
        if show_metrics:
            logger.loggers.append(PrettyPrintLogger())
        if do_configure_logging_module:
            logger.loggers.append(_PythonLogging(directory / LOG_FILE))
        if wandb_project is not None:
            logger.loggers.append(WandbLogger(directory, wandb_project, wandb_name))
        if config is not None:
            logger.log_hparams(config)
    except BaseException as error:
        logger.set_exit_code(exit_code_of(error))
        logger.close()
        raise
    return logger


def exit_code_of(error: BaseException | None) -> int:
    """How wandb marks a run that ends with this exception: finished, interrupted or failed."""
    if isinstance(error, KeyboardInterrupt | asyncio.CancelledError):
        return INTERRUPTED
    return 0 if error is None else 1


def dump_config(config: Any) -> Any:
    """The configuration as plain data, as written to config.json."""
    return plain(config)


def configure_logging_module(path: str, level: int = logging.INFO) -> logging.Logger:
    """Send Python logging from `level` up to a file until the process ends, and warnings to stderr
    too. Returns the root logger."""
    _add_handlers(Path(path).expanduser(), level)
    return logging.getLogger()


def write_code_state(log_dir: Path) -> None:
    """Write code.diff; if a resumed run has different code by now, code-2.diff and so on."""
    state = code_state()
    for number in itertools.count(1):
        file = log_dir / (CODE_FILE if number == 1 else f"code-{number}.diff")
        if not file.exists():
            replace_file(file, state)
            return
        if file.read_bytes() == state.encode():
            return


def read_metrics(log_dir: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """All rows of metrics.jsonl, with NaN and infinity as floats; [] if there is no file."""
    lines = jsonl.read_lines(Path(log_dir).expanduser() / METRICS_FILE)
    return [jsonl.restore_floats(line.value) for line in lines]


class JsonLogger(Logger):
    """Write metrics.jsonl: one JSON object per line, "step" first, fsynced before the call returns.
    `log_hparams` writes config.json, atomically and in field order, and code.diff."""

    def __init__(self, log_dir: str | os.PathLike[str]) -> None:
        self.log_dir = Path(log_dir).expanduser()
        self.log_dir.mkdir(parents=True, exist_ok=True)

    def log_metrics(self, metrics: Metrics, step: int | None = None) -> None:
        head = {} if step is None else {"step": step}
        jsonl.append_line(self.log_dir / METRICS_FILE, head | plain(metrics))

    def log_hparams(self, config: Any) -> None:
        replace_file(self.log_dir / CONFIG_FILE, jsonl.encode(plain(config), indent=2) + "\n")
        write_code_state(self.log_dir)


class PrettyPrintLogger(Logger):
    """Print each row to stdout: as a table on a terminal, as one line elsewhere."""

    def log_metrics(self, metrics: Metrics, step: int | None = None) -> None:
        title, row = "metrics" if step is None else f"step {step}", plain(metrics)
        if is_terminal(sys.stdout):
            from rich.console import Console

            Console(file=sys.stdout, highlight=False).print(metrics_table(title, row))
        else:
            print("  ".join([title, *(f"{k} {short(v)}" for k, v in row.items())]), flush=True)


class WandbLogger(Logger):
    """Log to Weights & Biases; a resumed run continues the same wandb run (see wandb_run.py)."""

    def __init__(self, log_dir: Path, project: str, name: str | None = None) -> None:
        """name: None for that of the directory. Raises ConfigurationError: see WandbRun."""
        self._log_dir, self._exit_code = log_dir, 0
        self._run = WandbRun(log_dir, project, name, read_metrics(log_dir))

    def log_metrics(self, metrics: Metrics, step: int | None = None) -> None:
        self._run.log(plain(metrics), step)

    def log_hparams(self, config: Any) -> None:
        self._run.config(plain(config), sorted(self._log_dir.glob("code*.diff")))

    def log_samples(self, name: str, rows: Iterable[Sample], step: int) -> None:
        self._run.log_samples(name, map(plain, rows), step)

    def set_exit_code(self, code: int) -> None:
        self._exit_code = code

    def close(self) -> None:
        self._run.finish(self._exit_code)


class _Stderr(logging.StreamHandler):
    """Write to the current sys.stderr: the live display redirects it after start-up."""

    def __init__(self) -> None:
        logging.Handler.__init__(self, logging.WARNING)

    @property
    def stream(self) -> Any:
        return sys.stderr


class _LogFile(logging.FileHandler):
    """A log file that reports a full disk once and in one line: a run does not need its log."""

    _told = False

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self._told:
            self._told = True
            print(
                f"WARNING: {self.baseFilename} cannot be written: {error.strerror}; free space,"
                " or this log will have gaps",
                file=sys.stderr,
            )

    def close(self) -> None:
        with suppress(OSError):  # closing retries the writes that failed
            super().close()


class _PythonLogging(Logger):
    """Python logging to a file until this is closed; metrics go to the other loggers."""

    def __init__(self, path: Path) -> None:
        self._handlers = _add_handlers(path, logging.INFO)

    def log_metrics(self, metrics: Metrics, step: int | None = None) -> None:
        pass

    def close(self) -> None:
        for handler in self._handlers:
            logging.getLogger().removeHandler(handler)
            handler.close()
        self._handlers.clear()


def _add_handlers(path: Path, level: int) -> list[logging.Handler]:
    """Send everything from `level` up to the file, and warnings also to stderr (the default)."""
    with disk_errors(path):
        file = _LogFile(path, encoding="utf-8")
    file.setLevel(level)
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    console = _Stderr()
    console.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    root = logging.getLogger()
    root.setLevel(min(root.getEffectiveLevel(), level))
    for name in ("httpx", "httpcore", "urllib3", "filelock", "fsspec"):  # a line per request
        logging.getLogger(name).setLevel(logging.WARNING)
    handlers: list[logging.Handler] = [file, console]
    for handler in handlers:
        root.addHandler(handler)
    return handlers
