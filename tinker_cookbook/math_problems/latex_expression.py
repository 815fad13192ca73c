r"""Recursive-descent parser for expressions in LaTeX or plain text (`\frac{1}{2}x^2`, `2*pi*r`).

It only builds trees; `expression_values` evaluates them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction
from typing import Any, NamedTuple

MAX_DEPTH = 100


class Unreadable(ValueError):
    """Text that is not an expression that `parse` supports."""


class Node(NamedTuple):
    """A node of the tree.

    kind and args: number (a Fraction), symbol (its name), matrix (nodes of kind row), apply (name
    of an unknown function, arguments), or an operator or known function (operands).
    """

    kind: str
    args: tuple[Any, ...] = ()


_GREEK = (
    "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi"
    " rho sigma tau upsilon phi varphi chi psi omega Gamma Delta Theta Lambda Xi Sigma Phi Psi"
    " Omega ell"
)
_TRIGONOMETRIC = (
    "sin cos tan cot sec csc sinh cosh tanh coth arcsin arccos arctan arcsinh arccosh arctanh"
)
_OTHER_FUNCTIONS = "exp ln log lg sqrt Re Im arg det gcd lcm max min"
_ACCENT_NAMES = "bar overline vec overrightarrow hat widehat tilde widetilde dot ddot underline"
GREEK = _GREEK.split()
TRIGONOMETRIC = _TRIGONOMETRIC.split()
FUNCTION_NAMES = TRIGONOMETRIC + _OTHER_FUNCTIONS.split()
_INVERTIBLE = ("sin", "cos", "tan", "sinh", "cosh", "tanh")
_ACCENTS = {name: name for name in _ACCENT_NAMES.split()} | {
    "overline": "bar",
    "overrightarrow": "vec",
    "widehat": "hat",
    "widetilde": "tilde",
}
_OPENING = {
    "(": ")",
    "[": "]",
    "{": "}",
    "\\{": "\\}",
    "\\lfloor": "\\rfloor",
    "\\lceil": "\\rceil",
}
_CLOSING = {*_OPENING.values(), "|", "&", "\\\\", "\\end", ","}
_MATRIX = {"pmatrix", "bmatrix", "matrix", "Bmatrix", "smallmatrix", "vmatrix", "array"}
_MARKS = {"*", "\\ast", "\\dagger", "\\circ"}
_TIMES = {"*", "\\cdot", "\\times", "\\ast"}
_DIVIDED = {"/", "\\div", "\\over"}
_TOKEN = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+|\\[A-Za-z]+|\\.|'+|\*\*|[^\s])", re.ASCII | re.DOTALL)


def parse(text: str, loose: bool = False) -> Node:
    """Parse an expression or raise Unreadable.

    loose: read 1/2x as (1/2)x instead of 1/(2x).
    """
    return _Parser(text, loose).parse_whole()


class _Parser:
    def __init__(self, text: str, loose: bool) -> None:
        self._tokens = _TOKEN.findall(text)
        self._at = 0
        self._depth = 0
        self._bars = 0
        self._loose = loose

    # ------------------------------------------------------------------ tokens

    def _peek(self, ahead: int = 0) -> str:
        at = self._at + ahead
        return self._tokens[at] if at < len(self._tokens) else ""

    def _next(self) -> str:
        token = self._peek()
        if not token:
            raise Unreadable("the expression ends too early")
        self._at += 1
        return token

    def _expect(self, token: str) -> None:
        if self._next() != token:
            raise Unreadable(f"{token} is missing")

    def _raw_group(self) -> str:
        """Consume a group in braces and return its tokens as text, without parsing them."""
        self._expect("{")
        inner, depth = [], 1
        while True:
            token = self._next()
            depth += {"{": 1, "}": -1}.get(token, 0)
            if not depth:
                return "".join(inner)
            inner.append(token)

    # --------------------------------------------------------------- precedence

    def parse_whole(self) -> Node:
        node = self._sum()
        if self._peek():
            raise Unreadable(f"{self._peek()} cannot be read")
        return node

    def _sum(self) -> Node:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise Unreadable("nested too deep")
        node = self._product()
        while self._peek() in ("+", "-"):
            sign = self._next()
            node = Node(sign, (node, self._product()))
        self._depth -= 1
        return node

    def _product(self) -> Node:
        node = self._signed()
        while token := self._peek():
            if token in _TIMES:
                self._next()
                node = Node("*", (node, self._signed()))
            elif token in _DIVIDED:
                self._next()
                node = Node("/", (node, self._signed(divisor=True)))
            elif token in ("\\bmod", "\\mod"):
                self._next()
                node = Node("mod", (node, self._signed()))
            elif self._starts_factor():
                node = Node("*", (node, self._juxtaposed()))
            else:
                break
        return node

    def _signed(self, divisor: bool = False) -> Node:
        negative = False
        while self._peek() in ("+", "-"):
            negative ^= self._next() == "-"
        node = self._power() if divisor and self._loose else self._juxtaposed()
        return Node("neg", (node,)) if negative else node

    def _juxtaposed(self, stop_at_functions: bool = False) -> Node:
        """Factors without an operator between them; an integer and a proper fraction are a sum."""
        node = self._power()
        while self._starts_factor() and not (stop_at_functions and self._starts_function()):
            begins_with_digit = self._peek()[0].isdigit()
            following = self._power()
            if begins_with_digit and node.kind == "number":
                raise Unreadable("two numbers in a row")
            node = _mixed_number(node, following) or Node("*", (node, following))
        return node

    def _starts_factor(self) -> bool:
        token = self._peek()
        if token == "|":
            return self._bars == 0
        stops = {"", "+", "-", "^", "_", "!", "'", "=", "<", ">", ":", ";", "**", "\\bmod", "\\mod"}
        return token not in stops | _TIMES | _DIVIDED | _CLOSING

    def _starts_function(self) -> bool:
        return self._peek()[1:] in FUNCTION_NAMES and self._peek() != "\\sqrt"

    def _power(self) -> Node:
        node = self._postfix(self._atom())
        if self._peek() in ("^", "**"):
            self._next()
            if self._consume_transpose(node):
                return self._postfix(_transpose(node))
            node = self._postfix(Node("^", (node, self._exponent())))
        return node

    def _consume_transpose(self, node: Node) -> bool:
        """Consume T, {T} or \\top after "^" if it is a transpose; after a number T is a power."""
        length = 3 if self._peek() == "{" and self._peek(2) == "}" else 1
        mark = self._peek(length // 2)
        letter = node.kind == "symbol" and node.args[0] not in CONSTANTS
        matrix = any(n.kind == "matrix" for n in walk(node))
        if mark in ("\\top", "\\intercal") or (mark == "T" and (letter or matrix)):
            self._at += length
            return True
        return False

    def _exponent(self) -> Node:
        if self._peek() in ("+", "-"):
            negative = self._next() == "-"
            return Node("neg", (self._exponent(),)) if negative else self._exponent()
        node = self._atom()
        if self._peek() in ("^", "**"):
            self._next()
            return Node("^", (node, self._exponent()))
        return node

    def _postfix(self, node: Node) -> Node:
        while token := self._peek():
            if token == "!":
                count = 0
                while self._peek() == "!":
                    self._next()
                    count += 1
                if count > 2:
                    raise Unreadable("more than two factorial signs")
                node = Node("!" * count, (node,))
            elif token in ("%", "\\%"):
                self._next()
                node = Node("/", (node, Node("number", (Fraction(100),))))
            elif token == "\\degree":
                self._next()
                degree = Node("/", (Node("symbol", ("\\pi",)), Node("number", (Fraction(180),))))
                node = Node("*", (node, degree))
            else:
                break
        return node

    # -------------------------------------------------------------------- atoms

    def _atom(self) -> Node:
        token = self._next()
        if token[0].isdigit() or (token[0] == "." and len(token) > 1):
            return self._number(token)
        if token in _OPENING:
            node = self._sum()
            self._expect(_OPENING[token])
            return Node(token[1:], (node,)) if token in ("\\lfloor", "\\lceil") else node
        if token == "|":
            return self._absolute()
        if token.isalpha() and len(token) == 1:
            return self._symbol(token)
        name = token[1:]
        if token[0] != "\\":
            raise Unreadable(f"{token} cannot be read")
        if name in ("pi", "infty"):
            return Node("symbol", (token,))
        if name in GREEK:
            return self._symbol(token)
        if name in ("imath", "mathrm", "text", "mathbf", "mathit", "mathsf", "mathcal"):
            return self._text(name)
        if name in FUNCTION_NAMES:
            return self._function(name)
        if name == "frac" and self._is_derivative():
            raise Unreadable("a derivative")
        if name in ("frac", "binom", "dbinom", "tbinom"):
            return Node("/" if name == "frac" else "binom", (self._argument(), self._argument()))
        if name in _ACCENTS:
            return self._symbol(f"\\{_ACCENTS[name]}{{{self._raw_group()}}}")
        if name == "begin":
            return self._matrix()
        raise Unreadable(f"{token} cannot be read")

    def _is_derivative(self) -> bool:
        """Whether {dy}{dx} follows: a derivative, not a quotient of products."""
        ahead = "".join(self._tokens[self._at : self._at + 12])
        return bool(re.match(r"\{d[A-Za-z]?[^{}]*\}\{d[A-Za-z]", ahead))

    def _number(self, token: str) -> Node:
        if self._peek() == "_":  # a number in another base
            self._next()
            base = self._raw_group() if self._peek() == "{" else self._next()
            if not (base.isdecimal() and 2 <= int(base) <= 36):
                raise Unreadable("not a base of a number")
            try:
                return Node("number", (Fraction(int(token, int(base))),))
            except ValueError as error:
                raise Unreadable("a digit is not in this base") from error
        return Node("number", (Fraction(token),))

    def _absolute(self) -> Node:
        self._bars += 1
        node = self._sum()
        self._expect("|")
        self._bars -= 1
        return Node("abs", (node,))

    def _symbol(self, name: str) -> Node:
        """A letter with its subscript and primes; f(x) and g(x) are calls, not products."""
        for _ in range(2):
            if self._peek() == "_":
                self._next()
                inner = self._raw_group() if self._peek() == "{" else self._next()
                name += f"_{{{inner}}}"
            name += self._primes()
        if self._peek() == "^" and self._peek(1).strip("{") in _MARKS:
            raise Unreadable("a superscript mark that is not a power")
        if name[0] in "fg" or "'" in name:
            if self._tokens[self._at : self._at + 6] == ["^", "{", "-", "1", "}", "("]:
                self._at += 5
                name += "^{-1}"
            if self._peek() == "(":
                return Node("apply", (name, *self._arguments()))
        return Node("symbol", (name,))

    def _primes(self) -> str:
        """Consume the primes that follow: f', f^\\prime, f^{\\prime\\prime}."""
        if self._peek()[:1] == "'":
            return self._next()
        if self._peek() != "^":
            return ""
        end = 1
        if braced := self._peek(1) == "{":
            end += 1
        first = end
        while self._peek(end) == "\\prime" or self._peek(end)[:1] == "'":
            end += 1
        if end == first or (braced and self._peek(end) != "}"):
            return ""
        count = sum(max(1, self._peek(at).count("'")) for at in range(first, end))
        self._at += end + braced
        return "'" * count

    def _arguments(self) -> list[Node]:
        self._expect("(")
        arguments = [self._sum()]
        while self._peek() == ",":
            self._next()
            arguments.append(self._sum())
        self._expect(")")
        return arguments

    def _argument(self) -> Node:
        """The argument of \\frac or \\sqrt: a group, letter or digit (\\frac12 is a half)."""
        token = self._peek()
        if token.isdecimal() and len(token) > 1:
            self._tokens[self._at : self._at + 1] = [token[0], token[1:]]
        return self._atom()

    def _text(self, name: str) -> Node:
        if name == "imath":
            return Node("symbol", ("i",))
        inner = self._raw_group()
        if inner in FUNCTION_NAMES:
            return self._function(inner)
        if not inner.isalpha():
            raise Unreadable("words inside an expression")
        return self._symbol(inner if len(inner) == 1 else f"\\text{{{inner}}}")

    def _function(self, name: str) -> Node:
        if name == "sqrt":
            root: Node | None = None
            if self._peek() == "[":
                self._next()
                root = self._sum()
                self._expect("]")
            return Node("root", (self._argument(), root or Node("number", (Fraction(2),))))
        base = power = None
        for _ in range(2):
            if self._peek() == "_" and base is None:
                self._next()
                base = self._argument()
            elif self._peek() in ("^", "**") and power is None:
                self._next()
                power = self._exponent()
        if name in ("gcd", "lcm", "max", "min"):
            return Node(name, tuple(self._arguments()))
        if self._peek() in ("(", "{"):
            argument = self._atom()
        else:
            negative = self._peek() == "-" and bool(self._next())
            argument = self._juxtaposed(stop_at_functions=True)
            if negative:
                argument = Node("neg", (argument,))
        if power == _MINUS_ONE and name in _INVERTIBLE:
            return Node(f"arc{name}", (argument,))
        if name in ("log", "lg"):
            node = Node("log", (argument, base or Node("number", (Fraction(10),))))
        else:
            node = Node(name, (argument,))
        return Node("^", (node, power)) if power else node

    def _matrix(self) -> Node:
        environment = self._raw_group()
        if environment not in _MATRIX:
            raise Unreadable(f"{environment} cannot be read")
        if environment == "array":
            self._raw_group()
        rows: list[list[Node]] = [[]]
        while True:
            rows[-1].append(self._sum())
            token = self._next()
            if token == "\\\\" and self._peek() != "\\end":
                rows.append([])
            elif token in ("\\end", "\\\\"):
                if token == "\\\\":
                    self._next()
                break
            elif token != "&":
                raise Unreadable("a matrix is not closed")
        if self._raw_group() != environment or len({len(row) for row in rows}) != 1:
            raise Unreadable("rows of different lengths")
        node = Node("matrix", tuple(Node("row", tuple(row)) for row in rows))
        return Node("det", (node,)) if environment == "vmatrix" else node


