r"""Is the answer of a reply the known answer? `\boxed{}` extraction and mathematical equality.

Rules, where a teacher could say either:

- the value counts, not the form: 2/4 is 1/2, (x+1)^2 is x^2+2x+1, \sqrt 8 is 2\sqrt 2;
- values are compared exactly, however near they are: 1 - 2^{-100} is not 1;
- a decimal of six significant digits or more stands for a value that rounds or is cut off to it
  and is within a millionth: 0.333333 is 1/3, 0.33 is not, and 0.5000001 is not 1/2;
- a unit may be left out, or written where none is known; another one is wrong, and none is
  converted: 5 m is not 5 km, and 90^\circ is not \pi/2. So with the base of 52_8 and the modulus of
  3 \pmod 7. A percent sign may be left out, and 50\% is also 0.5;
- `x=` or `y=` in front may be left out; of x = 3 + 2 = 5 all sides must be equal, and behind an
  \approx stands a rounded value;
- the order of a list or set does not count, that of (a, b) does; [ and ( differ; a list may not
  hold a value twice that the known one holds once;
- equations are the same when one is a multiple of the other or has the same solutions;
- primes, transposes, bars and the case of variables count; 1/2x may be (1/2)x or 1/(2x);
- words are compared without regard to case; the letter of a choice with or without brackets;
- more than one answer ("5 or 6") is not one of them; a sum, product, integral or limit that is
  only restated is no answer.

Most answers are decided by their text. The others are read (`answer_parts`, `latex_expression`) and
compared (`answer_equality`) in a process that is killed when an answer takes too long, so that no
string of a model can hang or crash the training.
"""

from __future__ import annotations

import functools
import signal
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import Any, TypeVar

from recipes.math_rl import answer_parts, answer_text, grading_process
from recipes.math_rl.answer_text import (
    MAX_CHARACTERS,
    extract_boxed,
    extract_gsm8k_final_answer,
)
from recipes.math_rl.answer_text import normalise as normalize_answer

__all__ = [
    "extract_boxed",
    "extract_gsm8k_final_answer",
    "grade_answer",
    "normalize_answer",
    "run_with_timeout_signal",
]

T = TypeVar("T")

TIMEOUT = 3.0


def grade_answer(given: str, truth: str, timeout: float = TIMEOUT) -> bool:
    """Whether `given` is the answer `truth`; never raises for what a model may write.

    timeout: CPU seconds for one answer; one that needs more is not equal. Blocks; call it in a
    thread (`asyncio.to_thread`) where others wait. May be called from many threads at once.
    """
    if max(len(given), len(truth)) > MAX_CHARACTERS:
        return given.strip() == truth.strip()
    return _grade(given, truth, timeout)


@functools.lru_cache(maxsize=16_384)  # members of a group often give the same answer
def _grade(given: str, truth: str, timeout: float) -> bool:
    mine, known = answer_text.normalise(given), answer_text.normalise(truth)
    if not mine:
        return False
    decided = _by_text(mine, known)
    if decided is not None:
        return decided
    return grading_process.same(mine, known, timeout)


def _by_text(mine: str, known: str) -> bool | None:
    """The verdict where text decides, else None."""
    if answer_text.compact(mine) == answer_text.compact(known):
        return True
    if not answer_text.is_balanced(mine):
        return False
    leaves = answer_parts.leaf(mine), answer_parts.leaf(known)
    numbers = answer_parts.same_plain_numbers(*leaves)
    if numbers is not None:
        return numbers and answer_parts.units_fit(*leaves)
    worded = answer_text.same_words(mine, known)
    if worded is not None:
        return worded
    if answer_text.RESTATES.search(mine) and not answer_text.RESTATES.search(known):
        return False
    return None


class _TimedOut(BaseException):
    """No function that is interrupted catches it by chance."""


def run_with_timeout_signal(
    func: Callable[..., T],
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    timeout_seconds: float = 5,
) -> T | None:
    """What a function returns, or None where it takes longer. Only in the main thread: it is
    interrupted by SIGALRM."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise _TimedOut

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, timeout_seconds)
    try:
        return func(*args, **(kwargs or {}))
    except _TimedOut:
        return None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
