"""Problems with known answers: read from files or the hub, and put into batches of groups."""

from __future__ import annotations

import datetime
import functools
import logging
import math
import re
from collections.abc import Callable, Sequence
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tinker_cookbook import models
from tinker_cookbook.exceptions import ConfigurationError, DataFormatError, DataValidationError
from tinker_cookbook.rl.problem_env import ProblemGroupBuilder
from tinker_cookbook.rl.types import Env, EnvGroupBuilder, RLDataset
from tinker_cookbook.utils.data_files import Rows, open_rows
from tinker_cookbook.utils.json_types import Plain
from tinker_cookbook.utils.records import NumberText

logger = logging.getLogger(__name__)

_WAY_OUT = "its path= may name a local file or directory"


class Problem(NamedTuple):
    question: str
    answer: str


class Columns(NamedTuple):
    """Where a data set keeps its problems. `answer_in`: takes the answer out of its column, and
    raises ValueError where there is none. `instead`: the columns where `answer` is missing."""

    question: str
    answer: str
    answer_in: Callable[[str], str] = str.strip
    instead: Columns | None = None


def read_problems(
    path: str, columns: Columns, split: str = "train", name: str | None = None
) -> list[Problem]:
    """The problems of one split. `path`: a data file (all of it), a directory, or a name on the hub
    (`name`: its configuration there).

    A number is known as the file spells it, but for powers of ten: 1e16 is 10000000000000000, and
    5.0 is 5. Raises ConfigurationError or DataError where the data cannot be had (`open_rows`),
    DataFormatError where a column is missing, no row holds an answer, or one holds what is neither
    text nor a number nor a date. Rows without an answer are left out, and a warning says how many.
    """
    local = Path(path).expanduser()
    if models.is_local_path(path) and not local.exists():
        raise ConfigurationError(f"path={path}: there is no such file or directory")
    if local.is_file():
        split = "train"  # what a single file is to the reader of files
    configuration = None if local.exists() else name
    table = open_rows(path, configuration, split, way_out=_WAY_OUT, numbers_as_text=True)
    if columns.instead and columns.answer not in table.column_names:
        columns = columns.instead
    missing = [c for c in (columns.question, columns.answer) if c not in table.column_names]
    if missing:
        raise DataFormatError(
            f"data set {path}: no column {missing[0]!r}; found "
            f"{', '.join(map(repr, table.column_names))}; expected {columns.question!r} "
            f"(the problem) and {columns.answer!r} (its answer). data=OwnProblems reads any columns"
        )
    table = table.only(columns.question, columns.answer)
    found: list[Problem] = []
    reason = "there are no rows"
    for number, row in enumerate(table):
        question, answer = (
            _text(row.get(column), column, table, number)
            for column in (columns.question, columns.answer)
        )
        try:
            if not question.strip() or not answer.strip():
                raise ValueError("an empty problem or answer")
            found.append(Problem(question, columns.answer_in(answer)))
        except ValueError as error:
            reason = str(error)
    if not found:
        raise DataFormatError(f"data set {path}: no row holds a problem and an answer ({reason})")
    if len(found) < len(table):
        logger.warning(
            "%s: %d of %d rows left out: %s", path, len(table) - len(found), len(table), reason
        )
    return found


_SURROGATE = re.compile("[\ud800-\udfff]")
_MAX_ZEROS = 50  # of a power of ten that is written out


def _text(value: Plain | Decimal | datetime.date, column: str, table: Rows, number: int) -> str:
    """The value of a column as text; "" where there is none."""
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
    what = "half of a surrogate pair" if isinstance(value, str) else f"{value!r:.80}"
    raise DataFormatError(
        f"{table.where(number)}: {column!r} holds {what}; expected text, a number or a date:"
        " write what a right reply says, as text"
    )


def _plain_number(text: str) -> str:
    """`text` as people write numbers: no exponent that can be written out, no ".0"."""
    digits, e, exponent = text.lower().partition("e")
    if e and abs(int(exponent)) > _MAX_ZEROS:
        return f"{digits} \\times 10^{{{int(exponent)}}}"
    return re.sub(r"\.0+$", "", f"{Decimal(text):f}" if e else text)


def without(problems: Sequence[Problem], held_out: Sequence[Problem]) -> list[Problem]:
    """The problems whose question, spaces aside, is none of `held_out`."""
    known = {"".join(problem.question.split()) for problem in held_out}
    return [problem for problem in problems if "".join(problem.question.split()) not in known]


def some(problems: Sequence[Problem], count: int | None) -> list[Problem]:
    """At most `count` of them, in their order, the same ones each time (None: all). Drawn at
    random, for files are often sorted by subject."""
    if count is None or count >= len(problems):
        return list(problems)
    drawn = np.random.default_rng(0).permutation(len(problems))[:count]
    return [problems[i] for i in sorted(drawn.tolist())]


class ProblemDataset(RLDataset):
    """Batches of groups, each of which tries one problem.

    seed: each epoch goes through the problems in an order of its own; batches run on from one
    epoch into the next, so that every batch is full and no problem is left out. None: one epoch in
    the given order, the last batch may be smaller.
    """

    def __init__(
        self,
        problems: Sequence[Problem],
        make_env: Callable[[str, str], Env],
        *,
        group_size: int,
        groups_per_batch: int,
        name: str,
        seed: int | None = None,
        num_epochs: int = 1,
    ) -> None:
        if not problems:
            raise DataValidationError(f"{name}: there are no problems left to draw from")
        self.problems, self.name = list(problems), name
        self._make_env, self.group_size = make_env, group_size
        self._seed, self._size = seed, groups_per_batch
        self._total = len(problems) * (1 if seed is None else num_epochs)

    def __len__(self) -> int:
        if self._seed is None:
            return -(-self._total // self._size)
        return max(1, self._total // self._size)

    def get_batch(self, index: int) -> Sequence[EnvGroupBuilder]:
        if not 0 <= index < len(self):
            raise IndexError(f"batch {index} of {len(self)}")
        positions = range(index * self._size, min((index + 1) * self._size, self._total))
        return [self.group(self.problems[self._at(position)]) for position in positions]

    def group(self, problem: Problem) -> ProblemGroupBuilder:
        return ProblemGroupBuilder(
            functools.partial(self._make_env, *problem), self.group_size, self.name
        )

    def _at(self, position: int) -> int:
        epoch, place = divmod(position, len(self.problems))
        return place if self._seed is None else self._order(epoch)[place]

    def _order(self, epoch: int) -> list[int]:
        return _permutation(self._seed or 0, epoch, len(self.problems))


@functools.lru_cache(maxsize=8)
def _permutation(seed: int, epoch: int, length: int) -> list[int]:
    return np.random.default_rng((seed, epoch)).permutation(length).tolist()
