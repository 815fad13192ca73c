"""Polaris: 53,000 problems chosen to be hard for reasoning models; no test split.

On the hub: POLARIS-Project/Polaris-Dataset-53K, split train, columns `problem`, `answer`,
`difficulty` (a pass rate, "3/8").
"""

from __future__ import annotations

import chz

from recipes.math_rl.math_datasets import BoxedAnswers
from tinker_cookbook.math_problems.problem_rows import Columns


@chz.chz
class Polaris(BoxedAnswers):
    """Polaris-53K; some problems are held out (`test_size`) if there is no `test_path`."""

    path: str = chz.field(
        default="POLARIS-Project/Polaris-Dataset-53K",
        doc="name on the hub, or path of a local copy",
    )

    def default_max_tokens(self) -> int:
        return 4096

    def columns(self) -> Columns:
        return Columns("problem", "answer")
