r"""The option that a reply to a multiple-choice question states as its answer.

The reply may reason first. A statement has one of these forms, and the last one counts:

| form | examples |
|---|---|
| after "answer", "option" or "choice" | `Answer: C`, `**Answer:** (C)`, `the best option is c.` |
| boxed | `\boxed{C}`, `\boxed{\text{(C)}}` |
| named as right or as chosen | `C is correct`, `I choose C` |
| if there is none of these: the letter alone on the last or first line | `C`, `(C)`, `**C**` |
| or a copied option there, if no other is copied | `C) 42 metres` |

A, I and lower-case letters are also words: the end of the line, punctuation or "because" has to
follow them. A statement of two letters ("A or B"), or of a letter that no option has, is no answer.
"""

from __future__ import annotations

import re
import string

LETTERS = string.ascii_uppercase
PLACEHOLDER = "X"  # in the form that the prompt asks for; a reply may repeat it

_STYLE = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mathsf|rm|bf) ?\{([^{}]*)\}")
_BOX = re.compile(r"\\(?:boxed|fbox) ?\{([^{}]*)\}")
_MARKS = re.compile(r"[*`$\"“”]|\\[()\[\]]")
_QUOTED = re.compile(r"(?<!\w)['‘]([A-Za-z])['’](?!\w)")

_IS = r"(?: ?[:：=–—-]| (?:is|would be|should be|must be|will be)\b:?)"
_FILLER = (
    r"(?:(?:therefore|thus|clearly|definitely|probably|likely|most likely|indeed),? )?"
    r"(?:(?:the )?(?:letter|option|choice):? )?"
)
_LETTER = r"[(\[]?(?P<letter>[A-Za-z])(?!['’\w]| ?[=+^]|[-.]\w)"
_STATEMENT = re.compile(
    rf"\b(?:ans|answer|option|choice)\b{_IS}\s?{_FILLER}{_LETTER}"
    rf"|\bI(?: will|'ll| would)? (?:choose|pick|select|go with) {_FILLER}"
    rf"{_LETTER.replace('letter', 'chosen')}"
    r"|(?<![\w'’.-])(?P<named>[A-Z])[)\]]? is (?:the )?(?:correct|right|best)\b",
    re.IGNORECASE,
)
_NO_WORD = re.compile(  # what follows a letter that is not a word
    r"[)\]]| ?(?:\n|\Z|[.,:;!?](?:\s|\Z)|[–—(-] ?\w|(?:because|since|as)\b)"
)
_SECOND = re.compile(r"[)\]]* ?(?:[,/&]|or\b|and\b) ?(?:or |and )?[(\[]?(?P<letter>[A-Z])(?!\w)")
_ALONE = re.compile(r"\W*(?P<letter>[A-Za-z])\W*")
_COPIED = re.compile(r"\W*(?P<letter>[A-Z])[)\].:]+ ")


def stated_letter(reply: str, num_options: int) -> str | None:
    """The letter of the option; None if the reply states none, or not a single one of them."""
    answer = reply.rpartition("</think>")[2]
    text = _plain(answer if answer.strip() else reply)
    letter = _last_statement(text, num_options)
    if letter is None:
        letter = _bare_letter(text)
    return letter if letter and letter in LETTERS[:num_options] else None


def _plain(text: str) -> str:
    """Without emphasis, quotes and LaTeX; a box becomes a statement of its own. White space is
    collapsed, which also keeps the patterns from backtracking over long runs of it."""
    text = _STYLE.sub(r"\1", text)
    text = _BOX.sub(r"\nAnswer: \1\n", text)
    text = _QUOTED.sub(r"\1", _MARKS.sub("", text))
    text = re.sub(r"[^\S\n]+", " ", text)
    return re.sub(r" ?\n\s*", "\n", text).strip()


def _last_statement(text: str, num_options: int) -> str | None:
    """The letter of the last statement, "" if it names two options; None without a statement."""
    found: str | None = None
    for match in _STATEMENT.finditer(text):
        group = next(name for name, value in match.groupdict().items() if value)
        letter, end = match[group], match.end(group)
        if letter.upper() == PLACEHOLDER and num_options <= LETTERS.index(PLACEHOLDER):
            continue
        if group == "named":
            if letter.isupper():
                found = letter
            continue
        two = _second(text, end)
        maybe_word = letter in "AI" or letter.islower()
        if two or not maybe_word or _NO_WORD.match(text, end):
            found = "" if two else letter.upper()
    return found


def _second(text: str, end: int) -> bool:
    """Whether another letter is named right after the first."""
    second = _SECOND.match(text, end)
    return second is not None and _NO_WORD.match(text, second.end()) is not None


def _bare_letter(text: str) -> str | None:
    """The letter that is all of the last or first line, or the only option that is copied there."""
    lines = text.split("\n")
    for line in (lines[-1], lines[0]):
        if alone := _ALONE.fullmatch(line):
            return alone["letter"].upper()
    copied = [
        (number, found["letter"])
        for number, line in enumerate(lines)
        if (found := _COPIED.match(line))
    ]
    if len(copied) == 1 and copied[0][0] in (0, len(lines) - 1):
        return copied[0][1]
    return None
