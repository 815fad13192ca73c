"""Answers as text: extraction from a reply, normalisation, and comparison of words.

`answer_parts` parses the mathematics. The spellings cover the 500 answers of MATH-500 and the
replies of models; the conventions behind them are listed in `math_grading`.
"""

from __future__ import annotations

import re

from tinker_cookbook.math_problems.latex_expression import FUNCTION_NAMES, GREEK

MAX_CHARACTERS = 1000  # longer answers are not parsed; known answers have fewer than 200


def extract_boxed(text: str) -> str:
    r"""Return the contents of the last `\boxed{...}` (or `\fbox{...}`), nested braces included.

    Raises ValueError if there is none, or if the last one is not closed or has no braces
    (`\boxed 5`).
    """
    boxes = list(_BOX.finditer(text))
    if not boxes:
        raise ValueError("no \\boxed{...} in the reply")
    if not boxes[-1].group().endswith("{"):
        raise ValueError("the last \\boxed in the reply has no braces")
    first = boxes[-1].end()
    depth = 1
    for brace in _BRACE.finditer(text, first):
        depth += {"{": 1, "}": -1}.get(brace.group(), 0)
        if depth == 0:
            return text[first : brace.start()]
    raise ValueError("the last \\boxed{ in the reply is never closed")


_BOX = re.compile(r"\\(?:boxed|fbox)\s*(?:\{|(?=[\d\\]))")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)  # \{ and \} are literal braces, not groups


def extract_gsm8k_final_answer(text: str) -> str:
    """Return the number after the last `####` of a GSM8K solution; ValueError if there is none."""
    _, found, answer = text.rpartition("####")
    answer = answer.strip().replace(",", "").replace("$", "")
    if not found or not answer:
        raise ValueError("no '#### answer' at the end of the solution")
    return answer


def normalise(answer: str) -> str:
    """Normalise the spelling of an answer; keeps units and percent signs."""
    text = answer.translate(_UNICODE).strip()
    while nested := re.fullmatch(r"\\(?:boxed|fbox)\s*\{(.*)\}", text, re.DOTALL):
        text = nested[1].strip()
    text = _strip_delimiters(text)
    for pattern, replacement in _SPELLINGS:
        text = pattern.sub(replacement, text)
    text = text.strip().rstrip(".").strip()
    text = _NAMED.get(text.casefold(), text)
    text = _SCALE.sub(lambda m: f"{m[1]} \\times 10^{{{_POWERS[m[2]]}}}", text)
    text = _GROUPED.sub(lambda m: re.sub(r"[, ]", "", m.group()), text)
    text = _REPEATING.sub(_as_fraction, _DOTTED.sub(_as_overlined, text))
    text = _mark_trigonometric_degrees(text).strip()
    return _NUMBERS.get(re.sub(r"\\text\s*\{([^{}]*)\}", r"\1", text).strip().casefold(), text)


def _strip_delimiters(text: str) -> str:
    """Strip Markdown emphasis and $...$ around an answer.

    A dollar sign that means money becomes a full-width one (U+FF04), so that it survives.
    """
    for _ in range(4):
        text = text.strip()
        if match := _MARKDOWN.fullmatch(text):
            text = match[2]
        stop = text.removesuffix(".").rstrip()
        if len(stop) > 2 and stop[0] == "$" == stop[-1] and not stop.endswith("\\$"):
            text = stop.strip("$")
    text = text.replace("\\$", "\uff04")
    if text.count("$") == 1:
        text = re.sub(r"^(-?)\$(?=\s*-?[\d.\\])", "\\1\uff04", text)
    return text.replace("$", "")


_MARKDOWN = re.compile(r"(\*\*\*|\*\*|\*|__|_|`)(.+?)\1", re.DOTALL)


def _mark_trigonometric_degrees(text: str) -> str:
    """Make the degree sign a factor (\\degree) inside \\sin etc.; after a number it is a unit."""
    if "\u00b0" not in text or not _TRIGONOMETRIC.search(text):
        return text
    return text.replace("\u00b0", "\\degree ")


_TRIGONOMETRIC = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![A-Za-z])")


