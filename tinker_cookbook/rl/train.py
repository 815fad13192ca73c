"""The one loop of reinforcement learning: play, weigh, train; synchronous or ahead of itself.

    async with GroupSource(...) as source:
        for step in range(journal.start_step, total_steps):
            source.publish(sampling_client, step)       groups of this step (and max_lag more) begin
            evaluators that are due, on the weights before this step
            for each chunk of groups that has been played:
                signals write advantages -> forward_backward
            optim_step, new sampling client, a save that is due -> one row of metrics.jsonl
        evaluators on the final weights, the final checkpoint

max_lag=0 is synchronous; with max_lag=k, groups are played by weights that are at most k steps old
while training goes on. num_minibatches > 1 trains on part of a batch while the rest is played.
num_substeps > 1 makes several optimizer steps of one batch. All go through the same code: the same
metrics, evaluations and checkpoints.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import chz

from tinker_cookbook import checkpoint_utils, keys, models
from tinker_cookbook.completers import TinkerTokenCompleter, derive_seed
from tinker_cookbook.evaluators import Evaluations
from tinker_cookbook.exceptions import (
    AllTrajectoriesFailedError,
    ConfigurationError,
    DataValidationError,
    TrainingError,
)
from tinker_cookbook.journal import Journal
from tinker_cookbook.loop_config import LoopConfig, adam_params
from tinker_cookbook.rl import transcripts
from tinker_cookbook.rl.data_processing import is_constant
from tinker_cookbook.rl.group_source import GroupSource, PlayedGroup, Ticket
from tinker_cookbook.rl.limits import RolloutLimits
from tinker_cookbook.rl.metric_util import RLTestSetEvaluator, compute_trajectory_metrics
from tinker_cookbook.rl.metrics import SampleTrainGap, compute_post_kl
from tinker_cookbook.rl.rollout_progress import RolloutProgress
from tinker_cookbook.rl.rollout_strategy import MinViableGroup, RolloutStrategy
from tinker_cookbook.rl.rollouts import do_group_rollout
from tinker_cookbook.rl.signals import AdvantageKind, GroupReward, ReferenceKL, Signal
from tinker_cookbook.rl.trajectories import TrainingGroup, remove_mask
from tinker_cookbook.rl.types import RLDataset, RLDatasetBuilder, TrajectoryGroup
from tinker_cookbook.service import connect
from tinker_cookbook.tokenizer_utils import get_tokenizer
from tinker_cookbook.utils.lr_scheduling import compute_schedule_lr_multiplier
from tinker_cookbook.utils.misc_utils import dict_mean, split_list

LossName = Literal["importance_sampling", "ppo", "cispo", "dro", "gspo"]

# what a run may go on with, changed: how it is computed and shown, not what is learned
FREE_KEYS = ("max_logprob_gap", "compute_post_kl", "eval_greedy", "groups_at_a_time")


@chz.chz
class KLReferenceConfig:
    """The model that kl_penalty_coef holds the policy near to."""

    base_model: str = chz.field(doc="name or directory; its tokenizer must be the policy's")
    load_checkpoint_path: str | None = chz.field(
        default=None, doc="sampler weights of a checkpoint of it (None: the base model itself)"
    )


@chz.chz
class AsyncConfig:
    """The Tinker cookbook's spelling of max_lag."""

    max_steps_off_policy: int = chz.field(doc="the same as max_lag")
    groups_per_batch: int = chz.field(doc="groups in a batch; must be what the data set has")


@chz.chz
class StreamMinibatchConfig:
    """The Tinker cookbook's spelling of num_minibatches."""

    groups_per_batch: int = chz.field(doc="groups in a batch; must be what the data set has")
    num_minibatches: int = chz.field(doc="the same as num_minibatches")


