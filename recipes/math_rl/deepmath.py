"""DeepMath (He et al. 2025): 103,000 problems with verifiable answers; no test split.

On the hub: zwhe99/DeepMath-103K, split train, columns `question`, `final_answer`, `difficulty`,
`topic`, `r1_solution_1` to `_3`; about 2.1 GB.
"""

from __future__ import annotations

import chz

from recipes.math_rl.math_datasets import BoxedAnswers
from tinker_cookbook.math_problems.problem_rows import Columns


@chz.chz
class DeepMath(BoxedAnswers):
    """DeepMath-103K; some problems are held out (`test_size`) if there is no `test_path`."""

    path: str = chz.field(
        default="zwhe99/DeepMath-103K", doc="name on the hub, or path of a local copy"
    )

    def default_max_tokens(self) -> int:
        return 4096

    def columns(self) -> Columns:
        return Columns("question", "final_answer")
