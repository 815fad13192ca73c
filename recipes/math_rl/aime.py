r"""pass@k on AIME 2024, 2025 and 2026: 30 problems a year, each answer a number from 0 to 999.

    ./scripts/run recipes.math_rl.aime model_name=Qwen/Qwen3-8B max_tokens=8192 num_samples=8
    ./scripts/run recipes.math_rl.aime model_name=Qwen/Qwen3-8B model_path=tinker://... year=2026
    ./scripts/run recipes.math_rl.aime path=DIRECTORY num_samples=2

The run's directory holds config.json, metrics.jsonl (a row for each problem as it is finished, and
a last row with pass@k and its standard error), logs.log, and in iteration_000000 every reply with
its grade: eval_aime_rollout_summaries.jsonl for programs, eval_aime.html for people. If the run is
stopped, the same command resumes with the problems that are not finished.

The last command runs nano on a local copy. nano cannot solve these problems: on 2024 and 2025, 60
problems with 2 replies each, pass@1 and pass@2 are 0, and 30 % of the replies are truncated at 256
tokens (29 November 2026, 2 CPU cores, one thread: 17 s of CPU time).
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import chz

from recipes.math_rl.aime_data import (
    DEFAULT,
    HUB,
    YEARS,
    Aime,
    Year,
    chosen_years,
    problems_identity,
)
from recipes.math_rl.pass_at_k import (
    Outcome,
    PassAtKEvaluator,
    StepSummary,
    pass_at_k_metrics,
    resolve_ks,
    summary,
)
from tinker_cookbook import models
from tinker_cookbook.cli_utils import cli
from tinker_cookbook.completers import completer_from, derive_seed
from tinker_cookbook.exceptions import AllTrajectoriesFailedError
from tinker_cookbook.math_problems.problem_rows import Problem
from tinker_cookbook.rl import transcripts
from tinker_cookbook.rl.types import TrajectoryGroup
from tinker_cookbook.service import EngineConfig, locate_checkpoint
from tinker_cookbook.tokenizer_utils import get_tokenizer
from tinker_cookbook.training.fields import COUNT, CheckedConfig
from tinker_cookbook.training.journal import Journal
from tinker_cookbook.training.run_directory import LogDirBehavior
from tinker_cookbook.utils import jsonl
from tinker_cookbook.utils.display import DisplayMode
from tinker_cookbook.utils.json_types import Plain
from tinker_cookbook.utils.ml_log import read_metrics

if TYPE_CHECKING:
    from tinker_cookbook.service.api import SamplingClient

__all__ = ["CLI", "Aime", "main"]

SPLIT = "eval_aime"
HEADLINES = {"num_correct": "correct", "so_far/pass@1": "pass@1 so far"}


@chz.chz
class CLI(CheckedConfig):
    model_name: str = chz.field(default="nano", doc="base model: nano (bundled), hub name or path")
    model_path: str | None = chz.field(
        default=None,
        doc="checkpoint to evaluate: a tinker:// path, a run directory or a PEFT adapter"
        " directory (None: the base model)",
    )
    renderer_name: str | None = chz.field(
        default=None,
        doc="renderer, i.e. chat template (None: the checkpoint's, else the model's default)",
    )
    path: str = chz.field(
        default="hub",
        doc=f"local directory or file, or a name on the hub (hub: {', '.join(DEFAULT.values())};"
        f" known besides: {', '.join(name for name in HUB if name not in DEFAULT.values())})",
    )
    year: tuple[Year, ...] = chz.field(
        default=(), doc=f"which of {', '.join(YEARS)}, e.g. year=2025,2026 (empty: all of path)"
    )
    num_samples: int = chz.field(default=8, doc="completions per problem", metadata=COUNT)
    k: list[int] = chz.field(
        default_factory=list,
        doc="values of k for pass@k, e.g. k=1,8 (empty: 1, 2, 4, ... num_samples)",
    )
    max_tokens: int | None = chz.field(
        default=None, doc="maximum tokens per completion (None: 256 for nano, else 8192)"
    )
    temperature: float = chz.field(default=1.0, doc="sampling temperature (0: greedy decoding)")
    top_p: float = chz.field(
        default=1.0, doc="nucleus (top-p) sampling: cumulative probability to keep"
    )
    one_shot: bool = chz.field(default=False, doc="show one solved problem before each question")
    seed: int = chz.field(default=0, doc="random seed of sampling")
    log_path: str | None = chz.field(
        default=None, doc="run directory (None: named after the config)"
    )
    behavior_if_log_dir_exists: LogDirBehavior | None = chz.field(
        default=None,
        doc="what to do if the run directory already holds a run (None: resume it if config and"
        " code match; resume: also with edited code; skip: exit if it is finished)",
    )
    base_url: str | None = chz.field(
        default=None, doc="Tinker API server URL (None: run in process)"
    )
    engine: EngineConfig = chz.field(default_factory=EngineConfig, doc="in-process engine settings")
    display: DisplayMode = chz.field(
        default="auto", doc="progress display (auto: live on a terminal)"
    )

    @chz.validate
    def _counts(self) -> None:
        resolve_ks(self.k, self.num_samples)

    def identity(self) -> Mapping[str, Plain]:
        """The content of a local file, so that a changed file is a new run."""
        return problems_identity(self.path)


async def main(config: CLI) -> None:
    years = chosen_years(config.path, config.year)
    sets = [
        Aime(
            path=config.path,
            year=year,
            one_shot=config.one_shot,
            model_name_for_tokenizer=config.model_name,
        )
        for year in years
    ]
    problems = [aime.problems() for aime in sets]
    if config.model_path is not None:
        # A run's directory stands for its latest checkpoint. Fixed here, so that a resumed
        # evaluation does not switch to a later one if that run is still training.
        path = locate_checkpoint(
            config.model_path, "sampler_weights", "model_path", config.base_url
        )
        config = chz.replace(config, model_path=path)
    total = sum(len(year_problems) for year_problems in problems)
    with Journal(
        config,
        recipe="aime",
        total_steps=total,
        headlines=HEADLINES,
        unit="problem",
        count_done_rows=lambda directory: _count_valid_rows(directory, total),
    ) as journal:
        outcomes = _restore_outcomes(journal.log_path, config.num_samples)
        evaluations = await _build_evaluations(config, sets, problems, journal)
        pending = {
            evaluation.first + index: (evaluation, index)
            for evaluation in evaluations
            for index in range(len(evaluation.evaluator.dataset.problems))
            if evaluation.first + index not in outcomes
        }
        tokenizer = get_tokenizer(config.model_name)
        async with aclosing(_in_completion_order(pending)) as finished:
            for step in range(journal.start_step, total):
                with journal.step(step) as row:
                    with journal.interruptible(), journal.timed("replies"):
                        number, group = await anext(finished)
                    evaluation, index = pending[number]
                    name = f"{evaluation.evaluator.dataset.name}, problem {index + 1}"
                    if group.rollout_errors:
                        journal.log_line(f"{name}: {group.rollout_errors[0].message}")
                    tags = [evaluation.evaluator.dataset.name, f"problem {index + 1}"]
                    # the replies are written before the row: see _count_valid_rows
                    records = transcripts.append_group(
                        journal.log_path, SPLIT, 0, number, group, tags, tokenizer
                    )
                    steps = [record["steps"][0] for record in records if record["steps"]]
                    outcomes[number] = Outcome.from_steps(steps, config.num_samples)
                    row.update(_problem_row(number, name, outcomes))
        if not any(outcome.graded for outcome in outcomes.values()):
            raise AllTrajectoriesFailedError(
                f"none of the replies to {total} problems could be graded, see {journal.log_path};"
                " to start over, set behavior_if_log_dir_exists=delete"
            )
        with journal.step(total) as row:
            for evaluation in evaluations:
                row.update(evaluation.metrics(outcomes))
            page = transcripts.write_page(journal.log_path, SPLIT, 0, tokenizer, row)
        for evaluation in evaluations:
            journal.log_line(evaluation.summary(outcomes))
        journal.log_line(f"every reply and its grade: {page}")


class _YearEvaluation(NamedTuple):
    """The evaluation on one year's problems. `first`: index of its first problem over all years."""

    first: int
    evaluator: PassAtKEvaluator
    client: SamplingClient

    def outcomes_of_year(self, outcomes: Mapping[int, Outcome]) -> list[Outcome]:
        """Select the outcomes of this year's problems."""
        count = len(self.evaluator.dataset.problems)
        return [outcomes[number] for number in range(self.first, self.first + count)]

    def metrics(self, outcomes: Mapping[int, Outcome]) -> dict[str, float]:
        name = self.evaluator.dataset.name
        return pass_at_k_metrics(name, self.outcomes_of_year(outcomes), self.evaluator.ks)

    def summary(self, outcomes: Mapping[int, Outcome]) -> str:
        name, metrics = self.evaluator.dataset.name, self.metrics(outcomes)
        return summary(name, self.outcomes_of_year(outcomes), self.evaluator.ks, metrics)


