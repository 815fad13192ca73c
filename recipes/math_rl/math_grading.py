"""The grader of answers, under the path of the Tinker cookbook."""

from tinker_cookbook.math_problems.math_grading import (
    extract_boxed,
    extract_gsm8k_final_answer,
    grade_answer,
    normalize_answer,
    run_with_timeout_signal,
)

__all__ = [
    "extract_boxed",
    "extract_gsm8k_final_answer",
    "grade_answer",
    "normalize_answer",
    "run_with_timeout_signal",
]
