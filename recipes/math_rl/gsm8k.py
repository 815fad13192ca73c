"""GSM8K: 7,473 grade-school word problems for training, 1,319 for testing."""

from __future__ import annotations

from pathlib import Path

import chz

from recipes.math_rl.math_datasets import BoxedAnswers
from tinker_cookbook.math_problems import gsm8k
from tinker_cookbook.math_problems.problem_rows import Columns, Problem


@chz.chz
class Gsm8k(BoxedAnswers):
    """GSM8K. A directory has train.jsonl and test.jsonl (or parquet); a file has no test split."""

    path: str = chz.field(
        default=gsm8k.HUB, doc="name on the hub, path of a local copy, or a training file"
    )

    def default_max_tokens(self) -> int:
        return 512

    def columns(self) -> Columns:
        return gsm8k.COLUMNS

    def train_problems(self) -> list[Problem]:
        return gsm8k.read_gsm8k(self.path, "train")

    def test_problems(self) -> list[Problem] | None:
        if self.test_path is not None or Path(self.path).expanduser().is_file():
            return super().test_problems()
        return gsm8k.read_gsm8k(self.path, "test")