async def _build_evaluations(
    config: CLI, sets: Sequence[Aime], problems: Sequence[list[Problem]], journal: Journal
) -> list[_YearEvaluation]:
    max_tokens = config.max_tokens or (256 if config.model_name == "nano" else 8192)
    model = await completer_from(
        config.model_name,
        config.model_path,
        max_tokens=max_tokens,
        renderer_name=config.renderer_name,
        base_url=config.base_url,
        engine=config.engine if config.base_url is None else None,
    )
    renderer_name = getattr(model.renderer.origin, "renderer_name", config.renderer_name)
    journal.log_line(
        f"{config.model_path or config.model_name}, renderer {renderer_name}, {config.num_samples}"
        f" replies of at most {max_tokens} tokens to each problem, temperature"
        f" {config.temperature:g}"
    )
    evaluations, first = [], 0
    for aime, year_problems in zip(sets, problems, strict=True):
        evaluator = PassAtKEvaluator(
            chz.replace(aime, renderer_name=renderer_name).test_set(
                config.num_samples, year_problems
            ),
            max_tokens,
            ks=config.k,
            temperature=config.temperature,
            top_p=config.top_p,
            context_window=models.context_length(config.model_name),
            seed=derive_seed(config.seed, int(aime.year)),
        )
        evaluations.append(_YearEvaluation(first, evaluator, model.sampling_client))
        first += len(year_problems)
    return evaluations