@chz.chz
class Config(LoopConfig):
    """Keys of the reinforcement-learning loop. None: what suits the model, see
    `models.defaults`."""

    dataset_builder: RLDatasetBuilder = chz.field(doc="what to play")
    max_tokens: int | None = chz.field(default=None, doc="tokens of a reply (None: by the model)")
    temperature: float = chz.field(default=1.0, doc="of sampling")
    limits: RolloutLimits = chz.field(
        default_factory=RolloutLimits, doc="bounds on turns, tokens and waiting of an episode"
    )
    rollout_strategy: RolloutStrategy = chz.field(
        default_factory=MinViableGroup, doc="what becomes of a group in which an environment fails"
    )

    advantage: AdvantageKind = chz.field(
        default="centered", doc="how rewards of a group become advantages, see rl/signals.py"
    )
    remove_constant_reward_groups: bool = chz.field(
        default=False, doc="do not train on groups whose rewards are all equal"
    )
    kl_penalty_coef: float = chz.field(default=0.0, doc="weight of the KL to a reference (0: none)")
    kl_discount_factor: float = chz.field(
        default=0.0, doc="discount of the KL of later tokens (0: each token answers for its own)"
    )
    kl_reference_config: KLReferenceConfig | None = chz.field(
        default=None, doc="that reference (None: the model before training)"
    )
    loss_fn: LossName = chz.field(default="importance_sampling", doc="loss of the engine")
    loss_fn_config: dict[str, float] | None = chz.field(
        default=None, doc="its settings, e.g. loss_fn_config.clip_high_threshold=1.28"
    )
    num_substeps: int = chz.field(default=1, doc="optimizer steps a batch is divided into")
    max_lag: int = chz.field(
        default=0, doc="steps by which the weights that play may be behind (0: synchronous)"
    )
    num_minibatches: int = chz.field(
        default=1,
        doc="parts of an optimizer step's batch, each trained on as soon as it was played",
    )
    async_config: AsyncConfig | None = chz.field(
        default=None, doc="async_config.max_steps_off_policy: another name of max_lag"
    )
    stream_minibatch_config: StreamMinibatchConfig | None = chz.field(
        default=None, doc="stream_minibatch_config.num_minibatches: a name of num_minibatches"
    )
    groups_at_a_time: int | None = chz.field(
        default=None, doc="groups that are played at a time (None: as many as a batch has)"
    )

    max_logprob_gap: float | None = chz.field(
        default=0.1,
        doc="stop when sampler and trainer differ by more on their own samples; mean |difference|"
        " of logprobs in nats (None: never)",
    )
    compute_post_kl: bool = chz.field(
        default=False, doc="measure how far each step moved the policy on its own samples"
    )
    eval_greedy: bool = chz.field(
        default=False, doc="evaluate the most likely replies, too: test_greedy/..."
    )
    transcripts_every: int = chz.field(
        default=1, doc="steps between transcripts of all rollouts (0: none)"
    )
    signals: list[Signal] = chz.field(
        default_factory=list, doc="further signals that write advantages (in Python only)"
    )


