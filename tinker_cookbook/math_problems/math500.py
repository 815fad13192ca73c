r"""MATH-500 (Lightman et al. 2023): 500 problems of the test split of MATH (Hendrycks et al. 2021).

On the hub: HuggingFaceH4/MATH-500, split test, columns `problem`, `solution`, `answer`, `subject`,
`level`, `unique_id`.
"""

from __future__ import annotations

from pathlib import Path

from tinker_cookbook.math_problems.answer_text import extract_boxed
from tinker_cookbook.math_problems.problem_rows import Columns, Problem, read_problems

HUB = "HuggingFaceH4/MATH-500"
FILES = ("math500.jsonl", "math500.parquet")  # in a local directory
# MATH's own files have no column `answer`: the answer is in the solution's \boxed{}
MATH_COLUMNS = Columns("problem", "solution", extract_boxed)
COLUMNS = Columns("problem", "answer", instead=MATH_COLUMNS)


def local_file(directory: str) -> str | None:
    """The file with MATH-500 in a directory; None if there is none."""
    files = (Path(directory).expanduser() / name for name in FILES)
    return next((str(file) for file in files if file.is_file()), None)


def read_math500(path: str) -> list[Problem]:
    """Read the hub's copy, a file, or a directory with math500.jsonl."""
    return read_problems(local_file(path) or path, COLUMNS, "test")
