"""Metrics and configuration of a run, to files, to the terminal and to Weights & Biases."""

from __future__ import annotations

import itertools
import logging
import os
import sys
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.utils import jsonl
from tinker_cookbook.utils.code_state import code_state
from tinker_cookbook.utils.display import is_terminal, metrics_table
from tinker_cookbook.utils.files import disk_errors, replace_file
from tinker_cookbook.utils.misc_utils import install_line
from tinker_cookbook.utils.plain_data import plain

METRICS_FILE = "metrics.jsonl"
CONFIG_FILE = "config.json"
CODE_FILE = "code.diff"
LOG_FILE = "logs.log"


class Sink(Protocol):
    """One place that metrics go to."""

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None) -> None: ...

    def close(self) -> None: ...


class Logger:
    """Passes every row of metrics to all of its sinks, in order."""

    def __init__(
        self, log_dir: Path, sinks: Sequence[Sink], handlers: Sequence[logging.Handler] = ()
    ) -> None:
        self.log_dir = log_dir
        self._sinks = list(sinks)
        self._handlers = list(handlers)

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """One row. Values: numbers, strings, booleans; numpy and torch scalars are converted."""
        row = {key: plain(value) for key, value in metrics.items()}
        for sink in self._sinks:
            sink.log_metrics(row, step)

    def log_hparams(self, config: Any) -> None:
        """Writes the configuration to config.json, atomically and in the order of its fields."""
        write_config(self.log_dir, plain(config))

    def close(self) -> None:
        """Closes every sink and takes the log file away from Python's logging."""
        for sink in self._sinks:
            sink.close()
        self._sinks.clear()
        for handler in self._handlers:
            logging.getLogger().removeHandler(handler)
            handler.close()
        self._handlers.clear()

    def __enter__(self) -> Logger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def setup_logging(
    log_dir: str | os.PathLike[str],
    wandb_project: str | None = None,
    wandb_name: str | None = None,
    config: Any | None = None,
    do_configure_logging_module: bool = True,
    show_metrics: bool = True,
) -> Logger:
    """The logger of a run: metrics.jsonl, a table per row on stdout, wandb if a project is given.

    Also writes config.json and code.diff when a config is given, and sends Python's logging (INFO
    and above) to logs.log. Raises ConfigurationError if wandb is asked for and not installed.
    """
    directory = Path(log_dir).expanduser()
    directory.mkdir(parents=True, exist_ok=True)
    sinks: list[Sink] = [JsonlSink(directory / METRICS_FILE)]
    if show_metrics:
        sinks.append(TerminalSink())
    if wandb_project is not None:
        sinks.append(WandbSink(directory, wandb_project, wandb_name, plain(config)))
    handlers = _python_logging(directory / LOG_FILE) if do_configure_logging_module else []
    logger = Logger(directory, sinks, handlers)
    if config is not None:
        logger.log_hparams(config)
        write_code_state(directory)
    return logger


def write_config(log_dir: Path, config: Any) -> None:
    """config.json from plain data."""
    replace_file(log_dir / CONFIG_FILE, jsonl.encode(config, indent=2) + "\n")


def write_code_state(log_dir: Path) -> None:
    """code.diff; beside one of other code (a resumed run) code-2.diff and so on."""
    state = code_state()
    for number in itertools.count(1):
        file = log_dir / (CODE_FILE if number == 1 else f"code-{number}.diff")
        if not file.exists():
            replace_file(file, state)
            return
        if file.read_bytes() == state.encode():
            return


def read_metrics(log_dir: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """All rows of metrics.jsonl, NaN and infinity as floats again; [] if there is none."""
    lines = jsonl.read_lines(Path(log_dir).expanduser() / METRICS_FILE)
    return [jsonl.restore_floats(line.value) for line in lines]


class JsonlSink:
    """One JSON object a line, "step" first, on disk (fsync) before the call returns."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None) -> None:
        head = {} if step is None else {"step": step}
        jsonl.append_line(self._path, head | dict(metrics))

    def close(self) -> None:
        pass


class TerminalSink:
    """A table per row on a terminal, one line per row elsewhere."""

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None) -> None:
        title = "metrics" if step is None else f"step {step}"
        if is_terminal(sys.stdout):
            from rich.console import Console

            Console(file=sys.stdout, highlight=False).print(metrics_table(title, metrics))
        else:
            from tinker_cookbook.utils.display import short

            figures = [f"{key} {short(value)}" for key, value in metrics.items()]
            print("  ".join([title, *figures]), flush=True)

    def close(self) -> None:
        pass


class WandbSink:
    """Weights & Biases; a resumed run goes on in the same wandb run."""

    def __init__(self, log_dir: Path, project: str, name: str | None, config: Any) -> None:
        try:
            import wandb  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise ConfigurationError(
                f"wandb_project={project!r} needs the package wandb; install it with: "
                + install_line("wandb")
            ) from None
        try:
            self._run = wandb.init(
                project=project,
                name=name,
                dir=str(log_dir),
                config=config,
                id=_wandb_id(log_dir),
                resume="allow",
            )
        except Exception as e:  # no key, no network, no such project: the user's to mend
            raise ConfigurationError(
                f"wandb_project={project!r}: wandb could not start ({e}); run `wandb login` "
                "or set WANDB_MODE=offline"
            ) from e

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None) -> None:
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        self._run.finish()


def _wandb_id(log_dir: Path) -> str:
    file = log_dir / ".wandb-id"
    if not file.exists():
        replace_file(file, uuid.uuid4().hex[:12])
    return file.read_text()


class _Stderr(logging.StreamHandler):
    """Warnings on sys.stderr as it is when they happen: the live display redirects it."""

    def __init__(self) -> None:
        logging.Handler.__init__(self, logging.WARNING)

    @property
    def stream(self) -> Any:
        return sys.stderr


class _LogFile(logging.FileHandler):
    """A full disk is told once, in one line: a run does not depend on its log."""

    _told = False

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self._told:
            self._told = True
            print(
                f"WARNING: {self.baseFilename} cannot be written: {error.strerror}; free space,"
                " or this log has gaps",
                file=sys.stderr,
            )

    def close(self) -> None:
        with suppress(OSError):  # it tries once more to write what could not be written
            super().close()


def _python_logging(path: Path) -> list[logging.Handler]:
    """Everything from INFO up goes to the file; warnings also to stderr, as without a file."""
    with disk_errors(path):
        file = _LogFile(path, encoding="utf-8")
    file.setLevel(logging.INFO)
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    console = _Stderr()
    console.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    root = logging.getLogger()
    root.setLevel(min(root.getEffectiveLevel(), logging.INFO))
    for name in ("httpx", "httpcore", "urllib3", "filelock", "fsspec"):  # a line per request
        logging.getLogger(name).setLevel(logging.WARNING)
    handlers: list[logging.Handler] = [file, console]
    for handler in handlers:
        root.addHandler(handler)
    return handlers
