r"""Grade an answer: `\boxed{}` extraction and mathematical equality with the known answer.

Conventions, where graders may differ:

- the value counts, not its form: 2/4 is 1/2, (x+1)^2 is x^2+2x+1, \sqrt 8 is 2\sqrt 2;
- values are compared exactly, however close they are: 1 - 2^{-100} is not 1;
- a decimal of six or more significant digits stands for a value that it approximates, rounded or
  truncated, within a millionth: 0.333333 is 1/3, 0.33 is not, and 0.5000001 is not 1/2;
- a unit may be missing on either side, but a different unit is wrong, and none is converted: 5 m is
  not 5 km, and 90^\circ is not \pi/2. The same holds for the base of 52_8 and the modulus of
  3 \pmod 7. A percent sign may be left out, and 50\% is also 0.5;
- a leading `x=` or `y=` may be left out; in x = 3 + 2 = 5 all sides must be equal, and a value
  after \approx may be rounded;
- order does not count in a list or set, but in (a, b) it does; [ and ( differ; a list must not
  repeat a value that the known list has once;
- equations are equal if one is a multiple of the other or if they have the same solutions;
- primes, transposes, bars and the case of variables count; 1/2x may be (1/2)x or 1/(2x);
- words are compared without case; the letter of a choice may have brackets;
- several answers ("5 or 6") do not match one of them; a sum, product, integral or limit that only
  restates the problem is not an answer.

Most answers are decided by their text. The others are parsed (`answer_parts`, `latex_expression`)
and compared (`answer_equality`) in a worker process that is killed if an answer takes too long, so
that no text of a model can hang or crash the training.
"""

from __future__ import annotations

import functools
import signal
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import Any, TypeVar

from tinker_cookbook.math_problems import answer_parts, answer_text, grading_process
from tinker_cookbook.math_problems.answer_text import (
    MAX_CHARACTERS,
    extract_boxed,
    extract_gsm8k_final_answer,
)
from tinker_cookbook.math_problems.answer_text import normalise as normalize_answer

__all__ = [
    "extract_boxed",
    "extract_gsm8k_final_answer",
    "grade_answer",
    "normalize_answer",
    "run_with_timeout_signal",
]

T = TypeVar("T")

TIMEOUT = 3.0  # CPU seconds per answer


def grade_answer(given: str, truth: str, timeout: float = TIMEOUT) -> bool:
    """Whether `given` equals the known answer `truth`; never raises for any text of a model.

    timeout: CPU seconds; an answer that needs more counts as wrong. Blocking and thread-safe: from
    async code, call it with `asyncio.to_thread`.
    """
    if max(len(given), len(truth)) > MAX_CHARACTERS:
        return given.strip() == truth.strip()
    return _grade(given, truth, timeout)


@functools.lru_cache(maxsize=16_384)  # the members of a group often give the same answer
def _grade(given: str, truth: str, timeout: float) -> bool:
    given, truth = answer_text.normalise(given), answer_text.normalise(truth)
    if not given:
        return False
    verdict = _grade_by_text(given, truth)
    if verdict is not None:
        return verdict
    return grading_process.answers_equal(given, truth, timeout)


def _grade_by_text(given: str, truth: str) -> bool | None:
    """The verdict if the text alone decides, else None. Must be fast: it has no time limit."""
    if answer_text.compact(given) == answer_text.compact(truth):
        return True
    if not answer_text.is_balanced(given):
        return False
    leaves = answer_parts.parse_leaf(given), answer_parts.parse_leaf(truth)
    numbers_equal = answer_parts.plain_numbers_equal(*leaves)
    if numbers_equal is not None:
        return numbers_equal and answer_parts.units_compatible(*leaves)
    words_equal = answer_text.words_equal(given, truth)
    if words_equal is not None:
        return words_equal
    if answer_text.UNEVALUATED.search(given) and not answer_text.UNEVALUATED.search(truth):
        return False
    return None


class _TimedOut(BaseException):
    """A BaseException, so that `except Exception` in the interrupted function does not catch it."""


def run_with_timeout_signal(
    func: Callable[..., T],
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    timeout_seconds: float = 5,
) -> T | None:
    """Return the function's result, or None if it takes longer than the timeout.

    Main thread only, because the function is interrupted by SIGALRM.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        raise _TimedOut

    previous_handler = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, timeout_seconds)
    try:
        return func(*args, **(kwargs or {}))
    except _TimedOut:
        return None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous_handler)
