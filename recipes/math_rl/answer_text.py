"""Answers as text: taken out of a reply, brought into one spelling, and compared where text alone
decides. What the mathematics in them is, `answer_parts` reads.

The spelling follows what the 500 answers of MATH-500 and the replies of models use; the rules that
it stands for are listed in `math_grading`.
"""

from __future__ import annotations

import re

from recipes.math_rl.latex_expression import FUNCTION_NAMES, GREEK

MAX_CHARACTERS = 1000  # of an answer that is still looked into; known answers have below 200


def extract_boxed(text: str) -> str:
    r"""What the last `\boxed{...}` (or `\fbox{...}`) of `text` holds, braces inside included.

    ValueError where there is none, or where the last one is never closed, or holds its answer
    without braces (`\boxed 5`).
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
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)  # \{ and \} are written braces, not groups


def extract_gsm8k_final_answer(text: str) -> str:
    """The number behind the last `####` of a GSM8K solution, without commas. ValueError if none."""
    _, found, answer = text.rpartition("####")
    answer = answer.strip().replace(",", "").replace("$", "")
    if not found or not answer:
        raise ValueError("no '#### answer' at the end of the solution")
    return answer


def normalise(answer: str) -> str:
    """The answer in one spelling; its units and percent signs stay."""
    text = answer.translate(_UNICODE).strip()
    while nested := re.fullmatch(r"\\(?:boxed|fbox)\s*\{(.*)\}", text, re.DOTALL):
        text = nested[1].strip()
    text = _without_delimiters(text)
    for pattern, replacement in _SPELLINGS:
        text = pattern.sub(replacement, text)
    text = text.strip().rstrip(".").strip()
    text = _NAMED.get(text.casefold(), text)
    text = _SCALE.sub(lambda m: f"{m[1]} \\times 10^{{{_POWERS[m[2]]}}}", text)
    text = _GROUPED.sub(lambda m: re.sub(r"[, ]", "", m.group()), text)
    text = _REPEATING.sub(_as_fraction, _DOTTED.sub(_as_overlined, text))
    text = _degrees(text).strip()
    return _NUMBERS.get(re.sub(r"\\text\s*\{([^{}]*)\}", r"\1", text).strip().casefold(), text)


def _without_delimiters(text: str) -> str:
    """Without the marks of Markdown and of mathematics around it; a dollar sign that is money
    becomes a wide one."""
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


def _degrees(text: str) -> str:
    """A degree sign is a unit behind a number; inside of \\sin it is a factor."""
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
        (r"\s+", " "),  # what the spellings above have put side by side
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
# the whole answer but for its unit and sign, or what a variable is set to; the comma in (12,102)
# separates two numbers
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
    """0.1\\dot{2}3\\dot{4}: dots over the first and the last repeated digit."""
    return f"{match[1]}\\overline{{{match[2]}{match[3] or ''}{match[4] or ''}}}"


def _as_fraction(match: re.Match[str]) -> str:
    """0.1\\overline{6} = (16 - 1) / 90, as a fraction in LaTeX."""
    whole, fixed, repeated = match.groups()
    denominator = 10 ** len(fixed) * (10 ** len(repeated) - 1)
    numerator = int(whole + fixed + repeated) - int(whole + fixed or 0)
    return f"\\frac{{{numerator}}}{{{denominator}}}"


def same_words(given: str, truth: str) -> bool | None:
    """Whether the words are the same; None where one side is mathematics. The letter of a choice
    may be small, a variable not."""
    short = _same_short_words(given, truth)
    if short is not None:
        return short
    marked = "\\text" in given + truth
    mine, known = _words(given, marked), _words(truth, marked)
    if mine is None or known is None:
        return None
    if len(mine) == 1 and (given, truth) == (mine, known):
        return mine == known
    return mine.casefold() == known.casefold()


def _same_short_words(given: str, truth: str) -> bool | None:
    """Of two or three letters, which may be a product: ab is ba. Capitals are names as they stand
    (HHT, AB), and so is a word (No, Tom, odd) but for the case of its letters."""
    mine, known = (re.sub(r"[()\s]", "", side) for side in (given, truth))
    if not (_SHORT.fullmatch(mine) and _SHORT.fullmatch(known)):
        return None
    if mine.isupper() and known.isupper():
        return mine == known
    if any(
        side.casefold() in _SHORT_WORDS or _SHORT_NAME.fullmatch(side) for side in (mine, known)
    ):
        return mine.casefold() == known.casefold()
    return None


_SHORT = re.compile(r"[A-Za-z]{2,3}")
_SHORT_NAME = re.compile(r"(?=..?[aeiouy])[A-Z][a-z]{2}")  # a vowel: Leo, not Prt
_short = (
    "yes no odd red on off won one two six ten now not new old up top low tie win all cat dog sun"
    " mon tue wed thu fri sat jan feb mar apr may jun jul aug sep oct nov dec ann tom bob"
    " sss sas asa aas ssa hl"
)
_SHORT_WORDS = frozenset(_short.split())


def _words(latex: str, marked: bool) -> str | None:
    """Letters without brackets and spaces; None where they are mathematics. marked: one of the two
    answers is marked as text, so that three letters are no product of variables."""
    bare = re.sub(r"[()\s]", "", re.sub(r"\\text\s*\{([^{}]*)\}", r"\1", latex))
    return bare if bare.isalpha() and (marked or len(bare) > 3 or len(bare) == 1) else None


def is_balanced(latex: str) -> bool:
    depth = 0
    for brace in _BRACE.finditer(latex):
        depth += {"{": 1, "}": -1}.get(brace.group(), 0)
        if depth < 0:
            return False
    return depth == 0


RESTATES = re.compile(r"\\(?:sum|prod|int|iint|oint|lim|limsup|liminf)(?![A-Za-z])")
"""What asks for a value instead of giving it: \\sum_{k=1}^{10} k is no answer where 55 is asked."""


def compact(latex: str) -> str:
    """For comparing two spellings: no \\text around words, no space that separates nothing."""
    bare = re.sub(r"\\text\s*\{([^{}]*)\}", r"\1", latex).strip()
    bare = re.sub(r" +", " ", bare)
    return re.sub(r"(?<![0-9A-Za-z]) +| +(?![0-9A-Za-z])", "", bare)
