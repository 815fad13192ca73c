r"""AIME, a math competition: 30 problems per year, every answer an integer from 0 to 999.

The hub has several copies with different columns and splits (`HUB`). A local directory has one or
more of aime2024.jsonl, aime2025.jsonl and aime2026.jsonl, with columns `problem` and `answer`.
"""

from __future__ import annotations

import re
import typing
from pathlib import Path
from typing import Literal, NamedTuple

from tinker_cookbook.exceptions import ConfigurationError, DataFormatError
from tinker_cookbook.math_problems.answer_text import extract_boxed
from tinker_cookbook.math_problems.problem_rows import Columns, Problem, read_problems

Year = Literal["2024", "2025", "2026"]
YEARS: tuple[Year, ...] = typing.get_args(Year)


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


def problem_files(path: str) -> list[str]:
    """The local files of a `path`; [] for a name on the hub.

    Of a directory, only the AIME files count, because it may also contain the runs.
    """
    local = Path(path).expanduser()
    if local.is_dir() and (years := years_of(path)):
        return [str(local / _file_name(year)) for year in years]
    return [path] if local.exists() else []


def _file_name(year: str) -> str:
    return f"aime{year}.jsonl"


def read_aime(path: str, year: Year) -> list[Problem]:
    """Read the problems of one year.

    path: "hub" for the default copy of the year, another name on the hub, a file, or a directory
    with aime<year>.jsonl. DataFormatError if an answer is not an integer from 0 to 999.
    """
    chosen_years(path, (year,))
    path = DEFAULT[year] if path == "hub" else path
    source = HUB.get(path, Source(year, "train"))
    local = Path(path).expanduser()
    if local.is_dir() and years_of(path):
        path = str(local / _file_name(year))
    problems = [
        problem
        for configuration in source.configurations
        for problem in read_problems(path, source.columns, source.split, configuration)
    ]
    for number, problem in enumerate(problems, start=1):
        if not (problem.answer.isdecimal() and int(problem.answer) <= 999):
            raise DataFormatError(
                f"{path}: the answer of problem {number} is {problem.answer!r}; AIME answers"
                " are integers from 0 to 999. For other problems use env=own of"
                " recipes.math_rl.train"
            )
    return problems
