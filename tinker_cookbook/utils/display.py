"""What a run shows while it trains: a live line on a terminal, a plain line a step elsewhere."""

from __future__ import annotations

import math
import os
import sys
import time
from collections import deque
from collections.abc import Mapping
from typing import IO, Any, Literal, get_args

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn
from rich.table import Column, Table

from tinker_cookbook.exceptions import ConfigurationError

DisplayMode = Literal["auto", "live", "plain", "table", "none"]

# metric name -> short label; those that a row has are shown, in this order
HEADLINES = {
    "train_mean_nll": "loss",
    "loss": "loss",
    "dpo_loss": "loss",
    "env/all/reward/total": "reward",
    "reward/total": "reward",
    "accuracy": "accuracy",
}
TOKEN_COUNTS = ("num_tokens", "env/all/total_ac_tokens")  # tokens of one step, for tokens/s
_WINDOW = 20  # steps that speed and ETA are averaged over


class Display:
    """Progress of one run on a stream (default: stdout as it is at that moment).

    mode: "live" a line that redraws itself, "plain" one line a step without control characters,
    "table" all metrics of each step as a table, "none" nothing but what `say` prints;
    "auto" is "live" on a terminal and "plain" elsewhere. unit: what a step is called.
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
        self._headlines = HEADLINES | dict(headlines or {})
        self._ends: deque[float] = deque(maxlen=_WINDOW + 1)  # when the last steps ended
        self._tokens: deque[float] = deque(maxlen=_WINDOW)
        self._progress: Progress | None = None
        self._task: Any = None

    def start(self, first_step: int = 0) -> None:
        """Starts the clock; `first_step` is the number of steps done by an earlier process."""
        self._ends.append(time.perf_counter())
        if self._mode != "live":
            return
        self._progress = Progress(
            SpinnerColumn(finished_text=" "),
            BarColumn(bar_width=20),
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
        # Live hides the cursor, and a killed process could not show it again
        self._console.show_cursor(True)

    def update(self, step: int, row: Mapping[str, Any]) -> None:
        """Shows the metrics of the 0-based step that just ended."""
        self._ends.append(time.perf_counter())
        self._tokens.append(next((float(row[k]) for k in TOKEN_COUNTS if k in row), 0.0))
        done = step + 1 if self._total is None else min(step + 1, self._total)
        line = "  ".join([self._name(done), *self._figures(done, row)])
        if self._mode == "plain":
            self._write(line)
        elif self._mode == "table":
            self._console.print(metrics_table(self._name(done), row))
        elif self._progress is not None:
            self._progress.update(self._task, completed=done, description=line)
            if evaluations(row):  # rare and worth keeping: the live line is overwritten
                self._write(line)

    def say(self, text: str) -> None:
        """Prints a line above the live line."""
        self._write(text)

    def close(self) -> None:
        """Ends the live line; may be called twice."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def _write(self, text: str) -> None:
        if self._progress is not None:
            self._console.print(text, markup=False, soft_wrap=True)
        else:
            print(text, file=self._stream, flush=True)

    def _name(self, done: int) -> str:
        of_total = "" if self._total is None else f"/{self._total}"
        return f"{self._unit} {done}{of_total}"

    def _figures(self, done: int, row: Mapping[str, Any]) -> list[str]:
        figures = [
            f"{label} {short(row[key])}" for key, label in self._headlines.items() if key in row
        ]
        figures += [f"{key} {short(value)}" for key, value in evaluations(row).items()]
        seconds = self._ends[-1] - self._ends[0]
        steps = len(self._ends) - 1
        if steps and seconds > 0:
            if any(self._tokens):
                figures.append(f"{short(sum(self._tokens) / seconds)} tok/s")
            if self._total is not None and done < self._total:
                figures.append(f"ETA {duration((self._total - done) * seconds / steps)}")
        figures.append(memory())
        return figures


def is_terminal(stream: IO[str]) -> bool:
    """True if escape sequences make sense on this stream."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def evaluations(row: Mapping[str, Any]) -> dict[str, Any]:
    """The headline results of evaluators in a row: names under test/ with no further level."""
    return {k: v for k, v in row.items() if k.startswith("test/") and k.count("/") == 1}


def metrics_table(title: str, row: Mapping[str, Any]) -> Table:
    table = Table(title=title, title_justify="left", show_header=False)
    for key, value in row.items():
        table.add_row(key, short(value))
    return table


def short(value: Any) -> str:
    """A number in few characters: 0.00042, 1.2346, 12.3k, 4.56M."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if not math.isfinite(value):
        return str(value)
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            return f"{value / (1e3 if unit == 'k' else limit):.3g}{unit}"
    return str(value) if isinstance(value, int) else f"{value:.4g}"


def duration(seconds: float) -> str:
    """0:07, 12:34 or 3:25:01."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def memory() -> str:
    """Peak memory of the GPU if this process uses one, else resident memory of the process."""
    torch = sys.modules.get("torch")  # never imported only to show a figure
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        return f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB GPU"
    import psutil

    return f"{psutil.Process().memory_info().rss / 2**30:.2f} GiB"
