"""Whether two answers are the same mathematics: part by part, as `answer_parts` reads them."""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Callable
from fractions import Fraction

import sympy
from sympy import Expr, MatrixBase

from recipes.math_rl import answer_parts, answer_text, answer_units
from recipes.math_rl.answer_parts import Based, Date, Items, Leaf, Part, Ratio, Relation, Sets
from recipes.math_rl.expression_equality import (
    fraction,
    readings,
    same_expressions,
    same_numbers,
    values_at_points,
)
from recipes.math_rl.expression_values import Undefined, value
from recipes.math_rl.latex_expression import Node, Unreadable, symbols


def same(given: str, truth: str) -> bool:
    """Whether the answer `given` is `truth`; both as `answer_text.normalise` spells them."""
    try:
        mine, known = answer_parts.read(given), answer_parts.read(truth)
    except Unreadable:
        return False
    if _same(_simple(mine), _simple(known)):
        return True
    both = isinstance(mine, Relation) and isinstance(known, Relation)
    return both and _same_relations(mine, known)  # 2x + 1 < 7 and x < 3


def _same(mine: Part, known: Part) -> bool:
    if isinstance(known, Relation) or isinstance(mine, Relation):
        return _same_relations(mine, known)
    if isinstance(mine, Date) or isinstance(known, Date):
        return answer_parts.date(mine) == answer_parts.date(known)
    if isinstance(mine, Leaf) and isinstance(known, Leaf):
        return _same_leaves(mine, known)
    if isinstance(known, Sets) or isinstance(mine, Sets):
        return _same_sets(mine, known)
    if isinstance(mine, Based) or isinstance(known, Based):
        return _same_digits(mine, known)
    if isinstance(mine, Ratio) or isinstance(known, Ratio):
        return _same_ratios(mine, known)
    return _same_items(mine, known)


# ----------------------------------------------------------------------- leaves


def _same_leaves(mine: Leaf, known: Leaf) -> bool:
    if answer_parts.units_fit(mine, known) and _same_texts(mine, known):
        return True
    if mine.letters is None and known.letters is None:
        return False
    letters = [Leaf(side.letters or side.latex, percent=side.percent) for side in (mine, known)]
    return _same_texts(*letters)


def _same_texts(mine: Leaf, known: Leaf) -> bool:
    if answer_text.compact(mine.latex) == answer_text.compact(known.latex):
        return bool(mine.latex)  # with a percent sign or without
    worded = answer_text.same_words(mine.latex, known.latex)
    if worded is not None:
        return worded
    numbers = answer_parts.same_plain_numbers(mine, known)
    if numbers is not None:
        return numbers
    return any(
        _same_scaled(mine.latex, known.latex, scale) for scale in answer_parts.scales(mine, known)
    )


def _same_scaled(mine: str, known: str, scale: Fraction) -> bool:
    """Whether `scale` times `mine` is `known`."""
    a, b = answer_parts.number(mine), answer_parts.number(known)
    a = a and a.times(scale)
    for x, y in itertools.product(readings(mine), readings(known)):
        if scale != 1:
            x = Node("*", (x, Node("number", (scale,))))
        try:
            if same_expressions(x, y):
                return True
            for decimal, node in ((a, y), (b, x)):
                if decimal is not None and decimal.step is not None and not symbols(node):
                    number = value(node, {})
                    exact = None if isinstance(number, MatrixBase) else fraction(number)
                    if exact is not None and answer_parts.stands_for(decimal, exact):
                        return True
        except Undefined:
            continue
    return False


# ----------------------------------------------------- lists, tuples, sets, ratios


