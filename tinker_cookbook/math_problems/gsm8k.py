"""GSM8K (Cobbe et al. 2021): 7,473 grade-school word problems for training, 1,319 for testing.

On the hub: openai/gsm8k, configuration `main`, splits train and test, columns `question` and
`answer`. An answer is a solution that ends in `#### 18` (source: the data card and the files of
github.com/openai/grade-school-math).
"""

from __future__ import annotations

from typing import Literal

from tinker_cookbook.math_problems.answer_text import extract_gsm8k_final_answer
from tinker_cookbook.math_problems.problem_rows import Columns, Problem, read_problems

HUB = "openai/gsm8k"
CONFIGURATION = "main"
COLUMNS = Columns("question", "answer", extract_gsm8k_final_answer)


def read_gsm8k(path: str, split: Literal["train", "test"]) -> list[Problem]:
    """Read a split of the hub's copy or of a directory with train.jsonl and test.jsonl (or
    parquet); of a file, all rows."""
    return read_problems(path, COLUMNS, split, CONFIGURATION)
