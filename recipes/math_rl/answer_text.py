"""Answers as text: taken out of a reply, brought into one spelling, and compared where text alone
decides. No algebra happens here; `equality_worker` does that.

The spelling follows what the 500 answers of MATH-500 and the replies of models use; the rules that
it stands for are listed in `math_grading`.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import NamedTuple

MAX_CHARACTERS = 1000  # of an answer that is still looked into; known answers have below 200
TOLERANCE = Fraction(1_000_001, 10**12)  # relative; a millionth, with room for 0.333333 = 1/3


def extract_boxed(text: str) -> str:
    r"""What the last `\boxed{...}` (or `\fbox{...}`) of `text` holds, braces inside included.

    ValueError where there is none, or where the last one is never closed.
    """
    start = max(text.rfind("\\boxed{"), text.rfind("\\fbox{"))
    if start < 0:
        raise ValueError("no \\boxed{...} in the reply")
    first = text.index("{", start) + 1
    depth = 1
    for brace in _BRACE.finditer(text, first):
        depth += {"{": 1, "}": -1}.get(brace.group(), 0)
        if depth == 0:
            return text[first : brace.start()]
    raise ValueError("the last \\boxed{ in the reply is never closed")


_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)  # \{ and \} are written braces, not groups


def extract_gsm8k_final_answer(text: str) -> str:
    """The number behind the last `####` of a GSM8K solution, without commas. ValueError if none."""
    _, found, answer = text.rpartition("####")
    answer = answer.strip().replace(",", "").replace("$", "")
    if not found or not answer:
        raise ValueError("no '#### answer' at the end of the solution")
    return answer


class Answer(NamedTuple):
    """An answer in one spelling. `latex`: without units, dollar signs and percent sign."""

    latex: str
    percent: bool = False


def normalise(answer: str) -> Answer:
    text = answer.translate(_UNICODE).strip()
    while nested := re.fullmatch(r"\\(?:boxed|fbox)\{(.*)\}", text, re.DOTALL):
        text = nested.group(1)
    for pattern, replacement in _SPELLINGS:
        text = pattern.sub(replacement, text)
    text = text.strip().strip("$").rstrip(".").strip()
    text = _NAMED.get(text.casefold(), text)
    text, signs = re.subn(r"\s*(?:\\?%|\\?(?:text\{)?\s*percent\}?)$", "", text)
    text = _SCALE.sub(lambda m: f"{m[1]} \\times 10^{{{_POWERS[m[2]]}}}", text)
    for unit in (_TEXT_UNIT, _WORD_UNIT):
        text = unit.sub(_without_unit, text)
    text = _GROUPED.sub(lambda m: re.sub(r"[^\d.+-]", "", m.group()), text)
    return Answer(_REPEATING.sub(_as_fraction, text).strip(), signs > 0)


_UNICODE = str.maketrans(
    {
        "\u2212": "-",
        "\u2013": "-",
        "\u00d7": "\\times ",
        "\u00f7": "/",
        "\u00b0": "^\\circ",
        "\u03c0": "\\pi ",
        "\u221e": "\\infty ",
        "\u222a": "\\cup ",
        "\u2264": "\\le ",
        "\u2265": "\\ge ",
        "\u00a0": " ",
    }
)
_SPELLINGS = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\s+", " "),
        (r"(?<!\\)\\[()\[\]]", ""),  # \( and \[ around mathematics; but \\[ ends a row of a matrix
        (r"\\\$|(?<!\\)\$", ""),
        (r"\\(?:left|right|big|Big|bigg|Bigg)(?![A-Za-z])\.?", ""),
        (r"\s*\\!\s*", ""),
        (r"(?<!\\)\\[,;:> ]|~|\\q?quad", " "),
        (r"\{,\}", ","),
        (r"\\displaystyle|\\textstyle", ""),
        (r"\\[dtc]frac", r"\\frac"),
        (r"(?<=\d) (\d+)/(\d+)$", r"\\frac{\1}{\2}"),  # 137 1/2
        (r"\\(?:text(?:bf|it|rm|sf)?|mathrm|mathbf|mbox|operatorname)\s*(?=\{)", r"\\text"),
        (r"\s*\^\s*\{?\s*\\(?:circ|degree)\s*\}?", ""),
        (r"\\degree", ""),
        (r"\\varnothing", r"\\emptyset"),
        (r"\\[lr]angle", lambda m: "(" if m.group() == "\\langle" else ")"),
        (r"\s*\\text\{\s*(?:and|or)\s*\}\s*|\s+(?:and|or)\s+", ", "),
        (r",\s*,", ","),
    )
]
_NAMED = {
    name: "(-\\infty,\\infty)"
    for name in ("\\mathbb{r}", "\\text{all real numbers}", "all real numbers", "\\r")
}
_POWERS = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_SCALE = re.compile(rf"(?<=\d)()\s*(?:\\text\{{)?\s*({'|'.join(_POWERS)})\b\}}?")
_REPEATING = re.compile(r"(?<!\d)(\d*)\.(\d*)\\(?:overline|bar)\{(\d+)\}(?:\\ldots)?")
# the whole answer, or what a variable is set to: the comma in (12,102) separates two numbers
_GROUPED = re.compile(
    r"(?:^|(?<==)|(?<== ))[+-]?\d{1,3}(?:(?:,\d{3})+|(?: \d{3})+)(?:\.\d+)?$", re.ASCII
)
# the end of an answer, behind something that can have a unit: a digit, a closing brace, a constant
_TEXT_UNIT = re.compile(
    r"(?<=[\d})a-z])()\s*\\text\{([^{}]*)\}(?:\s*\^\s*\{?\d\}?)?(?:\s*/\s*\\text\{[^{}]*\})?$"
)
_WORD_UNIT = re.compile(r"^(.*\d)\s+([A-Za-z]{2,}(?:[ /][A-Za-z]+)*)(?:\s*\^\s*\{?\d\}?)?$")
_NOT_A_UNIT = re.compile(
    r"[\d=<>\\]|\b(?:and|or|not|no|to|than|is|if|else|but|maybe|perhaps|mod|base|cup|cap|inf|infinity"
    r"|pi|tau|phi|theta|sqrt|sin|cos|tan|cot|sec|csc|log|ln|exp)\b",
    re.IGNORECASE,
)


def _without_unit(match: re.Match[str]) -> str:
    """What stands before the unit; all of it where the words say more than a unit would."""
    says_more = _NOT_A_UNIT.search(match[2]) or "\\text" in match.string[: match.start()]
    return match.group() if says_more else match[1]


def _as_fraction(match: re.Match[str]) -> str:
    """0.1\\overline{6} = (16 - 1) / 90, as a fraction in LaTeX."""
    whole, fixed, repeated = match.groups()
    denominator = 10 ** len(fixed) * (10 ** len(repeated) - 1)
    numerator = int(whole + fixed + repeated) - int(whole + fixed or 0)
    return f"\\frac{{{numerator}}}{{{denominator}}}"


def number(latex: str) -> Fraction | None:
    """The value of a plain number: 12, -0.5, .5, 3/4, \\frac{3}{4}, 3 \\times 10^{-2}."""
    text = compact(latex)
    if match := _DECIMAL.fullmatch(text):
        exponent = int(match[3] or 0)
        return Fraction(match[1]) * Fraction(10) ** exponent if abs(exponent) < 1000 else None
    if match := _FRACTION.fullmatch(text):
        numerator, denominator = int(match[2] or match[4]), int(match[3] or match[5])
        sign = -1 if match[1] == "-" else 1
        return Fraction(sign * numerator, denominator) if denominator else None
    return None


_DECIMAL = re.compile(r"([+-]?(?:\d+(?:\.\d*)?|\.\d+))(\\times10\^\{?([+-]?\d{1,4})\}?)?", re.ASCII)
_FRACTION = re.compile(r"([+-]?)(?:\\frac\{([+-]?\d+)\}\{([+-]?\d+)\}|(\d+)/(\d+))", re.ASCII)


def close(a: Fraction, b: Fraction, exact: bool) -> bool:
    """Equal; or, where one of them is written as a decimal, within a millionth."""
    return a == b if exact else abs(a - b) <= TOLERANCE * max(abs(a), abs(b))


def words(latex: str) -> str | None:
    """An answer in words, in small letters and without brackets; None where it is mathematics."""
    inner = re.sub(r"\\text\s*\{([^{}]*)\}", r"\1", latex)
    bare = re.sub(r"[()\s]", "", inner)
    is_text = inner != latex or len(bare) > 3 or len(bare) == 1
    return bare.casefold() if is_text and bare.isalpha() else None


def in_base(latex: str) -> tuple[str, str] | None:
    """(digits, base) of a number like 52_8 or 1A_{16}; None where it is none."""
    match = _BASED.fullmatch(re.sub(r"\\text\s*\{([^{}]*)\}", r"\1", latex).replace(" ", ""))
    return (match[1].casefold().lstrip("0"), match[2].casefold()) if match else None


_BASED = re.compile(r"([0-9][0-9A-Fa-f]*)_\{?(\d+|[a-z]+)\}?", re.ASCII)


def is_balanced(latex: str) -> bool:
    depth = 0
    for brace in _BRACE.finditer(latex):
        depth += {"{": 1, "}": -1}.get(brace.group(), 0)
        if depth < 0:
            return False
    return depth == 0


RESTATES = re.compile(r"\\(?:sum|prod|int|oint|lim|limsup|liminf)(?![A-Za-z])")
"""What asks for a value instead of giving it: \\sum_{k=1}^{10} k is no answer where 55 is asked."""


def compact(latex: str) -> str:
    """For comparing two spellings: no \\text around words, no space that separates nothing."""
    bare = re.sub(r"\\text\s*\{([^{}]*)\}", r"\1", latex).strip()
    return re.sub(r"(?<![0-9A-Za-z]) +| +(?![0-9A-Za-z])", "", bare)
