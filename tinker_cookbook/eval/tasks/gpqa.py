"""GPQA: questions of biology, physics and chemistry written by experts (arXiv 2311.12022).

    inspect eval tinker_cookbook/gpqa --model tinker-cookbook/nano -T path=gpqa_diamond.csv

The data set on the hub is gated: log in and accept its terms first.
"""

from __future__ import annotations

from typing import Any

from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.solver import generate

from tinker_cookbook.eval.tasks.choices import Question, check_seed, checked_options, right_option
from tinker_cookbook.eval.tasks.rows import open_task_rows, placed, text_of
from tinker_cookbook.exceptions import ConfigurationError

HUB = "Idavidrein/gpqa"
SUBSETS = ("gpqa_diamond", "gpqa_main", "gpqa_extended")
RIGHT = "Correct Answer"
WRONG = ("Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")
COLUMNS = ("Question", RIGHT, *WRONG)
TOPICS = {"domain": "High-level domain", "category": "Subdomain"}
_WAY_OUT = (
    f"the data set is gated: accept its terms at https://huggingface.co/datasets/{HUB} and log in"
    " with `hf auth login`; path may also be a local file or directory"
)


@task
def gpqa(path: str = "hub", subset: str = "gpqa_diamond", seed: int = 0) -> Task:
    """path: hub (Idavidrein/gpqa), another name on the hub, or a file or directory of that form.
    subset: gpqa_diamond (198 questions), gpqa_main (448) or gpqa_extended (546), on the hub.
    seed: of the order of the options, in which the right one is not always the first."""
    if subset not in SUBSETS:
        raise ConfigurationError(f"subset={subset!r}: expected one of {', '.join(SUBSETS)}")
    check_seed(seed)
    rows = open_task_rows(path, HUB, COLUMNS, name=subset, way_out=_WAY_OUT)
    samples = [
        _sample(row, where, number, seed) for number, (row, where) in enumerate(placed(rows))
    ]
    return Task(
        dataset=MemoryDataset(samples, name="gpqa"), solver=generate(), scorer=right_option()
    )


def _sample(row: dict[str, Any], where: str | None, number: int, seed: int) -> Sample:
    record = row.get("Record ID") or number
    text = text_of(row, "Question", where)
    options = checked_options([row[column] for column in (RIGHT, *WRONG)], where)
    metadata = {name: row.get(column) for name, column in TOPICS.items()}
    return Question(text, options, 0).shuffled(f"{seed}/{record}").sample(record, metadata)