async def main(
    config: Config,
    rollout_executor: Any = None,
    recipe: str = "rl",
    filled: Mapping[str, Any] | None = None,
) -> None:
    """Train. `recipe` names the run's directory where log_path does not.

    filled: the keys that a recipe has filled in, checking the config, to be shown to the user
    (`problem_config.resolve`); None: both is done here.
    """
    if rollout_executor is not None:
        raise ConfigurationError(
            f"rollout_executor={rollout_executor!r} is not supported: episodes are played by the"
            " event loop of this process; leave it out"
        )
    if filled is None:
        config, filled = keys.fill(config, "rl")
    asked, config = config, with_known_keys(config)
    keys.check(config)
    train, test = await config.dataset_builder()
    total_steps = len(train) if config.max_steps is None else min(len(train), config.max_steps)
    if total_steps < 1:
        raise DataValidationError("the training data has no batch")
    num_groups = len(train.get_batch(0))
    _check_batch(config, num_groups, asked)
    service = connect(config.base_url, config.engine)
    with Journal(
        config,
        recipe=recipe,
        total_steps=total_steps,
        progress="rl",
        also_free=FREE_KEYS,
        headlines=HEADLINES,
        rest_client=service.create_rest_client(),
    ) as journal:
        if filled:
            journal.say(models.filled_line(config.model_name, filled))
        for line in _about(config, total_steps, num_groups):
            journal.say(line)
        client = await checkpoint_utils.start_training_client(
            service, config, journal.resume, {"recipe": recipe}
        )
        evaluators = [build() for build in config.evaluator_builders]
        if test is not None:
            evaluators = [*_test_evaluators(config, test), *evaluators]
        infrequent = [build() for build in config.infrequent_evaluator_builders]
        evaluations = Evaluations(
            [(config.eval_every, evaluators), (config.infrequent_eval_every, infrequent)], journal
        )
        trainer = _Trainer(config, client, await _signals(config, service), journal, total_steps)
        sampling_client = await client.save_weights_and_get_sampling_client()
        async with GroupSource(
            train.get_batch,
            trainer.play,
            steps=range(journal.start_step, total_steps),
            max_lag=config.max_lag,
            workers=config.groups_at_a_time,
            waiting=trainer.say_waiting,
        ) as source:
            for step in range(journal.start_step, total_steps):
                source.publish(sampling_client, step)
                with journal.step(step) as row:
                    row.update(await trainer.evaluate(evaluations, sampling_client, step))
                    done = await trainer.step(source, step, row)
                sampling_client = done.sampling_client
                trainer.check_gap(done.own_gap, step)
                await journal.finish(done.save)
        final = await trainer.evaluate(evaluations, sampling_client, None)
        if final:
            with journal.step(total_steps) as row:
                row.update(final)
        save = journal.submit_save(client, total_steps, final=True)
        await journal.finish(save)


HEADLINES = {
    "env/all/reward/total": "reward",
    "env/all/ac_tokens_per_turn": "reply tokens",
    "test/env/all/reward/total": "test reward",
    "test/env/all/correct": "test correct",
    "test_greedy/env/all/correct": "test greedy",
}


@dataclass
class _Done:
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


class _Trainer:
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
        self._context_window = _context_length(config.model_name)
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

    async def step(self, source: GroupSource[TrainingGroup], step: int, row: dict) -> _Done:
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
            groups = [each for each in chunk.played if each.group.sequences_G]
            signal_metrics += self._write_advantages([each.group for each in groups])
            spare = chunk.last and len(submitted) == trained_before
            kept = self._trained(groups, keep_one=spare)
            if kept:
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
        return _Done(sampling_client, save, own_gap)

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

    def _write_advantages(self, groups: Sequence[TrainingGroup]) -> list[dict[str, float]]:
        if not groups:
            return []
        return [metrics for signal in self._signals if (metrics := signal.add(groups))]

    def _trained(
        self, groups: Sequence[PlayedGroup[TrainingGroup]], keep_one: bool
    ) -> list[PlayedGroup[TrainingGroup]]:
        """The groups that are trained on; keep_one: at least one, if there is any."""
        if not self._config.remove_constant_reward_groups:
            return list(groups)
        mixed = [each for each in groups if not is_constant(each.group.group)]
        return mixed or list(groups[: int(keep_one)])

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
        if any(each.group.sequences_G for each in played):
            return
        reason = f"{errors[0].kind}: {errors[0].message}" if errors else "they have no action"
        raise AllTrajectoriesFailedError(
            f"step {step}: none of the {len(played)} groups can be trained on ({reason}); mend the"
            " environment and run the same command again, it resumes"
        )

    def _say_failures(self, played: Sequence[PlayedGroup[TrainingGroup]], step: int) -> None:
        errors = [error for each in played for error in each.group.group.rollout_errors]
        if errors:
            lost = sum(not each.group.sequences_G for each in played)
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


