"""One step of the reinforcement-learning loop: groups that were played, in; new weights, out."""

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
from tinker_cookbook.rl.metric_util import RLTestSetEvaluator
from tinker_cookbook.rl.metrics import SampleTrainGap, compute_post_kl
from tinker_cookbook.rl.rollouts import do_group_rollout
from tinker_cookbook.rl.rollouts.progress import RolloutProgress
from tinker_cookbook.rl.rollouts.rollout_queue import GroupRollout, RolloutQueue, RolloutTask
from tinker_cookbook.rl.signals import Signal, sequence_logprobs
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
from tinker_cookbook.utils.ml_log import Metrics, MetricValue

if TYPE_CHECKING:
    from tinker.lib.public_interfaces.api_future import APIFuture

    from tinker_cookbook.checkpoint_utils import PendingSave
    from tinker_cookbook.sequences import Values

T = TypeVar("T")

REMIND_SECONDS = 60.0  # of silence, after which a person is told what is waited for
PROBED = 4  # sequences that tell whether sampler and trainer agree, where nothing sampled can


@dataclass
class TrainedStep:
    """What comes of a step: weights to play with, and a save that is due (see Journal)."""

    sampling_client: SamplingClient
    save: PendingSave | None
    record: StepStats


class _Chunk(NamedTuple):
    """Groups of one optimizer step that are trained together; `last`: of this optimizer step."""

    substep: int
    played: list[GroupRollout[TrainingGroup]]
    last: bool


@dataclass
class _Submitted:
    """A forward_backward on its way, and the datums of it, mask included."""

    groups: list[TrainingGroup]
    datums: list[tinker.Datum]
    own: list[bool]  # of each datum: whether the weights that played it are those it trains
    result: APIFuture[tinker.ForwardBackwardOutput]


