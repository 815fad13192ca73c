"""The last number of a reply, for problems whose answer is a number."""

from __future__ import annotations

import re

# A comma groups digits only before exactly three of them: 1,200 is one number, 1,2,3 are three. A
# dot between a word and digits ends a sentence (apples.15); otherwise it is decimal (.5). A minus
# may be written as a hyphen, an en dash or the mathematical sign, and before a dollar sign.
_NUMBER = re.compile(
    r"(?:(?<!\w)[-\u2212\u2013]\$?)?"
    r"(?:(?:\d{1,3}(?:,\d{3})+(?!,?\d)|\d+)(?:\.\d+)?|(?<![\w.])\.\d+)"
)
_PLAIN = str.maketrans("\u2212\u2013", "--", ",$")


def last_number(reply: str) -> float | None:
    """The last number of a reply; None if it has none. 1,200 and $12.00 are 1200 and 12."""
    numbers = _NUMBER.findall(reply)
    return float(numbers[-1].translate(_PLAIN)) if numbers else None
