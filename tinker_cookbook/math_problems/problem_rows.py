"""Read problems with known answers from files or the hub."""

from __future__ import annotations

import datetime
import logging
import math
import re
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple

from tinker_cookbook import models
from tinker_cookbook.exceptions import ConfigurationError, DataFormatError
from tinker_cookbook.utils.data_files import Rows, open_rows
from tinker_cookbook.utils.json_types import Plain
from tinker_cookbook.utils.records import NumberText

logger = logging.getLogger(__name__)

_LOCAL_PATH_HINT = "the path may also be a local file or directory"


class Problem(NamedTuple):
    question: str
    answer: str


class Columns(NamedTuple):
    """The columns of a data set.

    answer_in: extracts the answer from its column; raises ValueError if there is none.
    instead: the columns to use if the data set has no column `answer`.
    """

    question: str
    answer: str
    answer_in: Callable[[str], str] = str.strip
    instead: Columns | None = None


def read_problems(
    path: str, columns: Columns, split: str = "train", name: str | None = None
) -> list[Problem]:
    """Read the problems of one split.

    path: a data file (read as a whole), a directory, or a name on the hub (name: the configuration
        there).

    Numbers keep the spelling of the file, except for powers of ten and ".0": 1e16 becomes
    10000000000000000, and 5.0 becomes 5. Rows without an answer are skipped, with a warning that
    counts them. Raises ConfigurationError or DataError if the data cannot be loaded (`open_rows`),
    DataFormatError if a column is missing, if no row has an answer, or if a value is neither text
    nor a number nor a date.
    """
    local = Path(path).expanduser()
    if models.is_local_path(path) and not local.exists():
        raise ConfigurationError(f"path={path}: no such file or directory")
    if local.is_file():
        split = "train"  # the only split that a single file has
    configuration = None if local.exists() else name
    table = open_rows(path, configuration, split, way_out=_LOCAL_PATH_HINT, numbers_as_text=True)
    if columns.instead and columns.answer not in table.column_names:
        columns = columns.instead
    missing = [c for c in (columns.question, columns.answer) if c not in table.column_names]
    if missing:
        raise DataFormatError(
            f"data set {path}: no column {missing[0]!r}; found "
            f"{', '.join(map(repr, table.column_names))}; expected {columns.question!r} "
            f"(the problem) and {columns.answer!r} (its answer). To train on other columns:"
            " recipes.math_rl.train env=own data.question_field= data.answer_field="
        )
    table = table.only(columns.question, columns.answer)
    problems: list[Problem] = []
    reason = "there are no rows"
    for index, row in enumerate(table):
        question, answer = (
            _to_text(row.get(column), column, table, index)
            for column in (columns.question, columns.answer)
        )
        try:
            if not question.strip() or not answer.strip():
                raise ValueError("an empty problem or answer")
            problems.append(Problem(question, columns.answer_in(answer)))
        except ValueError as error:
            reason = str(error)
    if not problems:
        raise DataFormatError(f"data set {path}: no row has a problem and an answer ({reason})")
    if len(problems) < len(table):
        logger.warning(
            "%s: skipped %d of %d rows: %s", path, len(table) - len(problems), len(table), reason
        )
    return problems


_SURROGATE = re.compile("[\ud800-\udfff]")
_MAX_ZEROS = 50  # larger powers of ten keep their exponent


def _to_text(value: Plain | Decimal | datetime.date, column: str, table: Rows, index: int) -> str:
    """Convert a value to text; "" if it is missing."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, NumberText | int | Decimal) or (
        isinstance(value, float) and math.isfinite(value)
    ):
        return _plain_number(str(value))
    if isinstance(value, datetime.date) and not isinstance(value, datetime.datetime):
        return value.isoformat()
    if isinstance(value, str) and not _SURROGATE.search(value):
        return value
    found = "an unpaired surrogate" if isinstance(value, str) else f"{value!r:.80}"
    raise DataFormatError(
        f"{table.where(index)}: {column!r} is {found}; expected text, a number or a date: write the"
        " correct answer as text"
    )


def _plain_number(text: str) -> str:
    """Write a number without an exponent, if it has at most _MAX_ZEROS zeros, and without ".0"."""
    digits, e, exponent = text.lower().partition("e")
    if e and abs(int(exponent)) > _MAX_ZEROS:
        return f"{digits} \\times 10^{{{int(exponent)}}}"
    return re.sub(r"\.0+$", "", f"{Decimal(text):f}" if e else text)
