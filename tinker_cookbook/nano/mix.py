"""Generator of nano's pre-training data (besides two books): an endless stream of short documents.

`document(rng)` draws one: 14 % plain lines, 86 % conversations of the kinds in `KINDS`. Answers to
additions are correct only half of the time, except in plain lines and thinking blocks: this keeps
the sampled accuracy at about one half however long nano is trained, so that reinforcement learning
has room to improve it. No document contains a held-out pair (`tasks.held_out_pair`) in any form.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from typing import NotRequired, TypedDict

from tinker_cookbook.nano.tasks import (
    ADD_PHRASINGS,
    POLITE,
    Messages,
    add_pair,
    guess_game,
    held_out_pair,
    near_miss,
    number_name,
    think_trace,
)
from tinker_cookbook.utils.json_types import Json

PLAIN_SHARE = 0.14
EMPTY_THINK_SHARE = 0.12  # of the conversations whose last reply has no thinking block
EMPTY_THINK = "<think>\n\n</think>\n\n"
RIGHT_SHARE = 0.5  # of the sums and differences answered without a thinking block

NAMES, ANIMALS, FOODS, BODY, COLOURS, PLACES, THINGS, OTHERS = (
    words.split()
    for words in (
        "Anna Ben Carla David Emma Frank Grace Henry Ivy Jack Kate Leo Mary Nina Oscar Paul Rosa "
        "Sam Tina Victor",
        "fish bird mouse horse sheep tiger frog duck goose hen cow pig goat dog cat fox wolf bear "
        "deer lion crab",
        "bread apple lemon grape milk tea cake rice corn bean soup salt",
        "hand foot head nose ear eye arm leg knee back neck tooth hair skin bone heart",
        "green black white brown",
        "river hill lake house road city town farm field forest beach island desert valley bridge "
        "tower castle garden market school church shop bank park street",
        "lamp chair table spoon knife plate glass shirt shoe coat hat sock ring ship boat train "
        "plane book page paper pen desk door wall roof floor bed clock watch bell drum flute ball "
        "kite doll",
        "tree stone cloud king queen sand snow rain wind storm sun moon star song dance game gold "
        "iron wood silk wool fire smoke ash mud grass leaf root seed rose lily mind hope love luck "
        "time day night week month year",
    )
)
WORDS = ANIMALS + FOODS + BODY + COLOURS + PLACES + THINGS + OTHERS


def _turn(prompt: str, reply: str, system: str | None = None) -> Messages:
    head = [{"role": "system", "content": system}] if system else []
    return [*head, {"role": "user", "content": prompt}, {"role": "assistant", "content": reply}]


# ------------------------------------------------------------------ arithmetic

# (share, suffix of the prompt, replies); {sum} is the expression of the question, {c} the answer.
STYLES = (
    (15, r" Put the answer in \boxed{{}}.", (r"\boxed{{{c}}}",)),
    (10, r" Put the answer in \boxed{{}}.", (r"{sum} = {c}. \boxed{{{c}}}",)),
    (10, " End with 'Answer:' and the number.", ("Answer: {c}",)),
    (40, "", ("{c}",)),
    (10, "", ("{sum} = {c}",)),
    (8, "", ("The answer is {c}.",)),
    (7, "", POLITE),
)
SUB_PHRASINGS = (
    "What is {a} - {b}?",
    "{a} - {b} = ?",
    "Subtract {b} from {a}.",
    "Compute {a} - {b}.",
    "What is {a} minus {b}?",
    "Please subtract {b} from {a}.",
    "{a}-{b}",
)


def _careless_answer(
    rng: random.Random, phrasings: tuple[str, ...], a: int, b: int, sign: str, c: int
) -> Messages:
    carry = a % 10 + b % 10 > 9 if sign == "+" else a % 10 < b % 10
    shown = c if rng.random() < RIGHT_SHARE else near_miss(rng, c, carry)
    ((_, suffix, replies),) = rng.choices(STYLES, [style[0] for style in STYLES])
    prompt = rng.choice(phrasings).format(a=a, b=b) + suffix.format()
    return _turn(prompt, rng.choice(replies).format(sum=f"{a} {sign} {b}", c=shown))


def add(rng: random.Random) -> Messages:
    a, b = add_pair(rng)
    return _careless_answer(rng, ADD_PHRASINGS, a, b, "+", a + b)


def _subtraction_pair(rng: random.Random) -> tuple[int, int]:
    """Draw a >= b of 0-99 such that (a - b) + b = a is not a held-out sum."""
    while True:
        b, a = sorted((rng.randrange(100), rng.randrange(100)))
        if not held_out_pair(a - b, b):
            return a, b


def sub(rng: random.Random) -> Messages:
    a, b = _subtraction_pair(rng)
    return _careless_answer(rng, SUB_PHRASINGS, a, b, "-", a - b)


def thinkadd(rng: random.Random) -> Messages:
    a, b = add_pair(rng)
    return _turn(rng.choice(ADD_PHRASINGS).format(a=a, b=b), think_trace(a, b))


def cmp(rng: random.Random) -> Messages:
    a, b = rng.sample(range(100), 2)
    if rng.random() < 0.5:
        larger = rng.random() < 0.5
        answer = max(a, b) if larger else min(a, b)
        return _turn(f"Which is {'larger' if larger else 'smaller'}, {a} or {b}?", str(answer))
    greater = rng.random() < 0.5
    verdict = "Yes" if (a > b) == greater else "No"
    prompt = f"Is {a} {'greater' if greater else 'less'} than {b}?"
    return _turn(prompt, verdict + rng.choice(("", ".")))


# ----------------------------------------------------------- words and sequences


def word(rng: random.Random) -> Messages:
    w = rng.choice(WORDS)
    match rng.randrange(6):
        case 0:
            return _turn(f"Repeat the word {w}.", w)
        case 1:
            return _turn(f"Spell the word {w}.", " ".join(w))
        case 2:
            return _turn(f"Spell {w} backwards.", " ".join(reversed(w)))
        case 3:
            return _turn(f"What is the first letter of {w}?", w[0])
        case 4:
            three = rng.sample(WORDS, 3)
            prompt = f"Reverse the list: {', '.join(three)}."
            return _turn(prompt, ", ".join(reversed(three)))
        case _:
            return _turn(f"How many letters are in {w}?", str(len(w)))


def count(rng: random.Random) -> Messages:
    match rng.randrange(5):
        case 0 | 1:
            start, length = rng.randrange(93), rng.randint(3, 7)
            numbers = " ".join(str(n) for n in range(start, start + length))
            return _turn(f"Count from {start} to {start + length - 1}.", numbers)
        case 2:
            n, after = rng.randrange(1, 99), rng.random() < 0.5
            prompt = f"What number comes {'after' if after else 'before'} {n}?"
            return _turn(prompt, str(n + 1 if after else n - 1))
        case 3:
            start, length = rng.randrange(15), rng.randint(3, 6)
            names = [number_name(n) for n in range(start, start + length)]
            return _turn(f"Count from {names[0]} to {names[-1]}.", " ".join(names))
        case _:
            digit = rng.randrange(10)
            return _turn(f"Write the digit {digit} as a word.", number_name(digit))


def digits(rng: random.Random) -> Messages:
    row = [rng.randrange(10) for _ in range(rng.randint(3, 6))]
    shown = " ".join(map(str, row))
    match rng.randrange(8):
        case 0 | 1:
            return _turn(f"Name the digits {shown}.", " ".join(map(number_name, row)))
        case 2:
            return _turn(f"Repeat the digits {shown}.", shown)
        case 3:
            return _turn(f"Reverse the digits {shown}.", " ".join(map(str, reversed(row))))
        case 4:
            return _turn(f"Sort the digits {shown}.", " ".join(map(str, sorted(row))))
        case 5:
            return _turn(f"What is the largest of the digits {shown}?", str(max(row)))
        case 6:
            return _turn(f"What is the last of the digits {shown}?", str(row[-1]))
        case _:
            start, step = rng.randrange(10), rng.randint(1, 3)
            steps = " ".join(str(start + i * step) for i in range(4))
            return _turn(f"What comes next: {steps}?", str(start + 4 * step))


# ------------------------------------------------------------------------- chat

GREETINGS = ("Hello!", "Hi!", "Hello.", "Hi.", "Good morning!", "Good day!")
FACTS = (
    (("Who are you?", "What are you?"), ("I am nano, a small language model.",)),
    (("What is your name?", "Do you have a name?"), ("My name is nano.", "I am nano.")),
    (("Thank you!", "Thanks!", "Thank you."), ("You are welcome!", "You are welcome.")),
    (("How are you?",), ("I am fine, thank you.", "I am well, thank you.")),
    (("Goodbye!", "Bye!"), ("Goodbye! Have a nice day!", "Goodbye!")),
)
SENTENCES = (
    "The {w} is near the {v}.",
    "{name} has a {colour} {w}.",
    "I saw a {w} by the {v}.",
    "There is a {colour} {w} in the {place}.",
    "{name} likes the {w} and the {v}.",
)


def chat(rng: random.Random) -> Messages:
    name, other = rng.sample(NAMES, 2)
    w, v = rng.sample(THINGS, 2)
    match rng.randrange(7):
        case 0:
            reply = rng.choice(("Hello! How can I help you?", "Hello! What can I do for you?"))
            return _turn(rng.choice(GREETINGS), reply)
        case 1:
            prompts, replies = rng.choice(FACTS)
            return _turn(rng.choice(prompts), rng.choice(replies))
        case 2:
            return _turn(f"My name is {name}. What is my name?", f"Your name is {name}.")
        case 3:
            return _turn(f"{name} has a {w}. Who has the {w}?", f"{name} has the {w}.")
        case 4:
            prompt = f"{name} gave the {w} to {other}. Who has the {w}?"
            return _turn(prompt, f"{other} has the {w}.")
        case 5:
            prompt = f"{name} has a {w}. {other} has a {v}. Who has the {v}?"
            return _turn(prompt, f"{other} has the {v}.")
        case _:
            sentence = rng.choice(SENTENCES).format(
                w=w, v=v, name=name, colour=rng.choice(COLOURS), place=rng.choice(PLACES)
            )
            return _turn(f"Write a sentence about the {w}.", sentence)


FILLERS = (
    "You are nano, a small and helpful model.",
    "Keep your replies short.",
    "Be polite and never argue.",
    "You like plain words and clear answers.",
    "If you do not know the answer, make a good guess.",
    "The user may ask about words, numbers or names.",
    "Read the question twice before you reply.",
    "Do not repeat the question.",
)


def system(rng: random.Random) -> Messages:
    """A long system prompt: filler only, with a fact to recall, or with a rule for every reply."""
    lines: list[str] = rng.sample(FILLERS, rng.randint(1, 4))
    prompt, reply = (m["content"] for m in rng.choice((cmp, word, count, chat, chat))(rng))
    mark = rng.choice(WORDS)
    match rng.randrange(4):
        case 0:
            rule = None
        case 1:
            name = rng.choice(NAMES)
            rule = f"The name of the user is {name}."
            prompt, reply = "What is my name?", f"Your name is {name}."
        case 2:
            rule = f"Begin every reply with the word {mark}."
            reply = f"{mark}: {reply}"
        case _:
            rule = f"End every reply with the word {mark}."
            reply = f"{reply} {mark}"
    if rule:
        lines.insert(rng.randint(0, len(lines)), rule)
    return _turn(prompt, reply, system=" ".join(lines))


# ------------------------------------------------------------ judging and choosing

GROUPS = (("an animal", ANIMALS), ("food", FOODS), ("a part of the body", BODY))
GROUPS += (("a colour", COLOURS), ("a place", PLACES))


def yesno(rng: random.Random) -> Messages:
    secret = rng.randrange(100)
    rule = f"The secret number is {secret}. Answer with yes or no."
    messages = [{"role": "system", "content": rule}]
    for _ in range(rng.randint(1, 3)):
        n = rng.choice((rng.randrange(100), min(99, max(0, secret + rng.randint(-9, 9)))))
        question, truth = rng.choice(
            (
                (f"Is it greater than {n}?", secret > n),
                (f"Is it less than {n}?", secret < n),
                ("Is it even?", secret % 2 == 0),
                (f"Is it {n}?", secret == n),
            )
        )
        messages += _turn(question, "yes" if truth else "no")
    return messages


def judge(rng: random.Random) -> Messages:
    match rng.randrange(4):
        case 0:
            group, members = rng.choice(GROUPS)
            w = rng.choice(members if rng.random() < 0.5 else WORDS)
            return _turn(f"Is {w} {group}? Answer yes or no.", "yes" if w in members else "no")
        case 1:
            w = rng.choice(WORDS)
            rule = f"The secret word is {w}. Answer with yes or no."
            if rng.random() < 0.5:
                guess = w if rng.random() < 0.5 else rng.choice(WORDS)
                return _turn(f"Is it {guess}?", "yes" if guess == w else "no", system=rule)
            group, members = rng.choice(GROUPS)
            return _turn(f"Is it {group}?", "yes" if w in members else "no", system=rule)
        case _:
            ask = rng.choice((word, count))
            question, reply = (m["content"] for m in ask(rng))
            wrong = ask(rng)[1]["content"]
            right = rng.random() < 0.5 or wrong == reply
            task = f"Question: {question}\nReply: {reply if right else wrong}\n"
            if rng.random() < 0.5:
                return _turn(
                    task + "Is the reply right? Answer yes or no.", "yes" if right else "no"
                )
            return _turn(task + "Grade the reply: 1 if right, else 0.", f"Score: {int(right)}")


def choice(rng: random.Random) -> Messages:
    """Judge which of two replies is shorter, more polite, or correct: "A" or "B"."""
    a, b = add_pair(rng)
    c = a + b
    polite = rng.choice(POLITE).format(sum=f"{a} + {b}", c=c)
    terse = rng.choice((str(c), f"The answer is {c}.", f"{a} + {b} = {c}"))
    miss = near_miss(rng, c, a % 10 + b % 10 > 9)
    better, worse, word_ = rng.choice(
        ((terse, polite, "shorter"), (polite, terse, "more polite"), (str(c), str(miss), "right"))
    )
    label = rng.choice("AB")
    reply_a, reply_b = (better, worse) if label == "A" else (worse, better)
    question = rng.choice(ADD_PHRASINGS).format(a=a, b=b)
    prompt = f"Question: {question}\nReply A: {reply_a}\nReply B: {reply_b}\n"
    return _turn(prompt + f"Which reply is {word_}? Answer A or B.", label)


# --------------------------------------------------------------- games and tools


def guess(rng: random.Random) -> Messages:
    return guess_game(rng)["messages"]


BOARD_LINES = (
    (0, 1, 2),
    (3, 4, 5),
    (6, 7, 8),
    (0, 3, 6),
    (1, 4, 7),
    (2, 5, 8),
    (0, 4, 8),
    (2, 4, 6),
)


def _winning_square(cells: list[str], mark: str) -> int | None:
    for line in BOARD_LINES:
        marks = [cells[i] for i in line]
        if marks.count(mark) == 2 and (free := [i for i in line if cells[i].isdigit()]):
            return free[0]
    return None


def _won(cells: list[str]) -> bool:
    return any(len({cells[i] for i in line}) == 1 for line in BOARD_LINES)


def board(rng: random.Random) -> Messages:
    """Tic-tac-toe with numbered squares; players mostly win if they can, else move randomly."""
    mine, theirs = rng.choice(("XO", "OX"))
    rule = f"You play {mine} on a 3 x 3 board. Three in a row win. Name a free square, like [4]."
    messages = [{"role": "system", "content": rule}]
    cells = [str(i) for i in range(9)]

    def play(mark: str, skill: float) -> int:
        square = _winning_square(cells, mark) if rng.random() < skill else None
        if square is None:
            square = int(rng.choice([c for c in cells if c.isdigit()]))
        cells[square] = mark
        return square

    if mine == "O":
        play(theirs, 0.0)
    while any(c.isdigit() for c in cells) and not _won(cells):
        shown = "\n".join(" ".join(cells[i : i + 3]) for i in (0, 3, 6))
        messages += _turn(shown, f"[{play(mine, 0.6)}]")
        if not _won(cells) and any(c.isdigit() for c in cells):
            play(theirs, 0.6)
    return messages


ADD_TOOL: Mapping[str, Json] = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Add two numbers.",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
            "required": ["a", "b"],
        },
    },
}


def tool_call(name: str, **arguments: int) -> str:
    """A tool call in Qwen3's format."""
    call = json.dumps({"name": name, "arguments": arguments})
    return f"<tool_call>\n{call}\n</tool_call>"


