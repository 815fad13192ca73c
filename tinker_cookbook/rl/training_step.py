"""One step of the reinforcement-learning loop: train on a batch of group rollouts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Coroutine, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple, NoReturn, Protocol, TypeVar

import numpy as np
import tinker

from tinker_cookbook import models
from tinker_cookbook.completers import TinkerTokenCompleter, derive_seed
from tinker_cookbook.exceptions import (
    AllTrajectoriesFailedError,
    DataValidationError,
    TrainingError,
)
from tinker_cookbook.rl import transcripts
from tinker_cookbook.rl.config import Config
from tinker_cookbook.rl.data_processing import is_constant
from tinker_cookbook.rl.defaults import Groups
from tinker_cookbook.rl.diagnostics import RunDiagnostics
from tinker_cookbook.rl.metric_util import RLTestSetEvaluator
from tinker_cookbook.rl.metrics import SampleTrainGap, compute_post_kl
from tinker_cookbook.rl.rollouts import do_group_rollout
from tinker_cookbook.rl.rollouts.progress import RolloutProgress
from tinker_cookbook.rl.rollouts.rollout_queue import GroupRollout, RolloutQueue, RolloutTask
from tinker_cookbook.rl.signals import GroupReward, ReferenceKL, Signal, sequence_logprobs
from tinker_cookbook.rl.step_stats import StepStats, add_signals, num_trained_tokens
from tinker_cookbook.rl.temperature import loss_settings, trainer_temperature
from tinker_cookbook.rl.trajectories import TrainingGroup, remove_mask
from tinker_cookbook.rl.types import TrajectoryGroup
from tinker_cookbook.sequences import from_datum
from tinker_cookbook.service.api import SamplingClient, TrainingClient
from tinker_cookbook.tokenizer_utils import get_tokenizer
from tinker_cookbook.training.config import adam_params
from tinker_cookbook.training.evaluations import Evaluations
from tinker_cookbook.training.journal import Journal
from tinker_cookbook.training.resolve import Resolved
from tinker_cookbook.utils.lr_scheduling import compute_schedule_lr_multiplier
from tinker_cookbook.utils.misc_utils import counted, split_list
from tinker_cookbook.utils.ml_log import Metrics, MetricValue, read_metrics

if TYPE_CHECKING:
    from tinker.lib.public_interfaces.api_future import APIFuture

    from tinker_cookbook.checkpoint_utils import PendingSave
    from tinker_cookbook.sequences import Values

T = TypeVar("T")

REMIND_SECONDS = 60.0  # between log lines about a wait
NUM_PROBED = 4  # sequences rescored to compare sampler and trainer, see _start_probe


@dataclass
class TrainedStep:
    """Result of a step. sampling_client: the new weights. save: the checkpoint due after this step,
    if any (see Journal)."""

    sampling_client: SamplingClient
    save: PendingSave | None
    stats: StepStats


class _Chunk(NamedTuple):
    """Groups that share a forward_backward. `last`: the last chunk of its optimizer step."""

    substep: int
    rollouts: list[GroupRollout[TrainingGroup]]
    last: bool


@dataclass
class _Submitted:
    """A forward_backward in flight. `datums` still have their `mask`, unlike what was sent."""

    groups: list[TrainingGroup]
    datums: list[tinker.Datum]
    same_weights: list[bool]  # per datum: whether it was sampled with the weights it is trained on
    result: APIFuture[tinker.ForwardBackwardOutput]


class PolicyTrainer:
    """Trains the policy on one batch per step; `async with` waits for the last transcript."""

    def __init__(
        self,
        resolved: Resolved[Config, Groups],
        client: TrainingClient,
        signals: Sequence[Signal],
        journal: Journal,
        total_steps: int,
        progress: RolloutProgress,
    ) -> None:
        config = resolved.config
        self._resolved, self._config = resolved, config
        self._client, self._journal = client, journal
        self._signals, self._total_steps, self._progress = signals, total_steps, progress
        self._context_window = models.context_length(config.model_name)
        self._transcript_task: asyncio.Task[None] | None = None
        self._steps_without_advantage = 0
        # With other signals, the reward need not be the objective, and relative rewards have the
        # same mean in every step: nothing is diagnosed.
        has_objective = all(isinstance(signal, GroupReward | ReferenceKL) for signal in signals)
        has_objective = has_objective and not config.dataset_builder.rewards_are_relative()
        self._diagnostics = (
            RunDiagnostics(read_metrics(journal.log_path)) if has_objective else None
        )
        # If False, sampled and trainer logprobs are of different distributions even with identical
        # weights, so their difference says nothing about numerics.
        self._same_temperature = config.temperature == trainer_temperature(config)

    async def __aenter__(self) -> PolicyTrainer:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.finish_transcript()

    async def run_group(self, task: RolloutTask) -> TrainingGroup:
        """Collect a group's rollouts and let the signals prepare, e.g. fetch reference logprobs."""
        config = self._config
        policy = TinkerTokenCompleter(
            task.sampling_client,
            max_tokens=self._resolved.sizes.max_tokens,
            temperature=config.temperature,
            context_window=self._context_window,
        )
        group = TrainingGroup.from_group(
            await do_group_rollout(
                task.builder,
                policy,
                config.rollout_strategy,
                config.limits,
                # from the group's place in the data alone, so that the same weights sample the same
                # replies in a resumed run
                seed=derive_seed(config.seed, task.batch, task.index),
                progress=self._progress,
            ),
            task.builder,
        )
        for signal in self._signals:
            with self._progress.waiting(f"in {type(signal).__name__}.prepare"):
                await signal.prepare(group)
        return group

    def log_waiting(self, missing: int, seconds: float) -> None:
        self._journal.log_line(
            f"waiting for {missing} groups, none finished for {seconds:.0f} s:"
            f" {self._progress.summary() or 'no rollout is running'}"
        )

    async def step(
        self, queue: RolloutQueue[TrainingGroup], step: int, sampling_client: SamplingClient
    ) -> TrainedStep:
        """Train on batch `step`. sampling_client: the weights before this step.

        Everything is submitted before any training result is awaited, so that the engine never
        idles between requests; the results are collected afterwards.
        """
        stats = StepStats()
        submitted: list[_Submitted] = []
        optim_futures: list[APIFuture[tinker.types.OptimStepResponse]] = []
        num_submitted_before = 0
        async for chunk in self._chunks(queue, step):
            stats.rollouts += chunk.rollouts
            selected = self._select_groups(chunk, nothing_trained_yet=not submitted)
            if selected:
                groups = [rollout.group for rollout in selected]
                metrics = add_signals(self._signals, groups)
                stats.signals.append((num_trained_tokens(groups), metrics))
                submitted.append(self._forward_backward(selected, step, chunk.substep))
            # Skipped if none of the substep's groups was trained: there is no gradient to apply.
            if chunk.last and len(submitted) > num_submitted_before:
                optim_futures.append(self._client.optim_step(self._adam_params(step)))
                # From here on a stop waits for the step: cancelled, it would leave weights that
                # have taken some of the step's optimizer steps and not the others.
                self._journal.commit(step)
                num_submitted_before = len(submitted)
        if not submitted:
            await self._raise_nothing_trainable(stats, step)
        # Runs while the training results below are awaited: `sampling_client` keeps its weights,
        # those before this step, whatever the trainer does meanwhile.
        probe = self._start_probe(submitted[0], sampling_client)
        next_client = self._client.save_weights_and_get_sampling_client()
        save = self._journal.submit_save(self._client, step + 1)
        with self._journal.timed("train"):
            for part in submitted:
                await self._collect_output(part, stats)
            await probe.compare(stats)
            for future in optim_futures:
                response = await self._with_reminders(future, "optim_step")
                self._progress.engine_answered()
                stats.optimizer.append(response.metrics or {})
            return TrainedStep(await self._with_reminders(next_client, "new weights"), save, stats)

    def _adam_params(self, step: int) -> tinker.AdamParams:
        return adam_params(self._config, self.learning_rate(step))

    def learning_rate(self, step: int) -> float:
        return self._resolved.learning_rate * compute_schedule_lr_multiplier(
            self._config.lr_schedule, step, self._total_steps
        )

    async def _chunks(self, queue: RolloutQueue[TrainingGroup], step: int) -> AsyncIterator[_Chunk]:
        """Yield the chunks of a batch, each as soon as all its groups have arrived.

        The groups of an optimizer step are a fixed part of the batch. Within it, minibatches are
        filled in order of arrival.
        """
        size = queue.size(step)
        substeps = split_list(range(size), min(self._config.num_substeps, size)) if size else []
        substep_of = {index: i for i, indices in enumerate(substeps) for index in indices}
        sizes = [[len(part) for part in self._minibatches(indices)] for indices in substeps]
        ready: list[list[GroupRollout[TrainingGroup]]] = [[] for _ in substeps]
        substep = 0
        arrivals = queue.arrivals(step)
        while substep < len(substeps):
            if len(ready[substep]) < sizes[substep][0]:
                # A stop may cancel this wait (unless `commit` came before): no weights have changed
                # yet, and a resumed run collects the step's rollouts again.
                with self._journal.interruptible(), self._journal.timed("wait_for_groups"):
                    rollout = await anext(arrivals)
                ready[substep_of[rollout.task.index]].append(rollout)
                continue
            number = sizes[substep].pop(0)
            part, ready[substep] = ready[substep][:number], ready[substep][number:]
            # Groups arrive in an order that depends on timing. Trained in the data's order, they
            # give the same floating-point sums in every run and after every resume. (With
            # num_minibatches > 1, which groups share a chunk still depends on timing.)
            part.sort(key=lambda rollout: rollout.task.index)
            last = not sizes[substep]
            yield _Chunk(substep, part, last)
            substep += last
        await anext(arrivals, None)  # exhausts the generator, which then frees the batch

    def _minibatches(self, indices: Sequence[int]) -> list[list[int]]:
        # Some signals centre over the whole optimizer step (e.g. the mean KL). Centred over parts
        # of it instead, the gradient would depend on num_minibatches and on arrival order.
        if any(signal.needs_batch for signal in self._signals):
            return [list(indices)]
        return split_list(indices, min(self._config.num_minibatches, len(indices)))

    def _select_groups(
        self, chunk: _Chunk, nothing_trained_yet: bool
    ) -> list[GroupRollout[TrainingGroup]]:
        """Select the groups of a chunk to train on: those with trained tokens, and without constant
        ones if the config says so."""
        groups = [rollout for rollout in chunk.rollouts if rollout.group.trained_sequences()]
        if not self._config.remove_constant_reward_groups:
            return groups
        mixed = [rollout for rollout in groups if not is_constant(rollout.group.group)]
        # If every group of the batch is constant, the last chunk keeps one: a step that submits
        # nothing counts as failed and ends the run.
        is_last_chunk = chunk.last and chunk.substep == self._config.num_substeps - 1
        return mixed or groups[: int(is_last_chunk and nothing_trained_yet)]

    def _forward_backward(
        self, groups: Sequence[GroupRollout[TrainingGroup]], step: int, substep: int
    ) -> _Submitted:
        config = self._config
        datums, same_weights = [], []
        for rollout in groups:
            group_datums = rollout.group.datums(config.loss_fn)
            datums += group_datums
            # after the first substep the weights have moved, even in synchronous training
            on_policy = substep == 0 and rollout.task.version == step
            same_weights += [on_policy] * len(group_datums)
        sent = [remove_mask(datum, config.loss_fn) for datum in datums]
        result = self._client.forward_backward(sent, config.loss_fn, loss_settings(config))
        return _Submitted([rollout.group for rollout in groups], datums, same_weights, result)

    async def _collect_output(self, part: _Submitted, stats: StepStats) -> None:
        output = await self._with_reminders(part.result, "forward_backward")
        self._progress.engine_answered()
        logprobs = [outputs["logprobs"].to_numpy() for outputs in output.loss_fn_outputs]
        stats.trained_groups += part.groups
        stats.trained_logprobs_D += logprobs
        stats.gap.add(part.datums, logprobs)
        if self._same_temperature:
            stats.same_weights_gap.add(
                [datum for datum, same in zip(part.datums, part.same_weights) if same],
                [values for values, same in zip(logprobs, part.same_weights) if same],
            )
        stats.outputs.append((num_trained_tokens(part.groups), output.metrics or {}))

    def _start_probe(self, first: _Submitted, sampling_client: SamplingClient) -> _SameWeightsProbe:
        """Rescore a few sequences, if no sampled logprobs can be compared with the trainer's.

        max_logprob_gap bounds a numerical mismatch, which shows only between logprobs of the same
        weights at the same temperature. With max_lag > 0 the rollouts come from older weights, and
        over the SDK the trainer's temperature may differ. The first chunk is trained before any
        optimizer step, on the weights of `sampling_client`, so its sequences scored with that
        client are comparable.
        """
        needed = self._config.max_logprob_gap is not None and not (
            any(first.same_weights) and self._same_temperature
        )
        datums = first.datums[:NUM_PROBED] if needed else []
        tokens = [from_datum(datum).tokens.tolist() for datum in datums]
        logprobs = sequence_logprobs(
            sampling_client, tokens, temperature=trainer_temperature(self._config)
        )
        return _SameWeightsProbe(datums, logprobs, self._with_reminders)

    async def _raise_nothing_trainable(self, stats: StepStats, step: int) -> NoReturn:
        if not stats.rollouts:
            raise DataValidationError(f"step {step}: the data set's batch {step} has no groups")
        details = ""
        if self._config.transcripts_every:
            await self._write_transcript("train", step, stats.groups_P, stats.tags_P, {})
            await self.finish_transcript()
            details = f"; see iteration_{step:06d}/train.html in {self._journal.log_path}"
        first = next(iter(stats.errors), None)
        reason = f"{first.kind}: {first.message}" if first else "they have no trained tokens"
        raise AllTrajectoriesFailedError(
            f"step {step}: none of the {len(stats.rollouts)} groups can be trained on ({reason});"
            f" fix this and rerun; the run resumes{details}"
        )

    def _log_if_no_advantage(self, stats: StepStats, step: int) -> None:
        """Log at the first, second, fourth, ... step in which every advantage is zero."""
        if any(
            values.any()
            for group in stats.trained_groups
            for member in group.advantages_G
            for values in member
        ):
            return
        self._steps_without_advantage += 1
        if self._steps_without_advantage & (self._steps_without_advantage - 1):  # no power of two
            return
        single_members = all(len(group.trajectories_G) < 2 for group in stats.groups_P)
        why = (
            "every group has one member and nothing to compare it with: set group_size=2 or more"
            if single_members
            else "the rewards within each group are all equal"
        )
        self._journal.log_line(f"step {step}: every advantage is zero, no gradient: {why}")

    async def log_step(self, done: TrainedStep, step: int, row: dict[str, MetricValue]) -> None:
        """Add a step's metrics to its row, log failures, and start writing the transcript.

        Writing overlaps the next step; it ends before the next transcript or the end of the run.
        """
        stats, config = done.stats, self._config
        row["optim/lr"] = self.learning_rate(step)
        row.update(stats.metrics())
        if config.compute_post_kl:
            datums = [
                datum for group in stats.trained_groups for datum in group.datums(config.loss_fn)
            ]
            with self._journal.timed("compute_post_kl"):
                row.update(
                    await self._with_reminders(
                        compute_post_kl(datums, done.sampling_client, config.temperature),
                        "compute_post_kl",
                    )
                )
        self._log_if_no_advantage(stats, step)
        for line in self._diagnostics.lines(row) if self._diagnostics else ():
            self._journal.log_line(f"step {step}: {line}")
        if errors := stats.errors:
            num_lost = sum(not group.trajectories_G for group in stats.groups_P)
            self._journal.log_line(
                f"step {step}: {counted(len(errors), 'failure')}, {num_lost} of"
                f" {len(stats.rollouts)} groups lost; the first: {errors[0].kind}:"
                f" {errors[0].message}"
            )
        if config.eval_every and step % config.eval_every == 0:
            self._log_samples("train", stats.groups_P, step)
        if config.transcripts_every and step % config.transcripts_every == 0:
            await self._write_transcript(
                "train",
                step,
                stats.groups_P,
                stats.tags_P,
                row,
                training=stats.trained_groups,
                sampling_client_steps=[
                    rollout.task.version for rollout in stats.rollouts_in_order()
                ],
                trained_logprobs_D=stats.trained_logprobs_D,
            )

    def check_logprob_gap(self, gap: SampleTrainGap, step: int) -> None:
        """Raise TrainingError if the logprobs of sampler and trainer differ by more than
        max_logprob_gap with the same weights."""
        bound = self._config.max_logprob_gap
        if bound is None or not gap.num_tokens or gap.mean <= bound:  # False for NaN: it raises
            return
        raise TrainingError(
            f"step {step}: sampler and trainer logprobs of the same tokens and weights differ by"
            f" {gap.mean:.3g} on average (maximum {gap.max:.3g}), above max_logprob_gap={bound:g}:"
            " the sampled policy is not the trained one; use engine.dtype=float32 or a service"
            " whose sampler and trainer agree, or raise max_logprob_gap"
        )

    async def evaluate(
        self, evaluations: Evaluations, sampling_client: SamplingClient, step: int | None
    ) -> dict[str, float]:
        """Run the evaluators due before `step` (None: after the last) and write their transcripts.

        Raises AllTrajectoriesFailedError if every episode of a test set failed.
        """
        metrics = await self._with_reminders(
            evaluations.run(self._client, step, sampling_client), "evaluations"
        )
        for evaluator in evaluations.due(step):
            if not isinstance(evaluator, RLTestSetEvaluator):
                continue
            self._log_samples(evaluator.name, evaluator.groups_P, step)
            if self._config.transcripts_every:
                number = self._total_steps if step is None else step
                await self._write_transcript(
                    f"eval_{evaluator.name}",
                    number,
                    evaluator.groups_P,
                    evaluator.taglist_P,
                    metrics,
                )
            evaluator.check_not_empty()  # after the transcript, which shows what failed
        return metrics

    def _log_samples(
        self, name: str, groups_P: Sequence[TrajectoryGroup], step: int | None
    ) -> None:
        tokenizer = get_tokenizer(self._config.model_name)
        self._journal.log_samples(name, transcripts.sample_rows(groups_P, tokenizer), step)

    async def _write_transcript(
        self,
        split: str,
        step: int,
        groups_P: Sequence[TrajectoryGroup],
        tags_P: Sequence[Sequence[str]],
        metrics: Metrics,
        training: Sequence[TrainingGroup] | None = None,
        sampling_client_steps: Sequence[int] | None = None,
        trained_logprobs_D: Sequence[Values] | None = None,
    ) -> None:
        """Start writing a transcript in a thread (see rl/transcripts); does not wait for it."""
        await self.finish_transcript()  # at most one in memory beside the current step
        self._transcript_task = asyncio.create_task(
            asyncio.to_thread(
                transcripts.write_step,
                self._journal.log_path,
                split,
                step,
                groups_P,
                tags_P,
                training,
                get_tokenizer(self._config.model_name),
                dict(metrics),
                sampling_client_steps=sampling_client_steps,
                trained_logprobs_D=trained_logprobs_D,
            )
        )

    async def finish_transcript(self) -> None:
        if self._transcript_task is not None:
            with self._journal.timed("transcripts"):
                await self._transcript_task

    async def _with_reminders(self, awaitable: Awaitable[T], what: str) -> T:
        """Await a result, with a log line every REMIND_SECONDS until it is there."""
        task = asyncio.ensure_future(_as_coroutine(awaitable))
        seconds = 0.0
        try:
            while not (await asyncio.wait([task], timeout=REMIND_SECONDS))[0]:
                seconds += REMIND_SECONDS
                running = self._progress.summary()
                more = f"; rollouts: {running}" if running else ""
                self._journal.log_line(f"waiting for {what} for {seconds:.0f} s{more}")
        finally:
            task.cancel()  # if this wait was cancelled; has no effect on a finished task
        return task.result()


