"""Progress of a training run: a live line on a terminal, one plain line per step elsewhere."""

from __future__ import annotations

import math
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Literal, SupportsFloat, TypeAlias, TypeVar, get_args

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn
from rich.table import Column, Table

from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.utils import stop_signals

T = TypeVar("T")
Figure: TypeAlias = str | SupportsFloat | None  # SupportsFloat: numpy and torch scalars too
DisplayMode = Literal["auto", "live", "plain", "table", "none"]

# metric name -> label; the line shows those that the row has, in this order
HEADLINES = {
    "train_mean_nll": "loss",
    "loss": "loss",
    "dpo_loss": "loss",
    "kto_loss": "loss",
    "rm_loss": "loss",
    "forward_kl": "forward KL",
    "sdft/forward_kl": "forward KL",
    "sdft/reverse_kl": "reverse KL",
    "env/all/reward/total": "reward",
    "reward/total": "reward",
    "accuracy": "accuracy",
    "test/env/all/correct": "test correct",
}
TOKEN_COUNTS = ("num_tokens", "env/all/total_ac_tokens")  # tokens of one step, for tokens/s
_ROUNDING_ERROR = 1e-12  # below, e.g. the mean of rewards that sum to 0; shown as 0
_WINDOW = 20  # number of steps over which speed and ETA are averaged
_BAR_WIDTH = 20
_NOT_TEXT = _BAR_WIDTH + 4  # columns of the live line taken by the spinner, the bar and the gaps