def _same_items(mine: Part, known: Part) -> bool:
    mine, known = _as_items(mine, known), _as_items(known, mine)
    if not (isinstance(mine, Items) and isinstance(known, Items)):
        return False
    kinds = {mine.kind, known.kind}
    if kinds == {"tuple"}:
        return mine.brackets == known.brackets and _in_order(mine.items, known.items)
    if "tuple" in kinds:  # brackets around a list, or none around a tuple: in its order
        return (
            "set" not in kinds
            and "[" not in mine.brackets + known.brackets
            and (_in_order(mine.items, known.items))
        )
    if kinds == {"list"}:
        if _assigns(known) and not any(isinstance(item, Relation) for item in mine.items):
            return _in_order(mine.items, known.items)  # 1, 2 where x=1, y=2 is known
        return _in_any_order(mine.items, known.items)
    return _in_any_order(
        *(_distinct(side.items) if side.kind == "set" else side.items for side in (mine, known))
    )


def _assigns(items: Items) -> bool:
    """Whether its items are set to variables that are not all the same: x=1, y=2."""
    found = [_assignment(item) for item in items.items]
    names = [pair[0] for pair in found if pair and pair[0]]
    return len(names) == len(found) and any(not _same(names[0], name) for name in names)


def _as_items(part: Part, other: Part) -> Part:
    """A matrix of one row or column as a tuple, where the other side is one."""
    if isinstance(part, Leaf) and isinstance(other, Items) and other.kind == "tuple":
        for node in readings(part.latex):
            if node.kind == "matrix" and 1 in (len(node.args), len(node.args[0].args)):
                cells = _cells(part.latex)
                return Items("tuple", tuple(map(Leaf, cells)), other.brackets)
    if isinstance(part, Leaf) and isinstance(other, Items) and other.kind in ("list", "set"):
        return Items("list", (part,))
    return part


def _cells(matrix: str) -> list[str]:
    inside = matrix[matrix.index("}") + 1 : matrix.rindex("\\end")]
    return [cell for cell in inside.replace("\\\\", "&").split("&") if cell.strip()]


def _in_order(mine: tuple[Part, ...], known: tuple[Part, ...]) -> bool:
    return len(mine) == len(known) and all(map(_same, map(_simple, mine), map(_simple, known)))


def _in_any_order(mine: tuple[Part, ...], known: tuple[Part, ...]) -> bool:
    if len(mine) != len(known):
        return False
    left = [_simple(part) for part in known]
    for part in map(_simple, mine):
        match = next((i for i, other in enumerate(left) if _same(part, other)), None)
        if match is None:
            return False
        del left[match]
    return True


def _distinct(items: tuple[Part, ...]) -> tuple[Part, ...]:
    kept: list[Part] = []
    for item in items:
        if not any(_same(_simple(item), _simple(other)) for other in kept):
            kept.append(item)
    return tuple(kept)


def _same_digits(mine: Part, known: Part) -> bool:
    sides = []
    for side in (mine, known):
        if isinstance(side, Leaf):
            if side.percent or side.unit != answer_units.NO_UNIT:  # 25 degrees are no 25_6
                return False
            digits = side.latex.replace(" ", "").casefold()
            side = Based(digits.lstrip("0") or digits, "")
        if not isinstance(side, Based):
            return False
        sides.append(side)
    a, b = sides
    return a.digits == b.digits and ("" in (a.base, b.base) or a.base == b.base)


def _same_ratios(mine: Part, known: Part) -> bool:
    if isinstance(mine, Ratio) and isinstance(known, Ratio):
        if not answer_units.fits(mine.unit, known.unit) or len(mine.items) != len(known.items):
            return False
        if mine.time == known.time and _in_order(mine.items, known.items):
            return True
        if mine.time or known.time:
            return False
        nodes = [[_node(item) for item in side.items] for side in (mine, known)]
        if any(node is None for side in nodes for node in side):
            return False
        (a, *rest), (b, *others) = nodes
        return all(
            same_expressions(Node("*", (a, y)), Node("*", (b, x))) for x, y in zip(rest, others)
        )
    ratio, other = (mine, known) if isinstance(mine, Ratio) else (known, mine)
    if isinstance(ratio, Ratio) and isinstance(other, Leaf) and len(ratio.items) == 2:
        a, b, c = (_node(part) for part in (*ratio.items, other))
        if ratio.time:  # 3:10 is 3/10, but 10:30 is not 1/3
            return c == Node("/", (a, b))
        return None not in (a, b, c) and same_expressions(Node("/", (a, b)), c)  # pyright: ignore
    return False


