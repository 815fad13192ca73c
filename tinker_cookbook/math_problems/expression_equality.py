r"""Equality of two expressions by value.

Rational numbers are compared exactly. Irrational ones are equal if their difference is zero to a
precision that grows with the size of the numbers in it (`numbers_equal`); no step rounds.
Expressions with variables are compared at sample points.
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

from tinker_cookbook.math_problems.expression_values import (
    NotReal,
    Undefined,
    Value,
    evaluate,
    evaluate_real,
)
from tinker_cookbook.math_problems.latex_expression import Node, Unreadable, parse, symbols, walk

MAX_DIGITS = 40_000
Values = Mapping[str, Expr]
Literal = TypeVar("Literal", int, str)  # a number as written in the tables below


@functools.lru_cache(maxsize=512)
def parse_readings(latex: str) -> tuple[Node, ...]:
    """The parse trees of an expression: two if 1/2x may be (1/2)x or 1/(2x), none if unreadable."""
    try:
        tight = parse(latex)
        loose = parse(latex, loose=True) if "/" in latex else tight
    except (Unreadable, RecursionError):
        return ()
    return (tight,) if loose == tight else (tight, loose)


def numbers_equal(a: Expr, b: Expr) -> bool:
    """Whether two numbers are equal; Undefined if that would need more than MAX_DIGITS digits.

    The difference is evaluated with twice the digits of all rationals in it plus the magnitude of
    its exponents, plus 60. At a fixed precision 1 - e^{-1000} and 1 would be equal.
    """
    if a == b:
        return True
    if a.is_infinite or b.is_infinite or (a.is_Rational and b.is_Rational):
        return False
    difference = a - b
    if difference.is_Rational:
        return difference == 0
    digits = 60 + 2 * (
        sum(_count_digits(n) for n in difference.atoms(Rational)) + _exponent_digits(difference)
    )
    if digits > MAX_DIGITS:
        raise Undefined("too many digits")
    precision = int(digits * math.log2(10))
    real, imaginary, real_bits, imaginary_bits = evalf(difference, 30, {"maxprec": precision})
    # sympy reports how many bits of each part are reliable. None (or next to none) at this
    # precision means that the part cancels out.
    return not ((real and real_bits > 4) or (imaginary and imaginary_bits > 4))


def _count_digits(number: Rational) -> int:
    return int((number.p.bit_length() + number.q.bit_length()) * math.log10(2))


def _exponent_digits(number: Expr) -> int:
    """Digits that exponents contribute: e^{-1000} has 434 zeros after the point."""
    powers = number.atoms(sympy.Pow, sympy.exp, sympy.sinh, sympy.cosh, sympy.tanh, sympy.coth)
    exponents = (p.exp if isinstance(p, (sympy.Pow, sympy.exp)) else p.args[0] for p in powers)
    return sum(min(MAX_DIGITS, int(abs(sympy.N(e, 5)))) for e in exponents)


def to_fraction(number: Expr) -> Fraction | None:
    """A real number as a fraction: exact if it is rational, else to 40 digits. None if not real."""
    if isinstance(number, Rational):
        return Fraction(number.p, number.q)
    approximation = number.evalf(40, maxn=2000)
    return Fraction(str(approximation)) if approximation.is_Float else None


# Coordinates of the sample points: fractions of about 1, about 100 and some thousands. The last are
# for piecewise functions, which may agree on small numbers and differ on large ones.
_POSITIVE = ("137/97", "59/31", "23/71", "211/113", "83/149", "31/167", "107/61", "43/131")
_LARGE = ("1370/7", "2003/17", "997/11", "1511/13", "877/3", "1201/19", "1777/9", "1321/8")
_HUGE = ("30011/7", "50021/17", "29989/11", "45007/13", "26017/3", "36007/19", "53003/9", "39989/8")
_INTEGERS = (7, 4, 9, 5, 8, 3, 6, 11)
_SIGNS = ((1, 1), (-1, -1), (1, -1))


def _sample_points(names: list[str], integers: bool, pieces: bool) -> list[Values]:
    """The sample points, values of the variables.

    integers: whole numbers only, for n! and the like. pieces: very large numbers, too, because
    |x - 300| equals 300 - x at all smaller ones.
    """
    if not names:
        return [{}]
    if integers:
        shifts = (0, 1, 4, 11)
        return [
            dict(zip(names, (Integer(n + s) for n in _cycle_growing(_INTEGERS)))) for s in shifts
        ]
    points = []
    sizes = (_POSITIVE, _LARGE, _HUGE) if pieces else (_POSITIVE, _LARGE)
    for signs, values in itertools.product(_SIGNS, sizes):
        numbers = (
            Rational(v) * sign for v, sign in zip(_cycle_growing(values), itertools.cycle(signs))
        )
        points.append(dict(zip(names, numbers)))
    return points if len(names) > 1 else points[: 2 * len(sizes)]


def _far_points(nodes: Iterable[Node], names: list[str]) -> list[Values]:
    """Points beyond the largest constant, where |x - 10^9| changes its sign."""
    largest = max(
        (abs(number) for node in nodes for number in _rational_constants(node)), default=0
    )
    if largest <= 1000:
        return []
    points = []
    for sign in (1, -1):
        numbers = (sign * (3 * largest + Rational(v)) for v in _cycle_growing(_LARGE))
        points.append(dict(zip(names, numbers)))
    return points


def _rational_constants(node: Node) -> Iterator[Rational]:
    """The rational constants of an expression, of at most 18 digits; 10^9 is one."""
    if node.kind in ("number", "^", "*", "/") and not symbols(node):
        if any(n.kind not in ("number", "^", "*", "/", "neg") for n in walk(node)):
            return
        if any(n.kind == "^" and n.args[1].kind != "number" for n in walk(node)):
            return
        if any(n.kind == "number" and n.args[0] > 10**18 for n in walk(node)):
            return
        if any(n.kind == "^" and n.args[1].args[0] > 18 for n in walk(node)):
            return
        number = evaluate(node, {})
        if isinstance(number, Rational) and abs(number) <= 10**18:
            yield number
        return
    for inner in node.args:
        if isinstance(inner, Node):
            yield from _rational_constants(inner)


def _cycle_growing(values: Iterable[Literal]) -> Iterator[Literal | Expr]:
    """Repeat the values, larger by one each time round, so that no two variables are equal."""
    for i in itertools.count():
        for v in values:
            yield Rational(v) + i if i else v


_PIECEWISE = {"abs", "max", "min", "lfloor", "lceil", "mod"}


def _is_root(node: Node) -> bool:
    r"""Whether a node is a root with a variable inside: \sqrt{(x-300)^2} is |x - 300|."""
    if node.kind == "^":
        power = node.args[1]
        is_fractional = power.kind == "/" or (
            power.kind == "number" and power.args[0].denominator > 1
        )
        return is_fractional and bool(symbols(node.args[0]))
    return node.kind == "root" and bool(symbols(node.args[0]))


def _needs_integers(*nodes: Node) -> bool:
    """Whether an expression is defined for whole numbers only: n!, (-1)^n."""
    for node in itertools.chain(*(walk(n) for n in nodes)):
        if node.kind in ("!", "!!", "binom") and symbols(node):
            return True
        negative = node.kind == "^" and any(n.kind == "neg" for n in walk(node.args[0]))
        if negative and symbols(node.args[1]) and not symbols(node.args[0]):
            return True
    return False


def _values_at(nodes: tuple[Node, ...], point: Values) -> list[Value] | None:
    """The values at a point; None if one is undefined there.

    At points with a negative number, a root or logarithm of a negative number counts as undefined.
    """
    negative = any(v.is_negative for v in point.values())
    try:
        return [(evaluate_real if negative else evaluate)(node, point) for node in nodes]
    except NotReal:
        return None
    except Undefined:
        if not point:
            raise
        return None


def expressions_equal(a: Node, b: Node) -> bool:
    """Whether two expressions agree at every sample point where both are defined (at least one)."""
    if a == b:
        return True
    compared = 0
    for x, y in values_at_points(a, b):
        try:
            if not _values_equal(x, y):
                return False
        except Undefined:  # this point would need too many digits
            continue
        compared += 1
    return compared > 0


def values_at_points(*nodes: Node) -> Iterator[list[Value]]:
    """The values of the expressions at each sample point where all of them are defined."""
    names = sorted(set().union(*(symbols(node) for node in nodes)))
    pieces = any(n.kind in _PIECEWISE for node in nodes for n in walk(node))
    roots = any(_is_root(n) for node in nodes for n in walk(node))
    integers = _needs_integers(*nodes)
    points = _sample_points(names, integers, pieces or roots)
    if names and not integers and (pieces or roots):
        points += _far_points(nodes, names)
    for point in points:
        values = _values_at(nodes, point)
        if values is not None:
            yield values


def _values_equal(a: Value, b: Value) -> bool:
    if isinstance(a, MatrixBase) and isinstance(b, MatrixBase):
        return a.shape == b.shape and all(map(numbers_equal, a.flat(), b.flat()))
    if isinstance(a, MatrixBase) or isinstance(b, MatrixBase):
        return False
    return numbers_equal(a, b)
