"""Units before and after an answer: splitting them off and comparing them.

Convention: a unit may be missing, but must not contradict the other one. Measures and currencies
must be the same (5 m is not 5 km; nothing is converted). Of other words ("apples", "ways"), one
answer's must be a subset of the other's.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_NAMES = {
    "m": "m meter metre",
    "km": "km kilometer kilometre",
    "cm": "cm centimeter centimetre",
    "mm": "mm millimeter millimetre",
    "in": "in inch inche",
    "ft": "ft foot feet",
    "yd": "yd yard",
    "mi": "mi mile",
    "g": "g gm gram gramme",
    "kg": "kg kilogram kilo",
    "mg": "mg milligram",
    "lb": "lb pound",
    "oz": "oz ounce",
    "ton": "ton tonne",
    "l": "l L liter litre",
    "ml": "ml mL milliliter millilitre",
    "gal": "gal gallon",
    "s": "s sec second",
    "min": "min minute",
    "h": "h hr hour",
    "day": "day",
    "week": "week wk",
    "month": "month",
    "year": "year yr",
    "deg": "deg degree \u00b0",
    "rad": "rad radian",
    "degC": "degC celsius",
    "degF": "degF fahrenheit",
    "K": "K kelvin",
    "N": "N newton",
    "J": "J joule",
    "W": "W watt",
    "V": "V volt",
    "Hz": "Hz hertz",
    "Pa": "Pa pascal",
    "dollar": "dollar usd buck \uff04",
    "cent": "cent \u00a2",
    "euro": "euro eur \u20ac",
    "sterling": "gbp sterling \u00a3",
    "yen": "yen jpy \u00a5",
    "rupee": "rupee inr rs \u20b9",
    "am": "am",
    "pm": "pm",
}
_KNOWN = {name: unit for unit, names in _NAMES.items() for name in names.split()}
_CURRENCIES = {"dollar", "cent", "euro", "sterling", "yen", "rupee"}
_ALONE = ("m", "g", "s", "h", "L", "l", "N", "J", "W", "V", "K")
"""One-letter units that are recognized after a number and a space: 5 m. 5m is a product."""
_CURRENCY = re.compile(r"^(-?)\s*(US|USD|EUR)?\s*([\uff04\u20ac\u00a3\u00a5\u20b9])\s*(?=[-\d.\\])")

Powers = tuple[tuple[str, int], ...]


class Unit(NamedTuple):
    measures: Powers = ()  # (m, 1), (s, -2): sorted by name
    words: frozenset[str] = frozenset()
    modulus: str = ""


NO_UNIT = Unit()


def compatible(given: Unit, truth: Unit) -> bool:
    """Whether the unit of an answer does not contradict the unit of the known answer."""
    if given.modulus and truth.modulus and given.modulus != truth.modulus:
        return False
    if given.measures and truth.measures:
        money = [[m for m in side.measures if m[0] in _CURRENCIES] for side in (given, truth)]
        if all(money):  # "dollars" fits "dollars an hour"
            return money[0] == money[1]
        directions = [side.words & _DIRECTIONS for side in (given, truth)]
        return given.measures == truth.measures and (
            not all(directions) or directions[0] == directions[1]
        )
    given_words, truth_words = given.words - _GENERIC, truth.words - _GENERIC
    if (given.measures and truth_words) or (given_words and truth.measures):
        return False
    return (
        not given_words
        or not truth_words
        or given_words <= truth_words
        or truth_words <= given_words
    )


_direction_words = (
    "north south east west northeast northwest southeast southwest up down left right forward"
    " backward"
)
_DIRECTIONS = frozenset(_direction_words.split())
_GENERIC = frozenset(("unit", "in", "of", "the", "total", "altogether", "each", "all", "a", "an"))


def parse_unit(phrase: str) -> Unit:
    """Parse the words and signs of a unit: `cm^2`, `square inches`, `m/s^2`, `apples`."""
    text = re.sub(r"\\(?:text|cdot)|[{}~]|\\[,;:! ]", " ", phrase)
    text = re.sub(r"\u00b0\s*([CF])\b", lambda m: f" deg{m[1]} ", text)
    text = re.sub(r"\b([APap])\.\s?([Mm])\b\.?", r"\1\2", text)
    measures: dict[str, int] = {}
    words: set[str] = set()
    sign, power, last = 1, 1, ""
    for token in re.findall(r"[^\W\d_.]+|[/^]|-?\d+|[^\s\w.]", text):
        if token == "/" or token == "per":
            sign, power = -1, 1
        elif token in ("square", "sq", "squared"):
            power = 2
            if token == "squared" and last:
                measures[last], power = sign * 2, 1
        elif token in ("cubic", "cu", "cubed"):
            power = 3
        elif token.lstrip("-").isdigit():
            if last:
                measures[last] = sign * int(token)
        elif token == "mph":
            measures |= {"mi": 1, "h": -1}
        elif token in ("kmph", "kph"):
            measures |= {"km": 1, "h": -1}
        elif (name := _canonical_name(token)) is not None:
            measures[name], last = sign * power, name
            power = 1
        elif token.isalpha():
            # The case of abbreviations counts: MW is not mW.
            is_abbreviation = len(token) == 2 and not token.islower()
            words.add(token if is_abbreviation else _to_singular(token.casefold()))
    for scale in ("degC", "degF"):
        if scale in measures:
            measures.pop("deg", None)
    return Unit(tuple(sorted(measures.items())), frozenset(words))


def _canonical_name(token: str) -> str | None:
    """The key of `_NAMES` for a spelling of a unit; None if unknown. One letter: case counts."""
    for spelling in (token, token.casefold(), _to_singular(token.casefold())):
        if spelling in _KNOWN and (len(token) > 1 or spelling == token):
            return _KNOWN[spelling]
    return None


def _to_singular(word: str) -> str:
    return word[:-1] if word.endswith("s") and len(word) > 2 else word


def split_unit(text: str) -> tuple[str, Unit]:
    """Split an answer into the answer without its unit, and the unit."""
    if match := _MODULUS.fullmatch(text):
        return match[1].strip(), Unit(modulus=re.sub(r"[{}\s]", "", match[2]))
    prefix = NO_UNIT
    if match := _CURRENCY.match(text):
        text, prefix = match[1] + text[match.end() :], parse_unit(match[3])
    for pattern in (_DEGREES, _TEXT, _WORDS, _BARE, _PER):
        match = pattern.fullmatch(text)
        if match and not _is_not_a_unit(match):
            suffix = parse_unit(match[2] + (match[3] or ""))
            measures = tuple(sorted({*prefix.measures, *suffix.measures}))
            return match[1].strip(), Unit(measures, suffix.words)
    return text, prefix


def _is_not_a_unit(match: re.Match[str]) -> bool:
    """Whether the words are part of the answer, or there is nothing before them."""
    return bool(_PART_OF_ANSWER.search(match[2]) or not match[1].strip() or "\\text" in match[1])


_POWER = r"(\s*\^\s*\{?\s*-?\d\s*\}?)?"
_MODULUS = re.compile(r"(.+?)\s*(?:\\p(?:mod|od)|\(\s*(?:\\b?)?mod)\s*(\{?\s*\d+\s*\}?)\s*\)?")
_DEGREES = re.compile(r"([^\u00b0]+)(\u00b0\s*(?:C|F|\\text\s*\{\s*[CF]\s*\})?)()")
_TEXT = re.compile(
    r"(.*[\d})a-z.])\s*(\\text\s*\{[^{}]*\}(?:\s*\^\s*\{?-?\d\}?)?(?:\s*/\s*\\text\s*\{[^{}]*\})?)"
    + _POWER,
    re.DOTALL,
)
_long = sorted((n for n in _KNOWN if len(n) > 1 and n.isalpha() and n.isascii()), key=len)
_WORD = "|".join(
    [*(f"{n}s?" for n in reversed(_long)), *_ALONE, "mph", "kmph", r"[ap]\.? ?m", r"[AP]\.? ?M"]
)
_NEXT = rf"(?:(?:\s*(?:/|\\cdot|\bper\b)\s*|\s)(?:{_WORD})(?![A-Za-z])(?:\s*\^\s*\{{?-?\d\}}?)?)*"
_SIGN = "[\u00b0\u00a2\uff04\u20ac\u00a3\u00a5]"
_BARE = re.compile(
    r"(.*?(?:[\d})]\s*(?=(?:sq|cu|[A-Za-z]{2}))|[A-Za-z]\s(?=[A-Za-z]{2})|[\d})]\s|\\pi\s"
    rf"|[\d}})](?={_SIGN})))\s*((?:(?:square|cubic|sq|cu)\.?\s*)?(?:{_WORD}|{_SIGN})(?![A-Za-z])"
    rf"(?:\s*\^\s*\{{?-?\d\}}?)?{_NEXT})\.?()"
)
_WORDS = re.compile(r"(.*\d)\s+([A-Za-z]{2,}(?:[ /][A-Za-z]+)*)" + _POWER)
_PER = re.compile(rf"(.*\d)\s*(/\s*(?:{'|'.join(reversed(_long))})s?)()")
_PART_OF_ANSWER = re.compile(
    r"[<>=]|\\(?!text|cdot)|\b(?:and|or|not|no|to|than|is|if|else|but|maybe|perhaps|mod|base"
    r"|inf|infinity|pi|tau|phi|theta|sqrt|sin|cos|tan|cot|sec|csc|log|ln|exp|million|billion"
    r"|thousand|hundred|dozens?|googol|googolplex|factorial|half(?!-)|halves|thirds?|fourths?|fifths?"
    r"|sixths?|sevenths?|eighths?|ninths?|tenths?|hundredths?|thousandths?|millionths?|below"
    r"|negative(?=\s*\}?$)|minus|plus|point|over|divided|by|out|zero|true|false|wrong|never|none)\b"
    r"|^\s*(?:\\text\s*\{\s*)?(?:squared|cubed)\b",
    re.IGNORECASE,
)
