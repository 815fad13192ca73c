"""Result tables, on the terminal and (from docs/benchmarks.json) in docs/benchmarks.md.

./scripts/bench/run report      # rewrites the tables and the drawing of docs/benchmarks.md
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from drawing import draw_growth

from tinker_cookbook.utils.files import replace_file

DRAWING = "benchmarks-growth.svg"
DOCS = Path(__file__).resolve().parent.parent.parent / "docs"
MAX_REASON = 100  # characters of a reason in a table

COLUMNS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "name": ("", str),
    "value": ("", "{:,}".format),
    "tokens_per_s": ("tokens/s", "{:,.0f}".format),
    "tokens_per_s_again": ("again, tokens/s", "{:,.0f}".format),
    "calls_per_s": ("calls/s", "{:,.0f}".format),
    "microseconds": ("µs per call", "{:.1f}".format),
    "median_seconds": ("seconds", "{:.3f}".format),
    "times_one": ("times one tenant", "{:.2f}".format),
    "times_as_fast": ("times as fast as the revision", "{:.3f}".format),
    "ratio": ("ratio", "{:.2f}".format),
    "memory_gib": ("memory of a step, GiB", "{:.2f}".format),
    "peak_rss_gib": ("peak RSS, GiB", "{:.2f}".format),
    "peak_gpu_gib": ("peak GPU, GiB", "{:.2f}".format),
    "gemm_share": ("share of GEMM peak", "{:.0%}".format),
    "first_loss": ("loss of the first step", "{:.6f}".format),
    "note": ("note", str),
}
REMARKS: dict[str, Callable[[Any], str]] = {
    "ratio_to_not_shared": "Sharing the prompt makes ours {:.2f} times as fast.".format,
    "largest_loss_difference": "Losses differ by {:.1e} at most.".format,
}


def table_cells(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    """The heading and rows of a table; columns without any value are omitted."""
    shown = []
    for row in rows:
        if "not_run" in row:
            row = {**row, "note": f"not run: {row['not_run'][:MAX_REASON]}"}
        shown.append(row)
    used = [key for key in COLUMNS if any(row.get(key) is not None for row in shown)]
    heading = [COLUMNS[key][0] for key in used]
    return [
        heading,
        *(
            [COLUMNS[key][1](row[key]) if row.get(key) is not None else "" for key in used]
            for row in shown
        ),
    ]


def text_table(rows: Sequence[dict[str, Any]]) -> str:
    table = table_cells(rows)
    widths = [max(map(len, column)) for column in zip(*table)]
    lines = []
    for line in table:
        first, *others = (text for text in line)
        padded = [first.ljust(widths[0]), *(t.rjust(w) for t, w in zip(others, widths[1:]))]
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


def save_result(path: Path, line: dict[str, Any]) -> None:
    """Save the results of a benchmark in a JSON file; replaces its earlier results."""
    lines = json.loads(path.read_text()) if path.exists() else {}
    lines[line["bench"]] = line
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, json.dumps(lines, indent=1, sort_keys=True) + "\n")


# -- the page


def markdown(line: dict[str, Any] | None, name: str) -> str:
    """The table of one benchmark, after a line with date, machine, versions and settings."""
    if line is None:
        return f"No figures here yet: `./scripts/bench/run {name} save=docs/benchmarks.json`."
    machine, versions = line["machine"], line["versions"]
    place = (
        f"{line['date']}, {machine['cpu']}, {machine['threads']} threads of {machine['cores']}"
        f" cores, {machine['device']}"
    )
    if line.get("gemm_tflops"):
        place += f", GEMM peak {line['gemm_tflops']:.2f} TFLOP/s in {line['model']['dtype']}"
    packages = ", ".join(f"{name} {version}" for name, version in versions.items())
    table = table_cells(line["rows"])
    rule = ["---", *["---:"] * (len(table[0]) - 1)]
    if table[0][-1] == COLUMNS["note"][0]:
        rule[-1] = "---"
    lines = [
        "| " + " | ".join(text.replace("|", "\\|") for text in cells_of_line) + " |"
        for cells_of_line in [table[0], rule, *table[1:]]
    ]
    drawing = ["", f"![Seconds and memory of a step]({DRAWING})"] if name == "growth" else []
    settings = " ".join(f"{k}={v}" for k, v in line["settings"].items() if v is not None)
    remarks = [
        f"{place}; {packages}; `{settings}`.",
        *(REMARKS[k](line[k]) for k in REMARKS if k in line),
    ]
    return "\n".join([" ".join(remarks), "", *lines, *drawing])


def write_page(docs: Path) -> None:
    """Replace the text between `<!-- NAME -->` and `<!-- end -->` by the table of NAME."""
    saved = docs / "benchmarks.json"
    lines = json.loads(saved.read_text()) if saved.exists() else {}
    page = docs / "benchmarks.md"

    def table(match: re.Match[str]) -> str:
        name = match[1]
        return f"<!-- {name} -->\n{markdown(lines.get(name), name)}\n<!-- end -->"

    text = re.sub(r"<!-- (\w+) -->\n.*?<!-- end -->", table, page.read_text(), flags=re.DOTALL)
    replace_file(page, text)
    if "growth" in lines:
        draw_growth(lines["growth"], docs / DRAWING)


if __name__ == "__main__":
    write_page(Path(sys.argv[1]) if len(sys.argv) > 1 else DOCS)
