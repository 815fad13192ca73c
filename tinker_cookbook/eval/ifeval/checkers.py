"""The 25 kinds of instruction of IFEval, by id, and how a reply is checked for each.

Zhou et al. 2023, "Instruction-Following Evaluation for Large Language Models" (arXiv 2311.07911).
Each checker's docstring says how it reads the instruction, and where it departs from the
published reference implementation, as far as that is known. Every checker takes time linear in the
length of the reply, apart from language detection, which looks at 10,000 characters.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from tinker_cookbook.eval.ifeval import arguments, language
from tinker_cookbook.eval.ifeval.arguments import Reader, Relation, holds
from tinker_cookbook.eval.ifeval.text import blocks, count_capital_words, count_words, sentences

OPTIONS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")


class Instruction(NamedTuple):
    """A kind of instruction. check: called as check(reply, **arguments)."""

    check: Callable[..., bool]
    arguments: Mapping[str, Reader]


INSTRUCTIONS: dict[str, Instruction] = {}


def _instruction(
    instruction_id: str, **readers: Reader
) -> Callable[[Callable[..., bool]], Callable[..., bool]]:
    """Enter a checker into INSTRUCTIONS."""

    def enter(check: Callable[..., bool]) -> Callable[..., bool]:
        INSTRUCTIONS[instruction_id] = Instruction(check, readers)
        return check

    return enter


# Keywords


@_instruction("keywords:existence", keywords=arguments.texts)
def _existence(reply: str, keywords: list[str]) -> bool:
    """Case is ignored, and parts of words count. The reference takes keywords for regular
    expressions; ours are literal (no keyword of the data has special characters)."""
    return all(_occurrences(keyword, reply) for keyword in keywords)


@_instruction(
    "keywords:frequency",
    keyword=arguments.text,
    frequency=arguments.count,
    relation=arguments.relation,
)
def _frequency(reply: str, keyword: str, frequency: int, relation: Relation) -> bool:
    """Case is ignored, and parts of words count: "mothers" has "mother"."""
    return holds(_occurrences(keyword, reply), relation, frequency)


@_instruction("keywords:forbidden_words", forbidden_words=arguments.texts)
def _forbidden(reply: str, forbidden_words: list[str]) -> bool:
    """Case is ignored, and only whole words count: "rocks" is no "rock"."""
    return not any(
        re.search(rf"(?<!\w){re.escape(word.strip())}(?!\w)", reply, re.IGNORECASE)
        for word in forbidden_words
    )


@_instruction(
    "keywords:letter_frequency",
    letter=arguments.character,
    let_frequency=arguments.count,
    let_relation=arguments.relation,
)
def _letter_frequency(reply: str, letter: str, let_frequency: int, let_relation: Relation) -> bool:
    """Case is ignored. The reference replaces a sign that is not from a to z ("#" and "!" in rows
    1122 and 1129) by a random letter; ours counts the sign."""
    return holds(reply.lower().count(letter.lower()), let_relation, let_frequency)


def _occurrences(keyword: str, reply: str) -> int:
    """Without overlaps."""
    return len(re.findall(re.escape(keyword.strip()), reply, re.IGNORECASE))


# Language and case


@_instruction("language:response_language", language=arguments.language_code)
def _language(reply: str, language: str) -> bool:
    """The language with the highest probability. As in the reference, a reply without any feature
    of a language, such as digits only, counts as following. The reference does not fix the seed of
    the detection, so its verdict on a short text may change from run to run."""
    return _is_language(reply, language)


@_instruction("change_case:english_capital")
def _english_capital(reply: str) -> bool:
    """Some letter, none in lower case, and English. As in the reference, the language is detected
    in the capitals themselves, which langdetect does less well: of 687 English replies in capitals
    it takes 95 % for English, as written 99 %."""
    return reply.isupper() and _is_language(reply, "en")


@_instruction("change_case:english_lowercase")
def _english_lowercase(reply: str) -> bool:
    """Some letter, none in upper case, and English."""
    return reply.islower() and _is_language(reply, "en")


@_instruction(
    "change_case:capital_word_frequency",
    capital_frequency=arguments.count,
    capital_relation=arguments.relation,
)
def _capital_words(reply: str, capital_frequency: int, capital_relation: Relation) -> bool:
    """Words all in capitals, "I" and "A" included. The reference counts tokens of NLTK; ours are
    described at `count_capital_words`."""
    return holds(count_capital_words(reply), capital_relation, capital_frequency)


def _is_language(reply: str, expected: str) -> bool:
    return language.detect(reply) in (expected, None)


# Length


@_instruction(
    "length_constraints:number_words", num_words=arguments.count, relation=arguments.relation
)
def _number_words(reply: str, num_words: int, relation: Relation) -> bool:
    r"""Words are runs of \w: "don't" is two."""
    return holds(count_words(reply), relation, num_words)


@_instruction(
    "length_constraints:number_sentences",
    num_sentences=arguments.count,
    relation=arguments.relation,
)
def _number_sentences(reply: str, num_sentences: int, relation: Relation) -> bool:
    """The reference counts with NLTK's Punkt model; ours is described in `text`."""
    return holds(len(sentences(reply)), relation, num_sentences)


