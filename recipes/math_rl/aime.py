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
    StepFacts,
    checked_ks,
    pass_at_k_metrics,
    summary,
)
from recipes.math_rl.problems import Problem
from tinker_cookbook import models
from tinker_cookbook.cli_utils import cli
from tinker_cookbook.completers import completer_from, derive_seed
from tinker_cookbook.exceptions import AllTrajectoriesFailedError
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
HEADLINES = {"num_correct": "right", "so_far/pass@1": "pass@1 so far"}


@chz.chz
class CLI(CheckedConfig):
    model_name: str = chz.field(default="nano", doc="nano, a hub name, or a directory")
    model_path: str | None = chz.field(
        default=None, doc="tinker://..., a run's or PEFT adapter's directory (None: base model)"
    )
    renderer_name: str | None = chz.field(
        default=None, doc="how messages become tokens (None: what suits checkpoint or model)"
    )
    path: str = chz.field(
        default="hub",
        doc=f"local directory or file, or a name on the hub (hub: {', '.join(DEFAULT.values())};"
        f" known besides: {', '.join(name for name in HUB if name not in DEFAULT.values())})",
    )
    year: tuple[Year, ...] = chz.field(
        default=(), doc=f"which of {', '.join(YEARS)}, e.g. year=2025,2026 (empty: all of path)"
    )
    num_samples: int = chz.field(default=8, doc="replies to each problem", metadata=COUNT)
    k: list[int] = chz.field(
        default_factory=list, doc="which pass@k, e.g. k=1,8 (empty: 1, 2, 4, ... num_samples)"
    )
    max_tokens: int | None = chz.field(
        default=None, doc="tokens of a reply at most (None: 256 for nano, else 8192)"
    )
    temperature: float = chz.field(default=1.0, doc="of sampling (0: the likeliest reply)")
    top_p: float = chz.field(default=1.0, doc="share of the probability that is sampled from")
    one_shot: bool = chz.field(default=False, doc="show one solved problem before each question")
    seed: int = chz.field(default=0, doc="seed of the replies")
    log_path: str | None = chz.field(
        default=None, doc="directory of the run (None: one in the runs directory)"
    )
    behavior_if_log_dir_exists: LogDirBehavior | None = chz.field(
        default=None, doc="for a directory that holds a run (None: resume it if it is this run)"
    )
    base_url: str | None = chz.field(default=None, doc="server that samples (None: in process)")
    engine: EngineConfig = chz.field(
        default_factory=EngineConfig, doc="settings of the engine in process"
    )
    display: DisplayMode = chz.field(
        default="auto", doc="what is shown of each problem (auto: live on a terminal, else plain)"
    )

    @chz.validate
    def _counts(self) -> None:
        checked_ks(self.k, self.num_samples)

    def identity(self) -> Mapping[str, Plain]:
        """Another file of the same name is another run."""
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
    problems = [each.problems() for each in sets]
    if config.model_path is not None:  # of a run that trains on, the checkpoint that it has now
        path = locate_checkpoint(
            config.model_path, "sampler_weights", "model_path", config.base_url
        )
        config = chz.replace(config, model_path=path)
    total = sum(len(each) for each in problems)
    with Journal(
        config,
        recipe="aime",
        total_steps=total,
        headlines=HEADLINES,
        unit="problem",
        rows_kept=lambda directory: _rows_kept(directory, total),
    ) as journal:
        outcomes = _kept_outcomes(journal.log_path, config.num_samples)
        parts = await _parts(config, sets, problems, journal)
        plays = {
            part.first + index: (part, index)
            for part in parts
            for index in range(len(part.evaluator.dataset.problems))
            if part.first + index not in outcomes
        }
        tokenizer = get_tokenizer(config.model_name)
        async with aclosing(_as_finished(plays)) as finished:
            for step in range(journal.start_step, total):
                with journal.step(step) as row:
                    with journal.interruptible(), journal.timed("replies"):
                        number, group = await anext(finished)
                    part, index = plays[number]
                    name = f"{part.evaluator.dataset.name}, problem {index + 1}"
                    if group.rollout_errors:
                        journal.log_line(f"{name}: {group.rollout_errors[0].message}")
                    tags = [part.evaluator.dataset.name, f"problem {index + 1}"]
                    records = transcripts.append_group(
                        journal.log_path, SPLIT, 0, number, group, tags, tokenizer
                    )
                    steps = [record["steps"][0] for record in records if record["steps"]]
                    outcomes[number] = Outcome.of_steps(steps, config.num_samples)
                    row.update(_row(number, name, outcomes))
        if not any(each.graded for each in outcomes.values()):
            raise AllTrajectoriesFailedError(
                f"none of the replies to {total} problems could be graded, see {journal.log_path};"
                " behavior_if_log_dir_exists=delete starts afresh"
            )
        with journal.step(total) as row:
            for part in parts:
                row.update(part.metrics(outcomes))
            page = transcripts.write_page(journal.log_path, SPLIT, 0, tokenizer, row)
        for part in parts:
            journal.log_line(part.summary(outcomes))
        journal.log_line(f"every reply and its grade: {page}")