def _node(part: Part) -> Node | None:
    return next(iter(readings(part.latex)), None) if isinstance(part, Leaf) else None


# ------------------------------------------------------------------------- sets


def _same_sets(mine: Part, known: Part) -> bool:
    if isinstance(mine, Sets) and isinstance(known, Sets):
        unordered = mine.operator == known.operator != "\\setminus"
        if unordered and _in_any_order(mine.items, known.items):
            return True
    if len(_variables(mine) | _variables(known)) > 1:  # x > 1 and y < 2
        if not (isinstance(mine, (Sets, Items)) and isinstance(known, (Sets, Items))):
            return False
        related = all(isinstance(item, Relation) for item in mine.items + known.items)
        return related and _in_any_order(mine.items, known.items)
    try:
        a, b = _set(mine), _set(known)
    except (Undefined, Unreadable, TypeError, NotImplementedError):
        return False
    return a == b or a.symmetric_difference(b) == sympy.EmptySet


def _variables(part: Part) -> set[str]:
    """The variables of the inequalities that it joins."""
    if isinstance(part, (Sets, Items)):
        return set().union(*map(_variables, part.items))
    nodes = map(_node, part.sides) if isinstance(part, Relation) else ()
    return set().union(*(symbols(node) for node in nodes if node is not None))


def _set(part: Part) -> sympy.Set:
    part = _simple(part)
    if isinstance(part, Sets):
        sets = [_set(item) for item in part.items]
        join: dict[str, Callable[[sympy.Set, sympy.Set], sympy.Set]] = {
            "\\cup": lambda a, b: sympy.Union(a, b),
            "\\cap": lambda a, b: sympy.Intersection(a, b),
            "\\setminus": lambda a, b: sympy.Complement(a, b),
        }
        return functools.reduce(join[part.operator], sets)
    if isinstance(part, Items) and part.kind == "tuple" and len(part.items) == 2:
        low, high = (_real(item) for item in part.items)
        if (high - low).is_extended_negative:
            raise Undefined("an interval that ends before it begins")
        closed = part.brackets[0] == "[", part.brackets[1] == "]"
        if (closed[0] and low.is_infinite) or (closed[1] and high.is_infinite):
            raise Undefined("an interval that holds infinity")
        return sympy.Interval(low, high, not closed[0], not closed[1])
    if isinstance(part, Items) and part.kind == "set":
        return sympy.FiniteSet(*(_real(item) for item in part.items))
    if isinstance(part, Items) and all(isinstance(item, Relation) for item in part.items):
        return sympy.Union(*(_set(item) for item in part.items))  # x < 1 or x > 3
    raise Unreadable("no set")


def _real(part: Part) -> Expr:
    node = _node(part)
    if node is None or symbols(node):
        raise Unreadable("no number")
    number = value(node, {})
    if not isinstance(number, Expr):
        raise Unreadable("no number")
    return number


# -------------------------------------------------------------------- relations

_FLIPPED = {"<": ">", ">": "<", "\\le": "\\ge", "\\ge": "\\le", "=": "=", "\\ne": "\\ne"}


