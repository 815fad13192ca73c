"""Tasks for nano: problems, conversations, preference pairs, and their grading.

Everything is a pure function of its arguments and a `random.Random`, and returns plain dicts:
`{"messages": [{"role", "content"}, ...], ...}`. Two fixed splits keep held-out scores honest:

- additions: `held_out_pair(a, b)`, 10 % of the pairs. They do not occur in pre-training, neither
  as a sum nor with swapped operands, as a difference, or inside a thinking block;
- number words: `NUMBER_WORDS_HELD_OUT`, 30 of the numbers 0-99. nano never saw a number above 9
  next to its name in pre-training, so the skill is new to it on both sides of the split.
"""

from __future__ import annotations

import random
import re
import zlib
from typing import Literal, TypedDict

Split = Literal["train", "held_out"]
Messages = list[dict[str, str]]


class NumberWord(TypedDict):
    messages: Messages  # user, assistant
    number: int


class Addition(TypedDict):
    messages: Messages  # one user turn
    a: int
    b: int
    answer: int


class PreferencePair(TypedDict):
    prompt: Messages  # one user turn
    chosen: Messages  # one assistant turn
    rejected: Messages  # one assistant turn


class GuessGame(TypedDict):
    messages: Messages
    secret: int


# ---------------------------------------------------------------- number words

UNITS, TENS = (
    names.split()
    for names in (
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
        "fifteen sixteen seventeen eighteen nineteen",
        "twenty thirty forty fifty sixty seventy eighty ninety",
    )
)


def number_name(n: int) -> str:
    """English name of 0 <= n <= 99: 47 -> "forty-seven"."""
    if not 0 <= n <= 99:
        raise ValueError(f"number_name knows 0 to 99, got {n}")
    if n < 20:
        return UNITS[n]
    tens, unit = divmod(n, 10)
    return TENS[tens - 2] + (f"-{UNITS[unit]}" if unit else "")


# Only two-word names ("forty-seven") are held out: they can be composed of words from the training
# split. "eleven" or "thirty" can only be memorised, so holding them out would measure nothing.
NUMBER_WORDS_HELD_OUT = frozenset(
    random.Random(0).sample([n for n in range(21, 100) if n % 10], 30)
)


def number_words(split: Split) -> list[NumberWord]:
    """The 70 training or 30 held-out examples "Write 47 in words." -> "forty-seven", ascending."""
    return [
        {
            "messages": [
                {"role": "user", "content": f"Write {n} in words."},
                {"role": "assistant", "content": number_name(n)},
            ],
            "number": n,
        }
        for n in range(100)
        if (n in NUMBER_WORDS_HELD_OUT) == (split == "held_out")
    ]


# -------------------------------------------------------------------- addition

ADD_PHRASINGS = (
    "What is {a} + {b}?",
    "{a} + {b} = ?",
    "Add {a} and {b}.",
    "Compute {a} + {b}.",
    "What is {a} plus {b}?",
    "Please add {a} and {b}.",
    "{a}+{b}",
)
POLITE = (
    "That is a good question! The answer is {c}. I hope this helps.",
    "Sure, I can help with that. {sum} = {c}, so the answer is {c}. Have a nice day!",
    "Let me think. {sum} = {c}. Please ask me more.",
)


def held_out_pair(a: int, b: int) -> bool:
    """Whether a + b is excluded from pre-training: 10 % of the pairs of 0-99, by a symmetric hash.

    Pairs of one-digit numbers are never held out, because column addition needs all of them.
    """
    low, high = min(a, b), max(a, b)
    return high > 9 and zlib.crc32(f"{low}+{high}".encode()) % 10 == 0


def add_pair(rng: random.Random, split: Split = "train") -> tuple[int, int]:
    """Draw two numbers of 0-99 whose sum belongs to `split`."""
    while True:
        a, b = rng.randrange(100), rng.randrange(100)
        if held_out_pair(a, b) == (split == "held_out"):
            return a, b


def add_problem(
    rng: random.Random, split: Split = "train", phrasing: str | None = ADD_PHRASINGS[0]
) -> Addition:
    """Draw an addition problem. phrasing None: a random one of `ADD_PHRASINGS`."""
    a, b = add_pair(rng, split)
    prompt = (phrasing or rng.choice(ADD_PHRASINGS)).format(a=a, b=b)
    return {"messages": [{"role": "user", "content": prompt}], "a": a, "b": b, "answer": a + b}


