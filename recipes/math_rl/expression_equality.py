r"""Whether two expressions have the same value.

Numbers are compared exactly where they are rational. Others are the same when their difference
cannot be told from zero with as many digits as the numbers in them have, and 60 more; nothing is
rounded off on the way. Expressions with variables are compared at points.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction
from typing import TypeVar

import sympy
from sympy import Expr, Integer, MatrixBase, Rational
from sympy.core.evalf import evalf

from recipes.math_rl.expression_values import NotReal, Undefined, Value, real_value, value
from recipes.math_rl.latex_expression import Node, Unreadable, parse, symbols, walk

MAX_DIGITS = 40_000
Values = Mapping[str, Expr]
Spelling = TypeVar("Spelling", int, str)  # of a number


@functools.lru_cache(maxsize=512)
def readings(latex: str) -> tuple[Node, ...]:
    """The trees of an expression: two where 1/2x can be (1/2)x and 1/(2x); none of words."""
    try:
        tight = parse(latex)
        loose = parse(latex, loose=True) if "/" in latex else tight
    except (Unreadable, RecursionError):
        return ()
    return (tight,) if loose == tight else (tight, loose)


def same_numbers(a: Expr, b: Expr) -> bool:
    if a == b:
        return True
    if a.is_infinite or b.is_infinite or (a.is_Rational and b.is_Rational):
        return False
    difference = a - b
    if difference.is_Rational:
        return difference == 0
    digits = 60 + 2 * (sum(_digits(n) for n in difference.atoms(Rational)) + _growth(difference))
    if digits > MAX_DIGITS:
        raise Undefined("too many digits")
    precision = int(digits * math.log2(10))
    real, imaginary, real_bits, imaginary_bits = evalf(difference, 30, {"maxprec": precision})
    return not ((real and real_bits > 4) or (imaginary and imaginary_bits > 4))


def _digits(number: Rational) -> int:
    return int((number.p.bit_length() + number.q.bit_length()) * math.log10(2))


def _growth(number: Expr) -> int:
    """Digits that exponents add: e^{-1000} is as small as 434 digits."""
    powers = number.atoms(sympy.Pow, sympy.exp, sympy.sinh, sympy.cosh, sympy.tanh, sympy.coth)
    exponents = (p.exp if isinstance(p, (sympy.Pow, sympy.exp)) else p.args[0] for p in powers)
    return sum(min(MAX_DIGITS, int(abs(sympy.N(e, 5)))) for e in exponents)


def fraction(number: Expr) -> Fraction | None:
    """A real number to forty digits."""
    if isinstance(number, Rational):
        return Fraction(number.p, number.q)
    approximation = number.evalf(40, maxn=2000)
    return Fraction(str(approximation)) if approximation.is_Float else None


_POSITIVE = ("137/97", "59/31", "23/71", "211/113", "83/149", "31/167", "107/61", "43/131")
_LARGE = ("1370/7", "2003/17", "997/11", "1511/13", "877/3", "1201/19", "1777/9", "1321/8")
_HUGE = ("30011/7", "50021/17", "29989/11", "45007/13", "26017/3", "36007/19", "53003/9", "39989/8")
_WHOLE = (7, 4, 9, 5, 8, 3, 6, 11)
_SIGNS = ((1, 1), (-1, -1), (1, -1))


def _points(names: list[str], whole: bool, pieces: bool) -> list[Values]:
    """Values of the variables to compare at. whole: whole numbers, as for n!. pieces: huge ones,
    too, as |x - 300| is 300 - x for all others."""
    if not names:
        return [{}]
    if whole:
        shifts = (0, 1, 4, 11)
        return [dict(zip(names, (Integer(n + s) for n in _cycle(_WHOLE)))) for s in shifts]
    points = []
    sizes = (_POSITIVE, _LARGE, _HUGE) if pieces else (_POSITIVE, _LARGE)
    for signs, values in itertools.product(_SIGNS, sizes):
        numbers = (Rational(v) * sign for v, sign in zip(_cycle(values), itertools.cycle(signs)))
        points.append(dict(zip(names, numbers)))
    return points if len(names) > 1 else points[: 2 * len(sizes)]


def _beyond(nodes: Iterable[Node], names: list[str]) -> list[Values]:
    """Points on the far side of the largest number in them, where |x - 10^9| turns."""
    largest = max((abs(number) for node in nodes for number in _constants(node)), default=0)
    if largest <= 1000:
        return []
    points = []
    for sign in (1, -1):
        numbers = (sign * (3 * largest + Rational(v)) for v in _cycle(_LARGE))
        points.append(dict(zip(names, numbers)))
    return points


def _constants(node: Node) -> Iterator[Rational]:
    """The rational numbers in it, of 18 digits at most; 10^9 is one."""
    if node.kind in ("number", "^", "*", "/") and not symbols(node):
        if any(n.kind not in ("number", "^", "*", "/", "neg") for n in walk(node)):
            return
        if any(n.kind == "^" and n.args[1].kind != "number" for n in walk(node)):
            return
        if any(n.kind == "number" and n.args[0] > 10**18 for n in walk(node)):
            return
        if any(n.kind == "^" and n.args[1].args[0] > 18 for n in walk(node)):
            return
        number = value(node, {})
        if isinstance(number, Rational) and abs(number) <= 10**18:
            yield number
        return
    for inner in node.args:
        if isinstance(inner, Node):
            yield from _constants(inner)


def _cycle(values: Iterable[Spelling]) -> Iterator[Spelling | Expr]:
    """The values again and again, each time by one larger: no two variables are the same."""
    for i in itertools.count():
        for v in values:
            yield Rational(v) + i if i else v


_PIECEWISE = {"abs", "max", "min", "lfloor", "lceil", "mod"}


def _is_root(node: Node) -> bool:
    r"""Whether it is a root of what holds a variable; \sqrt{(x-300)^2} turns at 300."""
    if node.kind == "^":
        power = node.args[1]
        broken = power.kind == "/" or (power.kind == "number" and power.args[0].denominator > 1)
        return broken and bool(symbols(node.args[0]))
    return node.kind == "root" and bool(symbols(node.args[0]))


def _wants_whole(*nodes: Node) -> bool:
    """Whether something in them is meant for whole numbers: n!, (-1)^n."""
    for node in itertools.chain(*(walk(n) for n in nodes)):
        if node.kind in ("!", "!!", "binom") and symbols(node):
            return True
        negative = node.kind == "^" and any(n.kind == "neg" for n in walk(node.args[0]))
        if negative and symbols(node.args[1]) and not symbols(node.args[0]):
            return True
    return False


def _values_at(nodes: tuple[Node, ...], point: Values) -> list[Value] | None:
    """Their values; None where one has none, or where a negative number has a root taken."""
    negative = any(v.is_negative for v in point.values())
    try:
        return [(real_value if negative else value)(node, point) for node in nodes]
    except NotReal:
        return None
    except Undefined:
        if not point:
            raise
        return None


def same_expressions(a: Node, b: Node) -> bool:
    if a == b:
        return True
    compared = 0
    for x, y in values_at_points(a, b):
        try:
            if not _same_values(x, y):
                return False
        except Undefined:  # too many digits to tell, here
            continue
        compared += 1
    return compared > 0


def values_at_points(*nodes: Node) -> Iterator[list[Value]]:
    names = sorted(set().union(*(symbols(node) for node in nodes)))
    pieces = any(n.kind in _PIECEWISE for node in nodes for n in walk(node))
    roots = any(_is_root(n) for node in nodes for n in walk(node))
    whole = _wants_whole(*nodes)
    points = _points(names, whole, pieces or roots)
    if names and not whole and (pieces or roots):
        points += _beyond(nodes, names)
    for point in points:
        values = _values_at(nodes, point)
        if values is not None:
            yield values


def _same_values(a: Value, b: Value) -> bool:
    if isinstance(a, MatrixBase) and isinstance(b, MatrixBase):
        return a.shape == b.shape and all(map(same_numbers, a.flat(), b.flat()))
    if isinstance(a, MatrixBase) or isinstance(b, MatrixBase):
        return False
    return same_numbers(a, b)
