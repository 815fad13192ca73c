"""The numbers in words that sl_basic holds out: "Write 47 in words." -> "forty-seven"."""

from __future__ import annotations

from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.scorer import match
from inspect_ai.solver import generate

from tinker_cookbook.nano import tasks


@task
def nano_number_words() -> Task:
    """The 30 held-out numbers."""
    samples = [
        Sample(
            input=example["messages"][0]["content"],
            target=example["messages"][1]["content"],
            id=example["number"],
        )
        for example in tasks.number_words("held_out")
    ]
    return Task(
        dataset=MemoryDataset(samples, "nano_number_words"),
        solver=generate(),
        scorer=match("exact", ignore_case=False),
    )