@_instruction("length_constraints:number_paragraphs", num_paragraphs=arguments.count)
def _number_paragraphs(reply: str, num_paragraphs: int) -> bool:
    """Exactly so many, separated by `***` anywhere. A blank first or last part does not count; a
    blank part in the middle fails."""
    parts = _without_blank_ends(reply.split("***"))
    return all(parts) and len(parts) == num_paragraphs


@_instruction(
    "length_constraints:nth_paragraph_first_word",
    num_paragraphs=arguments.count,
    nth_paragraph=arguments.count,
    first_word=arguments.text,
)
def _nth_paragraph(reply: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    """Exactly so many paragraphs, separated by two line breaks; blank ones do not count. The first
    word ends at white space, a quote or one of `.,?!`; quotes before it and case are ignored. The
    reference leaves blank paragraphs out of the number, but not out of the place of the nth: a
    reply that opens with line breaks fails there."""
    paragraphs = blocks(reply)
    if len(paragraphs) != num_paragraphs or nth_paragraph > num_paragraphs:
        return False
    word = paragraphs[nth_paragraph - 1].split(maxsplit=1)[0].lstrip("'").lstrip('"')
    return re.split(r"[.,?!'\"]", word, maxsplit=1)[0].lower() == first_word.strip().lower()


# Content


@_instruction("detectable_content:number_placeholders", num_placeholders=arguments.count)
def _placeholders(reply: str, num_placeholders: int) -> bool:
    """At least so many `[...]`, each within a line; the brackets may be empty, as in the
    reference."""
    return sum(map(_count_brackets, reply.split("\n"))) >= num_placeholders


def _count_brackets(line: str) -> int:
    """Every "[" with the first "]" after it; what is between them is not searched again."""
    count = end = 0
    while (start := line.find("[", end)) >= 0 and (end := line.find("]", start) + 1) > 0:
        count += 1
    return count


@_instruction("detectable_content:postscript", postscript_marker=arguments.text)
def _postscript(reply: str, postscript_marker: str) -> bool:
    """The marker is somewhere in the reply. Case is ignored; a space may follow each period but the
    last; the last period of "P.P.S" may be missing, that of "P.S." may not."""
    marker = postscript_marker.strip().lower()
    spaced = {"p.p.s": r"p\.\s?p\.\s?s", "p.s.": r"p\.\s?s\."}
    return re.search(spaced.get(marker, re.escape(marker)), reply.lower()) is not None


# Format


@_instruction("detectable_format:number_bullet_lists", num_bullets=arguments.count)
def _bullets(reply: str, num_bullets: int) -> bool:
    """Exactly so many lines that start with `-`, or with a single `*`. As in the reference, no
    space need follow, so a rule of dashes counts; `**` opens bold text, and does not. A star alone
    on the last line counts here only."""
    lines = [line.lstrip() for line in reply.split("\n")]
    stars = sum(line.startswith("*") and not line.startswith("**") for line in lines)
    return stars + sum(line.startswith("-") for line in lines) == num_bullets


@_instruction("detectable_format:constrained_response")
def _constrained(reply: str) -> bool:
    """One of the three answers is somewhere in the reply, in this very form."""
    return any(option in reply for option in OPTIONS)


@_instruction("detectable_format:number_highlighted_sections", num_highlights=arguments.count)
def _highlights(reply: str, num_highlights: int) -> bool:
    """At least so many `*...*` or `**...**`, each within a line and not blank. As in the reference,
    `***...***` counts as both."""
    single = re.findall(r"\*([^*\n]*)\*", reply)
    double = re.findall(r"\*\*([^*\n]*)\*\*", reply)
    return sum(bool(text.strip()) for text in [*single, *double]) >= num_highlights


@_instruction(
    "detectable_format:multiple_sections",
    section_spliter=arguments.text,
    num_sections=arguments.count,
)
def _sections(reply: str, section_spliter: str, num_sections: int) -> bool:
    """At least so many headings "SECTION 1", in the case of the instruction."""
    heading = re.escape(section_spliter.strip()) + r"\s?\d+"
    return len(re.findall(heading, reply)) >= num_sections


@_instruction("detectable_format:json_format")
def _json(reply: str) -> bool:
    """The whole reply is JSON, maybe in a Markdown fence. As in the reference, a bare number or
    string is JSON."""
    body = re.sub(r"\A```(?:json)?", "", reply.strip(), count=1, flags=re.IGNORECASE)
    try:
        json.loads(body.removesuffix("```").strip())
    except (ValueError, RecursionError):
        return False
    return True


@_instruction("detectable_format:title")
def _title(reply: str) -> bool:
    """Some `<<...>>` within a line that is not blank."""
    return any(map(_has_title, reply.split("\n")))


def _has_title(line: str) -> bool:
    start, end = line.find("<<"), line.rfind(">>")
    return start >= 0 and end > start and bool(line[start:end].strip("<> \t\r"))


# Combinations, start and end, punctuation


@_instruction("combination:two_responses")
def _two_responses(reply: str) -> bool:
    """Two different replies, separated by `******`. A blank first or last part does not count; a
    blank part in the middle fails."""
    parts = _without_blank_ends(reply.split("******"))
    return all(parts) and len(parts) == 2 and parts[0] != parts[1]


@_instruction("combination:repeat_prompt", prompt_to_repeat=arguments.text)
def _repeat_prompt(reply: str, prompt_to_repeat: str) -> bool:
    """The reply starts with the request; case is ignored."""
    return reply.strip().lower().startswith(prompt_to_repeat.strip().lower())


@_instruction("startend:end_checker", end_phrase=arguments.text)
def _end(reply: str, end_phrase: str) -> bool:
    """The reply ends with the phrase; case, and quotes around the reply, are ignored."""
    return reply.strip().strip('"').lower().endswith(end_phrase.strip().lower())


@_instruction("startend:quotation")
def _quotation(reply: str) -> bool:
    """The first and the last character are straight double quotes."""
    reply = reply.strip()
    return len(reply) > 1 and reply.startswith('"') and reply.endswith('"')


@_instruction("punctuation:no_comma")
def _no_comma(reply: str) -> bool:
    """No ASCII comma; those of other scripts may occur."""
    return "," not in reply


def _without_blank_ends(parts: list[str]) -> list[str]:
    """Stripped parts, without the first and the last one if they are blank."""
    parts = [part.strip() for part in parts]
    if parts and not parts[0]:
        parts = parts[1:]
    if parts and not parts[-1]:
        parts = parts[:-1]
    return parts
