"""MMLU-Pro: 12,032 questions of 14 subjects with up to ten options (arXiv 2406.01574).

    inspect eval tinker_cookbook/mmlu_pro --model tinker-cookbook/nano -T path=test.jsonl
    inspect eval tinker_cookbook/mmlu_pro --model ... -T subject=math -T num_shots=5

Accuracy in all, and by subject as `accuracy/<subject>`. The paper's figures are with five examples
of the same subject (num_shots=5), whose reasoning is shown.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import ChatMessage, ChatMessageAssistant, ChatMessageUser
from inspect_ai.scorer import accuracy, grouped, stderr
from inspect_ai.solver import generate

from tinker_cookbook.eval.tasks.choices import Question, check_seed, checked_options, right_option
from tinker_cookbook.eval.tasks.rows import open_task_rows, placed, text_of
from tinker_cookbook.eval.tasks.stated_letter import LETTERS
from tinker_cookbook.exceptions import ConfigurationError, DataFormatError
from tinker_cookbook.utils.misc_utils import is_whole

HUB = "TIGER-Lab/MMLU-Pro"
COLUMNS = ("question", "options", "answer", "answer_index", "category")


class Row(NamedTuple):
    """A row. reasoning: what leads to the answer; "" if there is none."""

    id: str | int
    question: Question
    category: str
    reasoning: str


@task
def mmlu_pro(
    path: str = "hub",
    split: str = "test",
    subject: str = "",
    num_shots: int = 0,
    examples: str = "",
    seed: int | None = None,
) -> Task:
    """path: hub (TIGER-Lab/MMLU-Pro), another name on the hub, or a file or directory of that form.
    subject: questions of this category alone. num_shots: examples before each question, the first
    of its category in the split validation of `path`, or in `examples` (like path). seed: shuffle
    the options of the questions (None: the order of the data)."""
    if not is_whole(num_shots) or num_shots < 0:
        raise ConfigurationError(f"num_shots={num_shots!r}: expected a number from 0")
    check_seed(seed)
    rows = _read(path, split)
    random.Random(0).shuffle(rows)  # sorted by subject otherwise: the first ones would be of one
    if subject:
        rows = _of_subject(rows, subject)
    shots = _shots(rows, path, examples, num_shots) if num_shots else {}
    samples = [_sample(row, shots.get(row.category, []), seed) for row in rows]
    return Task(
        dataset=MemoryDataset(samples, name="mmlu_pro"),
        solver=generate(),
        scorer=right_option(),
        metrics=[
            accuracy(),
            stderr(),
            grouped(accuracy(), "category", all=False, name_template="accuracy/{group_name}"),
        ],
    )


def _read(path: str, split: str) -> list[Row]:
    rows = open_task_rows(path, HUB, COLUMNS, split)
    return [_row(row, where, number) for number, (row, where) in enumerate(placed(rows))]


def _row(row: dict[str, Any], where: str | None, number: int) -> Row:
    options = checked_options(row["options"], where)
    letters, letter, index = LETTERS[: len(options)], row["answer"], row["answer_index"]
    if not isinstance(letter, str) or len(letter) != 1 or letter not in letters:
        raise DataFormatError(
            f"{where}: 'answer' is {letter!r:.80}; expected a letter from A to {letters[-1]}, for"
            f" there are {len(options)} options"
        )
    if not is_whole(index) or index != letters.index(letter):
        raise DataFormatError(
            f"{where}: 'answer_index' is {index!r:.80}, but 'answer' is {letter!r}, whose index is"
            f" {letters.index(letter)}"
        )
    key = row.get("question_id")
    return Row(
        number if key is None else key,
        Question(text_of(row, "question", where), options, letters.index(letter)),
        text_of(row, "category", where),
        str(row.get("cot_content") or ""),
    )


def _of_subject(rows: Sequence[Row], subject: str) -> list[Row]:
    chosen = [row for row in rows if row.category.lower() == subject.strip().lower()]
    if not chosen:
        found = ", ".join(sorted({row.category for row in rows}))
        raise ConfigurationError(f"subject={subject!r}: no such category; found {found}")
    return chosen


def _shots(
    rows: Sequence[Row], path: str, examples: str, num_shots: int
) -> dict[str, list[ChatMessage]]:
    """The turns of the examples of each category of `rows`."""
    if not examples and Path(path).expanduser().is_file():
        raise ConfigurationError(
            f"num_shots={num_shots}: the file {path} has no split validation; set examples=FILE"
        )
    known: dict[str, list[Row]] = {}
    for row in _read(examples or path, "validation"):
        known.setdefault(row.category, []).append(row)
    shots: dict[str, list[ChatMessage]] = {}
    for category in {row.category for row in rows}:
        found = known.get(category, [])
        if len(found) < num_shots:
            raise ConfigurationError(
                f"num_shots={num_shots}: category {category!r} has {len(found)} examples in"
                f" {examples or path}"
            )
        shots[category] = [turn for row in found[:num_shots] for turn in _turns(row)]
    return shots


def _turns(row: Row) -> list[ChatMessage]:
    reasoning = row.reasoning.strip().removeprefix("A:").strip()
    reply = "\n".join(filter(None, [reasoning, row.question.answer()]))
    return [ChatMessageUser(content=row.question.prompt()), ChatMessageAssistant(content=reply)]


def _sample(row: Row, shots: Sequence[ChatMessage], seed: int | None) -> Sample:
    question = row.question if seed is None else row.question.shuffled(f"{seed}/{row.id}")
    return question.sample(row.id, {"category": row.category}, shots)
