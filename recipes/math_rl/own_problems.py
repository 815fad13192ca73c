"""Your own problems: `data=OwnProblems data.path=problems.jsonl`, one problem per line."""

from __future__ import annotations

import chz

from recipes.math_rl.math_datasets import BoxedAnswers
from tinker_cookbook.math_problems.problem_rows import Columns


@chz.chz
class OwnProblems(BoxedAnswers):
    """A file, directory or hub data set with a column of problems and a column of answers.

    Some problems are held out (`test_size`) if there is no `test_path`.
    """

    question_field: str = chz.field(default="problem", doc="column with the problem")
    answer_field: str = chz.field(default="answer", doc="column with the bare answer")

    def columns(self) -> Columns:
        return Columns(self.question_field, self.answer_field)
