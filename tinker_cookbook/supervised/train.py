"""The supervised training loop: one step submitted ahead, evaluated, checkpointed, resumable.

    with Journal(...) as journal:
        for step in range(journal.start_step, total_steps):
            if evaluators are due: await all earlier steps, evaluate the weights before this step
            submit the objective's forward_backward + optim_step (+ a checkpoint, if due)
            await the previous step -> one row of metrics.jsonl
        evaluate the final weights, save the final checkpoint

The service executes requests in the order of submission, so a checkpoint after N steps holds
exactly N optimizer steps although the loop submits ahead of what it awaits.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import chz
import tinker

from tinker_cookbook import checkpoint_utils
from tinker_cookbook.exceptions import DataValidationError
from tinker_cookbook.renderers import get_renderer
from tinker_cookbook.service import connect_run
from tinker_cookbook.supervised.datasets import epoch_seed
from tinker_cookbook.supervised.defaults import SL_DEFAULTS, Batches
from tinker_cookbook.supervised.nll_evaluator import all_datums
from tinker_cookbook.supervised.objective import CrossEntropy, Objective, logprobs_of
from tinker_cookbook.supervised.renderer_check import make_renderer_check
from tinker_cookbook.supervised.sample_replies import SampleRepliesEvaluator
from tinker_cookbook.supervised.types import (
    DataReport,
    SupervisedDataset,
    SupervisedDatasetBuilder,
)
from tinker_cookbook.tokenizer_utils import get_tokenizer
from tinker_cookbook.training.config import LoopConfig, adam_params
from tinker_cookbook.training.evaluations import Evaluations, run_evals
from tinker_cookbook.training.fields import COUNT, MAY_CHANGE, NON_NEGATIVE
from tinker_cookbook.training.journal import Journal
from tinker_cookbook.training.resolve import Resolved, resolve_defaults
from tinker_cookbook.utils.lr_scheduling import LRSchedule, compute_schedule_lr_multiplier
from tinker_cookbook.utils.misc_utils import counted

if TYPE_CHECKING:
    from pathlib import Path

    from tinker.lib.public_interfaces.api_future import APIFuture

    from tinker_cookbook.checkpoint_utils import PendingSave
    from tinker_cookbook.service.api import TrainingClient
    from tinker_cookbook.supervised.objective import MakeObjective

__all__ = ["Config", "main", "run_evals"]

FEW_STEPS = 20  # runs with fewer optimizer steps rarely change a model visibly
SAMPLE_REPLIES = 3  # default number of printed completions


@chz.chz
class Config(LoopConfig):
    """Config of the supervised loop. None: the model's default, see `defaults.py`."""

    dataset_builder: SupervisedDatasetBuilder = chz.field(doc="data to train on")
    lr_schedule: LRSchedule = chz.field(
        default="linear",
        doc="learning-rate schedule, without warm-up; linear and cosine decay to 0 over the run",
    )
    num_epochs: int = chz.field(default=1, doc="passes over the data", metadata=COUNT | MAY_CHANGE)
    eval_every: int = chz.field(
        default=10, doc="steps between evaluations (0: only before and after training)"
    )
    sample_replies: int | None = chz.field(
        default=None,
        doc="number of prompts from the data whose greedy completions are printed before and"
        " after training (None: 3, or 0 if there are evaluator_builders)",
        metadata=NON_NEGATIVE | MAY_CHANGE,
    )
    submit_ahead: int = chz.field(
        default=1,
        doc="steps submitted ahead of the step being awaited",
        metadata=NON_NEGATIVE | MAY_CHANGE,
    )


@dataclass(frozen=True)
class _Submitted:
    """A submitted step whose results have not been awaited yet."""

    step: int
    epoch: int
    batch: list[tinker.Datum]
    learning_rate: float
    evals: dict[str, float]
    losses: Sequence[APIFuture[tinker.ForwardBackwardOutput]]
    optim_step: APIFuture[tinker.types.OptimStepResponse]
    save: PendingSave | None


async def main(config: Config, recipe: str = "supervised") -> None:
    """Train. `recipe` is part of the default directory name if log_path is None."""
    await run(resolve_defaults(config, SL_DEFAULTS), recipe)


