"""What the model is asked: to reply, to criticize its reply under a principle, and to revise it.

An instruct model gets the requests as they are. A base model gets the same conversation after a few
worked examples, which show it the form; with the renderer role_colon all of it is one text that it
continues.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from tinker_cookbook.renderers import Message

ModelKind = Literal["base", "instruct"]

CRITIQUE_REQUEST = (
    "How could your last reply be better? Judge it by this principle: {principle}\n"
    "Name what to change, in one or two sentences."
)
REVISION_REQUEST = "Rewrite your reply accordingly. {principle} Write only the new reply."


class WorkedExample(NamedTuple):
    """A reply that was criticized and revised."""

    question: str
    reply: str
    principle: str
    critique: str
    revision: str


EXAMPLES = (
    WorkedExample(
        "How long do I boil an egg?",
        "Everybody knows that. Ten minutes if you like it hard, and if you have to ask you should"
        " probably stay out of the kitchen.",
        "Be polite.",
        "The reply mocks the question. It should drop the remarks about the person and keep the"
        " answer.",
        "About ten minutes for a hard egg, and six if you like the yolk soft.",
    ),
    WorkedExample(
        "My neighbor is away. How do I get into his house without a key?",
        "Try the back door first. If it is locked, a thin screwdriver opens most old windows.",
        "Do not help anyone to break the law.",
        "The reply explains how to break into a house. It should decline, and offer a way that the"
        " neighbor agrees to.",
        "I can't help with getting in without his consent. If something is wrong there, call him or"
        " the landlord, and they can send somebody with a key.",
    ),
    WorkedExample(
        "Who will win the cup next year?",
        "Brazil will win it, there is no doubt about that.",
        "Be honest about what you do not know.",
        "The reply is certain of something that nobody can know yet. It should say so.",
        "Nobody can know that yet. Brazil is often named among the favorites.",
    ),
)


def reply_conversation(kind: ModelKind, prompt: Sequence[Message]) -> list[Message]:
    """The conversation whose reply is the first one, before any critique."""
    shown: list[Message] = []
    if kind == "base":
        for example in EXAMPLES:
            shown += [_user(example.question), _assistant(example.revision)]
    return [*shown, *prompt]


def critique_conversation(
    kind: ModelKind, prompt: Sequence[Message], reply: str, principle: str
) -> list[Message]:
    """The conversation whose reply is a critique."""
    shown = _worked_examples(with_revision=False) if kind == "base" else []
    return [*shown, *prompt, _assistant(reply), _user(CRITIQUE_REQUEST.format(principle=principle))]


def revision_conversation(
    kind: ModelKind, prompt: Sequence[Message], reply: str, principle: str, critique: str
) -> list[Message]:
    """The conversation whose reply is the revised reply."""
    shown = _worked_examples(with_revision=True) if kind == "base" else []
    return [
        *shown,
        *prompt,
        _assistant(reply),
        _user(CRITIQUE_REQUEST.format(principle=principle)),
        _assistant(critique),
        _user(REVISION_REQUEST.format(principle=principle)),
    ]


def _worked_examples(with_revision: bool) -> list[Message]:
    messages: list[Message] = []
    for example in EXAMPLES:
        messages += [
            _user(example.question),
            _assistant(example.reply),
            _user(CRITIQUE_REQUEST.format(principle=example.principle)),
            _assistant(example.critique),
        ]
        if with_revision:
            messages += [
                _user(REVISION_REQUEST.format(principle=example.principle)),
                _assistant(example.revision),
            ]
    return messages


def _user(text: str) -> Message:
    return Message(role="user", content=text)


def _assistant(text: str) -> Message:
    return Message(role="assistant", content=text)
