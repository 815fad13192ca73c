"""How the last number of a reply is read."""

from __future__ import annotations

import pytest

from tinker_cookbook.math_problems.last_number import last_number


@pytest.mark.parametrize(
    ("reply", "number"),
    [
        ("15", 15),
        ("She has 12 + 3 = 15 apples.", 15),
        ("1,200", 1200),
        ("$12.00", 12),
        ("12.5", 12.5),
        ("It is -3.", -3),
        ("10-4=6", 6),
        ("3, 4, 5", 5),
        ("3,4,5", 5),
        ("1,2000", 2000),
        ("3,456,15", 15),
        ("So it is,15", 15),
        ("It is...15", 15),
        ("15 apples.16", 16),
        ("$12.", 12),
        ("12.0.", 12),
        ("It is .5", 0.5),
        ("\u221215", -15),
        ("The loss is -$1,500.", -1500),
        ("It is \u201315.", -15),
        ("ages 10\u201315", 15),
        ("$20-$5", 5),
        ("The answer is 15.", 15),
        ("None", None),
    ],
)
def test_the_last_number_of_a_reply(reply: str, number: float | None) -> None:
    assert last_number(reply) == number