def with_known_keys(config: Config) -> Config:
    """The config with `async_config` and `stream_minibatch_config` put into the keys they mean."""
    spellings = {
        "max_lag": (config.async_config, "async_config", "max_steps_off_policy", 0),
        "num_minibatches": (
            config.stream_minibatch_config,
            "stream_minibatch_config",
            "num_minibatches",
            1,
        ),
    }
    changes: dict[str, Any] = {}
    for key, (holder, holder_name, name, default) in spellings.items():
        if holder is None:
            continue
        here, there = getattr(config, key), getattr(holder, name)
        if here not in (default, there):
            raise ConfigurationError(
                f"{key}={here} and {holder_name}.{name}={there} are two names of one thing: drop"
                " either"
            )
        changes |= {key: there, holder_name: None}
    return chz.replace(config, **changes)


def _check_batch(config: Config, num_groups: int, asked: Config) -> None:
    """Raises ConfigurationError for keys that do not fit the data's batches."""
    for name in ("async_config", "stream_minibatch_config"):
        holder = getattr(asked, name)
        if holder is not None and holder.groups_per_batch != num_groups:
            raise ConfigurationError(
                f"{name}.groups_per_batch={holder.groups_per_batch}, but a batch of the data has"
                f" {num_groups} groups: set groups_per_batch of the data and here to the same"
            )
    if config.num_substeps > num_groups:
        raise ConfigurationError(
            f"num_substeps={config.num_substeps}: a batch has only {num_groups} groups to divide"
        )


def _about(config: Config, total_steps: int, num_groups: int) -> list[str]:
    """What a person should know of the run before it starts."""
    how = "synchronous" if not config.max_lag else f"at most {config.max_lag} steps off-policy"
    lines = [
        f"{total_steps} steps of {num_groups} groups, {how}, {config.loss_fn}, learning_rate"
        f" {config.learning_rate:g} {config.lr_schedule}, LoRA rank {config.lora_rank}"
    ]
    if config.temperature != 1.0 and config.max_logprob_gap is not None:
        lines.append(
            f"temperature={config.temperature:g}: sampled logprobs are those of another"
            " distribution than the trained one, so max_logprob_gap cannot be checked"
        )
    if config.kl_penalty_coef and config.num_minibatches > 1:
        lines.append(
            "kl_penalty_coef is centred over the whole optimizer step: groups are played and"
            " measured as they come, but trained on together (num_minibatches has no effect)"
        )
    return lines


async def _signals(config: Config, service: Any) -> list[Signal]:
    assert config.max_tokens is not None
    signals: list[Signal] = [GroupReward(config.advantage, config.max_tokens)]
    if config.kl_penalty_coef:
        reference = config.kl_reference_config
        if reference is None and config.load_checkpoint_path is not None:
            raise ConfigurationError(
                "kl_penalty_coef with load_checkpoint_path needs a reference: set"
                " kl_reference_config.base_model, and kl_reference_config.load_checkpoint_path to"
                " the sampler weights (tinker://.../sampler_weights/...) of that checkpoint"
            )
        reference = reference or KLReferenceConfig(base_model=config.model_name)
        client = await service.create_sampling_client(
            model_path=reference.load_checkpoint_path, base_model=reference.base_model
        )
        signals.append(ReferenceKL(client, config.kl_penalty_coef, config.kl_discount_factor))
    return [*signals, *config.signals]


def _test_evaluators(config: Config, test: RLDataset) -> list[Any]:
    """Of the held-out problems: as trained, and greedily where asked for."""
    assert config.max_tokens is not None, "keys.fill has filled it"
    temperatures = {"test": config.temperature} | (
        {"test_greedy": 0.0} if config.eval_greedy else {}
    )
    return [
        RLTestSetEvaluator(
            test,
            config.max_tokens,
            name=name,
            temperature=temperature,
            context_window=_context_length(config.model_name),
            limits=config.limits,
        )
        for name, temperature in temperatures.items()
    ]


def _context_length(model_name: str) -> int | None:
    try:
        return models.resolve(model_name).context_length
    except ConfigurationError:  # a server may have models that the table does not know
        return None


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