_UNICODE = str.maketrans(
    {
        "\u2212": "-",
        "\u2013": "-",
        "\u00d7": "\\times ",
        "\u00b7": "\\cdot ",
        "\u22c5": "\\cdot ",
        "\u00f7": "/",
        "\u03c0": "\\pi ",
        "\u03b8": "\\theta ",
        "\u03b1": "\\alpha ",
        "\u03b2": "\\beta ",
        "\u221e": "\\infty ",
        "\u222a": "\\cup ",
        "\u2229": "\\cap ",
        "\u2208": "\\in ",
        "\u2205": "\\emptyset ",
        "\u211d": "\\mathbb{R}",
        "\u00b1": "\\pm ",
        "\u2264": "\\le ",
        "\u2265": "\\ge ",
        "\u2260": "\\ne ",
        "\u2248": "\\approx ",
        "\u00b2": "^2",
        "\u00b3": "^3",
        "\u00bd": " 1/2",
        "\u2032": "'",
        "\u2019": "'",
        "\u2026": "\\ldots ",
        "\u00a0": " ",
    }
)
_plain = "|".join([*sorted([*FUNCTION_NAMES, *GREEK], key=len, reverse=True), "pi"])
_inequality = r"(?:[<>]|\\[lg](?:eq?|t)(?![A-Za-z]))"
_SPELLINGS = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\s+", " "),
        (r"(?<!\\)\\[()\[\]]", ""),  # \( and \[ around mathematics; but \\[ ends a row of a matrix
        (r"\\(?:left|right|big|Big|bigg|Bigg)[lr]?(?![A-Za-z])\.?", ""),
        (r"(?<=\d)(?:, ?\\! ?|\{,\})(?=\d{3}(?!\d))", ""),  # 11,\! 111
        (r"\s*\\!\s*", ""),
        (r"(?<!\\)\\[,;:> ]|~|\\q?quad", " "),
        (r"\{,\}", ","),
        (r"(?<=[^\\]\{)\d{1,3}(?:,\d{3})+(?=\})", lambda m: m.group().replace(",", "")),
        (r"\\displaystyle|\\textstyle|\\boldsymbol(?![A-Za-z])", ""),
        (r"\\[dtc]frac", r"\\frac"),
        (r"(?<=\d) (\d+)/(\d+)(?![\d.])(?= *$| *\\(?:text|%)| *%| [A-Za-z]{2})", r"\\frac{\1}{\2}"),
        (
            r"\\(?:text(?:bf|it|rm|sf|normal|tt)?|math(?:rm|bf|it|sf)|mbox|operatorname)\s*(?=\{)",
            r"\\text",
        ),
        (r"\s*\^\s*(?:\{\s*\\(?:circ|degree)\s*\}|\\(?:circ|degree))|\\degree", "\u00b0"),
        (r"\\varnothing|\\O(?![A-Za-z])", r"\\emptyset"),
        (r"\\[lr]angle", lambda m: "(" if m.group() == "\\langle" else ")"),
        (r"\\l?brace", r"\\{"),
        (r"\\rbrace", r"\\}"),
        (r"\\(?:[lr]?vert|mid|\|)(?![A-Za-z])", "|"),
        (r"\\(?:cent)(?![A-Za-z])", "\u00a2"),
        (r"\\(?:euro|EUR)(?![A-Za-z])(?:\{\})?", "\u20ac"),
        (r"\\(?:pounds|textsterling)(?![A-Za-z])(?:\{\})?", "\u00a3"),
        (r"\\yen(?![A-Za-z])", "\u00a5"),
        (r"(\\equiv[^=,;]*?)\\b?mod(?![A-Za-z])", r"\1\\pmod"),  # else it is an operator
        (r"^(?:\\(?:approx|therefore|implies|Rightarrow|equiv)(?![A-Za-z])|=)\s*", ""),
        (r"^(?:\\text ?\{ ?)?(?:about|approximately|approx\.?|roughly) ?\}? ?(?=[-\d\\.])", ""),
        (r"(?<=\d) ?\^? ?\{? ?(?:\\text ?\{ ?)?(?:st|nd|rd|th) ?\}? ?\}?$", ""),  # 5^{th}
        (  # x > 1 and x < 3
            rf"({_inequality}[^,;]{{0,60}}?)(?:\\text\{{\s*and\s*\}}|\band\b|\\wedge\b|\\land\b)"
            rf"(?=[^,;]{{0,60}}{_inequality})",
            r"\1 \\land ",
        ),
        (r"\s*\\text\{\s*(?:and|or)\s*\}\s*|\s+(?:and|or)\s+", ", "),
        (r",\s*,", ","),
        (r"^\\text\{([^{}\\]*[\d,;][^{}\\]*)\}$", r"\1"),  # \text{4:30 p.m.}
        (r"(\.\d*?)(\d)\2\2+(?:\.\.\.|\\[lc]?dots) ?$", r"\1\2\\overline{\2}"),  # 0.333...
        (r"(?<![\\A-Za-z])(?:sqrt|\u221a) ?(\d+(?:\.\d+)?)", r"\\sqrt{\1}"),
        (r"\u221a", r"\\sqrt "),
        (rf"(?<![\\A-Za-z])(?<!\\text\{{)({_plain})(?![A-Za-z])", r"\\\1 "),
        (r"(?<![A-Za-z\\])(?:infinity|infty|inf|oo)(?![A-Za-z])", r"\\infty "),
        (
            r"(?<![A-Za-z\d.])(\d+(?:\.\d*)?|\.\d+)[eE]([+-]?\d{1,4})(?![\d.A-Za-z^_])",
            r"\1 \\times 10^{\2}",
        ),
        (r"\s+", " "),  # spaces that the replacements above have put side by side
    )
]
_NAMED = {
    name: "\\mathbb{R}"
    for name in ("\\text{all real numbers}", "all real numbers", "\\r", "\\mathbf{r}")
}
_POWERS = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_SCALE = re.compile(rf"(?<=\d)()\s*(?:\\text\{{)?\s*({'|'.join(_POWERS)})\b\}}?")
_DOTTED = re.compile(r"(?<!\d)(\d*\.\d*)\\dot\s*\{?(\d)\}?(?:(\d*)\\dot\s*\{?(\d)\}?)?(?![\d\\])")
_REPEATING = re.compile(r"(?<!\d)(\d*)\.(\d*)\\(?:overline|bar)\s*\{(\d+)\}(?:\\[lc]?dots)?")
# Only in the whole answer (up to sign and unit) or after "=": the comma in (12,102) separates two
# numbers.
_GROUPED = re.compile(
    r"(?:^|(?<==)|(?<== )|(?<=[\uff04\u20ac\u00a3\u00a5]))[+-]?\d{1,3}(?:(?:,\d{3})+|(?: \d{3})+)"
    r"(?:\.\d+)?(?=$| *(?:\\text|\\?%|[A-Za-z\u00b0\u00a2\u20ac]))",
    re.ASCII,
)
_NAMES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen"
    " sixteen seventeen eighteen nineteen twenty"
)
_NUMBERS = {name: str(number) for number, name in enumerate(_NAMES.split())}


