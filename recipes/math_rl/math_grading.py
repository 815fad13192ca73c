r"""Is the answer of a reply the known answer? `\boxed{}` extraction and mathematical equality.

Rules, where a teacher could say either:

- the value counts, not the form: 2/4 is 1/2, (x+1)^2 is x^2+2x+1, \sqrt 8 is 2\sqrt 2;
- units, degree and dollar signs may be left out or written, and are not compared; a percent sign
  may be left out, and 50\% is also 0.5; the base of 52_8 may be left out, but 52_7 is another;
- `x=` or `y=` in front may be left out;
- the order of a list or set does not count, that of (a, b) does; [ and ( differ;
- a decimal stands for a value when it is within a millionth of it: 0.333333 is 1/3, 0.33 is not;
- words are compared without regard to case; the letter of a choice with or without brackets;
- more than one answer ("5 or 6") is not one of them; a sum, product, integral or limit that is
  only restated is no answer.

Most answers are decided by their text. The others go to math-verify (sympy) in a process that is
killed when an answer takes too long, so that no string of a model can hang or crash the training.
"""

from __future__ import annotations

import functools

from recipes.math_rl import answer_text, grading_process
from recipes.math_rl.answer_text import (
    MAX_CHARACTERS,
    Answer,
    extract_boxed,
    extract_gsm8k_final_answer,
)

__all__ = ["extract_boxed", "extract_gsm8k_final_answer", "grade_answer"]

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
    if not mine.latex:
        return False
    decided = _by_text(mine, known)
    if decided is not None:
        return decided
    pairs = _spellings(mine, known)
    return grading_process.any_equal(pairs, timeout)


def _by_text(mine: Answer, known: Answer) -> bool | None:
    """The verdict where text decides, else None."""
    if answer_text.compact(mine.latex) == answer_text.compact(known.latex):
        return True
    if not answer_text.is_balanced(mine.latex):
        return False
    a, b = answer_text.number(mine.latex), answer_text.number(known.latex)
    if a is not None and b is not None:
        exact = "." not in mine.latex + known.latex
        scale = {(True, False): a / 100, (False, True): a * 100}
        rescaled = scale.get((mine.percent, known.percent), a)
        return any(answer_text.close(value, b, exact) for value in (a, rescaled))
    texts = answer_text.words(mine.latex), answer_text.words(known.latex)
    if None not in texts:
        return texts[0] == texts[1]
    if answer_text.in_base(mine.latex) or answer_text.in_base(known.latex):
        return _same_digits(mine.latex, known.latex)
    if answer_text.RESTATES.search(mine.latex) and not answer_text.RESTATES.search(known.latex):
        return False
    return None


def _same_digits(mine: str, known: str) -> bool:
    digits = [answer_text.in_base(side) or (side.casefold(), None) for side in (mine, known)]
    (my_digits, my_base), (known_digits, known_base) = digits
    return my_digits == known_digits and (None in (my_base, known_base) or my_base == known_base)


def _spellings(mine: Answer, known: Answer) -> list[tuple[str, str]]:
    pairs = [(mine.latex, known.latex)]
    if mine.percent and not known.percent:
        pairs.append((f"({mine.latex})/100", known.latex))
    elif known.percent and not mine.percent:
        pairs.append((mine.latex, f"({known.latex})/100"))
    return pairs