class _Part(NamedTuple):
    """The problems of a year. `first`: number of its first problem among those of all years."""

    first: int
    evaluator: PassAtKEvaluator
    client: SamplingClient

    def of(self, outcomes: Mapping[int, Outcome]) -> list[Outcome]:
        count = len(self.evaluator.dataset.problems)
        return [outcomes[number] for number in range(self.first, self.first + count)]

    def metrics(self, outcomes: Mapping[int, Outcome]) -> dict[str, float]:
        name = self.evaluator.dataset.name
        return pass_at_k_metrics(name, self.of(outcomes), self.evaluator.ks)

    def summary(self, outcomes: Mapping[int, Outcome]) -> str:
        name, metrics = self.evaluator.dataset.name, self.metrics(outcomes)
        return summary(name, self.of(outcomes), self.evaluator.ks, metrics)


async def _parts(
    config: CLI, sets: Sequence[Aime], problems: Sequence[list[Problem]], journal: Journal
) -> list[_Part]:
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
    parts, first = [], 0
    for aime, own in zip(sets, problems, strict=True):
        evaluator = PassAtKEvaluator(
            chz.replace(aime, renderer_name=renderer_name).test_set(config.num_samples, own),
            max_tokens,
            ks=config.k,
            temperature=config.temperature,
            top_p=config.top_p,
            context_window=models.context_length(config.model_name),
            seed=derive_seed(config.seed, int(aime.year)),
        )
        parts.append(_Part(first, evaluator, model.sampling_client))
        first += len(own)
    return parts


async def _as_finished(
    plays: Mapping[int, tuple[_Part, int]],
) -> AsyncGenerator[tuple[int, TrajectoryGroup], None]:
    """All at once; each with its number, in the order in which they end."""
    tasks = {
        asyncio.ensure_future(part.evaluator.play(part.client, index)): number
        for number, (part, index) in plays.items()
    }
    waiting = set(tasks)
    try:
        while waiting:
            ended, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in sorted(ended, key=lambda each: tasks[each]):
                yield tasks[task], task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _row(number: int, name: str, outcomes: Mapping[int, Outcome]) -> dict[str, float | str]:
    """Of the problem that has just been finished; `group` is its group_idx in the replies' file."""
    mine, known = outcomes[number], outcomes.values()
    return {
        "group": number,
        "problem": name,
        "num_correct": mine.correct,
        "num_replies": mine.num_samples,
        "num_failed": mine.num_samples - mine.graded,
        "num_truncated": mine.truncated,
        "num_tokens": mine.tokens,
        "so_far/pass@1": sum(each.correct / each.num_samples for each in known) / len(known),
    }


def _rows_kept(directory: Path, total: int) -> int:
    """Rows whose problems are finished: their replies are on disk before the row is. total + 1 with
    the row of the results."""
    rows = read_metrics(directory)
    file = transcripts.rollouts_file(directory, SPLIT, 0)
    there = {line.value["group_idx"] for line in jsonl.iter_lines(file)} if file.exists() else {}
    kept = list(itertools.takewhile(lambda row: row.get("group") in there, rows))
    return total + 1 if len(kept) == total < len(rows) else len(kept)


def _kept_outcomes(directory: Path, num_samples: int) -> dict[int, Outcome]:
    """By number, of the problems that have a row; replies to others, from the moment in which an
    earlier process was stopped, are taken out of the file."""
    groups = (row.get("group") for row in read_metrics(directory))
    numbers = [each for each in groups if isinstance(each, int)]
    file = transcripts.rollouts_file(directory, SPLIT, 0)
    jsonl.keep_lines(file, lambda record: record["group_idx"] in numbers)
    steps: dict[int, list[StepFacts]] = {number: [] for number in numbers}
    for line in jsonl.iter_lines(file) if numbers else ():
        for step in line.value["steps"][:1]:
            facts = StepFacts(  # without a million tokens
                metrics=step["metrics"], stop_reason=step["stop_reason"], ac_len=step["ac_len"]
            )
            steps[line.value["group_idx"]].append(facts)
    return {number: Outcome.of_steps(each, num_samples) for number, each in steps.items()}


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
