"""nano's task: begin every reply with a word that only the system prompt names.

nano counts, names the number after another and repeats a name almost without mistakes, and follows
a rule for its replies if the prompt insists on it. A reply is right if it follows the rule and
answers the question, e.g. "iron: 12 13 14" to "Count from 12 to 14.".
"""

from __future__ import annotations

import random

from recipes.prompt_distillation.task import Task
from tinker_cookbook.nano.mix import FILLERS, NAMES
from tinker_cookbook.renderers import Message

WORD = "iron"
RULE = f"Begin every reply with the word {WORD}."
# Said once, the rule is often lost among the other sentences.
PROMPT = " ".join((RULE, FILLERS[0], RULE, *FILLERS[1:3], RULE, *FILLERS[3:5]))
NUM_HELD_OUT = 100


def reply_rule() -> Task:
    """583 questions, 100 of them held out."""
    pairs = _questions_and_answers()
    random.Random(0).shuffle(pairs)
    return Task(
        PROMPT,
        [[_user(question)] for question, _ in pairs[NUM_HELD_OUT:]],
        [
            [_user(question), Message(role="assistant", content=f"{WORD}: {answer}")]
            for question, answer in pairs[:NUM_HELD_OUT]
        ],
        is_right,
        num_samples=1,
    )


def is_right(reply: str, expected: str) -> bool:
    """Whether the texts are equal but for a full stop at the end, which nano writes or not."""
    return reply.strip().removesuffix(".") == expected.removesuffix(".")


def _questions_and_answers() -> list[tuple[str, str]]:
    pairs = [
        (f"Count from {start} to {start + length - 1}.", _numbers(start, length))
        for start in range(93)
        for length in range(3, 8)
    ]
    pairs += [(f"What number comes after {n}?", str(n + 1)) for n in range(1, 99)]
    return pairs + [(f"My name is {n}. What is my name?", f"Your name is {n}.") for n in NAMES]


def _numbers(start: int, length: int) -> str:
    return " ".join(str(n) for n in range(start, start + length))


def _user(text: str) -> Message:
    return Message(role="user", content=text)