async def run(
    resolved: Resolved[Config, Batches],
    recipe: str,
    make_objective: MakeObjective | None = None,
) -> Path:
    """Train with a config that is already resolved, e.g. by `chat_config.resolve_chat_config`, and
    return the run's directory.

    make_objective: called once the run directory is locked (None: cross-entropy).
    """
    config = resolved.config
    train, test = config.dataset_builder()
    total_steps = len(train) * config.num_epochs
    if config.max_steps is not None:
        total_steps = min(total_steps, config.max_steps)
    if total_steps < 1:
        raise DataValidationError("the training data has no batches: check dataset_builder")
    service = connect_run(config.base_url, config.engine)
    with Journal(
        config,
        recipe=recipe,
        total_steps=total_steps,
        rest_client=service.create_rest_client(),
    ) as journal:
        if chosen := resolved.line():
            journal.log_line(chosen)
        journal.log_line(
            f"{counted(total_steps, 'step')} (batches per epoch: {len(train)}), learning_rate"
            f" {resolved.learning_rate:g} {config.lr_schedule}, LoRA rank {config.lora_rank}"
        )
        if config.max_steps is not None and config.max_steps > total_steps:
            enough = math.ceil(config.max_steps / len(train))
            journal.log_line(
                f"max_steps={config.max_steps} will not be reached: num_epochs={config.num_epochs}"
                f" gives {counted(total_steps, 'step')}; num_epochs={enough} would reach it"
            )
        if hint := few_steps_hint(config, train, total_steps):
            journal.log_line(hint)
        reports = [data.report for data in (train, test) if data is not None and data.report]
        _log_reports(reports, journal)
        # Lazily rendered data has counted nothing yet; its report is logged again at the end.
        open_reports = [report for report in reports if not report.complete]
        client = await checkpoint_utils.start_training_client(
            service, config, journal.resume, {"recipe": recipe}, log_line=journal.log_line
        )
        schedule = _StepSchedule(resolved, train, total_steps)
        tokenizer = get_tokenizer(resolved.model_name)
        objective = make_objective(service, journal) if make_objective else CrossEntropy(tokenizer)
        evaluations = _evaluations(resolved, test, journal, schedule, objective)
        in_flight: deque[_Submitted] = deque()

        async def finish_steps(keep: int = 0) -> None:
            """Await the oldest steps until only `keep` are in flight."""
            while len(in_flight) > keep:
                await _finish_step(in_flight.popleft(), journal, objective)

        for step in range(journal.start_step, total_steps):
            if evaluations.due(step) or journal.stopping:
                # Write every earlier row first: if the user stops the run during an evaluation, the
                # evaluation is dropped but no finished step is lost.
                await finish_steps()
            evals = await evaluations.run(client, step)
            epoch, batch = schedule.batch(step)
            learning_rate = schedule.learning_rate(step)
            with journal.interruptible():
                losses = await objective.submit(client, batch)
            if step == 0:
                await _check_first_loss(resolved, client, batch, losses, journal)
            in_flight.append(
                _Submitted(
                    step,
                    epoch,
                    batch,
                    learning_rate,
                    evals,
                    losses,
                    client.optim_step(adam_params(config, learning_rate)),
                    journal.submit_save(client, step + 1, epoch=epoch),
                )
            )
            # Keep `submit_ahead` steps in flight, so that the engine already has the next batch in
            # its queue when it finishes one.
            await finish_steps(keep=config.submit_ahead)
        await finish_steps()
        final = await evaluations.run(client, None)
        if final.keys() - {"time/evals"}:  # an evaluator returned a metric
            with journal.step(total_steps) as row:
                row.update(final)
        save = journal.submit_save(client, total_steps, final=True, epoch=config.num_epochs)
        await journal.finish(save)
        _log_reports(open_reports, journal)
        return journal.log_path


async def _check_first_loss(
    resolved: Resolved[Config, Batches],
    client: TrainingClient,
    batch: Sequence[tinker.Datum],
    losses: Sequence[APIFuture[tinker.ForwardBackwardOutput]],
    journal: Journal,
) -> None:
    """Log a line if the loss of the first batch suggests a wrong renderer.

    Awaits the loss only if the renderer is not known to fit the model; otherwise the loop keeps
    submitting ahead.
    """
    config = resolved.config
    check = make_renderer_check(
        config.dataset_builder, resolved.model_name, resolved.renderer_name, config.seed
    )
    if check is None:
        return
    logprobs = logprobs_of([await loss for loss in losses])
    if line := await check.line(client, batch, logprobs):
        journal.log_line(line)


