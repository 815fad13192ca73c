from __future__ import annotations

import pytest

from tinker_cookbook.eval.ifeval.text import blocks, count_capital_words, count_words, sentences


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("No sign", ["No sign"]),
        ("One. Two! Three?", ["One.", "Two!", "Three?"]),
        ("one. two", ["one.", "two"]),
        ("Really?! Yes!!! ok", ["Really?!", "Yes!!!", "ok"]),
        ("Dr. Smith met J. R. Smith vs. Mr. No.", ["Dr. Smith met J. R. Smith vs. Mr. No."]),
        ("See e.g. Rome, i.e. (cf. Fig. 3) here.", ["See e.g. Rome, i.e. (cf. Fig. 3) here."]),
        ("Apples, etc. are red.", ["Apples, etc. are red."]),
        ("Apples, etc. They are red.", ["Apples, etc.", "They are red."]),
        ("He left the U.S. in May. I stay.", ["He left the U.S. in May.", "I stay."]),
        ("At 5 p.m. we met. At 6 p.m. Ann left.", ["At 5 p.m. we met.", "At 6 p.m.", "Ann left."]),
        ("It was I. Then you.", ["It was I.", "Then you."]),
        ("Pi is 3.14. Not 3,5.", ["Pi is 3.14.", "Not 3,5."]),
        ("See example.com/a.b?c=1 or v1.2.", ["See example.com/a.b?c=1 or v1.2."]),
        ("Wait... what? Well... No.", ["Wait... what?", "Well...", "No."]),
        ("Wait… what? Well… No.", ["Wait… what?", "Well…", "No."]),
        ('He said "No!" She left.', ['He said "No!"', "She left."]),
        ("He said “No.” She (too.) Left.", ["He said “No.”", "She (too.)", "Left."]),
        ("**Bold.** *Next.*", ["**Bold.**", "*Next.*"]),
        ("1. Buy milk.\n2. Sleep", ["1.", "Buy milk.", "2.", "Sleep"]),
        ("A title\n\nIts text. - item\n- item", ["A title\n\nIts text.", "- item\n- item"]),
        ("The end. 🎉\n---", ["The end."]),
        ("今天下雨。我很高兴！真的？", ["今天下雨。", "我很高兴！", "真的？"]),
        ("यह एक वाक्य है। यह दूसरा है।", ["यह एक वाक्य है।", "यह दूसरा है।"]),
        ("...", []),
    ],
)
def test_sentences(text: str, expected: list[str]) -> None:
    assert sentences(text) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [("don't stop", 3), ("well-known_name 3.5", 4), ("— …", 0), ("naïve Straße 雨 雨", 4)],
)
def test_words(text: str, words: int) -> None:
    assert count_words(text) == words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("I met NASA's A-TEAM in the U.S.", 4),
        ("DON'T! WE’LL I'm", 5),
        ("O'NEIL ROCK'N'ROLL", 2),
        ("**BOLD** (YES) <<NO>>, [A/B] Q&A", 6),
        ("1 2 - *** 3D H2O", 2),
        ("ÄRGER ÜBER ПРИВЕТ ẞ", 4),
        ("Not One iPhone", 0),
    ],
)
def test_capital_words(text: str, words: int) -> None:
    assert count_capital_words(text) == words


def test_blocks() -> None:
    assert blocks("\n\nOne\nstill\n\n\n\n \n\nTwo\n") == ["One\nstill", "Two"]