class _WithReminders(Protocol):
    async def __call__(self, awaitable: Awaitable[T], what: str, /) -> T: ...


class _SameWeightsProbe:
    """The sampler's logprobs of a few sequences, in flight: see PolicyTrainer._start_probe."""

    def __init__(
        self,
        datums: Sequence[tinker.Datum],
        logprobs: Coroutine[None, None, list[np.ndarray]],
        with_reminders: _WithReminders,
    ) -> None:
        self._datums, self._with_reminders = datums, with_reminders
        self._logprobs = asyncio.ensure_future(logprobs)

    async def compare(self, stats: StepStats) -> None:
        """Add the differences between the sampler's and the trainer's logprobs to
        `stats.same_weights_gap`."""
        scored = await self._with_reminders(self._logprobs, "logprobs of the sampler")
        for datum, logprobs, trained in zip(self._datums, scored, stats.trained_logprobs_D):
            inputs = {
                **datum.loss_fn_inputs,
                "logprobs": tinker.TensorData.from_numpy(logprobs[1:]),
            }
            rescored = tinker.Datum(model_input=datum.model_input, loss_fn_inputs=inputs)
            stats.same_weights_gap.add([rescored], [trained])


async def _as_coroutine(awaitable: Awaitable[T]) -> T:
    return await awaitable
