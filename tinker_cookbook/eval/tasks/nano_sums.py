"""Sums of two numbers below 100 that nano has not seen in pre-training."""

from __future__ import annotations

import random

from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample
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
from inspect_ai.solver import TaskState, generate

from tinker_cookbook.nano import tasks


@task
def nano_sums() -> Task:
    """All pairs that are held out of nano's pre-training, in a fixed random order, so that the
    first ones are a random subset."""
    pairs = [(a, b) for a in range(100) for b in range(100) if tasks.held_out_pair(a, b)]
    random.Random(0).shuffle(pairs)
    samples = [
        Sample(
            input=tasks.ADD_PHRASINGS[0].format(a=a, b=b), target=str(a + b), id=f"{a:02}+{b:02}"
        )
        for a, b in pairs
    ]
    return Task(
        dataset=MemoryDataset(samples, "nano_sums"), solver=generate(), scorer=last_integer()
    )


@scorer(metrics=[accuracy(), stderr()])
def last_integer() -> Scorer:
    """Whether the last integer after the reasoning is the answer."""

    async def score(state: TaskState, target: Target) -> Score:
        number = tasks.last_integer(state.output.completion)
        if number is None:
            return Score(value=NOANSWER)
        correct = number == int(target.text)
        return Score(value=CORRECT if correct else INCORRECT, answer=str(number))

    return score