def _simple(part: Part) -> Part:
    """x \\in [1, 2], 1 \\le x \\le 2 as the interval; 3 > x > 2 the other way round."""
    if not isinstance(part, Relation):
        return part
    sides, signs = part.sides, part.signs
    if signs == ("\\in",):
        return _simple(sides[1]) if _is_name(sides[0]) else part
    if not sides[0] and signs[0] in ("=", "\\approx"):  # nothing in front of it
        return part
    if all(sign in (">", "\\ge") for sign in signs):
        sides, signs = sides[::-1], tuple(_FLIPPED[sign] for sign in reversed(signs))
    infinity = Leaf("\\infty"), Leaf("-\\infty")
    bounds = {"<": "()", "\\le": "[]"}
    if all(sign in bounds for sign in signs):
        if len(sides) == 3 and _is_name(sides[1]) and _is_number(sides[0]) and _is_number(sides[2]):
            brackets = bounds[signs[0]][0] + bounds[signs[1]][1]
            return Items("tuple", (sides[0], sides[2]), brackets)
        if len(sides) == 2 and _is_name(sides[0]) and _is_number(sides[1]):
            return Items("tuple", (infinity[1], sides[1]), "(" + bounds[signs[0]][1])
        if len(sides) == 2 and _is_name(sides[1]) and _is_number(sides[0]):
            return Items("tuple", (sides[0], infinity[0]), bounds[signs[0]][0] + ")")
    if signs == ("\\ne",) and _is_name(sides[0]) and _is_number(sides[1]):
        return Sets(
            "\\cup",
            (
                Items("tuple", (infinity[1], sides[1]), "()"),
                Items("tuple", (sides[1], infinity[0]), "()"),
            ),
        )
    return Relation(sides, signs)


_GEOMETRIC = re.compile(r"m? ?\\(?:measured)?angle ?\{? ?[A-Z]{1,3} ?\}?|[A-Z]{2,3}")


def _is_name(part: Part) -> bool:
    """A variable: x, a_1, \\theta, f(x), (x, y); a segment or an angle: AB, \\angle A."""
    if isinstance(part, Items):
        return part.kind == "tuple" and all(map(_is_name, part.items))
    if isinstance(part, Leaf) and _GEOMETRIC.fullmatch(part.latex):
        return True
    node = _node(part)
    if node is None:
        return False
    if node.kind == "*" and isinstance(part, Leaf) and part.latex.endswith(")"):  # P(x)
        return all(n.kind == "symbol" for n in node.args)
    if node.kind == "apply":
        return all(isinstance(a, str) or a.kind == "symbol" for a in node.args)
    return node.kind == "symbol" and bool(symbols(node))


def _is_number(part: Part) -> bool:
    node = _node(part)
    return node is not None and not symbols(node)


def _assignment(part: Part) -> tuple[Part | None, tuple[Part, ...]] | None:
    """(name, values) of x = 3 + 2 = 5, (None, values) of 3 + 2 = 5 and of a plain value; None of
    an equation, and of a chain that is wrong: 5 = 6. values: the first of the chain and the last,
    which are the same but for a rounded one behind \\approx."""
    if not isinstance(part, Relation):
        return None, (part,)
    if not all(sign in ("=", "\\approx", "\\equiv") for sign in part.signs):
        return None
    sides, signs = part.sides, part.signs
    if len(sides) == 2 and _is_name(sides[1]) and not _is_name(sides[0]):
        sides = sides[::-1]
    name = None
    if _is_name(sides[0]):
        name, sides, signs = sides[0], sides[1:], signs[1:]
        node = _node(sides[-1])
        if node and node.kind == "symbol" and symbols(node) and not _is_function(name):
            return None  # y = x is a line
    elif not all(_is_value(side) for side in sides):
        return None
    steps = zip(sides, sides[1:], signs)
    if not all(_near(a, b) if sign == "\\approx" else _same(a, b) for a, b, sign in steps):
        return None
    return name, (sides[0], sides[-1])


def _is_value(part: Part) -> bool:
    return not isinstance(part, Leaf) or _is_number(part)


def _is_function(part: Part) -> bool:
    return isinstance(part, Leaf) and part.latex.endswith(")")