class Display:
    """Progress of one run on a stream (default: the current sys.stdout).

    mode: "live" redraws one line, "plain" prints one line per step without control characters,
    "table" prints all metrics of each step as a table, "none" prints only the lines of `log_line`;
    "auto" is "live" on a terminal and "plain" elsewhere. unit: the name of a step.
    """

    def __init__(
        self,
        total_steps: int | None = None,
        mode: str = "auto",
        stream: IO[str] | None = None,
        headlines: Mapping[str, str] | None = None,
        unit: str = "step",
    ) -> None:
        if mode not in get_args(DisplayMode):
            choices = ", ".join(get_args(DisplayMode))
            raise ConfigurationError(f"display={mode!r} is unknown; set one of {choices}")
        self._stream = stream or sys.stdout
        if mode == "auto":
            mode = "live" if is_terminal(self._stream) else "plain"
        self._mode = mode
        self._console = Console(file=self._stream, highlight=False)
        self._total, self._unit = total_steps, unit
        own = dict(headlines or {})  # in their own order
        self._headlines = {key: HEADLINES[key] for key in HEADLINES if key not in own} | own
        # expected seconds of evaluations after a step, for the ETA; set by `Evaluations`
        self.evaluations_after: Callable[[int], float] = lambda step: 0.0
        self._last_end = 0.0
        self._warm = False  # the first step is slower: it also loads, compiles and fills caches
        self._seconds: deque[float] = deque(maxlen=_WINDOW)  # per step, evaluations excluded
        self._tokens: deque[float] = deque(maxlen=_WINDOW)
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def start(self, first_step: int = 0) -> None:
        """Start the clock. first_step: the first step of this process; above 0 if it resumes."""
        self._last_end = time.perf_counter()
        if self._mode != "live":
            return
        self._progress = Progress(
            SpinnerColumn(finished_text=" "),
            BarColumn(bar_width=_BAR_WIDTH),
            TextColumn(
                "{task.description}",
                markup=False,
                table_column=Column(no_wrap=True, overflow="ellipsis"),
            ),
            console=self._console,
            refresh_per_second=4,
        )
        self._task = self._progress.add_task(
            self._name(first_step), total=self._total, completed=first_step
        )
        self._progress.start()
        # rich.Live would hide the cursor, and a killed process could not restore it
        self._console.show_cursor(True)

    def update(self, step: int, row: Mapping[str, Figure]) -> str:
        """Show the metrics of the step that has just ended, numbered as in metrics.jsonl; returns
        the whole line."""
        now = time.perf_counter()
        training = self._total is None or step < self._total
        if training and self._warm:
            self._seconds.append(max(now - self._last_end - _number(row, "time/evals"), 0.0))
            self._tokens.append(next((_number(row, k) for k in TOKEN_COUNTS if k in row), 0.0))
        self._warm, self._last_end = True, now
        figures = self._figures(step, row)
        line = "  ".join([self._name(step), *figures])
        if self._mode == "plain":
            self._write(line)
        elif self._mode == "table":
            self._console.print(metrics_table(self._name(step), row))
        elif self._progress is not None:
            self._live(step, figures, completed=step + training)
            if evaluations(row):  # rare, and the live line gets overwritten
                self._write(line)
        return line

    def evaluating(self, step: int) -> None:
        """Show that the weights before `step` are being evaluated."""
        if self._progress is not None:
            self._live(step, ["evaluating"], completed=step)
        elif self._mode in ("plain", "table"):
            self._write(f"{self._name(step)}  evaluating")

    def log_line(self, text: str) -> None:
        """Print a line above the live line."""
        self._write(text)

    def close(self) -> None:
        """End the live line; harmless if called twice."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def _write(self, text: str) -> None:
        try:
            if self._progress is not None:
                self._console.print(text, markup=False, soft_wrap=True)
            else:
                print(text, file=self._stream, flush=True)
        except OSError:
            # a Ctrl-C also ends the `tee` that we write to; the run must still be saved
            if stop_signals.active().requested is None:
                raise
            stop_signals.discard(self._stream)

    def _live(self, step: int, figures: Sequence[str], completed: int) -> None:
        """Redraw the live line with as many figures as fit, in order of importance."""
        assert self._progress is not None and self._task is not None
        room = self._console.width - _NOT_TEXT - len(self._name(step))
        important = sorted(figures, key=lambda text: not text.startswith("ETA"))
        kept = set()
        for text in [*figures[:1], *important]:
            if text not in kept and len(text) + 2 <= room:
                kept.add(text)
                room -= len(text) + 2
        line = "  ".join([self._name(step), *(text for text in figures if text in kept)])
        self._progress.update(self._task, completed=completed, description=line)

    def _name(self, step: int) -> str:
        of_total = "" if self._total is None else f"/{self._total}"
        return f"{self._unit} {step}{of_total}"

    def _figures(self, step: int, row: Mapping[str, Figure]) -> list[str]:
        figures = [
            f"{label} {short(row[key])}" for key, label in self._headlines.items() if key in row
        ]
        figures += [f"{key} {short(value)}" for key, value in evaluations(row).items()]
        seconds = sum(self._seconds)
        if seconds > 0:
            if any(self._tokens):
                figures.append(f"{short(sum(self._tokens) / seconds)} tok/s")
            if self._total is not None and step < self._total:
                steps = (self._total - step - 1) * seconds / len(self._seconds)
                figures.append(f"ETA {duration(steps + self.evaluations_after(step))}")
        figures.append(memory())
        return figures


def is_terminal(stream: IO[str]) -> bool:
    """Whether the stream is a terminal that understands escape sequences."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def _number(row: Mapping[str, Figure], key: str) -> float:
    value = row.get(key)
    return 0.0 if value is None else float(value)


def evaluations(row: Mapping[str, T]) -> dict[str, T]:
    """The headline results of evaluators in a row: metrics named test/NAME, one slash only."""
    return {k: v for k, v in row.items() if k.startswith("test/") and k.count("/") == 1}


def metrics_table(title: str, row: Mapping[str, Figure]) -> Table:
    table = Table(title=title, title_justify="left", show_header=False)
    for key, value in row.items():
        table.add_row(key, short(value))
    return table


def short(value: Figure) -> str:
    """Format a number in few characters: 0.00042, 1.2346, 12.3k, 4.56M."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if not math.isfinite(value):
        return str(value)
    if abs(value) < _ROUNDING_ERROR:
        return "0"
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            return f"{value / (1e3 if unit == 'k' else limit):.3g}{unit}"
    return str(value) if isinstance(value, int) else f"{value:.4g}"


def duration(seconds: float) -> str:
    """Format seconds as 0:07, 12:34 or 3:25:01."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def memory() -> str:
    """Peak memory of the GPU if this process uses one, else resident memory of the process."""
    torch = sys.modules.get("torch")  # importing torch only for this figure would take seconds
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        return f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB GPU"
    import psutil

    return f"{psutil.Process().memory_info().rss / 2**30:.2f} GiB"