_MINUS_ONE = Node("neg", (Node("number", (Fraction(1),)),))


def _mixed_number(whole: Node, part: Node) -> Node | None:
    """1\\frac{4}{5} as the sum 1 + 4/5; None if it is not a mixed number."""
    if whole.kind != "number" or part.kind != "/":
        return None
    if any(n.kind != "number" or n.args[0].denominator != 1 for n in (whole, *part.args)):
        return None
    over, under = part.args
    return Node("+", (whole, part)) if over.args[0] < under.args[0] else None


def _transpose(node: Node) -> Node:
    if node.kind == "symbol":
        return Node("symbol", (f"{node.args[0]}^T",))
    return Node("transpose", (node,))


def walk(node: Node) -> Iterator[Node]:
    """Yield the node and all its descendants.

    Iterative, because a long sum is a tree deeper than Python's recursion limit.
    """
    stack = [node]
    while stack:
        node = stack.pop()
        yield node
        stack.extend(n for n in node.args if isinstance(n, Node))


CONSTANTS = ("i", "e", "\\pi", "\\infty")


def symbols(node: Node) -> set[str]:
    """The names of the variables, without the constants i, e, pi and infinity."""
    return {n.args[0] for n in walk(node) if n.kind == "symbol"} - set(CONSTANTS)
