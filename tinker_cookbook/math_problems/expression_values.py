"""Exact evaluation of expressions with sympy.

Decimals become fractions, and irrational numbers stay symbolic. Powers and factorials that would
exhaust memory raise `Undefined` before sympy starts to compute them.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping
from typing import TypeAlias

import sympy
from sympy import Expr, ImmutableMatrix, Integer, Poly, Rational

from tinker_cookbook.math_problems.latex_expression import CONSTANTS, TRIGONOMETRIC, Node

MAX_BITS = 300_000  # of an integer; 2006! has 19,000
MAX_FACTORIAL = 20_000


class Undefined(ValueError):
    """There is no value, or it cannot be computed: 1/0, a power that would exhaust memory."""


Value: TypeAlias = Expr | ImmutableMatrix
_VALUES = dict(zip(CONSTANTS, (sympy.I, sympy.E, sympy.pi, sympy.oo), strict=True))


def evaluate(node: Node, at: Mapping[str, Expr]) -> Value:
    """Evaluate with the variables set to `at`; raises Undefined if there is no value."""
    try:
        result = _evaluate(node, at)
        if isinstance(result, Expr) and result.has(sympy.nan, sympy.zoo):
            raise Undefined("not a number")
    except (TypeError, AttributeError, NotImplementedError, ArithmeticError) as error:
        raise Undefined(str(error)) from error
    return result


def _evaluate(node: Node, at: Mapping[str, Expr]) -> Value:
    kind, args = node
    if kind == "number":
        return Rational(args[0].numerator, args[0].denominator)
    if kind == "symbol":
        return _VALUES[args[0]] if args[0] in _VALUES else at[args[0]]
    if kind == "apply":
        return _unknown_function(args[0], [_evaluate(a, at) for a in args[1:]])
    if kind == "matrix":
        return ImmutableMatrix([[_evaluate(n, at) for n in row.args] for row in args])
    computed = [_evaluate(a, at) for a in args]
    for number in computed:
        if isinstance(number, Rational) and number.p.bit_length() + number.q.bit_length() > (
            4 * MAX_BITS
        ):
            raise Undefined("a number with too many digits to compute with")
    return _OPERATIONS[kind](*computed)


def _unknown_function(name: str, args: list[Value]) -> Expr:
    """A pseudo-random value for f(2), the same for every occurrence of f(2)."""
    digest = hashlib.sha256(f"{name}{args}".encode()).digest()
    return Rational(int.from_bytes(digest[:6], "big"), 2**44)


def _divide(a: Value, b: Value) -> Value:
    if b == 0:
        raise Undefined("division by zero")
    return a * b**-1


def _power(base: Value, exponent: Expr) -> Value:
    if isinstance(base, sympy.MatrixBase):
        if not (exponent.is_Integer and abs(exponent) < 1000):
            raise Undefined("a power of a matrix")
        return base**exponent
    if isinstance(base, Rational) and isinstance(exponent, Rational):
        bits = max(base.p.bit_length(), base.q.bit_length())
        if bits > 1 and bits * abs(exponent) > MAX_BITS:
            raise Undefined("a power with too many digits")
        # For odd roots of negative numbers take the real root, not the principal complex one.
        if base < 0 and exponent.q % 2:
            sign = -1 if exponent.p % 2 else 1
            return sign * (-base) ** exponent
    elif isinstance(exponent, Rational) and abs(exponent) > MAX_BITS:
        raise Undefined("a power with too many digits")
    if base.is_zero and not exponent.is_zero and not exponent.is_positive:
        raise Undefined("division by zero")
    if base.is_negative and not exponent.is_integer:
        _check_complex_allowed(base)
    return base**exponent


class NotReal(Undefined):
    """A root or logarithm of a negative number, while only real numbers are allowed."""


_real_only = False


def _check_complex_allowed(number: Expr) -> None:
    if _real_only:
        raise NotReal(str(number)[:40])


def evaluate_real(node: Node, at: Mapping[str, Expr]) -> Value:
    """`evaluate`, but raises NotReal at a root or logarithm of a negative number.

    The switch is a module global, because the functions in `_OPERATIONS` take only operands. Not
    thread-safe: the worker process has one thread.
    """
    global _real_only
    _real_only = True
    try:
        return evaluate(node, at)
    finally:
        _real_only = False


def _factorial(n: Expr, function: Callable[[Expr], Expr] = sympy.factorial) -> Value:
    if n.is_Integer and n > MAX_FACTORIAL:
        raise Undefined("a factorial with too many digits")
    return function(n)


def _binomial(n: Expr, k: Expr) -> Value:
    if n.is_Integer and k.is_Integer and min(abs(k), abs(n - k)) * 2 > MAX_FACTORIAL:
        raise Undefined("a binomial coefficient with too many digits")
    return sympy.binomial(n, k)


def _logarithm(number: Expr, base: Expr = sympy.E) -> Value:
    if number == 0 or base in (0, 1):
        raise Undefined("an undefined logarithm")
    if number.is_negative:
        _check_complex_allowed(number)
    return sympy.log(number) if base == sympy.E else sympy.log(number, base)


def _check_expression(result: Expr | Poly) -> Expr:
    if not isinstance(result, Expr):
        raise Undefined("a polynomial")
    return result


_OPERATIONS: dict[str, Callable[..., Value]] = {
    **{name: getattr(sympy, name.replace("arc", "a")) for name in TRIGONOMETRIC},
    "Re": sympy.re,
    "Im": sympy.im,
    "arg": sympy.arg,
    "det": lambda m: m.det(),
    "gcd": lambda *n: _check_expression(sympy.gcd(n)),
    "lcm": lambda *n: _check_expression(sympy.lcm(n)),
    "max": sympy.Max,
    "min": sympy.Min,
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "neg": lambda a: -a,
    "*": lambda a, b: a * b,
    "/": _divide,
    "^": _power,
    "root": lambda a, n: _power(a, _divide(Integer(1), n)),
    "mod": lambda a, b: sympy.Mod(a, b),
    "!": _factorial,
    "!!": functools.partial(_factorial, function=sympy.factorial2),
    "abs": lambda a: abs(a),
    "lfloor": sympy.floor,
    "lceil": sympy.ceiling,
    "binom": _binomial,
    "ln": _logarithm,
    "log": _logarithm,
    "exp": lambda x: _power(sympy.E, x),
    "transpose": lambda m: m.T,
}
