"""Draw metrics of runs over their steps, from their metrics.jsonl.

    ./scripts/curves RUN [RUN ...] --metrics test/correct,optim/entropy --out curves.svg

One panel per metric, one line per run, named after its directory. A run without a metric has no
line in that panel; a metric that no run has is an error.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

from tinker_cookbook.utils.ml_log import read_metrics

Points = list[tuple[int, float]]


def points_of(run: Path, metric: str) -> Points:
    """(step, value) of every row that has the metric."""
    return [
        (int(row["step"]), float(row[metric]))
        for row in read_metrics(run)
        if "step" in row and isinstance(row.get(metric), int | float)
    ]


def draw(curves: Mapping[str, Mapping[str, Points]], path: Path) -> None:
    """curves: metric -> name of the run -> points."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    # a fixed salt, so that the same figures give the same file
    plt.rcParams.update({"svg.hashsalt": "curves", "svg.fonttype": "none", "font.size": 8})
    figure, panels = plt.subplots(1, len(curves), figsize=(3.6 * len(curves), 2.6), squeeze=False)
    names = list(dict.fromkeys(name for runs in curves.values() for name in runs))
    for (metric, runs), panel in zip(curves.items(), panels[0]):
        for name, points in runs.items():
            few = "o" if len(points) < 20 else ""
            panel.plot(*zip(*points), f"{few}-", color=f"C{names.index(name)}", label=name)
        panel.set_xlabel("step")
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
    curves: dict[str, dict[str, Points]] = {}
    for metric in filter(None, words.metrics.split(",")):
        found = {name: points_of(run, metric) for name, run in zip(names, words.runs)}
        curves[metric] = {name: points for name, points in found.items() if points}
        if not curves[metric]:
            known = {key for run in words.runs for row in read_metrics(run) for key in row}
            near = [key for key in sorted(known) if metric.split("/")[-1] in key]
            hint = f": there is {', '.join(near[:8])}" if near else ""
            sys.exit(f"error: --metrics {metric} is in none of the runs{hint}")
    draw(curves, words.out)


if __name__ == "__main__":
    main()
