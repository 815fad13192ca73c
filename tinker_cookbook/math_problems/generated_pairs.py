r"""Generated pairs of exact answers: equal ones in other spellings, unequal ones with changes.

The label follows from the construction, never from a grader: a spelling keeps the value, a change
alters it by a visible or by a tiny amount (10^{-k}, 2^{-k}, 1/k!).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import NamedTuple


class Pair(NamedTuple):
    given: str
    truth: str
    same: bool
    kind: str


Change = tuple[list[str], list[str]]  # spellings of the truth; answers that differ from it


def pairs(
    seed: int, rounds: int, kinds: Sequence[Callable[[random.Random], Change]] = ()
) -> list[Pair]:
    """Generate about ten pairs per kind and round. kinds: default all."""
    rng = random.Random(seed)
    found: dict[tuple[str, str], Pair] = {}
    for _ in range(rounds):
        for kind in kinds or KINDS:
            spellings, others = kind(rng)
            truth = rng.choice(spellings)
            for given in spellings:
                found[given, truth] = Pair(given, truth, True, kind.__name__)
            for given in others:
                found[given, truth] = Pair(given, truth, False, kind.__name__)
    return list(found.values())


def _nonzero(rng: random.Random, limit: int) -> int:
    return rng.choice([-1, 1]) * rng.randint(1, limit)


def _latex(value: Fraction) -> str:
    if value.denominator == 1:
        return str(value.numerator)
    sign = "-" if value < 0 else ""
    return f"{sign}\\frac{{{abs(value.numerator)}}}{{{value.denominator}}}"


def _decimal(value: Fraction) -> str | None:
    """The exact decimal of a fraction; None if it does not terminate within 8 places."""
    for places in range(1, 9):
        if (value * 10**places).denominator == 1:
            digits = f"{abs(value.numerator) * 10**places // value.denominator:0{places + 1}d}"
            return f"{'-' if value < 0 else ''}{digits[:-places]}.{digits[-places:]}"
    return None


def _tiny(rng: random.Random) -> str:
    power = rng.choice([7, 9, 13, 16, 25, 40, 200])
    return rng.choice(
        [f"\\frac{{1}}{{10^{{{power}}}}}", f"2^{{-{3 * power}}}", f"\\frac{{1}}{{{power + 4}!}}"]
    )


def integers(rng: random.Random) -> Change:
    n = rng.randint(1000, 10**7) * rng.choice([1, -1])
    k = rng.randint(2, 9)
    group = f"{n:,}"
    spellings = [str(n), group, group.replace(",", "{,}"), f"{n}.0", f"\\frac{{{n * k}}}{{{k}}}"]
    spellings += [f"{n - k}+{k}", f"{n}.", f"**{n}**", f"\\approx {n}", f"$ {n} $"]
    others = [str(n + 1), str(-n), f"{n}.5", f"{n}+{_tiny(rng)}", f"{n}1", f"\\frac{{{n}}}{{{k}}}"]
    return spellings, others


def rationals(rng: random.Random) -> Change:
    q = rng.randint(2, 60)
    value = Fraction(rng.choice([p for p in range(-150, 150) if p % q]), q)
    p, q = value.numerator, value.denominator
    k = rng.randint(2, 9)
    spellings = [_latex(value), f"{p}/{q}", f"\\dfrac{{{p * k}}}{{{q * k}}}"]
    whole, rest = divmod(abs(p), q)
    if whole:
        spellings.append(f"{'-' if p < 0 else ''}{whole}\\frac{{{rest}}}{{{q}}}")
    if decimal := _decimal(value):
        spellings.append(decimal)
    rounded = round(value * 10**9)
    spellings.append(_decimal(Fraction(rounded, 10**9)) or _latex(value))
    others = [
        f"\\frac{{{p + 1}}}{{{q}}}",
        f"\\frac{{{-p}}}{{{q}}}",
        f"\\frac{{{p}}}{{{q + 1}}}",
        f"{_latex(value)}+{_tiny(rng)}",
        f"\\frac{{{p * 10**20 + 1}}}{{{q * 10**20}}}",
        f"{float(value) * 1.001:.6f}",
    ]
    return spellings, others


def decimals(rng: random.Random) -> Change:
    places = rng.randint(1, 5)
    n = rng.choice([m for m in range(1, 10**places) if m % 10])
    value = Fraction(n, 10**places)
    text = f"0.{n:0{places}d}"
    spellings = [text, text[1:], text + "00", _latex(value), f"{n}e-{places}"]
    spellings += [f"{n} \\times 10^{{-{places}}}", f"{n}\\cdot 10^{{-{places}}}"]
    others = [f"{text}1", f"{text}0000001", f"-{text}", f"{n}e-{places + 1}", f"1{text}"]
    return spellings, others


def repeating(rng: random.Random) -> Change:
    block = str(rng.randint(1, 98)).zfill(2)
    value = Fraction(int(block), 99)
    spellings = [f"0.\\overline{{{block}}}", _latex(value), f"0.\\dot{{{block[0]}}}\\dot{block[1]}"]
    spellings += [f".\\overline{{{block}}}", f"0.{block}\\overline{{{block}}}"]
    return spellings, [f"0.{block}", f"0.{block}{block}1", f"0.{block}0\\overline{{{block}}}"]


def surds(rng: random.Random) -> Change:
    a, b = _nonzero(rng, 20), rng.randint(21, 30)
    c = rng.choice([2, 3, 5, 6, 7, 10, 11, 13])
    root = f"\\sqrt{{{c}}}"
    spellings = [f"{a}+{b}{root}", f"{b}{root}+{a}" if a > 0 else f"{b}{root}-{-a}"]
    spellings += [f"{a}+\\sqrt{{{b * b * c}}}", f"{a}+{b} \\cdot {c}^{{1/2}}", f"{a}+{b}*sqrt({c})"]
    spellings += [f"{a}+\\frac{{{b * c}}}{{{root}}}", f"\\frac{{{2 * a}+{2 * b}{root}}}{{2}}"]
    others = [f"{a}-{b}{root}", f"{a}+{b + 1}{root}", f"{a}+{b}\\sqrt{{{c + 1}}}", f"{b}+{a}{root}"]
    others += [f"{a}+{b}{root}+{_tiny(rng)}", f"{a}+{b}{root}(1-{_tiny(rng)})"]
    others.append(f"{a + b * math.sqrt(c):.3f}")
    return spellings, others


def multiples(rng: random.Random) -> Change:
    """Expressions with \\pi and e."""
    constant = rng.choice(["\\pi", "e"])
    value = Fraction(_nonzero(rng, 30), rng.randint(1, 12))
    p, q = value.numerator, value.denominator
    plain = {"\\pi": "pi", "e": "e"}[constant]
    spellings = [f"\\frac{{{p}{constant}}}{{{q}}}", f"{_latex(value)}{constant}"]
    spellings += [f"\\frac{{{p}}}{{{q}}}{constant}", f"{p}*{plain}/{q}"]
    others = [f"\\frac{{{p}}}{{{q}}}", f"{p + q}{constant}/{q}", f"{_latex(-value)}{constant}"]
    others += [f"{_latex(value)}{constant}+{_tiny(rng)}", f"{_latex(value)}{constant}^2"]
    others.append(f"{float(value) * {'e': math.e, 'pi': math.pi}[plain]:.3f}")
    return spellings, others


def tiny_differences(rng: random.Random) -> Change:
    """Probabilities with a part below double precision."""
    n = rng.choice([60, 99, 100, 365, 1000])
    base = rng.choice([2, 3, 7])
    power = f"{base}^{{{n}}}"
    spellings = [f"1-\\frac{{1}}{{{power}}}", f"\\frac{{{power}-1}}{{{power}}}"]
    spellings += [f"1-{base}^{{-{n}}}", f"-{base}**(-{n})+1"]
    others = [f"1-\\frac{{1}}{{{base}^{{{n + 1}}}}}", f"1+\\frac{{1}}{{{power}}}", "1", "1.0"]
    others += [f"1-\\frac{{1}}{{{n}!}}", f"1-\\frac{{2}}{{{power}}}", "\\sqrt{1}", "0.99999"]
    return spellings, others


def complex_numbers(rng: random.Random) -> Change:
    a, b = _nonzero(rng, 15), rng.randint(16, 25)
    spellings = [f"{a}+{b}i", f"{b}i+{a}" if a > 0 else f"{b}i-{-a}", f"{a}+\\sqrt{{-{b * b}}}"]
    spellings += [f"{a}-{b}i^3", f"{a}+i*{b}", f"{a}+{b}e^{{i\\pi/2}}"]
    return spellings, [
        f"{a}-{b}i",
        f"{b}+{a}i",
        f"{a + 1}+{b}i",
        f"{a}+{b}",
        f"{a}+{b}i+{_tiny(rng)}",
    ]


def polynomials(rng: random.Random) -> Change:
    x = rng.choice("xtnz")
    a, b, c = rng.randint(2, 9), rng.randint(2, 9), rng.randint(1, 9)
    spellings = [f"({a}{x}+{b})({x}-{c})", f"({x}-{c})({b}+{a}{x})"]
    middle, last = b - a * c, b * c
    signed = f"+{middle}{x}" if middle > 0 else f"{middle}{x}" if middle else ""
    spellings += [f"{a}{x}^2{signed}-{last}", f"-{last}{signed}+{a}{x}^{{2}}"]
    spellings += [f"{a}*{x}**2{f'+({middle})*{x}'}-{last}", f"y = {a}{x}^2{signed}-{last}"]
    others = [f"{a}{x}^2{signed}+{last}", f"{a + 1}{x}^2{signed}-{last}", f"{a}{x}^2-{last + 1}"]
    others += [f"{a}{x}^2{signed}-{last}+{_tiny(rng)}", f"({a}{x}+{b})({x}-{c}+{_tiny(rng)})"]
    others.append(f"{a}w^2{signed.replace(x, 'w')}-{last}")
    return spellings, others


def fractions_of_polynomials(rng: random.Random) -> Change:
    a, b = rng.randint(1, 9), rng.randint(2, 9)
    spellings = [f"\\frac{{x+{a}}}{{x-{b}}}", f"\\frac{{{b}x+{a * b}}}{{{b}x-{b * b}}}"]
    spellings += [f"1+\\frac{{{a + b}}}{{x-{b}}}", f"(x+{a})/(x-{b})", f"\\frac{{-x-{a}}}{{{b}-x}}"]
    return spellings, [
        f"\\frac{{x-{a}}}{{x-{b}}}",
        f"\\frac{{x+{a}}}{{x+{b}}}",
        f"x+{a}/x-{b}",
        f"\\frac{{x+{a}}}{{x-{b}}}+{_tiny(rng)}",
    ]


def sines(rng: random.Random) -> Change:
    a, b = rng.randint(2, 9), rng.randint(2, 9)
    spellings = [f"{a}\\sin(\\frac{{\\pi}}{{{b}}}x)+1", f"{a}*sin(pi*x/{b})+1"]
    spellings += [f"1-{a}\\sin\\left(-\\frac{{\\pi x}}{{{b}}}\\right)"]
    spellings += [f"1+{a}\\cos(\\frac{{\\pi}}{{2}}-\\frac{{\\pi x}}{{{b}}})"]
    return spellings, [
        f"{a}\\cos(\\frac{{\\pi}}{{{b}}}x)+1",
        f"{a}\\sin(\\frac{{\\pi}}{{{b + 1}}}x)+1",
        f"{a}\\sin(\\frac{{\\pi}}{{{b}}})+1",
        f"{a}\\sin(\\frac{{\\pi}}{{{b}}}x)+1+{_tiny(rng)}",
    ]


def intervals(rng: random.Random) -> Change:
    low = Fraction(rng.randint(-20, 5), rng.randint(1, 4))
    high = low + Fraction(rng.randint(1, 20), rng.randint(1, 4))
    a, b = _latex(low), _latex(high)
    left, right = rng.choice("(["), rng.choice(")]")
    signs = {"(": "<", ")": "<", "[": "\\le", "]": "\\le"}
    spellings = [f"{left}{a},{b}{right}", f"\\left{left} {a}, {b} \\right{right}"]
    spellings += [f"{a} {signs[left]} x {signs[right]} {b}", f"x \\in {left}{a}, {b}{right}"]
    other_left, other_right = {"(": "[", "[": "("}[left], {")": "]", "]": ")"}[right]
    others = [f"{other_left}{a},{b}{right}", f"{left}{a},{b}{other_right}"]
    others += [f"{left}{a},{_latex(high + 1)}{right}", f"{left}{a}+{_tiny(rng)},{b}{right}"]
    others += [f"{a} {signs[other_left]} x {signs[right]} {b}", f"{left}{a},\\infty)"]
    return spellings, others


def rays(rng: random.Random) -> Change:
    a = rng.randint(-9, 9)
    spellings = [
        f"(-\\infty,{a})\\cup({a + 3},\\infty)",
        f"({a + 3}, \\infty) \\cup (-\\infty, {a})",
    ]
    spellings += [f"x<{a} \\text{{ or }} x>{a + 3}", f"(-oo,{a})\\cup({a + 3},+\\infty)"]
    return spellings, [
        f"(-\\infty,{a}]\\cup({a + 3},\\infty)",
        f"[-\\infty,{a})\\cup({a + 3},\\infty)",
        f"(-\\infty,{a})\\cup({a + 3},\\infty]",
        f"(-\\infty,{a})",
        f"(-\\infty,{a})\\cup({a + 3}+{_tiny(rng)},\\infty)",
    ]


def tuples(rng: random.Random) -> Change:
    values = [Fraction(_nonzero(rng, 20), rng.randint(1, 5)) for _ in range(rng.randint(2, 4))]
    items = [_latex(v) for v in values]
    spellings = [f"({','.join(items)})", f"\\left( {', '.join(items)} \\right)"]
    spellings.append("\\left(" + ",".join(f"{v.numerator}/{v.denominator}" for v in values) + ")")
    column = " \\\\ ".join(items)
    spellings.append(f"\\begin{{pmatrix}} {column} \\end{{pmatrix}}")
    changed = [*items[:-1], f"{items[-1]}+{_tiny(rng)}"]
    others = [f"({','.join(changed)})", f"({','.join(items[:-1])})", f"({','.join([*items, '0'])})"]
    others.append(f"({','.join([*items[:-1], _latex(values[-1] + 1)])})")
    if items[::-1] != items:
        others.append(f"({','.join(items[::-1])})")
    return spellings, others


def sets(rng: random.Random) -> Change:
    values = rng.sample(range(-30, 30), rng.randint(2, 5))
    items = [str(v) for v in values]
    mixed = rng.sample(items, len(items))
    spellings = [", ".join(items), f"\\{{{','.join(mixed)}\\}}", ",".join(mixed)]
    spellings.append(f"{', '.join(items[:-1])} \\text{{ and }} {items[-1]}")
    changed = [f"{items[0]}+{_tiny(rng)}", *items[1:]]
    others = [", ".join(changed), ", ".join(items[1:]), f"\\{{{','.join([*mixed, '31'])}\\}}"]
    others.append(", ".join([*items, items[0]]))
    return spellings, others


def matrices(rng: random.Random) -> Change:
    a, b, c, d = (_nonzero(rng, 15) for _ in range(4))

    def spell(rows: Sequence[Sequence[int | str]], kind: str = "pmatrix") -> str:
        cells = " \\\\ ".join(" & ".join(map(str, row)) for row in rows)
        return f"\\begin{{{kind}}} {cells} \\end{{{kind}}}"

    spellings = [spell([[a, b], [c, d]]), spell([[a, b], [c, d]], "bmatrix")]
    spellings += [
        spell([[f"{2 * a}/2", b], [f"{c}.0", d]]),
        f"\\frac12{spell([[2 * a, 2 * b], [2 * c, 2 * d]])}",
    ]
    spellings.append(f"{spell([[a, c], [b, d]])}^T")
    others = [spell([[a, b], [c, d + 1]]), spell([[a, b]]), spell([[-a, b], [c, d]])]
    others += [spell([[a, b], [c, f"{d}+{_tiny(rng)}"]]), str(a * d - b * c)]
    if b != c:
        others.append(spell([[a, c], [b, d]]))
    return spellings, others


def bases(rng: random.Random) -> Change:
    base = rng.randint(3, 9)
    digits = "".join(str(rng.randint(1, base - 1)) for _ in range(rng.randint(2, 6)))
    sign = rng.choice(["", "-"])
    spellings = [f"{sign}{digits}_{base}", f"{sign}{digits}_{{{base}}}", f"{sign}({digits})_{base}"]
    changed = digits[:-1] + str(int(digits[-1]) % (base - 1) + 1)
    others = [f"{sign}{digits}_{base + 1}", f"{'' if sign else '-'}{digits}_{base}"]
    others += [f"{sign}({digits})_{{{base + 2}}}"]
    if changed != digits:
        others.append(f"{sign}{changed}_{base}")
    return spellings, others


def percentages(rng: random.Random) -> Change:
    value = Fraction(rng.randint(101, 995), 10)
    decimal = _decimal(value) or ""
    spellings = [f"{decimal}\\%", f"{decimal}%", f"{_latex(value)}\\%", f"{decimal} percent"]
    others = [f"{_decimal(value + 1)}\\%", f"{decimal}1\\%", f"{_decimal(value / 10)}\\%"]
    return spellings, [*others, f"{decimal}0000001\\%", f"-{decimal}\\%"]


def units(rng: random.Random) -> Change:
    n = rng.randint(2, 400)
    spelled, wrong = rng.choice(
        [
            (["m", "\\text{ m}", "meters", "\\mathrm{m}"], ["km", "\\text{ cm}", "m^2", "feet"]),
            (["cm^2", "\\text{ cm}^2", "square centimeters"], ["cm", "\\text{ m}^2", "cm^3"]),
            (["m/s^2", "\\text{ m/s}^2", "\\mathrm{m}/\\mathrm{s}^2"], ["m/s", "km/h", "s"]),
            (["hours", "\\text{ hours}", "h", "\\text{ hr}"], ["minutes", "\\text{ s}", "days"]),
            (["^\\circ", "degrees", "\u00b0", "\\text{ degrees}"], ["cm", "radians", "\\text{ s}"]),
            (["km/h", "kilometers per hour", "\\text{ km/h}"], ["km", "mph", "m/s"]),
            (["kg", "\\text{kg}", "kilograms"], ["g", "\\text{ lb}", "pounds"]),
        ]
    )
    truth = rng.choice([str(n), f"{n} {spelled[0]}"])
    given = [f"{n} {unit}" for unit in spelled]
    others = [f"{n + 1} {unit}" for unit in spelled]
    if truth != str(n):
        others += [f"{n} {unit}" for unit in wrong]
        return [truth, *given], others
    return given, others + [f"{n} {unit}" for unit in wrong]


def money(rng: random.Random) -> Change:
    whole, cents = rng.randint(1000, 99_999), rng.randint(10, 99)
    text = f"{whole}.{cents}"
    spellings = [f"\\${text}", f"\\${whole:,}.{cents}", f"${text}", f"{text} dollars"]
    others = [
        f"\\${whole}.{cents - 1}",
        f"\u20ac{text}",
        f"\\${whole + 1}.{cents}",
        f"{text} euros",
    ]
    return [*spellings, f"{text}\\text{{ dollars}}"], others


def equations(rng: random.Random) -> Change:
    a, b, c = rng.randint(2, 9), rng.randint(2, 9), _nonzero(rng, 9)
    spellings = [f"{a}x+{b}y={c}", f"{a}x+{b}y-{c}=0" if c > 0 else f"{a}x+{b}y+{-c}=0"]
    spellings += [f"{c}={b}y+{a}x", f"{3 * a}x+{3 * b}y={3 * c}", f"y=\\frac{{{c}-{a}x}}{{{b}}}"]
    others = [f"{a}x-{b}y={c}", f"{a}x+{b}y={c + 1}", f"{a}x+{b}z={c}", f"{a}x+{b}y"]
    others += [f"{a}x+{b}y={c}+{_tiny(rng)}", f"{a}x+{b}y<{c}"]
    return spellings, others


def unsolvable_equations(rng: random.Random) -> Change:
    a, b = rng.sample(range(1, 30), 2)
    return [f"x=x+{a}", f"x = x + {a}"], [f"x=x+{b}", f"x+1=x+{a + b + 1}", f"{a}={a + b}", f"{a}"]


def marks(rng: random.Random) -> Change:
    f, a = rng.choice("fgh"), rng.choice("ABM")
    if rng.random() < 0.5:
        return [f"{f}'(x)", f"{f}^{{\\prime}}(x)"], [f"{f}(x)", f"{f}''(x)"]
    return [f"{a}^T", f"{a}^{{T}}", f"{a}^\\top"], [a, f"{a}^{{-1}}", f"\\overline{{{a}}}", f"{a}'"]


def congruences(rng: random.Random) -> Change:
    n, m = rng.randint(0, 6), rng.randint(7, 20)
    spellings = [f"{n} \\pmod{{{m}}}", f"{n} \\pmod {m}", f"x \\equiv {n} \\pmod{{{m}}}"]
    others = [
        f"{n + 1} \\pmod{{{m}}}",
        f"{n} \\pmod{{{m + 1}}}",
        f"x \\equiv {n + 1} \\pmod{{{m}}}",
    ]
    return spellings, others


KINDS: list[Callable[[random.Random], Change]] = [
    integers,
    rationals,
    decimals,
    repeating,
    surds,
    multiples,
    tiny_differences,
    complex_numbers,
    polynomials,
    fractions_of_polynomials,
    sines,
    intervals,
    rays,
    tuples,
    sets,
    matrices,
    bases,
    percentages,
    units,
    money,
    equations,
    unsolvable_equations,
    marks,
    congruences,
]