class PolicyTrainer:
    """What a step does with the groups of its batch; `async with` waits for its last transcript."""

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
        self._writing: asyncio.Task[None] | None = None
        self._without_advantage = 0  # steps
        # whether the logprobs of sampler and trainer are of the same distribution of the weights
        self._comparable = config.temperature == trainer_temperature(config)

    async def __aenter__(self) -> PolicyTrainer:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.finish_writing()

    async def play(self, task: RolloutTask) -> TrainingGroup:
        """Plays a group and fetches what the signals need of it."""
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
                seed=derive_seed(config.seed, task.batch, task.index),
                progress=self._progress,
            )
        )
        for signal in self._signals:
            with self._progress.waiting(f"in {type(signal).__name__}.prepare"):
                await signal.prepare(group)
        return group

    def say_waiting(self, missing: int, seconds: float) -> None:
        self._journal.log_line(
            f"waiting for {missing} groups, nothing new for {seconds:.0f} s:"
            f" {self._progress.summary() or 'none is being played'}"
        )

    async def step(
        self, source: RolloutQueue[TrainingGroup], step: int, sampling_client: SamplingClient
    ) -> TrainedStep:
        """Trains on batch `step`. sampling_client: the weights before it."""
        record = StepStats()
        submitted: list[_Submitted] = []
        optimizer: list[APIFuture[tinker.types.OptimStepResponse]] = []
        trained_before = 0
        async for chunk in self._chunks(source, step):
            record.played += chunk.played
            kept = self._trained(chunk, nothing_yet=not submitted)
            if kept:
                groups = [each.group for each in kept]
                metrics = add_signals(self._signals, groups)
                record.signals.append((num_trained_tokens(groups), metrics))
                submitted.append(self._forward_backward(kept, step, chunk.substep))
            if chunk.last and len(submitted) > trained_before:
                optimizer.append(self._client.optim_step(self._adam(step)))
                self._journal.commit(step)
                trained_before = len(submitted)
        if not submitted:
            await self._check_not_empty(record, step)
        probe = self._probe(submitted[0], sampling_client)
        next_client = self._client.save_weights_and_get_sampling_client()
        save = self._journal.submit_save(self._client, step + 1)
        with self._journal.timed("train"):
            for part in submitted:
                await self._record_output(part, record)
            await probe.compare(record)
            for each in optimizer:
                response = await self._reminding(each, "optim_step")
                self._progress.engine_answered()
                record.optimizer.append(response.metrics or {})
            return TrainedStep(await self._reminding(next_client, "new weights"), save, record)

    def _adam(self, step: int) -> tinker.AdamParams:
        return adam_params(self._config, self.learning_rate(step))

    def learning_rate(self, step: int) -> float:
        return self._resolved.learning_rate * compute_schedule_lr_multiplier(
            self._config.lr_schedule, step, self._total_steps
        )

    async def _chunks(
        self, source: RolloutQueue[TrainingGroup], step: int
    ) -> AsyncIterator[_Chunk]:
        """The batch in the parts that are trained together, each once all its groups are there.

        Optimizer steps come in the order of the batch, minibatches within one in the order in which
        groups arrive.
        """
        size = source.size(step)
        substeps = split_list(range(size), min(self._config.num_substeps, size)) if size else []
        substep_of = {index: i for i, indices in enumerate(substeps) for index in indices}
        sizes = [[len(part) for part in self._minibatches(indices)] for indices in substeps]
        ready: list[list[GroupRollout[TrainingGroup]]] = [[] for _ in substeps]
        current = 0
        arrivals = source.arrivals(step)
        while current < len(substeps):
            if len(ready[current]) < sizes[current][0]:
                with self._journal.interruptible(), self._journal.timed("wait_for_groups"):
                    played = await anext(arrivals)
                ready[substep_of[played.task.index]].append(played)
                continue
            number = sizes[current].pop(0)
            part, ready[current] = ready[current][:number], ready[current][number:]
            part.sort(key=lambda each: each.task.index)
            last = not sizes[current]
            yield _Chunk(current, part, last)
            current += last
        await anext(arrivals, None)  # lets the source forget the batch

    def _minibatches(self, indices: Sequence[int]) -> list[list[int]]:
        if any(signal.needs_batch for signal in self._signals):
            return [list(indices)]
        return split_list(indices, min(self._config.num_minibatches, len(indices)))

    def _trained(self, chunk: _Chunk, nothing_yet: bool) -> list[GroupRollout[TrainingGroup]]:
        """The groups of a chunk that are trained on; at least one of a batch, if there is any."""
        groups = [each for each in chunk.played if each.group.trained()]
        if not self._config.remove_constant_reward_groups:
            return groups
        mixed = [each for each in groups if not is_constant(each.group.group)]
        at_the_end = chunk.last and chunk.substep == self._config.num_substeps - 1
        return mixed or groups[: int(at_the_end and nothing_yet)]

    def _forward_backward(
        self, groups: Sequence[GroupRollout[TrainingGroup]], step: int, substep: int
    ) -> _Submitted:
        config = self._config
        datums, own = [], []
        for each in groups:
            made = each.group.datums(config.loss_fn)
            datums += made
            own += [substep == 0 and each.task.version == step] * len(made)
        sent = [remove_mask(datum, config.loss_fn) for datum in datums]
        result = self._client.forward_backward(sent, config.loss_fn, loss_settings(config))
        return _Submitted([each.group for each in groups], datums, own, result)

    async def _record_output(self, part: _Submitted, record: StepStats) -> None:
        output = await self._reminding(part.result, "forward_backward")
        self._progress.engine_answered()
        logprobs = [each["logprobs"].to_numpy() for each in output.loss_fn_outputs]
        record.trained += part.groups
        record.trained_logprobs_D += logprobs
        record.gap.add(part.datums, logprobs)
        if self._comparable:
            record.same_weights_gap.add(
                [datum for datum, own in zip(part.datums, part.own) if own],
                [each for each, own in zip(logprobs, part.own) if own],
            )
        record.outputs.append((num_trained_tokens(part.groups), output.metrics or {}))

    def _probe(self, first: _Submitted, sampling_client: SamplingClient) -> _Probe:
        """The first chunk is trained on the very weights of `sampling_client`. Where these, or the
        trainer's temperature, are not what its replies were sampled with, a few are scored once
        more."""
        needed = self._config.max_logprob_gap is not None and not (
            any(first.own) and self._comparable
        )
        datums = first.datums[:PROBED] if needed else []
        tokens = [from_datum(datum).tokens.tolist() for datum in datums]
        logprobs = sequence_logprobs(
            sampling_client, tokens, temperature=trainer_temperature(self._config)
        )
        return _Probe(datums, logprobs, self._reminding)

    async def _check_not_empty(self, record: StepStats, step: int) -> NoReturn:
        if not record.played:
            raise DataValidationError(f"step {step}: the data set's batch {step} has no groups")
        where = ""
        if self._config.transcripts_every:
            await self._write_transcript("train", step, record.groups_P, record.tags_P, {})
            await self.finish_writing()
            where = f"; iteration_{step:06d}/train.html in {self._journal.log_path} shows all"
        first = next(iter(record.errors), None)
        reason = f"{first.kind}: {first.message}" if first else "they have no action"
        raise AllTrajectoriesFailedError(
            f"step {step}: none of the {len(record.played)} groups can be trained on ({reason});"
            f" mend this and run the same command again, it resumes{where}"
        )

    def _say_if_nothing_was_learnt(self, record: StepStats, step: int) -> None:
        """At the first, second, fourth, ... step in which no token has an advantage."""
        if any(
            values.any()
            for group in record.trained
            for member in group.advantages_G
            for values in member
        ):
            return
        self._without_advantage += 1
        if self._without_advantage & (self._without_advantage - 1):
            return
        alone = all(len(group.trajectories_G) < 2 for group in record.groups_P)
        why = (
            "every group has one member and nothing to compare it with: set group_size=2 or more"
            if alone
            else "the rewards within each group are all equal"
        )
        self._journal.log_line(f"step {step}: nothing was learnt, no token has an advantage: {why}")

    async def record(self, done: TrainedStep, step: int, row: dict[str, MetricValue]) -> None:
        """Puts the metrics of a step into its row, says what failed, and begins to write the
        transcript, which is on disk before the next one or the end of the run."""
        record, config = done.record, self._config
        row["optim/lr"] = self.learning_rate(step)
        row.update(record.metrics())
        if config.compute_post_kl:
            datums = [datum for group in record.trained for datum in group.datums(config.loss_fn)]
            with self._journal.timed("compute_post_kl"):
                row.update(
                    await self._reminding(
                        compute_post_kl(datums, done.sampling_client, config.temperature),
                        "compute_post_kl",
                    )
                )
        self._say_if_nothing_was_learnt(record, step)
        if errors := record.errors:
            lost = sum(not group.trajectories_G for group in record.groups_P)
            self._journal.log_line(
                f"step {step}: {counted(len(errors), 'failure')}, {lost} of {len(record.played)}"
                f" groups lost; the first: {errors[0].kind}: {errors[0].message}"
            )
        if config.transcripts_every and step % config.transcripts_every == 0:
            await self._write_transcript(
                "train",
                step,
                record.groups_P,
                record.tags_P,
                row,
                training=record.trained,
                sampling_client_steps=[each.task.version for each in record.in_order()],
                trained_logprobs_D=record.trained_logprobs_D,
            )

    def check_gap(self, gap: SampleTrainGap, step: int) -> None:
        """Raises TrainingError where sampler and trainer, with the same weights, disagree."""
        bound = self._config.max_logprob_gap
        if bound is None or not gap.num_tokens or gap.mean <= bound:  # NaN is not
            return
        raise TrainingError(
            f"step {step}: sampler and trainer logprobs of the same tokens and weights differ by"
            f" {gap.mean:.3g} on average (at most {gap.max:.3g}), above max_logprob_gap={bound:g}:"
            " what is trained is not what was sampled; use engine.dtype=float32 or a service that"
            " agrees, or raise max_logprob_gap"
        )

    async def evaluate(
        self, evaluations: Evaluations, sampling_client: SamplingClient, step: int | None
    ) -> dict[str, float]:
        """Metrics of the evaluators due before `step` (None: after the last), with transcripts.

        Raises AllTrajectoriesFailedError where no episode of a test could be played.
        """
        metrics = await self._reminding(
            evaluations.run(self._client, step, sampling_client), "evaluations"
        )
        for each in evaluations.due(step):
            if not isinstance(each, RLTestSetEvaluator):
                continue
            if self._config.transcripts_every:
                number = self._total_steps if step is None else step
                await self._write_transcript(
                    f"eval_{each.name}", number, each.groups_P, each.taglist_P, metrics
                )
            each.check_not_empty()
        return metrics

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
        """For people, see rl/transcripts. Waits for the one before, not for this one."""
        await self.finish_writing()
        self._writing = asyncio.create_task(
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

    async def finish_writing(self) -> None:
        if self._writing is not None:
            with self._journal.timed("transcripts"):
                await self._writing

    async def _reminding(self, waited: Awaitable[T], what: str) -> T:
        """The result; a line every REMIND_SECONDS that it takes."""
        task = asyncio.ensure_future(_awaited(waited))
        seconds = 0.0
        try:
            while not (await asyncio.wait([task], timeout=REMIND_SECONDS))[0]:
                seconds += REMIND_SECONDS
                playing = self._progress.summary()
                more = f"; rollouts: {playing}" if playing else ""
                self._journal.log_line(f"waiting for {what} for {seconds:.0f} s{more}")
        finally:
            task.cancel()
        return task.result()


class _Reminding(Protocol):
    async def __call__(self, waited: Awaitable[T], what: str, /) -> T: ...


class _Probe:
    """Logprobs of a few sequences, on their way."""

    def __init__(
        self,
        datums: Sequence[tinker.Datum],
        logprobs: Coroutine[None, None, list[np.ndarray]],
        reminding: _Reminding,
    ) -> None:
        self._datums, self._reminding = datums, reminding
        self._logprobs = asyncio.ensure_future(logprobs)

    async def compare(self, record: StepStats) -> None:
        """Adds what the sampler says of them to the gap of same weights."""
        scored = await self._reminding(self._logprobs, "logprobs of the sampler")
        for datum, logprobs, trained in zip(self._datums, scored, record.trained_logprobs_D):
            inputs = {
                **datum.loss_fn_inputs,
                "logprobs": tinker.TensorData.from_numpy(logprobs[1:]),
            }
            rescored = tinker.Datum(model_input=datum.model_input, loss_fn_inputs=inputs)
            record.same_weights_gap.add([rescored], [trained])


async def _awaited(waited: Awaitable[T]) -> T:
    return await waited