async def _finish_step(done: _Submitted, journal: Journal, objective: Objective) -> None:
    """Await a step and write its metrics row, then record its checkpoint, if it has one.

    The order matters for resume: a recorded checkpoint of N steps implies N rows of metrics.
    """
    with journal.step(done.step) as row:
        outputs = [await loss for loss in done.losses]
        row.update(
            epoch=done.epoch,
            learning_rate=done.learning_rate,
            num_sequences=len(done.batch),
            num_tokens=sum(datum.model_input.length for datum in done.batch),
        )
        row.update(objective.metrics(done.batch, outputs))
        row.update((await done.optim_step).metrics or {})
        row.update(done.evals)
    await journal.finish(done.save)


class _StepSchedule:
    """Batch and learning rate of each step, as functions of the step alone (for resume)."""

    def __init__(
        self, resolved: Resolved[Config, Batches], train: SupervisedDataset, total_steps: int
    ) -> None:
        self._config, self._peak = resolved.config, resolved.learning_rate
        self._train, self._total_steps = train, total_steps
        self._epoch: int | None = None
        self._last: tuple[int, list[tinker.Datum]] | None = None  # (step, batch)

    def batch(self, step: int) -> tuple[int, list[tinker.Datum]]:
        epoch, index = divmod(step, len(self._train))
        if epoch != self._epoch:
            self._train.set_epoch(epoch_seed(self._config.seed, epoch))
            self._epoch = epoch
        # The sampled replies and the first step both ask for batch 0. Reading it again would
        # restart a stream.
        if self._last is None or self._last[0] != step:
            self._last = step, self._train.get_batch(index)
        return epoch, self._last[1]

    def learning_rate(self, step: int) -> float:
        return self._peak * compute_schedule_lr_multiplier(
            self._config.lr_schedule, step, self._total_steps
        )


def _evaluations(
    resolved: Resolved[Config, Batches],
    test: SupervisedDataset | None,
    journal: Journal,
    schedule: _StepSchedule,
    objective: Objective,
) -> Evaluations:
    """Build the run's evaluators: the configured ones, the objective's, and sampled replies."""
    config, model = resolved.config, resolved.model_name
    tokenizer = get_tokenizer(model)
    frequent = [build() for build in config.evaluator_builders]
    infrequent = [build() for build in config.infrequent_evaluator_builders]
    num_samples = config.sample_replies
    if num_samples is None:
        num_samples = 0 if frequent else SAMPLE_REPLIES
    held_out = None if test is None else all_datums(test)
    if held_out is not None:
        frequent = [*objective.evaluators(held_out), *frequent]
    replies = []
    if num_samples:
        renderer = get_renderer(resolved.renderer_name, tokenizer, model_name=model)

        def examples() -> Sequence[tinker.Datum]:
            data = schedule.batch(0)[1] if held_out is None else held_out
            return objective.target_replies(data)

        replies.append(SampleRepliesEvaluator(examples, renderer, tokenizer, num_samples))
    due = [(config.eval_every, frequent), (config.infrequent_eval_every, infrequent), (0, replies)]
    return Evaluations(due, journal)


def few_steps_hint(config: Config, train: SupervisedDataset, total_steps: int) -> str | None:
    """Suggest settings that give at least FEW_STEPS steps.

    None if the run already has as many, or if the user limited it with max_steps.
    """
    if total_steps >= FEW_STEPS or config.max_steps is not None:
        return None
    epochs = -(-FEW_STEPS // len(train))
    suggestions = [f"num_epochs={epochs} makes {epochs * len(train)}"]
    rows, batch_size = getattr(train, "num_rows", 0), getattr(config, "batch_size", None)
    smaller_batch = rows // -(-FEW_STEPS // config.num_epochs)
    if batch_size is not None and 1 <= smaller_batch < batch_size:
        suggestions.append(
            f"batch_size={smaller_batch} makes {rows // smaller_batch * config.num_epochs}"
        )
    return f"{counted(total_steps, 'step')} may be too few to learn much: {', '.join(suggestions)}"


def _log_reports(reports: Sequence[DataReport], journal: Journal) -> None:
    """Log what was rendered, truncated and skipped of each data set."""
    for report in reports:
        for line in report.lines():
            journal.log_line(line)