def _near(a: Part, b: Part) -> bool:
    """Whether b is a decimal that a is rounded or cut off to."""
    decimal = answer_parts.number(b.latex) if isinstance(b, Leaf) else None
    try:
        exact = fraction(_real(a))
    except (Undefined, Unreadable):
        return False
    if decimal is None or exact is None or not isinstance(b, Leaf):
        return False
    step = Fraction(1, 10 ** len(b.latex.partition(".")[2]))
    return abs(exact - decimal.value) < step


def _same_relations(mine: Part, known: Part) -> bool:
    a, b = _assignment(mine), _assignment(known)
    if a and b and (a[0] is None or b[0] is None or _same_names(a[0], b[0])):
        values = itertools.product(a[1], b[1])
        if any(_same(_simple(x), _simple(y)) for x, y in values):
            return True
    if not (isinstance(mine, Relation) and isinstance(known, Relation)):
        return False
    if mine.signs == known.signs and _in_order(mine.sides, known.sides):
        return True
    return len(mine.signs) == len(known.signs) == 1 and _same_equations(mine, known)


def _same_names(a: Part, b: Part) -> bool:
    """The same variable; y may stand for f(x)."""
    if _same(a, b):
        return True
    y = Leaf("y")
    return (a == y and _is_function(b)) or (b == y and _is_function(a))


def _same_equations(mine: Relation, known: Relation) -> bool:
    """Whether one is the other times a number: 2x = 4y + 2 and x - 2y - 1 = 0."""
    differences = []
    for relation in (mine, known):
        left, right = (_node(side) for side in relation.sides)
        if left is None or right is None:
            return False
        sign = relation.signs[0]
        if sign in (">", "\\ge"):
            left, right, sign = right, left, _FLIPPED[sign]
        differences.append((sign, Node("-", (left, right))))
    (my_sign, f), (known_sign, g) = differences
    if my_sign != known_sign or my_sign not in _FLIPPED:
        return False
    found = list(values_at_points(f, g))
    if len(found) < 2 or any(isinstance(number, MatrixBase) for v in found for number in v):
        return False
    (f0, g0), *rest = found
    if all(same_numbers(f1, f0) for f1, _ in rest):
        return False  # no variable is left: true or false everywhere
    if my_sign in ("<", "\\le") and not (f0 * g0).is_positive:
        return False
    if f0 != 0 and g0 != 0 and all(same_numbers(f0 * g1, f1 * g0) for f1, g1 in rest):
        return True
    return my_sign in ("=", "\\ne") and _same_solutions(f, g)


def _same_solutions(f: Node, g: Node) -> bool:
    """Whether both are zero for the same values of their variables, each solved for."""
    if symbols(f) != symbols(g):
        return False
    names = sorted(symbols(f))
    at = {name: sympy.Symbol(f"v{i}", real=True) for i, name in enumerate(names)}
    f0, g0 = value(f, at), value(g, at)
    agreed = False
    for symbol in at.values():
        try:
            mine, known = _solve(f0, symbol), _solve(g0, symbol)
        except (NotImplementedError, ValueError, TypeError):
            continue
        if any(s.has(sympy.Piecewise) for s in (*mine, *known)):
            continue
        if not mine or len(mine) != len(known):
            return False
        if not all(any(sympy.simplify(a - b) == 0 for b in known) for a in mine):
            return False
        agreed = True
    return agreed


def _solve(f: Expr, symbol: sympy.Symbol) -> list[Expr]:
    """Solutions for the variable, without those that are real nowhere: y^3 = x has but one."""
    return [s for s in sympy.solve(f, symbol) if s.has(sympy.Piecewise) or _real_somewhere(s)]


def _real_somewhere(solution: Expr) -> bool:
    names = sorted(solution.free_symbols, key=str)
    for start in (sympy.Rational(2, 7), sympy.Rational(19, 7)):
        number = solution.subs({name: start + i for i, name in enumerate(names)}).evalf()
        if number.is_real or abs(sympy.im(number)) < 1e-9:
            return True
    return False
