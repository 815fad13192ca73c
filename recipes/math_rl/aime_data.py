r"""AIME, a math competition: 30 problems per year, every answer an integer from 0 to 999.

The hub has several copies with different columns and splits (`HUB`). A local directory has one or
more of aime2024.jsonl, aime2025.jsonl and aime2026.jsonl, with columns `problem` and `answer`.
"""

from __future__ import annotations

import re
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import chz

from recipes.math_rl.math_datasets import BoxedAnswers
from recipes.math_rl.math_grading import extract_boxed
from recipes.math_rl.problems import Columns, Problem, ProblemDataset, read_problems
from tinker_cookbook.exceptions import ConfigurationError, DataFormatError
from tinker_cookbook.rl.types import RLDataset
from tinker_cookbook.utils.data_identity import file_identity, path_identity
from tinker_cookbook.utils.json_types import Plain

Year = Literal["2024", "2025", "2026"]
YEARS: tuple[Year, ...] = typing.get_args(Year)
_PER_YEAR = 30


def aime_answer(text: str) -> str:
    r"""Normalise `025`, `$25$`, `25.` and `25^\circ` to 25; other text is returned stripped."""
    bare = re.sub(r"\^\{?\\circ\}?|°|\$|\\!|\s", "", text).rstrip(".")
    bare = re.sub(r"\.0+$", "", bare)  # the column may be of floats
    return str(int(bare)) if re.fullmatch(r"[0-9]+", bare) else text.strip()


def _boxed_answer(text: str) -> str:
    return aime_answer(extract_boxed(text))


class Source(NamedTuple):
    """A copy of one year on the hub. configurations: parts that are concatenated."""

    year: Year
    split: str
    columns: Columns = Columns("problem", "answer", aime_answer)
    configurations: tuple[str | None, ...] = (None,)


HUB: dict[str, Source] = {
    "HuggingFaceH4/aime_2024": Source("2024", "train"),
    "Maxwell-Jia/AIME_2024": Source("2024", "train", Columns("Problem", "Answer", aime_answer)),
    "math-ai/aime24": Source("2024", "test", Columns("problem", "solution", _boxed_answer)),
    "math-ai/aime25": Source("2025", "test"),
    "opencompass/AIME2025": Source(
        "2025",
        "test",
        Columns("question", "answer", aime_answer),
        ("AIME2025-I", "AIME2025-II"),
    ),
    "MathArena/aime_2025": Source("2025", "train"),
    "MathArena/aime_2026": Source("2026", "train"),
}
DEFAULT: dict[Year, str] = {
    "2024": "HuggingFaceH4/aime_2024",
    "2025": "math-ai/aime25",
    "2026": "MathArena/aime_2026",
}


def years_of(path: str) -> tuple[Year, ...]:
    """The years that a `path` is known to contain; () if unknown."""
    if path == "hub":
        return YEARS
    if path in HUB:
        return (HUB[path].year,)
    local = Path(path).expanduser()
    if local.is_dir():
        return tuple(year for year in YEARS if (local / _file_name(year)).is_file())
    return tuple(year for year in YEARS if local.name == _file_name(year))


def chosen_years(path: str, asked: tuple[Year, ...]) -> tuple[Year, ...]:
    """The years to evaluate: `asked`, or all years of `path` if empty.

    Raises ConfigurationError if `path` lacks one of them, or if its year is unknown and not given.
    """
    if len(set(asked)) < len(asked):
        raise ConfigurationError(f"year={','.join(asked)}: a year is given twice")
    known = years_of(path)
    if not known and len(asked) != 1:
        found = f"year={','.join(asked)} are {len(asked)} years" if asked else "no year= is set"
        raise ConfigurationError(
            f"path={path} is one set of problems, and {found}: set year= to its year"
        )
    missing = [year for year in asked if known and year not in known]
    if missing:
        raise ConfigurationError(
            f"path={path} has the problems of {', '.join(known)}, not of {missing[0]}: set year= to"
            " one of those"
        )
    return asked or known


def problems_identity(path: str) -> Mapping[str, Plain]:
    """The `identity()` of a config with this `path`.

    Of a directory, only the AIME files count, because it may also contain the runs.
    """
    local = Path(path).expanduser()
    if local.is_dir() and (years := years_of(path)):
        return {"path": {year: file_identity(local / _file_name(year)) for year in years}}
    return path_identity(path)


def _file_name(year: str) -> str:
    return f"aime{year}.jsonl"


@chz.chz
class Aime(BoxedAnswers):
    """The problems of one year, for evaluation only: use `test_set()`."""

    path: str = chz.field(
        default="hub",
        doc="local directory or file, or a name on the hub (hub: the default copy of the year)",
    )
    year: Year = chz.field(default="2024", doc=f"one of {', '.join(YEARS)}")
    one_shot: bool = chz.field(default=False, doc="show one solved problem before each question")
    format_coef: float = chz.field(
        default=0.0, doc="penalty on the reward of a reply in the wrong format"
    )

    def name(self) -> str:
        return f"aime{self.year}"

    def columns(self) -> Columns:
        return Columns("problem", "answer", aime_answer)

    def problems(self) -> list[Problem]:
        """Read the problems; DataFormatError if an answer is not an integer from 0 to 999."""
        chosen_years(self.path, (self.year,))
        path = DEFAULT[self.year] if self.path == "hub" else self.path
        source = HUB.get(path, Source(self.year, "train", self.columns()))
        local = Path(path).expanduser()
        if local.is_dir() and years_of(path):
            path = str(local / _file_name(self.year))
        found = [
            problem
            for configuration in source.configurations
            for problem in read_problems(path, source.columns, source.split, configuration)
        ]
        for number, problem in enumerate(found, start=1):
            if not (problem.answer.isdecimal() and int(problem.answer) <= 999):
                raise DataFormatError(
                    f"{path}: the answer of problem {number} is {problem.answer!r}; AIME answers"
                    " are integers from 0 to 999. For other problems use env=own of"
                    " recipes.math_rl.train"
                )
        return found

    def identity(self) -> Mapping[str, Plain]:
        return problems_identity(self.path)

    def test_set(
        self, num_samples: int, problems: Sequence[Problem] | None = None
    ) -> ProblemDataset:
        """All problems, `num_samples` rollouts each. problems: pass them if already read."""
        return ProblemDataset(
            self.problems() if problems is None else problems,
            self.env_maker(),
            group_size=num_samples,
            groups_per_batch=_PER_YEAR,
            name=self.name(),
        )

    async def __call__(self) -> tuple[RLDataset, RLDataset | None]:
        raise ConfigurationError(
            "data=Aime: its 30 problems are for evaluation only; train on another data set and "
            "evaluate with python -m recipes.math_rl.aime model_path=tinker://..."
        )
