r"""Single-turn environment for a math problem: grades the last `\boxed{}` of the reply."""

from __future__ import annotations

from recipes.math_rl.math_grading import extract_boxed, grade_answer
from tinker_cookbook.renderers import Message, Renderer
from tinker_cookbook.rl.problem_env import ProblemEnv

REQUEST = " Put the answer in \\boxed{}."
"""Appended to every question. nano saw exactly this wording in pre-training."""

ONE_SHOT = [
    Message(role="user", content="A box holds 24 pens and a third of them are red. How many pens"
    " are not red?" + REQUEST),
    Message(role="assistant", content="A third of 24 is 24 / 3 = 8, so 24 - 8 = 16 pens are not"
    " red. \\boxed{16}"),
]  # fmt: skip
"""Shows the expected format to models that do not follow instructions well."""


class MathEnv(ProblemEnv):
    r"""correct: the last `\boxed{}` equals the known answer (`grade_answer`). format: there is a
    `\boxed{}`, and the reply was not truncated."""

    def __init__(
        self,
        problem: str,
        answer: str,
        renderer: Renderer,
        convo_prefix: list[Message] | None = None,
        *,
        format_coef: float = 0.1,
    ) -> None:
        super().__init__(renderer, convo_prefix, format_coef)
        self.problem, self.answer = problem, answer

    def get_question(self) -> str:
        return self.problem + REQUEST

    def check_format(self, sample_str: str) -> bool:
        try:
            extract_boxed(sample_str)
        except ValueError:
            return False
        return True

    def check_answer(self, sample_str: str) -> bool:
        try:
            return grade_answer(extract_boxed(sample_str), self.answer)
        except ValueError:  # no \boxed{}: not an answer
            return False

    def get_reference_answer(self) -> str:
        return self.answer
