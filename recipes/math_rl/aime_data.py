"""The builder of AIME's problems."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import chz

from recipes.math_rl.math_datasets import BoxedAnswers
from recipes.math_rl.problems import ProblemDataset
from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.math_problems.aime import (
    DEFAULT,
    HUB,
    YEARS,
    Year,
    aime_answer,
    chosen_years,
    problems_identity,
    read_aime,
)
from tinker_cookbook.math_problems.problem_rows import Columns, Problem
from tinker_cookbook.rl.types import RLDataset
from tinker_cookbook.utils.json_types import Plain

__all__ = ["DEFAULT", "HUB", "YEARS", "Aime", "Year", "chosen_years", "problems_identity"]

_PER_YEAR = 30


@chz.chz
class Aime(BoxedAnswers):
    """The problems of one year, for evaluation only: use `test_set()`."""

    path: str = chz.field(
        default="hub",
        doc="local directory or file, or a name on the hub (hub: the default copy of the year)",
    )
    year: Year = chz.field(default="2024", doc=f"one of {', '.join(YEARS)}")
    one_shot: bool = chz.field(default=False, doc="show one solved problem before each question")
    format_coef: float = chz.field(
        default=0.0, doc="penalty on the reward of a reply in the wrong format"
    )

    def name(self) -> str:
        return f"aime{self.year}"

    def columns(self) -> Columns:
        return Columns("problem", "answer", aime_answer)

    def problems(self) -> list[Problem]:
        """Read the problems; DataFormatError if an answer is not an integer from 0 to 999."""
        return read_aime(self.path, self.year)

    def identity(self) -> Mapping[str, Plain]:
        return problems_identity(self.path)

    def test_set(
        self, num_samples: int, problems: Sequence[Problem] | None = None
    ) -> ProblemDataset:
        """All problems, `num_samples` rollouts each. problems: pass them if already read."""
        return ProblemDataset(
            self.problems() if problems is None else problems,
            self.env_maker(),
            group_size=num_samples,
            groups_per_batch=_PER_YEAR,
            name=self.name(),
        )

    async def __call__(self) -> tuple[RLDataset, RLDataset | None]:
        raise ConfigurationError(
            "data=Aime: its 30 problems are for evaluation only; train on another data set and "
            "evaluate with python -m recipes.math_rl.aime model_path=tinker://..."
        )