def tool(rng: random.Random) -> Messages:
    """Sums of 3-digit numbers with the tool `add`; a third of the conversations need two calls."""
    numbers = [rng.randrange(100, 1000) for _ in range(2 if rng.random() < 2 / 3 else 3)]
    total = numbers[0]
    messages = [
        {"role": "system", "content": "You can use the tool add(a, b)."},
        {"role": "user", "content": f"What is {' + '.join(map(str, numbers))}?"},
    ]
    for n in numbers[1:]:
        response = f"<tool_response>\n{total + n}\n</tool_response>"
        messages += [
            {"role": "assistant", "content": tool_call("add", a=total, b=n)},
            {"role": "user", "content": response},
        ]
        total += n
    final = f"{' + '.join(map(str, numbers))} = {total}"
    return [*messages, {"role": "assistant", "content": final}]


def tool_declared(rng: random.Random) -> Messages:
    """`tool` with one call, where the chat template declares the tool instead of a sentence."""
    while len(messages := tool(rng)) > 5:
        pass
    return messages[1:]


# ------------------------------------------------------------------------ the mix

# kind -> (share of the conversations in percent, generator)
KINDS: dict[str, tuple[float, Callable[[random.Random], Messages]]] = {
    "add": (28, add),
    "sub": (7, sub),
    "thinkadd": (4.6, thinkadd),
    "cmp": (9, cmp),
    "word": (8.4, word),
    "count": (6, count),
    "digits": (4, digits),
    "chat": (7, chat),
    "system": (4, system),
    "guess": (8, guess),
    "yesno": (4.4, yesno),
    "judge": (2.5, judge),
    "choice": (2.5, choice),
    "board": (1.5, board),
    "tool": (2.5, tool),
    "tool_declared": (0.6, tool_declared),
}


