r"""MATH (Hendrycks et al. 2021): 12,500 competition problems; MATH-500 is the test set.

MATH-500 (Lightman et al. 2023) is a subset of MATH's test split, so the other 12,000 problems can
be used for training. On the hub:

- EleutherAI/hendrycks_math: seven configurations (subjects), splits train and test,
  columns `problem`, `level`, `type`, `solution`; the answer is in the solution's `\boxed{}`;
- HuggingFaceH4/MATH-500: see `math_problems.math500`.

Columns are checked when the data is loaded.
"""

from __future__ import annotations

from pathlib import Path

import chz

from recipes.math_rl.math_datasets import BoxedAnswers
from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.math_problems import math500
from tinker_cookbook.math_problems.problem_rows import Columns, Problem, read_problems

SUBJECTS = (
    "algebra",
    "counting_and_probability",
    "geometry",
    "intermediate_algebra",
    "number_theory",
    "prealgebra",
    "precalculus",
)
_SUFFIXES = (".jsonl", ".json", ".parquet", ".csv")


@chz.chz
class Math(BoxedAnswers):
    """MATH without MATH-500.

    A local directory has math500.jsonl and training files; problems of the test set are removed
    from training.
    """

    path: str = chz.field(
        default="EleutherAI/hendrycks_math",
        doc="name on the hub, path of a local copy, or a training file",
    )
    test_path: str | None = chz.field(
        default=None,
        doc="test set: a file, or a directory with math500.jsonl (None: math500.jsonl in path, if"
        " path is a directory with one, else HuggingFaceH4/MATH-500)",
    )

    def columns(self) -> Columns:
        return math500.MATH_COLUMNS

    def train_problems(self) -> list[Problem]:
        local = Path(self.path).expanduser()
        if local.is_file():
            return read_problems(self.path, self.columns())
        if not local.is_dir():
            return [
                problem
                for subject in SUBJECTS
                for split in ("train", "test")
                for problem in read_problems(self.path, self.columns(), split, subject)
            ]
        files = [f for f in sorted(local.iterdir()) if f.suffix in _SUFFIXES]
        files = [f for f in files if f.name not in math500.FILES]
        if not files:
            raise ConfigurationError(
                f"path={self.path}: has no training problems; expected files ending in one of "
                f"{', '.join(_SUFFIXES)}"
            )
        return [p for file in files for p in read_problems(str(file), self.columns())]

    def test_problems(self) -> list[Problem]:
        beside = None if self.test_path else math500.local_file(self.path)
        return math500.read_math500(self.test_path or beside or math500.HUB)
