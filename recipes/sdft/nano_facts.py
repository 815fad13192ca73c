"""Facts for nano to learn: who has the lamp, asked in three ways.

nano cannot know the owners, which are drawn at random, but it can read them: asked "An example of a
good answer: Ivy has the lamp. Who has the lamp?" it names the right one 9 times out of 10.
"""

from __future__ import annotations

import random
from typing import NamedTuple

import chz

from tinker_cookbook.distillation.demonstrations import (
    DEMONSTRATION,
    QUESTION,
    DemonstrationDatasetBuilder,
)
from tinker_cookbook.nano import tasks
from tinker_cookbook.nano.mix import NAMES, THINGS
from tinker_cookbook.renderers import Message, get_renderer
from tinker_cookbook.renderers.chats import Chat
from tinker_cookbook.supervised.data import Datasets
from tinker_cookbook.supervised.exact_match import ExactMatchEvaluator
from tinker_cookbook.tokenizer_utils import get_tokenizer
from tinker_cookbook.training.evaluators import EvaluatorBuilder
from tinker_cookbook.training.fields import COUNT, SEED, CheckedConfig

NANO_TEMPLATE = f"An example of a good answer: {DEMONSTRATION} {QUESTION}"
QUESTIONS = ("Who has the {thing}?", "Who owns the {thing}?", "Who has got the {thing}?")
NUM_EPOCHS = 20


class Facts(NamedTuple):
    """Questions with their answers. seen: to train on; held_out: other questions about the same
    facts."""

    seen: list[Chat]
    held_out: list[Chat]


def draw_facts(seed: int) -> Facts:
    """Each thing has a random owner; one of its three questions, at random, is held out."""
    rng = random.Random(seed)
    facts = Facts([], [])
    for thing in THINGS:
        answer = f"{rng.choice(NAMES)} has the {thing}."
        held_out = rng.choice(QUESTIONS)
        for question in QUESTIONS:
            messages = _turn(question.format(thing=thing), answer)
            chats = facts.held_out if question == held_out else facts.seen
            chats.append(Chat(messages, f"the fact about the {thing}"))
    return facts


def _turn(question: str, answer: str) -> list[Message]:
    return [Message(role="user", content=question), Message(role="assistant", content=answer)]


@chz.chz
class NanoFacts(DemonstrationDatasetBuilder):
    """70 questions about 35 generated facts; to test, 35 other questions about the same facts."""

    template: str = chz.field(
        default=NANO_TEMPLATE,
        doc="text that replaces the last user message for the teacher, with {question} (that"
        " message) and {demonstration}",
    )
    seed: int = chz.field(default=0, doc="seed of the facts", metadata=SEED)

    def __call__(self) -> Datasets:
        facts = draw_facts(self.seed)
        return (
            self.build_split(facts.seen, lambda chat: chat, "NanoFacts"),
            self.build_split(facts.held_out, lambda chat: chat, "NanoFacts", is_test=True),
        )

    def default_num_epochs(self) -> int:
        return NUM_EPOCHS

    def default_evaluator_builders(self) -> list[EvaluatorBuilder]:
        model, renderer = self.config.model_name_for_tokenizer, self.config.renderer_name
        return [
            *(
                FactAnswers(model_name=model, renderer_name=renderer, split=split, seed=self.seed)
                for split in Facts._fields
            ),
            OldSkill(model_name=model, renderer_name=renderer),
        ]


@chz.chz
class FactAnswers(CheckedConfig):
    """Builder of the evaluator of greedy replies: `<split>/exact_match`."""

    model_name: str = chz.field(doc="model whose tokenizer is used")
    renderer_name: str = chz.field(doc="renderer, e.g. qwen3_instruct")
    split: str = chz.field(doc="questions to ask: seen or held_out")
    seed: int = chz.field(default=0, doc="seed of the facts", metadata=SEED)

    def __call__(self) -> ExactMatchEvaluator:
        chats: list[Chat] = getattr(draw_facts(self.seed), self.split)
        tokenizer = get_tokenizer(self.model_name)
        renderer = get_renderer(self.renderer_name, tokenizer, model_name=self.model_name)
        return ExactMatchEvaluator([chat.messages for chat in chats], renderer, self.split, 24)


@chz.chz
class OldSkill(CheckedConfig):
    """Builder of the evaluator of what nano could do before: `sums/exact_match`, the share of sums
    that greedy replies get right. Pre-training left out these sums."""

    model_name: str = chz.field(doc="model whose tokenizer is used")
    renderer_name: str = chz.field(doc="renderer, e.g. qwen3_instruct")
    num_sums: int = chz.field(default=100, doc="sums to ask for", metadata=COUNT)

    def __call__(self) -> ExactMatchEvaluator:
        rng = random.Random(0)
        sums = [tasks.add_problem(rng, "held_out", phrasing=None) for _ in range(self.num_sums)]
        chats = [_turn(each["messages"][0]["content"], str(each["answer"])) for each in sums]
        tokenizer = get_tokenizer(self.model_name)
        renderer = get_renderer(self.renderer_name, tokenizer, model_name=self.model_name)
        return ExactMatchEvaluator(chats, renderer, "sums", 48, _is_same_number)


def _is_same_number(reply: str, expected: str) -> bool:
    return tasks.last_integer(reply) == int(expected)
