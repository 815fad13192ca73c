r"""Single-turn environment for a math problem: grades the last `\boxed{}` of the reply."""

from __future__ import annotations

from tinker_cookbook.math_problems.boxed_prompt import REQUEST
from tinker_cookbook.math_problems.math_grading import extract_boxed, grade_answer
from tinker_cookbook.renderers import Message, Renderer
from tinker_cookbook.rl.problem_env import ProblemEnv


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
