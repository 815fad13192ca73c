"""The plot of docs/benchmarks.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def draw_growth(line: dict[str, Any], path: Path) -> None:
    """Plot one panel per sweep: seconds per step, and memory on the right axis."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    # a fixed salt, so that the same figures give the same file
    plt.rcParams.update({"svg.hashsalt": "growth", "svg.fonttype": "none", "font.size": 8})
    measured = [row for row in line["rows"] if "sweep" in row]
    sweeps = list(dict.fromkeys(row["sweep"] for row in measured))
    figure, panels = plt.subplots(1, len(sweeps), figsize=(3 * len(sweeps), 2.6), squeeze=False)
    for sweep, panel in zip(sweeps, panels[0]):
        rows = [row for row in measured if row["sweep"] == sweep]
        values = [row["value"] for row in rows]
        panel.plot(values, [row["median_seconds"] for row in rows], "o-", color="C0")
        panel.set_xscale("log", base=2)
        panel.set_xticks(values, [f"{value:,}" for value in values], rotation=45)
        panel.set_ylim(0, 1.1 * max(row["median_seconds"] for row in rows))
        panel.set_xlabel(rows[0]["name"].replace(" (", "\n("))
        panel.set_ylabel("seconds per step", color="C0")
        memory = panel.twinx()
        memory.plot(values, [row["memory_gib"] for row in rows], "s--", color="C1")
        memory.set_ylim(0, 1.1 * max(row["memory_gib"] for row in rows))
        memory.set_ylabel("GiB", color="C1")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
