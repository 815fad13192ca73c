"""Polaris: 53,000 problems chosen to be hard for reasoning models; it has no test of its own.

On the hub: POLARIS-Project/Polaris-Dataset-53K, split train, columns `problem`, `answer`,
`difficulty` (a pass rate, "3/8").
"""

from __future__ import annotations

import chz

from recipes.math_rl.math_datasets import BoxedAnswers
from recipes.math_rl.problems import Columns


@chz.chz
class Polaris(BoxedAnswers):
    """Polaris-53K; some are held out as the test (`test_size`), unless there is a `test_path`."""

    path: str = chz.field(
        default="POLARIS-Project/Polaris-Dataset-53K", doc="name on the hub, or local copy"
    )

    def default_max_tokens(self) -> int:
        return 4096

    def columns(self) -> Columns:
        return Columns("problem", "answer")
