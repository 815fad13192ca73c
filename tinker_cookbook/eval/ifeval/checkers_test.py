"""The verdict on hand-written replies for every kind of instruction; limits; the real data."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from tinker_cookbook.eval.ifeval.checkers import INSTRUCTIONS
from tinker_cookbook.eval.ifeval.scoring import read_requirements, verdicts

GERMAN = "Das ist ein kurzer Satz über das Wetter, und morgen wird es regnen."
HINDI = "यह मौसम के बारे में एक छोटा वाक्य है और कल बारिश होगी।"
ENGLISH = "this is a short sentence about the weather, and tomorrow there will be rain."
REQUEST = "Write a limerick about rain."
FIVE = "one two three four five"
SIX = f"{FIVE} six"

# id, arguments, replies that follow, replies that do not
CASES: list[tuple[str, dict[str, Any], list[str], list[str]]] = [
    (
        "keywords:existence",
        {"keywords": ["mom", "Father"]},
        ["My MOM and my father.", "moments with grandfathers"],
        ["My mom.", "father and mother", "m o m father"],
    ),
    (
        "keywords:existence",
        {"keywords": ["c++ (new)"]},
        ["I like C++ (new) a lot.", "c++ (new)"],
        ["ccc new", "c++ new"],
    ),
    (
        "keywords:frequency",
        {"keyword": "rain", "frequency": 2, "relation": "at least"},
        ["rain, rain", "Rainy trains", "rainrainrain"],
        ["rain", "snow"],
    ),
    (
        "keywords:frequency",
        {"keyword": "rain", "frequency": 2, "relation": "less than"},
        ["rain", "snow"],
        ["rain, rain", "Rainy trains"],
    ),
    (
        "keywords:forbidden_words",
        {"forbidden_words": ["rock", "a.b"]},
        ["rocks and bedrock", "axb is fine", "pop"],
        ["ROCK!", "hard-rock", "write a.b here"],
    ),
    (
        "keywords:letter_frequency",
        {"letter": "Q", "let_frequency": 2, "let_relation": "at least"},
        ["Quick quiz", "qq"],
        ["Quick", "none"],
    ),
    (
        "keywords:letter_frequency",
        {"letter": "#", "let_frequency": 4, "let_relation": "at least"},
        ["#a #b #c #d", "#####"],
        ["#a #b #c", "a b c d e f g h i j k l m n o p q r s t u v w x y z" * 4],
    ),
    (
        "keywords:letter_frequency",
        {"letter": "e", "let_frequency": 2, "let_relation": "less than"},
        ["Extra", "nothing"],
        ["Every tree", "ee"],
    ),
    (
        "language:response_language",
        {"language": "de"},
        [GERMAN, GERMAN * 20, "12345 !?"],
        [ENGLISH, HINDI],
    ),
    ("language:response_language", {"language": "hi"}, [HINDI, HINDI * 3], [GERMAN, ENGLISH]),
    (
        "length_constraints:number_sentences",
        {"num_sentences": 3, "relation": "at least"},
        ["One. Two! Three?", "It is 3.5 km. Dr. No walks. He rests. Done."],
        ["One. Two.", "It is 3.5 km, said Dr. No to J. Smith. He rests.", "No end"],
    ),
    (
        "length_constraints:number_sentences",
        {"num_sentences": 3, "relation": "less than"},
        ["One. Two.", "Wait... what? e.g. this"],
        ["One. Two. Three.", "1. Eat. 2. Sleep."],
    ),
    (
        "length_constraints:number_words",
        {"num_words": 6, "relation": "at least"},
        [SIX, "don't stop me now, well-known"],
        [FIVE, "naïve café — über straße"],
    ),
    (
        "length_constraints:number_words",
        {"num_words": 6, "relation": "less than"},
        [FIVE, "- * - * - * - * -"],
        [SIX, "a b c d e f g"],
    ),
    (
        "length_constraints:number_paragraphs",
        {"num_paragraphs": 2},
        ["One\n\n***\n\nTwo", "***\nOne *** Two\n***", "One\n\nstill one***Two"],
        ["One\n\nTwo", "One\n***\n***\nTwo", "One***Two***Three", "***"],
    ),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Weekend"},
        ["One\n\nweekend's here", '\n\nOne\n\n\n\n"Weekend", he said', "A\n\nWeekend!"],
        ["One\n\nA weekend", "Weekend", "Weekend\n\nOne", "A\n\nWeekend\n\nB", "A\nWeekend"],
    ),
    (
        "detectable_content:number_placeholders",
        {"num_placeholders": 2},
        ["Dear [name], at [address]", "[a][b][c]", "[[a] [b]"],
        ["Dear [name]", "[name\n] and [b", "(name) (address)"],
    ),
    (
        "detectable_content:postscript",
        {"postscript_marker": "P.S."},
        ["Bye.\n\nP.S. Call me", "bye p. s. call", "P.P.S. two"],
        ["Bye. PS call me", "P.S call me", "Bye."],
    ),
    (
        "detectable_content:postscript",
        {"postscript_marker": "P.P.S"},
        ["Bye.\nP.P.S call", "p. p. s. call"],
        ["Bye.\nP.S. call", "PPS call"],
    ),
    (
        "detectable_content:postscript",
        {"postscript_marker": "Note:"},
        ["Bye.\nnote: call", "NOTE: x"],
        ["Bye.", "Note that"],
    ),
    (
        "detectable_format:number_bullet_lists",
        {"num_bullets": 2},
        ["* a\n* b", "Two:\n\n  - a\n* b\n**bold**", "-a\n\n-b"],
        ["* a", "* a\n* b\n* c", "1. a\n2. b", "* a\n---\n* b", "• a\n• b"],
    ),
    (
        "detectable_format:constrained_response",
        {},
        ["My answer is yes.", "Hm. My answer is maybe. Good."],
        ["my answer is yes.", "My answer is no", "Yes."],
    ),
    (
        "detectable_format:number_highlighted_sections",
        {"num_highlights": 2},
        ["*a* and *b*", "**a** and *b*", "***both***"],
        ["*a*", "* a\n* b", "** ** *a*", "_a_ _b_"],
    ),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "SECTION", "num_sections": 2},
        ["SECTION 1\na\nSECTION 2\nb", "**SECTION 1**\n**SECTION 2**\nSECTION3"],
        ["SECTION 1\na", "Section 1\nSection 2", "SECTION one SECTION two"],
    ),
    (
        "detectable_format:json_format",
        {},
        ['{"a": [1, 2]}', '```json\n{"a": 1}\n```', '```\n["a"]\n```', '```JSON\n"a"\n```'],
        ["{'a': 1}", 'Here: {"a": 1}', '{"a": 1', "[" * 100_000],
    ),
    (
        "detectable_format:title",
        {},
        ["<<Rain>>\n\nIt rains.", "A poem <<<Rain>>>"],
        ["<Rain>", "<<>>", "<< \n>>", "<<  >>", "<<Rain\n>>", ">>Rain<<"],
    ),
    (
        "change_case:english_capital",
        {},
        [ENGLISH.upper(), "THE WEATHER IS 30 DEGREES, AND THAT IS FINE."],
        [ENGLISH, ENGLISH.upper() + " x", GERMAN.upper(), "123"],
    ),
    (
        "change_case:english_lowercase",
        {},
        [ENGLISH, "the weather is 30 degrees, and that is fine."],
        [ENGLISH.capitalize(), GERMAN.lower(), "123"],
    ),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 3, "capital_relation": "at least"},
        ["I saw NASA's A-TEAM", "DON'T GO", "A1 U.S. (OK)"],
        ["NASA and ESA", "One Two Three", "1 2 3"],
    ),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": "less than"},
        ["NASA only", "nothing here"],
        ["I like NASA", "DON'T"],
    ),
    (
        "combination:two_responses",
        {},
        ["One\n******\nTwo", "******\nOne******Two\n******"],
        ["One", "One******One", "One******Two******Three", "One****** ******Two", "One***Two"],
    ),
    (
        "combination:repeat_prompt",
        {"prompt_to_repeat": REQUEST},
        [f"{REQUEST}\n\nThere was", f"  {REQUEST.upper()} There"],
        ["There was", f'"{REQUEST}" There was', "Write a limerick about snow."],
    ),
    (
        "startend:end_checker",
        {"end_phrase": "Anything else?"},
        ["Done. Anything else?", '"Done. ANYTHING ELSE?"\n', "anything else?"],
        ["Done.", "Anything else? No.", "Anything else"],
    ),
    (
        "startend:quotation",
        {},
        ['"Hello"', ' "Say "hi" now"\n'],
        ["Hello", '"Hello', '"', "“Hello”", "'Hello'"],
    ),
    (
        "punctuation:no_comma",
        {},
        ["No such sign; none.", "你好，世界"],
        ["One, two", "1,000"],
    ),
]
NAMES = [f"{name.partition(':')[2]}-{number}" for number, (name, *_) in enumerate(CASES)]


def follows(name: str, kwargs: dict[str, Any], reply: str) -> bool:
    (requirement,) = read_requirements([name], [kwargs], "row 0")
    return requirement.is_met(reply)


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_verdicts(case: tuple[str, dict[str, Any], list[str], list[str]]) -> None:
    name, kwargs, right, wrong = case
    assert len(right) >= 2 and len(wrong) >= 2
    assert [reply for reply in right if not follows(name, kwargs, reply)] == []
    assert [reply for reply in wrong if follows(name, kwargs, reply)] == []


def test_every_kind_has_cases() -> None:
    assert {name for name, *_ in CASES} == INSTRUCTIONS.keys() and len(INSTRUCTIONS) == 25


@pytest.mark.parametrize("reply", ["", " \n\t ", "\u00a0\u2003"])
def test_blank_replies_follow_nothing(reply: str) -> None:
    """Not even "no comma" or "less than 2 words"."""
    for name, kwargs, *_ in CASES:
        assert not follows(name, kwargs, reply), name


LONG = 100_000
HARD = {
    "words": "rain " * LONG,
    "stars": "*" * LONG,
    "star lines": "*\n" * LONG,
    "spaces": "*" + " " * LONG,
    "line breaks": "\n" * LONG + "a",
    "opening brackets": "[" * LONG,
    "angles": "<" * LONG,
    "titles": "<< " * LONG,
    "dots": "." * LONG + "a",
    "dots and quotes": ".'" * LONG,
    "one token": "A" * LONG,
    "apostrophes": "'" * LONG,
    "capitals": "N'T" * LONG,
    "markers": "p.p." * LONG,
    "sections": "SECTION " * LONG,
    "digits": "SECTION" + "1" * LONG,
    "emoji": "🌧️" * LONG,
    "combining": "e\u0301" * LONG,
    "mail": "a@" * LONG,
}


@pytest.mark.parametrize("name", HARD)
def test_time_is_linear_in_the_length_of_the_reply(name: str) -> None:
    """Each of these takes far longer where a pattern starts anew at every character."""
    started = time.process_time()
    for instruction, kwargs, *_ in CASES:
        follows(instruction, kwargs, HARD[name])
    assert time.process_time() - started < 8


def test_real_prompts_build_their_checkers(shared_data: Path) -> None:
    file = shared_data / "datasets/ifeval/input_data.jsonl"
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    kinds, keys = set(), {key for row in rows for kwargs in row["kwargs"] for key in kwargs}
    for number, row in enumerate(rows, start=1):
        read = read_requirements(row["instruction_id_list"], row["kwargs"], f"line {number}")
        padded = [{**dict.fromkeys(keys), **kwargs} for kwargs in row["kwargs"]]  # as on the hub
        assert read_requirements(row["instruction_id_list"], padded, "") == read
        kinds.update(requirement.instruction_id for requirement in read)
        assert len(verdicts(read, row["prompt"])) == len(row["kwargs"])
    assert len(rows) == 541 and kinds == INSTRUCTIONS.keys()
