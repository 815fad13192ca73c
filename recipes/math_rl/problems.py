"""Problems with known answers: read them from files or the hub, and batch them for RL."""

from __future__ import annotations

import datetime
import functools
import logging
import math
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from tinker_cookbook import models
from tinker_cookbook.exceptions import ConfigurationError, DataFormatError, DataValidationError
from tinker_cookbook.nano.tasks import Split
from tinker_cookbook.rl.problem_env import ProblemGroupBuilder
from tinker_cookbook.rl.shuffled_dataset import ShuffledRLDataset
from tinker_cookbook.rl.types import Env, EnvGroupBuilder, RLDataset
from tinker_cookbook.utils.data_files import Rows, open_rows
from tinker_cookbook.utils.json_types import Plain
from tinker_cookbook.utils.records import NumberText

logger = logging.getLogger(__name__)

_LOCAL_PATH_HINT = "data.path= may name a local file or directory"


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
            f"(the problem) and {columns.answer!r} (its answer). env=own reads other columns, with"
            " data.question_field= and data.answer_field="
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


def drop_held_out(problems: Sequence[Problem], held_out: Sequence[Problem]) -> list[Problem]:
    """Drop the problems whose question, white space aside, is one of `held_out`."""
    excluded = {"".join(problem.question.split()) for problem in held_out}
    return [problem for problem in problems if "".join(problem.question.split()) not in excluded]


def sample_problems(problems: Sequence[Problem], count: int | None) -> list[Problem]:
    """Return a fixed random subset of at most `count` problems in their order (None: all).

    Random, because files are often sorted by subject.
    """
    if count is None or count >= len(problems):
        return list(problems)
    chosen = np.random.default_rng(0).permutation(len(problems))[:count]
    return [problems[i] for i in sorted(chosen.tolist())]


@dataclass(frozen=True)
class GeneratedDataset(RLDataset):
    """Groups drawn for each batch from (name, index), so that a resumed run gets the same batches.

    name: data set, split and seed. batch_sizes: number of groups in each batch.
    """

    name: str
    draw_groups: Callable[[random.Random, int], Sequence[EnvGroupBuilder]]
    batch_sizes: Sequence[int]

    def __len__(self) -> int:
        return len(self.batch_sizes)

    def get_batch(self, index: int) -> Sequence[EnvGroupBuilder]:
        if not 0 <= index < len(self):
            raise IndexError(f"batch {index} of {len(self)}")
        rng = random.Random(f"{self.name} {index}")
        return self.draw_groups(rng, self.batch_sizes[index])


class DrawGroups(Protocol):
    """Draws problems of a split and returns the groups that attempt them."""

    def __call__(
        self, rng: random.Random, count: int, *, split: Split, group_size: int
    ) -> Sequence[EnvGroupBuilder]: ...


def generate_datasets(
    name: str,
    draw: DrawGroups,
    *,
    seed: int,
    group_size: int,
    batch_sizes: list[int],
    test_size: int,
) -> tuple[RLDataset, RLDataset | None]:
    """Training batches, and a test set of held-out problems, one rollout each (size 0: none)."""

    def dataset(split: Split, seed: int, group_size: int, sizes: list[int]) -> GeneratedDataset:
        draw_groups = functools.partial(draw, split=split, group_size=group_size)
        return GeneratedDataset(f"{name} {split} {seed}", draw_groups, sizes)

    train = dataset("train", seed, group_size, batch_sizes)
    # the same test set for all runs, whatever their seed
    return train, dataset("held_out", 0, 1, [test_size]) if test_size else None


class ProblemDataset(ShuffledRLDataset):
    """Batches of groups; the members of a group attempt the same problem."""

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
            raise DataValidationError(f"{name}: there are no problems")
        self.problems, self.name = list(problems), name
        self._make_env, self.group_size = make_env, group_size
        super().__init__(
            len(self.problems),
            lambda index: self.group(self.problems[index]),
            groups_per_batch=groups_per_batch,
            seed=seed,
            num_epochs=num_epochs,
        )

    def group(self, problem: Problem) -> ProblemGroupBuilder:
        return ProblemGroupBuilder(
            functools.partial(self._make_env, *problem), self.group_size, self.name
        )