def think_trace(a: int, b: int) -> str:
    """A correct column addition in nano's format: units, tens with the carry, the sum."""
    units, carry = a % 10 + b % 10, int(a % 10 + b % 10 > 9)
    tens = a // 10 + b // 10 + carry
    return (
        f"<think>\n{a % 10} + {b % 10} = {units}\n"
        f"{a // 10} + {b // 10}{' + 1' if carry else ''} = {tens}\n</think>\n\n{a + b}"
    )


def answer_part(reply: str) -> str | None:
    """The reply after its thinking block; None if the block is not closed."""
    thought, closed, answer = reply.rpartition("</think>")
    if closed:
        return answer.strip()
    return None if "<think>" in thought + answer else answer.strip()


def last_integer(reply: str) -> int | None:
    """The last integer after the thinking block, which decides the grade of a sum; None if none."""
    numbers = re.findall(r"(?<!\d)-?\d+", answer_part(reply) or "")
    return int(numbers[-1]) if numbers else None


# ------------------------------------------------------------- preference pairs


def near_miss(rng: random.Random, answer: int, carry: bool = True) -> int:
    """Draw a wrong answer >= 0 with a typical slip: off by one or ten, a lost carry, ..."""
    while True:
        (slip,) = rng.choices(("one", "ten", "few", "carry", "any"), (30, 25, 15, 15, 15))
        match slip:
            case "one":
                wrong = answer + rng.choice((-1, 1))
            case "ten":
                wrong = answer + rng.choice((-10, 10))
            case "few":
                wrong = answer + rng.choice((-2, 2, -9, 9, -11, 11))
            case "carry":
                wrong = answer - 10 if carry else answer + 10
            case _:
                wrong = rng.randrange(199)
        if wrong >= 0 and wrong != answer:
            return wrong


def is_polite(reply: str) -> bool:
    """Whether the reply uses one of the phrases that the preference "polite" rewards."""
    return any(reply.startswith(form.split("{")[0]) for form in POLITE)


def preference_pair(
    rng: random.Random, preference: Literal["polite", "short", "correct"], split: Split = "train"
) -> PreferencePair:
    """Draw a chosen and a rejected reply to an addition problem.

    polite: a friendly sentence beats a terse correct answer. short: the bare number beats a longer
    correct answer. correct: the correct number beats a near miss.
    """
    problem = add_problem(rng, split, phrasing=None)
    a, b, c = problem["a"], problem["b"], problem["answer"]
    polite = rng.choice(POLITE).format(sum=f"{a} + {b}", c=c)
    sentence = f"The answer is {c}."
    if preference == "polite":
        chosen, rejected = polite, rng.choice((str(c), sentence))
    elif preference == "short":
        chosen, rejected = str(c), rng.choice((polite, sentence, f"{a} + {b} = {c}"))
    else:
        chosen, rejected = str(c), str(near_miss(rng, c, carry=a % 10 + b % 10 > 9))
    return {
        "prompt": problem["messages"],
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
    }


# -------------------------------------------------------------- guess the number

GUESS_LIMIT = 15
GUESS_WON = "Correct!"


def guess_prompt(limit: int = GUESS_LIMIT) -> str:
    """The first user turn of the game; the secret is in 0..limit."""
    return f"I am thinking of a number from 0 to {limit}. Guess it."


def guess_feedback(secret: int, guess: int) -> str:
    """The user's reply to a guess; `GUESS_WON` ends the game."""
    if guess == secret:
        return GUESS_WON
    return "Higher." if guess < secret else "Lower."


def guess_game(rng: random.Random, max_turns: int = 8) -> GuessGame:
    """Draw a complete game of a weak player.

    15 % of its guesses bisect, 50 % are random within the known bounds, 35 % ignore the feedback.
    """
    secret = rng.randrange(GUESS_LIMIT + 1)
    low, high = 0, GUESS_LIMIT
    messages = [{"role": "user", "content": guess_prompt()}]
    for _ in range(max_turns):
        (how,) = rng.choices(("bisect", "bounds", "any"), (15, 50, 35))
        if how == "bisect":
            guess = (low + high) // 2
        elif how == "bounds":
            guess = rng.randint(low, high)
        else:
            guess = rng.randrange(GUESS_LIMIT + 1)
        messages.append({"role": "assistant", "content": str(guess)})
        if guess == secret:
            break
        messages.append({"role": "user", "content": guess_feedback(secret, guess)})
        if guess < secret:
            low = max(low, guess + 1)
        else:
            high = min(high, guess - 1)
    if messages[-1]["role"] == "user":
        messages.pop()
    return {"messages": messages, "secret": secret}
