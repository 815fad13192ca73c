r"""The structure of an answer: a number, a list, an interval, an equation.

`parse_answer` splits at everything that is not part of a single expression: commas, relations,
ratios, set operators, and brackets around several items. Leaves stay text until they are compared.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from tinker_cookbook.math_problems import answer_text, answer_units, latex_expression
from tinker_cookbook.math_problems.answer_units import Unit

MAX_ITEMS = 200


@dataclass(frozen=True)
class Leaf:
    """One expression, without its unit.

    letters: the text with the unit left in, if those letters may be variables instead (5 m).
    """

    latex: str
    unit: Unit = answer_units.NO_UNIT
    percent: bool = False
    letters: str | None = None


@dataclass(frozen=True)
class Items:
    """kind: list (1, 2: in any order), set ({1, 2}), tuple ((1, 2): in order, or an interval)."""

    kind: str
    items: tuple[Part, ...]
    brackets: str = ""


@dataclass(frozen=True)
class Ratio:
    items: tuple[Part, ...]
    time: bool = False  # may be a time of day: 10:30
    unit: Unit = answer_units.NO_UNIT


@dataclass(frozen=True)
class BasedNumber:
    """Digits in a base; base is "" if it is not given."""

    digits: str
    base: str


@dataclass(frozen=True)
class SetExpression:
    r"""operator: \cup, \cap or \setminus."""

    operator: str
    items: tuple[Part, ...]


@dataclass(frozen=True)
class Relation:
    r"""sides[0] signs[0] sides[1] signs[1] ...; signs: = < > \le \ge \ne \in \approx \equiv."""

    sides: tuple[Part, ...]
    signs: tuple[str, ...]


@dataclass(frozen=True)
class Date:
    """2021-05-03, which must not be read as a difference of numbers."""

    year: int
    month: int
    day: int


Part = Date | Leaf | Items | Ratio | BasedNumber | SetExpression | Relation

EMPTY = Items("set", ())
_CLOSE = {"(": ")", "[": "]", "{": "}", "\\{": "\\}"}
_SIGN = re.compile(
    r"(?:\\(?:leq?|geq?|neq?|approx|equiv|in|lt|gt|notin|cong|sim|simeq)(?![A-Za-z])"
    r"|\\not\s*=|<=|>=|!=|==?|<|>|\u2248)"
)
_SIGNS = {
    "\\leq": "\\le",
    "<=": "\\le",
    "\\geq": "\\ge",
    ">=": "\\ge",
    "\\neq": "\\ne",
    "!=": "\\ne",
    "==": "=",
    "\\lt": "<",
    "\\gt": ">",
    "\\cong": "=",
    "\\sim": "\\approx",
    "\\simeq": "\\approx",
    "\u2248": "\\approx",
}
_SET_OPERATORS = ("\\cup", "\\setminus", "\\backslash", "\\cap")
_TOKEN = re.compile(r"\\[A-Za-z]+|\\.|<=|>=|!=|==|.", re.DOTALL)


def parse_answer(text: str, depth: int = 0) -> Part:
    """Parse a normalised answer; raises Unreadable (a ValueError) if brackets do not match.

    The order is that of precedence, loosest first: commas, "and", relations, set operators.
    """
    if depth > 20:
        raise latex_expression.Unreadable("nested too deep")
    text = text.strip()
    if text in ("\\emptyset", "\\{\\}", "\\{ \\}"):
        return EMPTY
    if text == "\\mathbb{R}":
        infinity = Leaf("\\infty")
        return Items("tuple", (Leaf("-\\infty"), infinity), "()")
    if match := _DATE.fullmatch(text):
        return Date(*map(int, match.groups()))
    tokens = _TOKEN.findall(text)
    pieces = _split_outside_brackets(tokens, (",", ";"))
    if len(pieces) > 1:
        if len(pieces) > MAX_ITEMS:
            raise latex_expression.Unreadable("too many items")
        return Items("list", tuple(_parse_items(pieces, depth)))
    pieces = _split_outside_brackets(tokens, ("\\land",))
    if len(pieces) > 1:  # x > 1 and x < 3
        return SetExpression("\\cap", tuple(parse_answer(piece, depth + 1) for piece in pieces))
    if (relation := _parse_relation(tokens, depth)) is not None:
        return relation
    for operator in _SET_OPERATORS:
        pieces = _split_outside_brackets(tokens, (operator,))
        if len(pieces) > 1:
            kind = "\\setminus" if operator == "\\backslash" else operator
            return SetExpression(kind, tuple(parse_answer(piece, depth + 1) for piece in pieces))
    if (inside := _enclosing_brackets(tokens)) is not None:
        return _parse_bracketed(tokens, *inside, depth)
    if (based := _parse_based(text)) is not None:
        return based
    if "\\pm" in tokens or "\\mp" in tokens:
        return Items("list", _expand_plus_minus(text))
    return _parse_ratio(text) or parse_leaf(text)


def _parse_items(pieces: list[str], depth: int) -> list[Part]:
    """Parse the items of a list; \\pm contributes two items."""
    parts: list[Part] = []
    for piece in pieces:
        part = parse_answer(piece, depth + 1)
        is_pair = isinstance(part, Items) and part.kind == "list"
        parts.extend(part.items if is_pair else [part])  # pyright: ignore[reportAttributeAccessIssue]
    return parts


def _split_outside_brackets(tokens: list[str], at: tuple[str, ...]) -> list[str]:
    """Split at the tokens `at` that are outside of all brackets."""
    pieces, depth = [""], 0
    for token in tokens:
        if token in ("(", "[", "{", "\\{") or (token == "\\begin"):
            depth += 1
        elif token in (")", "]", "}", "\\}") or (token == "\\end"):
            depth -= 1
            if depth < 0:
                raise latex_expression.Unreadable("a closing bracket has no opening one")
        if token in at and depth == 0:
            pieces.append("")
        else:
            pieces[-1] += token
    if depth:
        raise latex_expression.Unreadable("a bracket is never closed")
    return pieces


def _parse_relation(tokens: list[str], depth: int) -> Relation | None:
    """A chain of relations outside of brackets; None if there is none."""
    signs, marked, level = [], [], 0
    for token in _join_not_equal(tokens):
        if token in ("(", "[", "{", "\\{", "\\begin"):
            level += 1
        elif token in (")", "]", "}", "\\}", "\\end"):
            level -= 1
        if level == 0 and _SIGN.fullmatch(token):
            signs.append(_SIGNS.get(token, token))
            marked.append("\0")
        else:
            marked.append(token)
    if not signs:
        return None
    sides = [side.strip() for side in "".join(marked).split("\0")]
    return Relation(tuple(parse_answer(side, depth + 1) for side in sides), tuple(signs))


def _join_not_equal(tokens: list[str]) -> list[str]:
    """Replace the two tokens of \\not= by \\ne."""
    joined: list[str] = []
    for token in tokens:
        if token == "=" and joined and joined[-1] == "\\not":
            joined[-1] = "\\ne"
        else:
            joined.append(token)
    return joined


def _enclosing_brackets(tokens: list[str]) -> tuple[str, str] | None:
    """(inside, brackets) if one pair of brackets encloses everything; [ may be closed by )."""
    if len(tokens) < 2 or tokens[0] not in _CLOSE:
        return None
    depth = 0
    for i, token in enumerate(tokens):
        depth += (token in ("(", "[", "{", "\\{")) - (token in (")", "]", "}", "\\}"))
        if depth == 0:
            if i < len(tokens) - 1:
                return None
            break
    opened, closed = tokens[0], tokens[-1]
    if closed != _CLOSE[opened] and not (opened in "([" and closed in ")]"):
        return None
    return "".join(tokens[1:-1]), opened + closed


def _parse_bracketed(tokens: list[str], inside: str, brackets: str, depth: int) -> Part:
    """A set, a set-builder condition, a tuple, or an expression in brackets."""
    if brackets == "\\{\\}":
        for separator in ("|", ":", "\\mid"):
            head, *conditions = _split_outside_brackets(_TOKEN.findall(inside), (separator,))
            condition = parse_answer(conditions[0], depth + 1) if len(conditions) == 1 else None
            if isinstance(condition, Relation) and head.strip():
                return condition
        part = parse_answer(inside, depth + 1)
        listed = isinstance(part, Items) and part.kind == "list"
        return Items("set", part.items if listed else (part,))  # pyright: ignore
    part = parse_answer(inside, depth + 1)
    if isinstance(part, Items) and part.kind == "list" and brackets != "{}":
        return Items("tuple", part.items, brackets)
    return part if brackets in ("{}", "()", "[]") else parse_leaf("".join(tokens))


def _expand_plus_minus(text: str) -> tuple[Part, ...]:
    """Both values of an expression with \\pm; \\mp has the opposite sign."""
    plus = re.sub(r"\\pm(?![A-Za-z])", "+", text)
    minus = re.sub(r"\\pm(?![A-Za-z])", "-", text)
    return (
        parse_leaf(re.sub(r"\\mp(?![A-Za-z])", "-", plus)),
        parse_leaf(re.sub(r"\\mp(?![A-Za-z])", "+", minus)),
    )


def _parse_ratio(text: str) -> Ratio | None:
    if ":" not in text or "\\begin" in text:
        return None
    text, unit = answer_units.split_unit(text)
    pieces = [piece.strip() for piece in text.split(":")]
    if not all(pieces):
        raise latex_expression.Unreadable("a ratio has an empty side")
    time = len(pieces) == 2 and bool(_TIME.fullmatch(":".join(pieces)))
    return Ratio(tuple(parse_leaf(piece) for piece in pieces), time, unit)


_TIME = re.compile(r"(?:0?\d|1\d|2[0-4]):[0-5]\d", re.ASCII)


_DATE = re.compile(r"(\d{4})-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])", re.ASCII)
_SHORT_DATE = re.compile(r"(\d{4})-(\d{1,2})-(\d{1,2})", re.ASCII)


def as_date(part: Part) -> Date | None:
    """Convert a part to a date.

    2021-5-3 could be a difference, so it counts as a date only if the other answer is one.
    """
    if not isinstance(part, Leaf):
        return part if isinstance(part, Date) else None
    match = _SHORT_DATE.fullmatch(part.latex.replace(" ", ""))
    return Date(*map(int, match.groups())) if match else None


def parse_leaf(text: str) -> Leaf:
    """Split the unit or percent sign off an expression."""
    text = text.strip()
    number, percent = _PERCENT.subn("", text)
    if percent:
        return Leaf(number.strip(), percent=True)
    bare, unit = answer_units.split_unit(text)
    if unit == answer_units.NO_UNIT:
        return Leaf(text)
    may_be_letters = "\\text" not in text[len(bare) :] and text.startswith(bare)
    return Leaf(strip_digit_grouping(bare), unit, letters=text if may_be_letters else None)


_PERCENT = re.compile(r"\s*(?:\\?%|\\?(?:text\s*\{)?\s*(?:percent|per cent|pct)\s*\}?)$")


def strip_digit_grouping(text: str) -> str:
    """Remove the separators of 1,234 and 1 234."""
    return _GROUPED.sub(lambda m: re.sub(r"[^\d.+-]", "", m.group()), text)


# Only as the whole answer or after "=": the comma in (12,102) separates two numbers.
_GROUPED = re.compile(
    r"(?:^|(?<==)|(?<== ))[+-]?\d{1,3}(?:(?:,\d{3})+|(?: \d{3})+)(?:\.\d+)?$", re.ASCII
)


def _parse_based(text: str) -> BasedNumber | None:
    match = _BASED.fullmatch(re.sub(r"\\text\s*\{([^{}]*)\}", r"\1", text).replace(" ", ""))
    if prefixed := _PREFIXED.fullmatch(text.casefold()):
        return BasedNumber(prefixed[2].lstrip("0") or "0", _PREFIXES[prefixed[1]])
    if not match:
        return None
    if match[3].isdecimal() and not 2 <= int(match[3]) <= 36:
        return None
    digits = match[2].casefold().lstrip("0") or "0"
    base = match[3].casefold()
    return BasedNumber(
        (match[1].strip("+") if digits != "0" else "") + digits, _BASES.get(base, base)
    )


_BASED = re.compile(
    r"([+-]?)\(?([0-9][0-9A-Fa-f]*(?:\.[0-9A-Fa-f]+)?)\)?_\{?\(?(\d+|[a-z]+)\)?\}?", re.ASCII
)
_PREFIXED = re.compile(r"0([xob])([\da-f]+)", re.ASCII)
_PREFIXES = {"x": "16", "o": "8", "b": "2"}
_NAMES = (
    "two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
)
_BASES = {name: str(base) for base, name in enumerate(_NAMES.split(), start=2)}


@dataclass(frozen=True)
class Decimal:
    """A plain number.

    step: the unit of its last digit, if it has enough digits to stand for a value that it only
    approximates (0.333333 for 1/3); else None.
    """

    value: Fraction
    step: Fraction | None = None

    def times(self, factor: Fraction) -> Decimal:
        return Decimal(self.value * factor, self.step and self.step * factor)


def parse_decimal(latex: str) -> Decimal | None:
    """The value of a plain number: 12, -0.5, .5, 3/4, \\frac{3}{4}, 3 \\times 10^{-2}."""
    text = answer_text.compact(latex)
    if match := _DECIMAL.fullmatch(text):
        exponent = int(match[3] or 0)
        if abs(exponent) > 1000:
            return None
        scale = Fraction(10) ** exponent
        whole, _, behind = match[2].partition(".")
        places = len(behind)
        behind = behind.rstrip("0")  # 1.000000 has no more digits than 1
        digits = (whole + behind).lstrip("0")
        step = None
        if behind and len(digits) >= MIN_DIGITS:
            # Digits beyond double precision are noise of a float, so they do not make it stricter.
            step = scale * Fraction(10) ** (max(0, len(digits) - DOUBLE_DIGITS) - places)
        return Decimal(Fraction(match[1] + match[2]) * scale, step)
    if match := _FRACTION.fullmatch(text):
        numerator, denominator = int(match[2] or match[4]), int(match[3] or match[5])
        sign = -1 if match[1] == "-" else 1
        return Decimal(Fraction(sign * numerator, denominator)) if denominator else None
    return None


MIN_DIGITS = 6  # significant digits from which a decimal can stand for a value it approximates
DOUBLE_DIGITS = 15  # significant digits of double precision
_DECIMAL = re.compile(
    r"([+-]?)(\d+(?:\.\d*)?|\.\d+)(?:(?:\\times|\\cdot|\*)10\^\{?([+-]?\d{1,4})\}?)?", re.ASCII
)
_FRACTION = re.compile(r"([+-]?)(?:\\frac\{([+-]?\d+)\}\{([+-]?\d+)\}|(\d+)/(\d+))", re.ASCII)


def stands_for(decimal: Decimal, value: Fraction) -> bool:
    """Whether the decimal equals the value, or is the value rounded or truncated to its digits.

    An approximation must also be within a millionth of the value (relative).
    """
    error = abs(decimal.value - value)
    if error == 0 or decimal.step is None:
        return error == 0
    if error > TOLERANCE * max(abs(decimal.value), abs(value)):
        return False
    truncated = 0 <= abs(value) - abs(decimal.value) < decimal.step
    return error <= decimal.step / 2 or (truncated and decimal.value * value > 0)


def units_compatible(given: Leaf, truth: Leaf) -> bool:
    """Whether the units do not contradict each other; a percent sign contradicts any measure."""
    if (given.percent and truth.unit.measures) or (truth.percent and given.unit.measures):
        return False
    return answer_units.compatible(given.unit, truth.unit)


def allowed_scales(given: Leaf, truth: Leaf) -> tuple[Fraction, ...]:
    """Factors by which `given` may be multiplied.

    Two conventions apply: a percent sign may be left out (50 for 50%), and 50% is also 0.5.
    """
    if given.percent == truth.percent:
        return (Fraction(1),)
    return Fraction(1), Fraction(1, 100) if given.percent else Fraction(100)


def plain_numbers_equal(given: Leaf, truth: Leaf) -> bool | None:
    """Whether two plain numbers are equal, units aside; None if one is not a plain number."""
    a, b = parse_decimal(given.latex), parse_decimal(truth.latex)
    if a is None or b is None:
        return None
    rescaled = [a.times(scale) for scale in allowed_scales(given, truth)]
    return any(stands_for(x, b.value) or stands_for(b, x.value) for x in rescaled)


# Relative. A little more than a millionth: 0.333333 differs from 1/3 by exactly a millionth of it.
TOLERANCE = Fraction(1_000_001, 10**12)
