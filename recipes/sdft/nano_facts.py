"""Facts for nano to learn: who has the lamp, asked in three ways.

nano cannot know them, but it can read them: given "An example of a good answer: Ivy has the lamp.
Who has the lamp?" it repeats the owner 97 times out of 100, without a question of its own 0 times.
"""

from __future__ import annotations

import random

import chz

from tinker_cookbook.distillation.demonstrations import (
    DEMONSTRATION,
    QUESTION,
    DemonstrationDatasetBuilder,
)
from tinker_cookbook.nano import tasks
from tinker_cookbook.nano.mix import NAMES, THINGS
from tinker_cookbook.renderers import Message
from tinker_cookbook.renderers.chats import Chat
from tinker_cookbook.supervised.data import Datasets
from tinker_cookbook.supervised.exact_match import ExactMatchEvaluator
from tinker_cookbook.training.evaluators import EvaluatorBuilder
from tinker_cookbook.training.fields import COUNT, SEED

NANO_TEMPLATE = f"An example of a good answer: {DEMONSTRATION} {QUESTION}"
QUESTIONS = ("Who has the {thing}?", "Who owns the {thing}?", "Who has got the {thing}?")
NUM_SUMS = 100


def draw_facts(seed: int) -> tuple[list[Chat], list[Chat]]:
    """Each thing has a random owner. One of the questions about it, at random, is held out."""
    rng = random.Random(seed)
    train: list[Chat] = []
    held_out: list[Chat] = []
    for thing in THINGS:
        answer = f"{rng.choice(NAMES)} has the {thing}."
        last = rng.choice(QUESTIONS)
        for question in QUESTIONS:
            messages = _turn(question.format(thing=thing), answer)
            chats = held_out if question == last else train
            chats.append(Chat(messages, f"fact {len(train) + len(held_out)}"))
    return train, held_out


def _turn(question: str, answer: str) -> list[Message]:
    return [Message(role="user", content=question), Message(role="assistant", content=answer)]


@chz.chz
class NanoFacts(DemonstrationDatasetBuilder):
    """70 questions about 35 generated facts; 35 other questions about the same facts to test."""

    template: str = chz.field(
        default=NANO_TEMPLATE,
        doc="text that replaces the last user message for the teacher, with {question} (that"
        " message) and {demonstration}",
    )
    seed: int = chz.field(default=0, doc="seed of the facts", metadata=SEED)
    num_epochs: int = chz.field(
        default=30, doc="default of the recipe's num_epochs", metadata=COUNT
    )

    def __call__(self) -> Datasets:
        train, held_out = draw_facts(self.seed)
        return (
            self.build_split(train, lambda chat: chat, "NanoFacts"),
            self.build_split(held_out, lambda chat: chat, "NanoFacts", is_test=True),
        )

    def default_num_epochs(self) -> int:
        return self.num_epochs

    def default_evaluator_builders(self) -> list[EvaluatorBuilder]:
        return [FactAnswers(data=self, name=name) for name in ("train", "test", "sums")]


@chz.chz
class FactAnswers:
    """Builder of the evaluators of greedy replies."""

    data: NanoFacts = chz.field(doc="facts to ask for")
    name: str = chz.field(doc="train, test, sums")

    def __call__(self) -> ExactMatchEvaluator:
        renderer = self.data.renderer
        if self.name == "sums":
            rng = random.Random(0)
            sums = [tasks.add_problem(rng, "held_out", phrasing=None) for _ in range(NUM_SUMS)]
            chats = [_turn(each["messages"][0]["content"], str(each["answer"])) for each in sums]
            return ExactMatchEvaluator(chats, renderer, "sums", 48, _same_number)
        train, held_out = draw_facts(self.data.seed)
        chats = [chat.messages for chat in (train if self.name == "train" else held_out)]
        return ExactMatchEvaluator(chats, renderer, self.name, 24)


def _same_number(reply: str, expected: str) -> bool:
    return tasks.last_integer(reply) == int(expected)
