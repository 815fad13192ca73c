"""One step of the reinforcement-learning loop: groups that were played, in; new weights, out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from tinker_cookbook.completers import TinkerTokenCompleter, derive_seed
from tinker_cookbook.evaluators import Evaluations
from tinker_cookbook.exceptions import AllTrajectoriesFailedError, TrainingError
from tinker_cookbook.journal import Journal
from tinker_cookbook.loop_config import adam_params
from tinker_cookbook.rl import transcripts
from tinker_cookbook.rl.config import Config, context_length
from tinker_cookbook.rl.data_processing import is_constant
from tinker_cookbook.rl.group_source import GroupSource, PlayedGroup, Ticket
from tinker_cookbook.rl.metric_util import RLTestSetEvaluator, compute_trajectory_metrics
from tinker_cookbook.rl.metrics import SampleTrainGap, compute_post_kl
from tinker_cookbook.rl.rollout_progress import RolloutProgress
from tinker_cookbook.rl.rollouts import do_group_rollout
from tinker_cookbook.rl.signals import Signal
from tinker_cookbook.rl.trajectories import TrainingGroup, remove_mask
from tinker_cookbook.rl.types import TrajectoryGroup
from tinker_cookbook.tokenizer_utils import get_tokenizer
from tinker_cookbook.utils.lr_scheduling import compute_schedule_lr_multiplier
from tinker_cookbook.utils.misc_utils import dict_mean, split_list


@dataclass
class TrainedStep:
    """A step that was trained. own_gap: of samples that these very weights had drawn."""

    sampling_client: Any
    save: Any
    own_gap: SampleTrainGap


class _Chunk(NamedTuple):
    """Groups of one optimizer step that are trained together; `last`: of this optimizer step."""

    substep: int
    played: list[PlayedGroup[TrainingGroup]]
    last: bool


@dataclass
class _Submitted:
    """A forward_backward on its way, and the datums of it, mask included."""

    groups: list[TrainingGroup]
    datums: list[Any]
    own: list[bool]  # of each datum: whether the weights that play it are those that train on it
    result: Any


class Trainer:
    """What a step does with the groups of its batch."""

    def __init__(
        self,
        config: Config,
        client: Any,
        signals: Sequence[Signal],
        journal: Journal,
        total_steps: int,
    ) -> None:
        self._config, self._client, self._journal = config, client, journal
        self._signals, self._total_steps = signals, total_steps
        self._context_window = context_length(config.model_name)
        self._progress = RolloutProgress()

    async def play(self, ticket: Ticket) -> TrainingGroup:
        """Plays a group and fetches what the signals need of it."""
        config = self._config
        assert config.max_tokens is not None, "keys.fill has filled it"
        policy = TinkerTokenCompleter(
            ticket.sampling_client,
            max_tokens=config.max_tokens,
            temperature=config.temperature,
            context_window=self._context_window,
        )
        group = TrainingGroup.from_group(
            await do_group_rollout(
                ticket.builder,
                policy,
                config.rollout_strategy,
                config.limits,
                seed=derive_seed(config.seed, ticket.batch, ticket.index),
                progress=self._progress,
            )
        )
        for signal in self._signals:
            await signal.prepare(group)
        return group

    def say_waiting(self, missing: int, seconds: float) -> None:
        self._journal.say(
            f"waiting for {missing} groups, nothing new for {seconds:.0f} s:"
            f" {self._progress.summary()}"
        )

    async def step(self, source: GroupSource[TrainingGroup], step: int, row: dict) -> TrainedStep:
        """Trains on batch `step` and fills in its row."""
        config, client = self._config, self._client
        assert config.learning_rate is not None, "keys.fill has filled it"
        learning_rate = config.learning_rate * compute_schedule_lr_multiplier(
            config.lr_schedule, step, self._total_steps
        )
        played: list[PlayedGroup[TrainingGroup]] = []
        submitted: list[_Submitted] = []
        optimizer: list[Any] = []
        signal_metrics: list[dict[str, float]] = []
        trained_before = 0
        async for chunk in self._chunks(source, step):
            played += chunk.played
            nothing_yet = len(submitted) == trained_before
            kept = self._trained(chunk.played, keep_one=chunk.last and nothing_yet)
            if kept:
                groups = [each.group for each in kept]
                signal_metrics += [found for each in self._signals if (found := each.add(groups))]
                submitted.append(self._forward_backward(kept, step, chunk.substep))
            if chunk.last and len(submitted) > trained_before:
                optimizer.append(client.optim_step(adam_params(config, learning_rate)))
                trained_before = len(submitted)
        played.sort(key=lambda each: each.ticket.index)
        self._refuse_empty(played, step)
        next_client = client.save_weights_and_get_sampling_client()
        save = self._journal.submit_save(client, step + 1)

        gap, own_gap = SampleTrainGap(), SampleTrainGap()
        outputs: list[Mapping[str, float]] = []
        trained_logprobs_D: list[Any] = []
        with self._journal.timed("train"):
            for part in submitted:
                output = await part.result
                logprobs = [each["logprobs"].to_numpy() for each in output.loss_fn_outputs]
                trained_logprobs_D += logprobs
                gap.add(part.datums, logprobs)
                own_gap.add(
                    [datum for datum, own in zip(part.datums, part.own) if own],
                    [each for each, own in zip(logprobs, part.own) if own],
                )
                outputs.append(output.metrics or {})
            for each in optimizer:
                row.update((await each).metrics or {})
            sampling_client = await next_client
        row.update(_summed(outputs))
        row["optim/lr"] = learning_rate
        row.update(gap.metrics(sum(each.group.num_sampled_tokens for each in played)))
        row.update(dict_mean(signal_metrics))
        groups_P = [each.group.group for each in played]
        tags_P = [each.ticket.builder.logging_tags() for each in played]
        row.update(compute_trajectory_metrics(groups_P, tags_P))
        row.update(_source_metrics(played))
        if config.compute_post_kl:
            datums = [datum for part in submitted for datum in part.datums]
            with self._journal.timed("compute_post_kl"):
                row.update(await compute_post_kl(datums, sampling_client))
        self._say_failures(played, step)
        if config.transcripts_every and step % config.transcripts_every == 0:
            await self.write_transcript(
                "train",
                step,
                groups_P,
                tags_P,
                row,
                training=[group for part in submitted for group in part.groups],
                sampling_client_steps=[each.ticket.version for each in played],
                trained_logprobs_D=trained_logprobs_D,
            )
        return TrainedStep(sampling_client, save, own_gap)

    async def _chunks(self, source: GroupSource[TrainingGroup], step: int) -> AsyncIterator[_Chunk]:
        """The batch in the parts that are trained together, each once all its groups are there.

        Optimizer steps come in the order of the batch, minibatches within one in the order in which
        groups arrive.
        """
        substeps = split_list(range(source.size(step)), self._config.num_substeps)
        substep_of = {index: i for i, indices in enumerate(substeps) for index in indices}
        sizes = [[len(part) for part in self._minibatches(indices)] for indices in substeps]
        ready: list[list[PlayedGroup[TrainingGroup]]] = [[] for _ in substeps]
        current = 0
        arrivals = source.arrivals(step)
        while current < len(substeps):
            if len(ready[current]) < sizes[current][0]:
                with self._journal.timed("wait_for_groups"):
                    played = await anext(arrivals)
                ready[substep_of[played.ticket.index]].append(played)
                continue
            size = sizes[current].pop(0)
            part, ready[current] = ready[current][:size], ready[current][size:]
            part.sort(key=lambda each: each.ticket.index)
            last = not sizes[current]
            yield _Chunk(current, part, last)
            current += last
        await anext(arrivals, None)  # lets the source forget the batch

    def _minibatches(self, indices: Sequence[int]) -> list[list[int]]:
        if any(signal.needs_batch for signal in self._signals):
            return [list(indices)]
        return split_list(indices, min(self._config.num_minibatches, len(indices)))

    def _trained(
        self, played: Sequence[PlayedGroup[TrainingGroup]], keep_one: bool
    ) -> list[PlayedGroup[TrainingGroup]]:
        """The groups that are trained on; keep_one: at least one, if there is any."""
        groups = [each for each in played if each.group.trained()]
        if not self._config.remove_constant_reward_groups:
            return groups
        mixed = [each for each in groups if not is_constant(each.group.group)]
        return mixed or groups[: int(keep_one)]

    def _forward_backward(
        self, groups: Sequence[PlayedGroup[TrainingGroup]], step: int, substep: int
    ) -> _Submitted:
        config = self._config
        datums, own = [], []
        for each in groups:
            made = each.group.datums(config.loss_fn)
            datums += made
            own += [substep == 0 and each.ticket.version == step] * len(made)
        sent = [remove_mask(datum, config.loss_fn) for datum in datums]
        result = self._client.forward_backward(sent, config.loss_fn, config.loss_fn_config)
        return _Submitted([each.group for each in groups], datums, own, result)

    def _refuse_empty(self, played: Sequence[PlayedGroup[TrainingGroup]], step: int) -> None:
        errors = [error for each in played for error in each.group.group.rollout_errors]
        if any(each.group.trained() for each in played):
            return
        reason = f"{errors[0].kind}: {errors[0].message}" if errors else "they have no action"
        raise AllTrajectoriesFailedError(
            f"step {step}: none of the {len(played)} groups can be trained on ({reason}); mend the"
            " environment and run the same command again, it resumes"
        )

    def _say_failures(self, played: Sequence[PlayedGroup[TrainingGroup]], step: int) -> None:
        errors = [error for each in played for error in each.group.group.rollout_errors]
        if errors:
            lost = sum(not each.group.group.trajectories_G for each in played)
            self._journal.say(
                f"step {step}: {len(errors)} failures, {lost} of {len(played)} groups lost; the"
                f" first: {errors[0].kind}: {errors[0].message}"
            )

    def check_gap(self, gap: SampleTrainGap, step: int) -> None:
        """Raises TrainingError where sampler and trainer disagree about the sampler's own words.

        At another temperature the sampler's logprobs are those of another distribution.
        """
        bound = self._config.max_logprob_gap
        if bound is None or self._config.temperature != 1.0 or not gap.num_tokens:
            return
        if not gap.mean <= bound:  # NaN is not
            raise TrainingError(
                f"step {step}: sampler and trainer logprobs of the same tokens and weights differ"
                f" by {gap.mean:.3g} on average (at most {gap.max:.3g}), above max_logprob_gap="
                f"{bound:g}: what is trained is not what was sampled; use dtype float32 or a"
                " service that agrees, or raise max_logprob_gap"
            )

    async def write_transcript(
        self,
        split: str,
        step: int,
        groups_P: Sequence[TrajectoryGroup],
        tags_P: Sequence[Sequence[str]],
        metrics: Mapping[str, Any],
        training: Sequence[TrainingGroup] | None = None,
        **further: Any,
    ) -> None:
        """Of a step or an evaluation, for people; see rl/transcripts.py."""
        tokenizer = get_tokenizer(self._config.model_name)
        with self._journal.timed("transcripts"):
            await asyncio.to_thread(
                transcripts.write_step,
                self._journal.log_path,
                split,
                step,
                groups_P,
                tags_P,
                training,
                tokenizer,
                dict(metrics),
                **further,
            )

    async def evaluate(
        self, evaluations: Evaluations, sampling_client: Any, step: int | None
    ) -> dict[str, float]:
        """Metrics of the evaluators due before `step` (None: after the last), with transcripts."""
        metrics = await evaluations.run(self._client, step, sampling_client)
        if self._config.transcripts_every:
            for each in evaluations.due(step):
                if isinstance(each, RLTestSetEvaluator):
                    await self.write_transcript(
                        f"eval_{each.name}",
                        self._total_steps if step is None else step,
                        each.groups_P,
                        each.taglist_P,
                        metrics,
                    )
        return metrics


def _summed(metrics: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """What forward_backward measured, of all parts: sums of sums, means of the rest."""
    return {
        key: value * (len(metrics) if key.endswith(":sum") else 1)
        for key, value in dict_mean(metrics).items()
    }


def _source_metrics(played: Sequence[PlayedGroup[TrainingGroup]]) -> dict[str, float]:
    """Which weights have played the batch, and for how long (seconds a group)."""
    metrics: dict[str, float] = {}
    columns = {
        "sampling_client/step": [each.ticket.version for each in played],
        "time/sampling_time": [each.seconds for each in played],
    }
    for name, values in columns.items():
        metrics |= {
            f"{name}_min": min(values),
            f"{name}_max": max(values),
            f"{name}_mean": sum(values) / len(values),
        }
    return metrics