def _as_overlined(match: re.Match[str]) -> str:
    """0.1\\dot{2}3\\dot{4}, dots over the first and last repeated digit, as 0.1\\overline{234}."""
    return f"{match[1]}\\overline{{{match[2]}{match[3] or ''}{match[4] or ''}}}"


def _as_fraction(match: re.Match[str]) -> str:
    """A repeating decimal as a LaTeX fraction: 0.1\\overline{6} = (16 - 1) / 90."""
    whole, fixed, repeated = match.groups()
    denominator = 10 ** len(fixed) * (10 ** len(repeated) - 1)
    numerator = int(whole + fixed + repeated) - int(whole + fixed or 0)
    return f"\\frac{{{numerator}}}{{{denominator}}}"


def words_equal(given: str, truth: str) -> bool | None:
    """Whether two answers in words are equal; None if one of them is mathematics.

    Case counts only between two bare letters: x and X are different variables, but (a) and (A) or
    \\text{A} are the same choice.
    """
    verdict = _short_words_equal(given, truth)
    if verdict is not None:
        return verdict
    marked = "\\text" in given + truth
    given_words, truth_words = _plain_words(given, marked), _plain_words(truth, marked)
    if given_words is None or truth_words is None:
        return None
    if len(given_words) == 1 and (given, truth) == (given_words, truth_words):
        return given_words == truth_words
    return given_words.casefold() == truth_words.casefold()


def _short_words_equal(given: str, truth: str) -> bool | None:
    """Compare words of two or three letters; None if they may be a product (ab equals ba).

    Two answers in capitals are names (HHT, AB) and compared exactly. Known words and names (No,
    Tom, odd) are compared without case.
    """
    given_words, truth_words = (re.sub(r"[()\s]", "", side) for side in (given, truth))
    if not (_SHORT.fullmatch(given_words) and _SHORT.fullmatch(truth_words)):
        return None
    if given_words.isupper() and truth_words.isupper():
        return given_words == truth_words
    if any(
        side.casefold() in _SHORT_WORDS or _SHORT_NAME.fullmatch(side)
        for side in (given_words, truth_words)
    ):
        return given_words.casefold() == truth_words.casefold()
    return None


_SHORT = re.compile(r"[A-Za-z]{2,3}")
_SHORT_NAME = re.compile(
    r"(?=..?[aeiouy])[A-Z][a-z]{2}"
)  # has a vowel after the first letter: Leo, not Prt
_short_word_list = (
    "yes no odd red on off won one two six ten now not new old up top low tie win all cat dog sun"
    " mon tue wed thu fri sat jan feb mar apr may jun jul aug sep oct nov dec ann tom bob"
    " sss sas asa aas ssa hl"
)
_SHORT_WORDS = frozenset(_short_word_list.split())


def _plain_words(latex: str, marked: bool) -> str | None:
    """The letters of an answer in words, without brackets and spaces; None if it is mathematics.

    marked: one of the answers has \\text, so two or three letters are not a product of variables.
    """
    bare = re.sub(r"[()\s]", "", re.sub(r"\\text\s*\{([^{}]*)\}", r"\1", latex))
    return bare if bare.isalpha() and (marked or len(bare) > 3 or len(bare) == 1) else None


def is_balanced(latex: str) -> bool:
    depth = 0
    for brace in _BRACE.finditer(latex):
        depth += {"{": 1, "}": -1}.get(brace.group(), 0)
        if depth < 0:
            return False
    return depth == 0


UNEVALUATED = re.compile(r"\\(?:sum|prod|int|iint|oint|lim|limsup|liminf)(?![A-Za-z])")
"""Operators that restate a problem: \\sum_{k=1}^{10} k is not accepted as an answer for 55."""


def compact(latex: str) -> str:
    """Remove \\text and all spaces that do not separate two words, to compare spellings."""
    bare = re.sub(r"\\text\s*\{([^{}]*)\}", r"\1", latex).strip()
    bare = re.sub(r" +", " ", bare)
    return re.sub(r"(?<![0-9A-Za-z]) +| +(?![0-9A-Za-z])", "", bare)
