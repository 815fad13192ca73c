"""Read the rows of a task's data: a file, a directory or a name on the hub."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tinker_cookbook import models
from tinker_cookbook.exceptions import ConfigurationError, DataFormatError
from tinker_cookbook.utils.data_files import PlacedRow, Rows, open_rows

_WAY_OUT = "path may also be a local file or directory"


def open_task_rows(
    path: str,
    hub: str,
    columns: Sequence[str],
    split: str = "train",
    name: str | None = None,
    way_out: str = _WAY_OUT,
) -> Rows:
    """Open one split. path: "hub" for the data set `hub`; a data file is read as a whole. name: the
    configuration of a data set on the hub. way_out: advice that errors of the hub end with.

    Raises ConfigurationError or DataError if the data cannot be loaded, DataFormatError if a column
    is missing.
    """
    path = hub if path == "hub" else path
    local = Path(path).expanduser()
    if models.is_local_path(path) and not local.exists():
        raise ConfigurationError(f"path={path}: no such file or directory")
    if local.is_file():
        split = "train"  # the only split of a single file
    rows = open_rows(path, None if local.exists() else name, split, way_out)
    for column in columns:
        if column not in rows.column_names:
            raise DataFormatError(
                f"data set {path}: no column {column!r}; found"
                f" {', '.join(map(repr, rows.column_names))}; expected"
                f" {', '.join(map(repr, columns))}"
            )
    return rows


def placed(rows: Rows) -> Iterator[PlacedRow]:
    """Each row with its place."""
    for number in range(len(rows)):
        yield PlacedRow(rows[number], rows.where(number))


def text_of(row: dict[str, Any], column: str, where: str | None) -> str:
    """The text in a column, without white space around it; DataFormatError if there is none."""
    value = row.get(column)
    if not isinstance(value, str) or not value.strip():
        raise DataFormatError(f"{where}: {column!r} is {value!r:.80}; expected text")
    return value.strip()