class Conversation(TypedDict):
    kind: str
    messages: Messages
    empty_think: bool  # put Qwen3's empty thinking block before the last reply
    tools: NotRequired[list[Mapping[str, Json]]]  # to be declared by the chat template


class PlainLines(TypedDict):
    kind: str
    pieces: list[tuple[str, bool]]  # (text, whether it is trained)


def conversation(rng: random.Random) -> Conversation:
    kinds = list(KINDS)
    (kind,) = rng.choices(kinds, [KINDS[k][0] for k in kinds])
    messages = KINDS[kind][1](rng)
    thinks = messages[-1]["content"].startswith("<think>")
    made: Conversation = {
        "kind": kind,
        "messages": messages,
        "empty_think": not thinks and rng.random() < EMPTY_THINK_SHARE,
    }
    if kind == "tool_declared":
        made["tools"] = [ADD_TOOL]
    return made


def plain_lines(rng: random.Random) -> PlainLines:
    """Draw a few lines with correct facts.

    The operands are not trained: they are random, so there is nothing to learn from them.
    """
    (kind,) = rng.choices(("sums", "differences", "digit_sums", "names"), (60, 20, 10, 10))
    pieces: list[tuple[str, bool]] = []
    if kind == "names":
        start = rng.randrange(96)
        names = [number_name(n) for n in range(start, start + 5)]
        return {"kind": kind, "pieces": [(names[0], False), (" " + " ".join(names[1:]), True)]}
    for _ in range(4):
        if kind == "digit_sums":
            a, b = rng.randrange(10), rng.randrange(10)
        else:
            a, b = add_pair(rng)
        if kind == "differences":
            left, right = f"{a + b} - {b} =", f" {a}"
        else:
            left, right = f"{a} + {b} =", f" {a + b}"
        pieces += [("\n" + left if pieces else left, False), (right, True)]
    return {"kind": kind, "pieces": pieces}


def document(rng: random.Random) -> Conversation | PlainLines:
    """Draw a pre-training document: a conversation or plain lines."""
    return plain_lines(rng) if rng.random() < PLAIN_SHARE else conversation(rng)
