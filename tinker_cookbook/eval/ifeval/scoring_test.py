from __future__ import annotations

import re
from typing import Any

import pytest

from tinker_cookbook.eval.ifeval.scoring import (
    Verdict,
    loose_variants,
    read_requirements,
    verdicts,
)
from tinker_cookbook.exceptions import DataFormatError


def test_loose_variants() -> None:
    assert loose_variants("a*\nb\n*c*") == [
        "a*\nb\n*c*",
        "b\n*c*",
        "a*\nb",
        "b",
        "a\nb\nc",
        "b\nc",
        "a\nb",
    ]
    assert loose_variants("one line") == ["one line", ""]
    assert loose_variants("") == [""]


QUOTED, NO_COMMA = "startend:quotation", "punctuation:no_comma"


@pytest.mark.parametrize(
    ("reply", "strict", "loose"),
    [
        ('"yes"', True, True),
        ('Sure:\n"yes"', False, True),
        ('"yes"\nI hope this helps', False, True),
        ('Sure:\n\n"yes"\n\nI hope this helps', False, True),
        ('**"yes"**', False, True),
        ('Sure:\n*"yes"*\nBye', False, True),
        ('Sure:\nHere:\n"yes"', False, False),
        ("yes", False, False),
    ],
)
def test_loose_forgives_first_and_last_lines_and_asterisks(
    reply: str, strict: bool, loose: bool
) -> None:
    (verdict,) = verdicts(read_requirements([QUOTED], [{}], ""), reply)
    assert verdict == Verdict(QUOTED, strict, loose)


def test_each_instruction_may_need_another_variant() -> None:
    requirements = read_requirements([QUOTED, NO_COMMA], [{}, None], "")
    reply = 'Well, here:\n"a\nb, c"'  # quoted without the first line, no comma without both
    assert [(each.strict, each.loose) for each in verdicts(requirements, reply)] == [
        (False, True),
        (False, True),
    ]


def test_a_blank_variant_follows_nothing() -> None:
    (verdict,) = verdicts(read_requirements([NO_COMMA], [{}], ""), "a, b")
    assert not verdict.loose  # without its only line nothing is left


WORDS, NTH = "length_constraints:number_words", "length_constraints:nth_paragraph_first_word"


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("keywords:exist", {}, "unknown instruction 'keywords:exist'; known are change_case:"),
        (WORDS, {}, "lacks argument 'num_words'; found none, expected num_words, relation"),
        (WORDS, {"num_words": 3, "relation": None}, "lacks argument 'relation'; found num_words"),
        (NO_COMMA, {"num_words": 3}, "has no argument 'num_words'; found num_words, expected none"),
        (WORDS, {"num_words": "3", "relation": "at least"}, "num_words='3'; expected a number"),
        (WORDS, {"num_words": 0, "relation": "at least"}, "num_words=0; expected a number from 1"),
        (WORDS, {"num_words": True, "relation": "at least"}, "num_words=True; expected a number"),
        (WORDS, {"num_words": 3, "relation": "at most"}, "='at most'; expected 'at least' or"),
        ("keywords:existence", {"keywords": "a"}, "keywords='a'; expected a list of texts"),
        ("keywords:existence", {"keywords": ["a", " "]}, "expected a text"),
        ("language:response_language", {"language": "xx"}, "language='xx'; expected one of af, ar"),
        (
            "keywords:letter_frequency",
            {"letter": "ab", "let_frequency": 1, "let_relation": "at least"},
            "letter='ab'; expected one character",
        ),
        (
            NTH,
            {"num_paragraphs": 2, "nth_paragraph": 3, "first_word": "a"},
            "nth_paragraph=3, but num_paragraphs=2",
        ),
    ],
)
def test_wrong_instructions_are_named(name: str, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(DataFormatError, match=re.escape(message)) as raised:
        read_requirements([name], [kwargs], "x.jsonl:7")
    assert str(raised.value).startswith("x.jsonl:7: ") and "\n" not in str(raised.value)


def test_numbers_of_tables_may_be_floats() -> None:
    (read,) = read_requirements([WORDS], [{"num_words": 3.0, "relation": "at least"}], "")
    assert read.arguments["num_words"] == 3 and read.is_met("a b c") and not read.is_met("a b")


def test_as_many_kwargs_as_ids() -> None:
    with pytest.raises(DataFormatError, match="x:1: 2 instruction ids, but 1 kwargs"):
        read_requirements([NO_COMMA, QUOTED], [{}], "x:1")
