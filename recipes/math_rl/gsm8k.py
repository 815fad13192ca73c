"""GSM8K (Cobbe et al. 2021): 7,473 grade-school word problems for training, 1,319 for testing.

On the hub: openai/gsm8k, configuration `main`, splits train and test, columns `question` and
`answer`. An answer is a solution that ends in `#### 18` (source: the data card and the files of
github.com/openai/grade-school-math).
"""

from __future__ import annotations

from pathlib import Path

import chz

from recipes.math_rl.math_datasets import BoxedAnswers
from recipes.math_rl.math_grading import extract_gsm8k_final_answer
from recipes.math_rl.problems import Columns, Problem, read_problems

CONFIGURATION = "main"


@chz.chz
class Gsm8k(BoxedAnswers):
    """GSM8K. A directory has train.jsonl and test.jsonl (or parquet); a file has no test split."""

    path: str = chz.field(
        default="openai/gsm8k", doc="name on the hub, path of a local copy, or a training file"
    )

    def default_max_tokens(self) -> int:
        return 512

    def columns(self) -> Columns:
        return Columns("question", "answer", extract_gsm8k_final_answer)

    def train_problems(self) -> list[Problem]:
        return read_problems(self.path, self.columns(), "train", CONFIGURATION)

    def test_problems(self) -> list[Problem] | None:
        if self.test_path is not None or Path(self.path).expanduser().is_file():
            return super().test_problems()
        return read_problems(self.path, self.columns(), "test", CONFIGURATION)
