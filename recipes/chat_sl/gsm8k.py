"""GSM8K (Cobbe et al. 2021) as conversations: a word problem, and its solution as the reply.

Solutions are trained as they are in the data, with their calculator annotations and the final
answer after four hash signs: `48 / 2 = <<48/2=24>>24 ... #### 72`. The evaluation asks for greedy
replies and compares the last number of each with the final answer, so that a model is not marked
down before training for another style. recipes/math_rl trains on the same problems by reinforcement
learning.
"""

from __future__ import annotations

from pathlib import Path

import chz

from tinker_cookbook.exceptions import ConfigurationError, DataFormatError
from tinker_cookbook.math_problems.answer_text import extract_gsm8k_final_answer
from tinker_cookbook.math_problems.gsm8k import CONFIGURATION
from tinker_cookbook.math_problems.last_number import last_number
from tinker_cookbook.renderers import Message, get_text_content
from tinker_cookbook.renderers.chats import RowReader
from tinker_cookbook.supervised.data import HubChats, Splits
from tinker_cookbook.supervised.exact_match import ExactMatchEvaluator
from tinker_cookbook.training.evaluators import EvaluatorBuilder
from tinker_cookbook.training.fields import COUNT, NON_NEGATIVE
from tinker_cookbook.utils.data_files import Rows


@chz.chz
class Gsm8kChats(HubChats):
    """GSM8K, 7,473 problems for training. A directory has train.jsonl and test.jsonl (or parquet);
    a file has no test split, so problems of it are held out."""

    path: str = chz.field(
        default="openai/gsm8k", doc="name on the hub, path of a local copy, or a training file"
    )
    name: str | None = chz.field(
        default=None,
        doc=f"configuration (subset) of the data set (None: {CONFIGURATION} on the hub)",
    )
    test_split: str | None = chz.field(default="test", doc="evaluation split")
    test_size: int = chz.field(
        default=200,
        doc="problems to evaluate on, by loss and by the final answers of greedy replies: the first"
        " of test_split (0: all of them, 1,319)",
        metadata=NON_NEGATIVE,
    )
    max_tokens: int = chz.field(
        default=256, doc="maximum tokens per reply in the evaluation", metadata=COUNT
    )

    def _settings_for_path(self) -> Gsm8kChats:
        """The configuration is one of the hub; a file has a training split alone."""
        local = Path(self.path).expanduser()
        name = self.name if self.name or local.exists() else CONFIGURATION
        test_split = None if local.is_file() else self.test_split
        return chz.replace(self, name=name, test_split=test_split)

    def open_splits(self) -> Splits:
        return HubChats.open_splits(self._settings_for_path())

    def default_evaluator_builders(self) -> list[EvaluatorBuilder]:
        has_test = self.test_size > 0 or self._settings_for_path().test_split is not None
        return [FinalAnswers(data=self)] if has_test else []


@chz.chz
class FinalAnswers:
    """Builder of the evaluator of the final answers, `test/exact_match` and `test/truncated`."""

    data: Gsm8kChats = chz.field(doc="data whose test set is evaluated")

    def __call__(self) -> ExactMatchEvaluator:
        _, test_rows, read = self.data.open_splits()
        if test_rows is None:
            raise ConfigurationError("data.test_size=0: there is no problem to evaluate on")
        problems = _gradable_problems(test_rows, read)
        return ExactMatchEvaluator(
            problems,
            self.data.renderer,
            "test",
            self.data.max_tokens,
            is_right,
        )


def is_right(reply: str, solution: str) -> bool:
    """Whether the last number of a reply is the final answer of the solution."""
    return last_number(reply) == final_answer(solution)


def final_answer(solution: str) -> float:
    """The number after `####`; raises ValueError if there is none."""
    return float(extract_gsm8k_final_answer(solution))


def _gradable_problems(rows: Rows, read: RowReader) -> list[list[Message]]:
    """The conversations of the test set. Raises DataFormatError for one without a final answer."""
    conversations: list[list[Message]] = []
    for index, row in enumerate(rows):
        chat = read(row, rows.where(index))
        try:
            final_answer(get_text_content(chat.messages[-1]))
        except ValueError as error:
            raise DataFormatError(
                f"{chat.location}: 'answer' has no final answer, a number after '####' ({error})"
            ) from error
        conversations.append(chat.messages)
    return conversations