async def _in_completion_order(
    pending: Mapping[int, tuple[_YearEvaluation, int]],
) -> AsyncGenerator[tuple[int, TrajectoryGroup], None]:
    """Run all pending problems concurrently; yield (number, replies) as each finishes."""
    tasks = {
        asyncio.ensure_future(
            evaluation.evaluator.collect_rollouts(evaluation.client, index)
        ): number
        for number, (evaluation, index) in pending.items()
    }
    waiting = set(tasks)
    try:
        while waiting:
            ended, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in sorted(ended, key=lambda task: tasks[task]):
                yield tasks[task], task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _problem_row(number: int, name: str, outcomes: Mapping[int, Outcome]) -> dict[str, float | str]:
    """Metrics of the problem just finished; `group` is its group_idx in the rollouts file."""
    outcome, finished = outcomes[number], outcomes.values()
    return {
        "group": number,
        "problem": name,
        "num_correct": outcome.correct,
        "num_replies": outcome.num_samples,
        "num_failed": outcome.num_samples - outcome.graded,
        "num_truncated": outcome.truncated,
        "num_tokens": outcome.tokens,
        "so_far/pass@1": sum(o.correct / o.num_samples for o in finished) / len(finished),
    }


def _count_valid_rows(directory: Path, total: int) -> int:
    """Count the leading rows of metrics.jsonl whose replies are on disk; total + 1 if the row of
    results is there as well.

    Replies are written before their row, so a row without them is damaged, and its problem is
    evaluated again.
    """
    rows = read_metrics(directory)
    file = transcripts.rollouts_file(directory, SPLIT, 0)
    on_disk = {line.value["group_idx"] for line in jsonl.iter_lines(file)} if file.exists() else {}
    valid = list(itertools.takewhile(lambda row: row.get("group") in on_disk, rows))
    return total + 1 if len(valid) == total < len(rows) else len(valid)


def _restore_outcomes(directory: Path, num_samples: int) -> dict[int, Outcome]:
    """Restore the outcomes of the problems that have a row, by number.

    Replies without a row are removed from the file: an earlier process stopped between writing the
    two, and the problem is evaluated again.
    """
    groups = (row.get("group") for row in read_metrics(directory))
    numbers = [group for group in groups if isinstance(group, int)]
    file = transcripts.rollouts_file(directory, SPLIT, 0)
    jsonl.keep_lines(file, lambda record: record["group_idx"] in numbers)
    steps: dict[int, list[StepSummary]] = {number: [] for number in numbers}
    for line in jsonl.iter_lines(file) if numbers else ():
        for step in line.value["steps"][:1]:
            step_summary = StepSummary(  # copied, so that the line's tokens can be freed
                metrics=step["metrics"], stop_reason=step["stop_reason"], ac_len=step["ac_len"]
            )
            steps[line.value["group_idx"]].append(step_summary)
    return {
        number: Outcome.from_steps(first_steps, num_samples)
        for number, first_steps in steps.items()
    }


FIRST_KEYS = (  # that `--help` explains first
    "model_name",
    "model_path",
    "year",
    "num_samples",
    "k",
    "max_tokens",
    "temperature",
    "path",
    "log_path",
    "base_url",
)

if __name__ == "__main__":
    cli(main, CLI, first_keys=FIRST_KEYS)
