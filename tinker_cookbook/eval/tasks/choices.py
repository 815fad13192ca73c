"""Multiple-choice questions as Inspect samples, and their scorer."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from inspect_ai.dataset import Sample
from inspect_ai.model import ChatMessage, ChatMessageUser
from inspect_ai.scorer import (
    CORRECT,
    INCORRECT,
    NOANSWER,
    Score,
    Scorer,
    Target,
    accuracy,
    scorer,
    stderr,
)
from inspect_ai.solver import TaskState

from tinker_cookbook.eval.tasks.stated_letter import LETTERS, stated_letter
from tinker_cookbook.exceptions import ConfigurationError, DataFormatError
from tinker_cookbook.utils.misc_utils import is_whole

REQUEST = (
    "Answer the following multiple-choice question. Think step by step. Then state your choice on"
    ' the last line, in the form "Answer: X", where X is the letter of one option.'
)


@dataclass(frozen=True)
class Question:
    """A question, the texts of its options, and the index of the right one."""

    text: str
    options: Sequence[str]
    right: int

    def shuffled(self, seed: str) -> Question:
        """The same question with its options in an order that depends on the seed alone."""
        order = list(range(len(self.options)))
        random.Random(seed).shuffle(order)
        return Question(self.text, [self.options[old] for old in order], order.index(self.right))

    def prompt(self) -> str:
        options = [f"{letter}) {option}" for letter, option in zip(LETTERS, self.options)]
        return "\n".join([REQUEST, "", f"Question: {self.text}", "", *options])

    def answer(self) -> str:
        """The last line of a correct reply."""
        return f"Answer: {LETTERS[self.right]}"

    def sample(
        self, id: str | int, metadata: dict[str, Any], examples: Sequence[ChatMessage] = ()
    ) -> Sample:
        """examples: the turns before the question."""
        return Sample(
            input=[*examples, ChatMessageUser(content=self.prompt())],
            choices=list(self.options),
            target=LETTERS[self.right],
            id=id,
            metadata=metadata,
        )


def checked_options(options: object, where: str | None) -> list[str]:
    """The texts of the options. Raises DataFormatError if they are not 2 to 26 texts."""
    if not isinstance(options, list) or not 2 <= len(options) <= len(LETTERS):
        found = f"{len(options)} options" if isinstance(options, list) else f"{options!r:.80}"
        raise DataFormatError(f"{where}: found {found}; expected a list of 2 to {len(LETTERS)}")
    for letter, option in zip(LETTERS, options):
        if not isinstance(option, str) or not option.strip():
            raise DataFormatError(f"{where}: option {letter} is {option!r:.80}; expected text")
    return [option.strip() for option in options]


def check_seed(seed: object) -> None:
    """ConfigurationError for what is neither None nor a whole number."""
    if seed is not None and not is_whole(seed):
        raise ConfigurationError(f"seed={seed!r}: expected a whole number")


@scorer(metrics=[accuracy(), stderr()])
def right_option() -> Scorer:
    """Whether the reply states the right letter (`stated_letter`); no answer if it states none."""

    async def score(state: TaskState, target: Target) -> Score:
        reply = state.output.completion
        letter = stated_letter(reply, len(state.choices))
        if letter is None:
            return Score(value=NOANSWER, explanation=reply)
        value = CORRECT if letter == target.text else INCORRECT
        return Score(value=value, answer=letter, explanation=reply)

    return score
