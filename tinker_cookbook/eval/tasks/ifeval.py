"""IFEval: 541 prompts with 834 instructions that rules can check (arXiv 2311.07911).

    inspect eval tinker_cookbook/ifeval --model tinker-cookbook/nano -T path=input_data.jsonl

The paper's four figures, each with its standard error: the share of prompts whose instructions are
all followed, and the share of instructions followed, both strict and loose
(`tinker_cookbook.eval.ifeval.scoring`). The standard errors of the shares of instructions take
prompts as clusters, since instructions of one prompt are not independent. The metadata of each
score has the verdict on every instruction.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.scorer import Metric, SampleScore, Score, Scorer, Target, metric, scorer
from inspect_ai.solver import TaskState, generate

from tinker_cookbook.eval.ifeval import language
from tinker_cookbook.eval.ifeval.scoring import Verdict, read_requirements, verdicts
from tinker_cookbook.eval.tasks.rows import open_task_rows, placed, text_of
from tinker_cookbook.exceptions import DataFormatError

HUB = "google/IFEval"
COLUMNS = ("prompt", "instruction_id_list", "kwargs")
METRICS = ("prompt_strict", "instruction_strict", "prompt_loose", "instruction_loose")


@task
def ifeval(path: str = "hub") -> Task:
    """path: hub (google/IFEval), another name on the hub, or a file or directory of that form."""
    language.languages()  # without langdetect this raises now, not when the first reply is scored
    rows = open_task_rows(path, HUB, COLUMNS)
    samples = [_sample(row, where, number) for number, (row, where) in enumerate(placed(rows))]
    return Task(
        dataset=MemoryDataset(samples, name="ifeval"),
        solver=generate(),
        scorer=followed_instructions(),
    )


def _sample(row: dict[str, Any], where: str | None, number: int) -> Sample:
    for column in COLUMNS[1:]:
        if not isinstance(row[column], list) or not row[column]:
            raise DataFormatError(f"{where}: {column!r} is {row[column]!r:.80}; expected a list")
    read_requirements(row["instruction_id_list"], row["kwargs"], str(where))
    text_of(row, "prompt", where)
    key = row.get("key")
    return Sample(
        input=row["prompt"],
        id=number if key is None else key,
        metadata={column: row[column] for column in COLUMNS[1:]},
    )


@metric
def ifeval_metrics() -> Metric:
    """The four shares, and the standard error of each as `<name>_stderr`."""

    def shares(scores: list[SampleScore]) -> dict[str, float]:
        found: dict[str, float] = {}
        for name in METRICS:
            per_prompt = name.startswith("prompt")
            sizes = [1 if per_prompt else _num_instructions(score) for score in scores]
            values = [float(score.score.as_dict()[name] or 0) for score in scores]
            found[name] = _share(values, sizes)
            found[f"{name}_stderr"] = _stderr(values, sizes)
        return found

    return shares


def _num_instructions(score: SampleScore) -> int:
    return len((score.sample_metadata or {})["instruction_id_list"])


def _share(values_P: Sequence[float], sizes_P: Sequence[int]) -> float:
    """Mean over prompts, weighted by their numbers of instructions; NaN without prompts."""
    if not values_P:
        return math.nan
    return sum(v * n for v, n in zip(values_P, sizes_P)) / sum(sizes_P)


def _stderr(values_P: Sequence[float], sizes_P: Sequence[int]) -> float:
    """Standard error of `_share` with prompts as clusters: with sizes of one it is the usual one.

    The clustered standard error of Miller 2024, "Adding Error Bars to Evals" (arXiv 2411.00640),
    with the factor C / (C - 1) for C clusters in the variance, as in Inspect's `stderr(cluster=)`.
    0 for fewer than two prompts.
    """
    num_prompts = len(values_P)
    if num_prompts < 2:
        return 0.0
    share = _share(values_P, sizes_P)
    squares = sum((n * (v - share)) ** 2 for v, n in zip(values_P, sizes_P))
    return math.sqrt(squares * num_prompts / (num_prompts - 1)) / sum(sizes_P)


@scorer(metrics=[ifeval_metrics()])
def followed_instructions() -> Scorer:
    """Check every instruction of the prompt. The values of instructions are shares of the prompt's
    own, for the metric to weight, so that they can be averaged over epochs."""
    # one thread beside the event loop: several would not be faster, as all need the interpreter's
    # lock, and the event loop would wait for each of them
    pool = ThreadPoolExecutor(1, thread_name_prefix="ifeval")

    async def score(state: TaskState, target: Target) -> Score:
        loop, reply = asyncio.get_running_loop(), state.output.completion
        found = await loop.run_in_executor(pool, _verdicts, state.metadata, reply)
        strict = [verdict.strict for verdict in found]
        loose = [verdict.loose for verdict in found]
        return Score(
            value={
                "prompt_strict": float(all(strict)),
                "instruction_strict": sum(strict) / len(strict),
                "prompt_loose": float(all(loose)),
                "instruction_loose": sum(loose) / len(loose),
            },
            answer=state.output.completion,
            explanation="\n".join(map(_line, found)),
            metadata={"instructions": [verdict._asdict() for verdict in found]},
        )

    return score


def _verdicts(metadata: dict[str, Any], reply: str) -> list[Verdict]:
    requirements = read_requirements(metadata["instruction_id_list"], metadata["kwargs"], "sample")
    return verdicts(requirements, reply)


def _line(verdict: Verdict) -> str:
    followed = "followed" if verdict.strict else "followed loosely" if verdict.loose else "missed"
    return f"{verdict.instruction_id}: {followed}"
