"""Mathematical equality of two answers, compared part by part as `answer_parts` parses them.

`given` is the model's answer, `truth` the known one. The conventions (what counts as equal) are
listed in `math_grading`.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Callable
from fractions import Fraction

import sympy
from sympy import Expr, MatrixBase

from tinker_cookbook.math_problems import answer_parts, answer_text, answer_units
from tinker_cookbook.math_problems.answer_parts import (
    BasedNumber,
    Date,
    Items,
    Leaf,
    Part,
    Ratio,
    Relation,
    SetExpression,
)
from tinker_cookbook.math_problems.expression_equality import (
    expressions_equal,
    numbers_equal,
    parse_readings,
    to_fraction,
    values_at_points,
)
from tinker_cookbook.math_problems.expression_values import Undefined, evaluate
from tinker_cookbook.math_problems.latex_expression import Node, Unreadable, symbols


def answers_equal(given: str, truth: str) -> bool:
    """Whether the answer `given` equals `truth`; both normalised by `answer_text.normalise`."""
    try:
        given_part, truth_part = answer_parts.parse_answer(given), answer_parts.parse_answer(truth)
    except Unreadable:
        return False
    if _parts_equal(_simplify_relation(given_part), _simplify_relation(truth_part)):
        return True
    both = isinstance(given_part, Relation) and isinstance(truth_part, Relation)
    # Simplified, x < 3 is an interval, which 2x + 1 < 7 is not: compare both as relations, too.
    return both and _relations_equal(given_part, truth_part)


def _parts_equal(given: Part, truth: Part) -> bool:
    """Compare two parts by the most specific kind that either of them has.

    The order matters. A relation may stand for a plain value (x = 5 and 5), a date looks like a
    difference of numbers, and a set expression may equal an interval, which is stored as Items.
    """
    if isinstance(truth, Relation) or isinstance(given, Relation):
        return _relations_equal(given, truth)
    if isinstance(given, Date) or isinstance(truth, Date):
        return answer_parts.as_date(given) == answer_parts.as_date(truth)
    if isinstance(given, Leaf) and isinstance(truth, Leaf):
        return _leaves_equal(given, truth)
    if isinstance(truth, SetExpression) or isinstance(given, SetExpression):
        return _sets_equal(given, truth)
    if isinstance(given, BasedNumber) or isinstance(truth, BasedNumber):
        return _based_numbers_equal(given, truth)
    if isinstance(given, Ratio) or isinstance(truth, Ratio):
        return _ratios_equal(given, truth)
    return _items_equal(given, truth)


# ----------------------------------------------------------------------- leaves


def _leaves_equal(given: Leaf, truth: Leaf) -> bool:
    """Compare with the units split off, then, if letters may not be a unit, with them left in."""
    if answer_parts.units_compatible(given, truth) and _leaf_texts_equal(given, truth):
        return True
    if given.letters is None and truth.letters is None:
        return False
    letters = [Leaf(side.letters or side.latex, percent=side.percent) for side in (given, truth)]
    return _leaf_texts_equal(*letters)


def _leaf_texts_equal(given: Leaf, truth: Leaf) -> bool:
    if answer_text.compact(given.latex) == answer_text.compact(truth.latex):
        return bool(given.latex)  # a percent sign may be left out
    words_equal = answer_text.words_equal(given.latex, truth.latex)
    if words_equal is not None:
        return words_equal
    plain_equal = answer_parts.plain_numbers_equal(given, truth)
    if plain_equal is not None:
        return plain_equal
    return any(
        _scaled_values_equal(given.latex, truth.latex, scale)
        for scale in answer_parts.allowed_scales(given, truth)
    )


def _scaled_values_equal(given: str, truth: str, scale: Fraction) -> bool:
    """Whether `scale` times `given` equals `truth` in one of their readings.

    Equal exactly, or one side is a decimal with enough digits to stand for the other side's value.
    """
    a, b = answer_parts.parse_decimal(given), answer_parts.parse_decimal(truth)
    a = a and a.times(scale)
    for x, y in itertools.product(parse_readings(given), parse_readings(truth)):
        if scale != 1:
            x = Node("*", (x, Node("number", (scale,))))
        try:
            if expressions_equal(x, y):
                return True
            for decimal, node in ((a, y), (b, x)):
                if decimal is not None and decimal.step is not None and not symbols(node):
                    number = evaluate(node, {})
                    exact = None if isinstance(number, MatrixBase) else to_fraction(number)
                    if exact is not None and answer_parts.stands_for(decimal, exact):
                        return True
        except Undefined:
            continue
    return False


# ----------------------------------------------------- lists, tuples, sets, ratios


def _items_equal(given: Part, truth: Part) -> bool:
    given, truth = _as_items(given, truth), _as_items(truth, given)
    if not (isinstance(given, Items) and isinstance(truth, Items)):
        return False
    kinds = {given.kind, truth.kind}
    if kinds == {"tuple"}:
        return given.brackets == truth.brackets and _equal_in_order(given.items, truth.items)
    # Round brackets around a list, or a tuple without its brackets: accepted, but in order.
    if "tuple" in kinds:
        return (
            "set" not in kinds
            and "[" not in given.brackets + truth.brackets
            and (_equal_in_order(given.items, truth.items))
        )
    if kinds == {"list"}:
        if _assigns_variables(truth) and not any(
            isinstance(item, Relation) for item in given.items
        ):
            return _equal_in_order(given.items, truth.items)  # "1, 2" for x=1, y=2
        return _equal_in_any_order(given.items, truth.items)
    return _equal_in_any_order(
        *(
            _drop_duplicates(side.items) if side.kind == "set" else side.items
            for side in (given, truth)
        )
    )


def _assigns_variables(items: Items) -> bool:
    """Whether the items assign values to different variables (x=1, y=2), so that order counts."""
    assignments = [_parse_assignment(item) for item in items.items]
    names = [pair[0] for pair in assignments if pair and pair[0]]
    return len(names) == len(assignments) and any(
        not _parts_equal(names[0], name) for name in names
    )


def _as_items(part: Part, other: Part) -> Part:
    """Convert a part to Items if the other side has items.

    A matrix of one row or column becomes a tuple, and a single expression a list of one item.
    """
    if isinstance(part, Leaf) and isinstance(other, Items) and other.kind == "tuple":
        for node in parse_readings(part.latex):
            if node.kind == "matrix" and 1 in (len(node.args), len(node.args[0].args)):
                cells = _matrix_cells(part.latex)
                return Items("tuple", tuple(map(Leaf, cells)), other.brackets)
    if isinstance(part, Leaf) and isinstance(other, Items) and other.kind in ("list", "set"):
        return Items("list", (part,))
    return part


def _matrix_cells(matrix: str) -> list[str]:
    inside = matrix[matrix.index("}") + 1 : matrix.rindex("\\end")]
    return [cell for cell in inside.replace("\\\\", "&").split("&") if cell.strip()]


def _equal_in_order(given: tuple[Part, ...], truth: tuple[Part, ...]) -> bool:
    return len(given) == len(truth) and all(
        map(_parts_equal, map(_simplify_relation, given), map(_simplify_relation, truth))
    )


def _equal_in_any_order(given: tuple[Part, ...], truth: tuple[Part, ...]) -> bool:
    if len(given) != len(truth):
        return False
    unmatched = [_simplify_relation(part) for part in truth]
    for part in map(_simplify_relation, given):
        match = next((i for i, other in enumerate(unmatched) if _parts_equal(part, other)), None)
        if match is None:
            return False
        del unmatched[match]
    return True


def _drop_duplicates(items: tuple[Part, ...]) -> tuple[Part, ...]:
    unique: list[Part] = []
    for item in items:
        if not any(
            _parts_equal(_simplify_relation(item), _simplify_relation(other)) for other in unique
        ):
            unique.append(item)
    return tuple(unique)


def _based_numbers_equal(given: Part, truth: Part) -> bool:
    """Compare digits in a base. A plain number matches the digits if the base is left out."""
    sides = []
    for side in (given, truth):
        if isinstance(side, Leaf):
            if side.percent or side.unit != answer_units.NO_UNIT:  # 25 degrees is not 25_6
                return False
            digits = side.latex.replace(" ", "").casefold()
            side = BasedNumber(digits.lstrip("0") or digits, "")
        if not isinstance(side, BasedNumber):
            return False
        sides.append(side)
    a, b = sides
    return a.digits == b.digits and ("" in (a.base, b.base) or a.base == b.base)


def _ratios_equal(given: Part, truth: Part) -> bool:
    """Ratios are equal up to a common factor; a ratio of two items also equals their quotient."""
    if isinstance(given, Ratio) and isinstance(truth, Ratio):
        if not answer_units.compatible(given.unit, truth.unit) or len(given.items) != len(
            truth.items
        ):
            return False
        if given.time == truth.time and _equal_in_order(given.items, truth.items):
            return True
        if given.time or truth.time:
            return False
        nodes = [[_parse_expression(item) for item in side.items] for side in (given, truth)]
        if any(node is None for side in nodes for node in side):
            return False
        (a, *rest), (b, *others) = nodes
        return all(
            expressions_equal(Node("*", (a, y)), Node("*", (b, x))) for x, y in zip(rest, others)
        )
    ratio, other = (given, truth) if isinstance(given, Ratio) else (truth, given)
    if isinstance(ratio, Ratio) and isinstance(other, Leaf) and len(ratio.items) == 2:
        a, b, c = (_parse_expression(part) for part in (*ratio.items, other))
        if ratio.time:  # may be a time of day: 3:10 equals 3/10 as written, but 10:30 is not 1/3
            return c == Node("/", (a, b))
        return None not in (a, b, c) and expressions_equal(Node("/", (a, b)), c)  # pyright: ignore
    return False


def _parse_expression(part: Part) -> Node | None:
    """The first reading of a leaf; None for other parts and for text that is no expression."""
    return next(iter(parse_readings(part.latex)), None) if isinstance(part, Leaf) else None


# ------------------------------------------------------------------------- sets


def _sets_equal(given: Part, truth: Part) -> bool:
    """Compare as sets of real numbers, with sympy.

    Relations in more than one variable are no such set: they must match one by one.
    """
    if isinstance(given, SetExpression) and isinstance(truth, SetExpression):
        unordered = given.operator == truth.operator != "\\setminus"
        if unordered and _equal_in_any_order(given.items, truth.items):
            return True
    if len(_relation_variables(given) | _relation_variables(truth)) > 1:  # x > 1 and y < 2
        if not (
            isinstance(given, (SetExpression, Items)) and isinstance(truth, (SetExpression, Items))
        ):
            return False
        related = all(isinstance(item, Relation) for item in given.items + truth.items)
        return related and _equal_in_any_order(given.items, truth.items)
    try:
        a, b = _to_sympy_set(given), _to_sympy_set(truth)
    except (Undefined, Unreadable, TypeError, NotImplementedError):
        return False
    return a == b or a.symmetric_difference(b) == sympy.EmptySet


def _relation_variables(part: Part) -> set[str]:
    """The variables of all relations in a part."""
    if isinstance(part, (SetExpression, Items)):
        return set().union(*map(_relation_variables, part.items))
    nodes = map(_parse_expression, part.sides) if isinstance(part, Relation) else ()
    return set().union(*(symbols(node) for node in nodes if node is not None))


def _to_sympy_set(part: Part) -> sympy.Set:
    """Convert intervals, sets and their unions to sympy; Unreadable or Undefined for the rest."""
    part = _simplify_relation(part)
    if isinstance(part, SetExpression):
        sets = [_to_sympy_set(item) for item in part.items]
        join: dict[str, Callable[[sympy.Set, sympy.Set], sympy.Set]] = {
            "\\cup": lambda a, b: sympy.Union(a, b),
            "\\cap": lambda a, b: sympy.Intersection(a, b),
            "\\setminus": lambda a, b: sympy.Complement(a, b),
        }
        return functools.reduce(join[part.operator], sets)
    if isinstance(part, Items) and part.kind == "tuple" and len(part.items) == 2:
        low, high = (_to_real_number(item) for item in part.items)
        if (high - low).is_extended_negative:
            raise Undefined("the bounds of an interval are in the wrong order")
        closed = part.brackets[0] == "[", part.brackets[1] == "]"
        if (closed[0] and low.is_infinite) or (closed[1] and high.is_infinite):
            raise Undefined("an interval is closed at infinity")
        return sympy.Interval(low, high, not closed[0], not closed[1])
    if isinstance(part, Items) and part.kind == "set":
        return sympy.FiniteSet(*(_to_real_number(item) for item in part.items))
    if isinstance(part, Items) and all(isinstance(item, Relation) for item in part.items):
        return sympy.Union(*(_to_sympy_set(item) for item in part.items))  # x < 1 or x > 3
    raise Unreadable("not a set")


def _to_real_number(part: Part) -> Expr:
    node = _parse_expression(part)
    if node is None or symbols(node):
        raise Unreadable("not a number")
    number = evaluate(node, {})
    if not isinstance(number, Expr):
        raise Unreadable("not a number")
    return number


# -------------------------------------------------------------------- relations

_FLIPPED = {"<": ">", ">": "<", "\\le": "\\ge", "\\ge": "\\le", "=": "=", "\\ne": "\\ne"}


def _simplify_relation(part: Part) -> Part:
    """Rewrite a relation as an interval if it is one: x \\in [1, 2] and 1 \\le x \\le 2 as [1, 2].

    Other relations with > are turned round, so that only < and \\le have to be compared.
    """
    if not isinstance(part, Relation):
        return part
    sides, signs = part.sides, part.signs
    if signs == ("\\in",):
        return _simplify_relation(sides[1]) if _is_name(sides[0]) else part
    if not sides[0] and signs[0] in ("=", "\\approx"):  # nothing on the left
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
        return SetExpression(
            "\\cup",
            (
                Items("tuple", (infinity[1], sides[1]), "()"),
                Items("tuple", (sides[1], infinity[0]), "()"),
            ),
        )
    return Relation(sides, signs)


_GEOMETRIC = re.compile(r"m? ?\\(?:measured)?angle ?\{? ?[A-Z]{1,3} ?\}?|[A-Z]{2,3}")


def _is_name(part: Part) -> bool:
    """Whether a part is a name: x, a_1, \\theta, f(x), (x, y), AB, \\angle A."""
    if isinstance(part, Items):
        return part.kind == "tuple" and all(map(_is_name, part.items))
    if isinstance(part, Leaf) and _GEOMETRIC.fullmatch(part.latex):
        return True
    node = _parse_expression(part)
    if node is None:
        return False
    if node.kind == "*" and isinstance(part, Leaf) and part.latex.endswith(")"):  # P(x)
        return all(n.kind == "symbol" for n in node.args)
    if node.kind == "apply":
        return all(isinstance(a, str) or a.kind == "symbol" for a in node.args)
    return node.kind == "symbol" and bool(symbols(node))


def _is_number(part: Part) -> bool:
    node = _parse_expression(part)
    return node is not None and not symbols(node)


def _parse_assignment(part: Part) -> tuple[Part | None, tuple[Part, ...]] | None:
    """Parse a chain of equalities: (x, values) for x = 3 + 2 = 5, (None, values) for 3 + 2 = 5.

    A plain value gives (None, values), too. None for an equation and for a wrong chain (5 = 6).
    values: the first and the last of the chain; they are equal, except that a value after \\approx
    may be rounded. Either may match the known answer.
    """
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
        node = _parse_expression(sides[-1])
        if node and node.kind == "symbol" and symbols(node) and not _is_function(name):
            return None  # y = x is the equation of a line, not an assignment
    elif not all(_is_value(side) for side in sides):
        return None
    steps = zip(sides, sides[1:], signs)
    if not all(
        _rounds_to(a, b) if sign == "\\approx" else _parts_equal(a, b) for a, b, sign in steps
    ):
        return None
    return name, (sides[0], sides[-1])


def _is_value(part: Part) -> bool:
    return not isinstance(part, Leaf) or _is_number(part)


def _is_function(part: Part) -> bool:
    return isinstance(part, Leaf) and part.latex.endswith(")")


def _rounds_to(a: Part, b: Part) -> bool:
    """Whether b is a decimal to which a is rounded or truncated."""
    decimal = answer_parts.parse_decimal(b.latex) if isinstance(b, Leaf) else None
    try:
        exact = to_fraction(_to_real_number(a))
    except (Undefined, Unreadable):
        return False
    if decimal is None or exact is None or not isinstance(b, Leaf):
        return False
    step = Fraction(1, 10 ** len(b.latex.partition(".")[2]))
    return abs(exact - decimal.value) < step


def _relations_equal(given: Part, truth: Part) -> bool:
    a, b = _parse_assignment(given), _parse_assignment(truth)
    if a and b and (a[0] is None or b[0] is None or _names_equal(a[0], b[0])):
        values = itertools.product(a[1], b[1])
        if any(_parts_equal(_simplify_relation(x), _simplify_relation(y)) for x, y in values):
            return True
    if not (isinstance(given, Relation) and isinstance(truth, Relation)):
        return False
    if given.signs == truth.signs and _equal_in_order(given.sides, truth.sides):
        return True
    return len(given.signs) == len(truth.signs) == 1 and _equations_equivalent(given, truth)


def _names_equal(a: Part, b: Part) -> bool:
    """Whether two names are the same; y may stand for f(x)."""
    if _parts_equal(a, b):
        return True
    y = Leaf("y")
    return (a == y and _is_function(b)) or (b == y and _is_function(a))


def _equations_equivalent(given: Relation, truth: Relation) -> bool:
    """Whether one relation is a multiple of the other: 2x = 4y + 2 and x - 2y - 1 = 0.

    Each relation becomes left - right, f and g. They are multiples if f(p) g(p0) = g(p) f(p0) at
    every sample point p. Multiplying an inequality by a negative number would turn it round, so
    there f and g must have the same sign at p0. Equations may also agree in their solutions.
    """
    differences = []
    for relation in (given, truth):
        left, right = (_parse_expression(side) for side in relation.sides)
        if left is None or right is None:
            return False
        sign = relation.signs[0]
        if sign in (">", "\\ge"):
            left, right, sign = right, left, _FLIPPED[sign]
        differences.append((sign, Node("-", (left, right))))
    (my_sign, f), (known_sign, g) = differences
    if my_sign != known_sign or my_sign not in _FLIPPED:
        return False
    samples = list(values_at_points(f, g))
    if len(samples) < 2 or any(isinstance(number, MatrixBase) for v in samples for number in v):
        return False
    (f0, g0), *rest = samples
    if all(numbers_equal(f1, f0) for f1, _ in rest):
        return False  # f is constant: the relation holds everywhere or nowhere
    if my_sign in ("<", "\\le") and not (f0 * g0).is_positive:
        return False
    if f0 != 0 and g0 != 0 and all(numbers_equal(f0 * g1, f1 * g0) for f1, g1 in rest):
        return True
    return my_sign in ("=", "\\ne") and _solutions_equal(f, g)


def _solutions_equal(f: Node, g: Node) -> bool:
    """Whether f = 0 and g = 0 have the same real solutions, solved for each variable in turn.

    sympy cannot solve for every variable; one for which it can is enough, if all those agree.
    """
    if symbols(f) != symbols(g):
        return False
    names = sorted(symbols(f))
    at = {name: sympy.Symbol(f"v{i}", real=True) for i, name in enumerate(names)}
    f0, g0 = evaluate(f, at), evaluate(g, at)
    any_solved = False
    for symbol in at.values():
        try:
            given, truth = _real_solutions(f0, symbol), _real_solutions(g0, symbol)
        except (NotImplementedError, ValueError, TypeError):
            continue
        if any(s.has(sympy.Piecewise) for s in (*given, *truth)):
            continue
        if not given or len(given) != len(truth):
            return False
        if not all(any(sympy.simplify(a - b) == 0 for b in truth) for a in given):
            return False
        any_solved = True
    return any_solved


def _real_solutions(f: Expr, symbol: sympy.Symbol) -> list[Expr]:
    """Solutions for `symbol` that are real at some point: y^3 = x has one, not three."""
    return [s for s in sympy.solve(f, symbol) if s.has(sympy.Piecewise) or _is_real_somewhere(s)]


def _is_real_somewhere(solution: Expr) -> bool:
    names = sorted(solution.free_symbols, key=str)
    for start in (sympy.Rational(2, 7), sympy.Rational(19, 7)):
        number = solution.subs({name: start + i for i, name in enumerate(names)}).evalf()
        if number.is_real or abs(sympy.im(number)) < 1e-9:
            return True
    return False
