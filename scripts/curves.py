"""Draw metrics of runs over their steps, from their metrics.jsonl.

    ./scripts/curves RUN [RUN ...] --metrics test/correct,optim/entropy --out curves.svg
    ./scripts/curves RUN [RUN ...] --metrics test/correct --over num_loss_tokens --out curves.svg

One panel per metric, one line per run, named after its directory; names that differ only in a
number at the end (sft-0, sft-1) share a colour. A run without a metric has no line in that panel; a
metric that no run has is an error. --over: the sum of a metric over the steps before, in place of
the step; of several metrics, the first that a row has.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tinker_cookbook.utils.ml_log import read_metrics

Points = list[tuple[float, float]]


def points_of(run: Path, metric: str, over: Sequence[str] = ()) -> Points:
    """(step, value) of every row that has the metric. over: (sum before the step, value)."""
    points: Points = []
    total = 0.0
    for row in read_metrics(run):
        if "step" not in row:
            continue
        if isinstance(value := row.get(metric), int | float):
            points.append((total if over else int(row["step"]), float(value)))
        total += next((float(row[name]) for name in over if name in row), 0.0)
    return points


def without_number(name: str) -> str:
    """The name of a run without a number at its end: that of all seeds."""
    return re.sub(r"[-_]\d+$", "", name)


def draw(curves: Mapping[str, Mapping[str, Points]], path: Path, xlabel: str = "step") -> None:
    """curves: metric -> name of the run -> points."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    # a fixed salt, so that the same figures give the same file
    plt.rcParams.update({"svg.hashsalt": "curves", "svg.fonttype": "none", "font.size": 8})
    figure, panels = plt.subplots(1, len(curves), figsize=(3.6 * len(curves), 2.6), squeeze=False)
    names = list(dict.fromkeys(without_number(name) for runs in curves.values() for name in runs))
    for (metric, runs), panel in zip(curves.items(), panels[0]):
        for name, points in runs.items():
            few, label = "o" if len(points) < 20 else "", without_number(name)
            panel.plot(*zip(*points), f"{few}-", color=f"C{names.index(label)}", label=label)
        panel.set_xlabel(xlabel)
        panel.set_title(metric)
        panel.grid(alpha=0.3)
    shown = {label: line for p in panels[0] for line, label in zip(*p.get_legend_handles_labels())}
    panels[0][0].legend(list(shown.values()), list(shown))
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(usage="%(prog)s RUN [RUN ...] --metrics NAMES --out FILE.svg")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run's directory")
    parser.add_argument("--metrics", required=True, help="names of metrics, with commas between")
    parser.add_argument("--over", default="", help="metrics to sum up for the horizontal axis")
    parser.add_argument("--out", required=True, type=Path, help="the SVG file to write")
    words = parser.parse_args()
    for run in words.runs:
        if not (run / "metrics.jsonl").is_file():
            sys.exit(f"error: {run} has no metrics.jsonl: expected the directory of a run")
    if not words.out.resolve().parent.is_dir():
        sys.exit(f"error: --out {words.out}: there is no directory {words.out.resolve().parent}")
    names = [run.resolve().name for run in words.runs]
    if len(set(names)) < len(names):  # tell them apart by the paths as given
        names = [str(run) for run in words.runs]
    over = [name for name in words.over.split(",") if name]
    curves: dict[str, dict[str, Points]] = {}
    for metric in filter(None, words.metrics.split(",")):
        found = {name: points_of(run, metric, over) for name, run in zip(names, words.runs)}
        curves[metric] = {name: points for name, points in found.items() if points}
        if not curves[metric]:
            known = {key for run in words.runs for row in read_metrics(run) for key in row}
            near = [key for key in sorted(known) if metric.split("/")[-1] in key]
            hint = f": there is {', '.join(near[:8])}" if near else ""
            sys.exit(f"error: --metrics {metric} is in none of the runs{hint}")
    draw(curves, words.out, f"sum of {' or '.join(over)}" if over else "step")


if __name__ == "__main__":
    main()
