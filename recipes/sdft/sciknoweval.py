"""SciKnowEval (Feng et al. 2024, arXiv 2406.09098): questions of the natural sciences; the
demonstration is the right choice, or the answer.

The data has a test split alone, so rows are held out of it by a seed. Written from the README of
the data's repository: `question`, `choices` (`text` and `label`), `answerKey`, `answer`, `domain`.
The configuration name, v2, and the answers of other types than multiple choice were not verified.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import chz

from recipes.sdft.evaluation import greedy_evaluator
from tinker_cookbook.distillation.demonstrations import DemonstrationDatasetBuilder
from tinker_cookbook.exceptions import ConfigurationError, DataFormatError
from tinker_cookbook.renderers import Message
from tinker_cookbook.renderers.chats import Chat
from tinker_cookbook.supervised.data import Datasets, hold_out_rows
from tinker_cookbook.supervised.exact_match import ExactMatchEvaluator
from tinker_cookbook.training.evaluators import EvaluatorBuilder
from tinker_cookbook.training.fields import COUNT, NON_NEGATIVE
from tinker_cookbook.utils.data_files import Row, Rows, open_rows
from tinker_cookbook.utils.data_identity import path_identity
from tinker_cookbook.utils.json_types import Plain

# Demonstrations begin with it as well, because a completion's first tokens are not trained.
ANSWER = "The answer is"
INSTRUCTION = f'End your reply with "{ANSWER}" and the letter of the right choice.'


@chz.chz
class SciKnowEval(DemonstrationDatasetBuilder):
    """SciKnowEval, 28,000 questions, rendered when they are used."""

    path: str = chz.field(
        default="hicai-zju/SciKnowEval", doc="name on the hub, or path of a local copy"
    )
    name: str | None = chz.field(
        default="v2", doc="configuration (subset) of the data set; not used for a local file"
    )
    split: str = chz.field(default="test", doc="training split; not used for a local file")
    domain: str | None = chz.field(
        default=None, doc="take only this domain, e.g. Chemistry (None: all)"
    )
    test_size: int = chz.field(
        default=200,
        doc="questions to evaluate on, by loss and by the letters of greedy replies: held out from"
        " the shuffled rows",
        metadata=NON_NEGATIVE,
    )
    eval_max_tokens: int | None = chz.field(
        default=None,
        doc="maximum tokens per reply in the evaluation (None: the recipe's max_tokens)",
        metadata=COUNT,
    )

    def identity(self) -> Mapping[str, Plain]:
        """Count, size and digest of a local data set's files; nothing for a name on the hub."""
        return path_identity(self.path)

    def __call__(self) -> Datasets:
        train, test = self.open_splits()
        return (
            self.build_split(train, read_question, "SciKnowEval", render_up_front=False),
            None
            if test is None
            else self.build_split(
                test, read_question, "SciKnowEval", is_test=True, render_up_front=False
            ),
        )

    def open_splits(self) -> tuple[Rows, Rows | None]:
        """The rows to train on and those held out (None: test_size=0)."""
        if Path(self.path).expanduser().is_file():
            rows = open_rows(self.path)
        else:
            rows = open_rows(self.path, self.name, self.split)
        if self.domain is not None:
            domains = [row.get("domain") for row in rows]
            rows = rows.select([i for i, domain in enumerate(domains) if domain == self.domain])
            if not len(rows):
                known = ", ".join(sorted({str(domain) for domain in domains}))
                raise ConfigurationError(
                    f"data.domain={self.domain}: {self.path} has none of it; set one of {known}"
                )
        return hold_out_rows(rows.shuffle(self.shuffle_seed), None, self.test_size, self.path)

    def default_evaluator_builders(self) -> list[EvaluatorBuilder]:
        return [ChosenLetters(data=self)] if self.test_size else []


def read_question(row: Row) -> Chat:
    """The conversation of a row. Raises DataFormatError if it has no question, or no answer as
    text."""
    question, choices = row.get("question"), _read_choices(row)
    if not isinstance(question, str) or not question.strip():
        raise DataFormatError(f"'question' is {question!r}; expected a text")
    answer = row.get("answerKey") if choices else row.get("answer") or row.get("answerKey")
    if not isinstance(answer, str) or not answer.strip():
        raise DataFormatError(f"a question of type {row.get('type')!r} has no answer as text")
    if choices:
        if answer not in choices:
            labels = ", ".join(choices)
            raise DataFormatError(f"'answerKey' is {answer!r}; expected one of {labels}")
        listed = "\n".join(f"{label}. {text}" for label, text in choices.items())
        question = f"{question}\n\n{listed}\n\n{INSTRUCTION}"
        answer = f"{ANSWER} {answer}: {choices[answer]}"
    messages = [Message(role="user", content=question), Message(role="assistant", content=answer)]
    return Chat(messages, "row")


def _read_choices(row: Row) -> dict[str, str]:
    """The choices by their labels; {} if the question has none."""
    choices = row.get("choices") or {}
    texts, labels = choices.get("text") or [], choices.get("label") or []
    if len(texts) != len(labels):
        raise DataFormatError(f"'choices' has {len(texts)} texts and {len(labels)} labels")
    return dict(zip(labels, texts))


def chosen_letter(reply: str) -> str | None:
    """The letter that a reply calls the answer, the last one if there are several."""
    named = re.findall(r"(?i:answer is)\W*([A-Z])\b", reply)
    return named[-1] if named else None


def is_same_choice(reply: str, expected: str) -> bool:
    letter = chosen_letter(expected)
    return letter is not None and chosen_letter(reply) == letter


@chz.chz
class ChosenLetters:
    """Builder of the evaluator of held-out multiple-choice questions, `test/exact_match`."""

    data: SciKnowEval = chz.field(doc="data whose held-out rows are evaluated")

    def __call__(self) -> ExactMatchEvaluator:
        _, test = self.data.open_splits()
        chats: list[list[Message]] = []
        for row in test or ():
            try:
                if _read_choices(row):
                    chats.append(read_question(row).messages)
            except DataFormatError:  # the report of the data names it
                continue
        if not chats:
            raise ConfigurationError(
                "none of the held-out rows is a multiple-choice question with its answer: set"
                " data.test_size=0"
            )
        return greedy_evaluator(self.data, chats, self.data.eval_max_tokens, is_same_choice)
