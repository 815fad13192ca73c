"""Keys of the reinforcement-learning loop, and what is refused before anything is played."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

import chz

from tinker_cookbook import models
from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.rl.defaults import Groups
from tinker_cookbook.rl.rollouts.limits import RolloutLimits
from tinker_cookbook.rl.rollouts.strategy import MinViableGroup, RolloutStrategy
from tinker_cookbook.rl.signals import AdvantageKind, Signal
from tinker_cookbook.rl.types import RLDatasetBuilder
from tinker_cookbook.service import locate_checkpoint
from tinker_cookbook.training.config import LoopConfig
from tinker_cookbook.training.fields import COUNT, MAY_CHANGE, NOT_NEGATIVE, POSITIVE, SHARE
from tinker_cookbook.training.resolve import Resolved
from tinker_cookbook.utils.data_identity import adapter_identity
from tinker_cookbook.utils.json_types import Plain

LossName = Literal["importance_sampling", "ppo", "cispo", "dro", "gspo"]


@chz.chz
class KLReferenceConfig:
    """The model that kl_penalty_coef holds the policy near to."""

    base_model: str = chz.field(doc="name or directory; its tokenizer must be the policy's")
    load_checkpoint_path: str | None = chz.field(
        default=None,
        doc="its weights: tinker://.../sampler_weights/..., the directory of a run or of a PEFT"
        " adapter (None: the base model itself)",
    )

    def identity(self) -> Mapping[str, Plain]:
        """Another adapter in the same directory is another reference."""
        return adapter_identity(self.load_checkpoint_path)


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
    `defaults.py`."""

    dataset_builder: RLDatasetBuilder = chz.field(doc="what to play")
    max_tokens: int | None = chz.field(
        default=None, doc="tokens of a reply (None: by the model)", metadata=COUNT
    )
    temperature: float = chz.field(
        default=1.0,
        doc="of the policy: what is sampled, trained and held near to a reference is"
        " softmax(logits / temperature)",
        metadata=POSITIVE,
    )
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
    kl_penalty_coef: float = chz.field(
        default=0.0, doc="weight of the KL to a reference (0: none)", metadata=NOT_NEGATIVE
    )
    kl_discount_factor: float = chz.field(
        default=0.0,
        doc="discount of the KL of later tokens (0: each token answers for its own)",
        metadata=SHARE,
    )
    kl_reference_config: KLReferenceConfig | None = chz.field(
        default=None, doc="that reference (None: the model before training)"
    )
    loss_fn: LossName = chz.field(default="importance_sampling", doc="loss of the engine")
    loss_fn_config: dict[str, float] | None = chz.field(
        default=None, doc="its settings, e.g. loss_fn_config.clip_high_threshold=1.28"
    )
    num_substeps: int = chz.field(
        default=1, doc="optimizer steps a batch is divided into", metadata=COUNT
    )
    max_lag: int = chz.field(
        default=0,
        doc="steps by which the weights that play may be behind (0: synchronous)",
        metadata=NOT_NEGATIVE,
    )
    num_minibatches: int = chz.field(
        default=1,
        doc="parts of an optimizer step's batch, each trained on as soon as it was played",
        metadata=COUNT,
    )
    async_config: AsyncConfig | None = chz.field(
        default=None, doc="async_config.max_steps_off_policy: another name of max_lag"
    )
    stream_minibatch_config: StreamMinibatchConfig | None = chz.field(
        default=None, doc="stream_minibatch_config.num_minibatches: a name of num_minibatches"
    )
    groups_at_a_time: int | None = chz.field(
        default=None,
        doc="groups that are played at a time (None: as many as a batch has)",
        metadata=COUNT | MAY_CHANGE,
    )

    max_logprob_gap: float | None = chz.field(
        default=0.1,
        doc="stop when sampler and trainer, with the same weights, differ by more: mean"
        " |difference| of logprobs of sampled tokens, in nats (None: never)",
        metadata=POSITIVE | MAY_CHANGE,
    )
    compute_post_kl: bool = chz.field(
        default=False,
        doc="measure how far each step moved the policy on its own samples",
        metadata=MAY_CHANGE,
    )
    eval_greedy: bool = chz.field(
        default=False,
        doc="evaluate the most likely replies, too: test_greedy/...",
        metadata=MAY_CHANGE,
    )
    transcripts_every: int = chz.field(
        default=1,
        doc="steps between transcripts of all rollouts (0: none); some 30 bytes a token on disk",
        metadata=NOT_NEGATIVE | MAY_CHANGE,
    )
    signals: list[Signal] = chz.field(
        default_factory=list,
        doc="further signals that write advantages (in Python only); dataclasses, or with"
        " identity(), so that a run with other settings is another run",
    )


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
    changes: dict[str, int | None] = {}
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


def with_located_reference(config: Config) -> Config:
    """The config with the checkpoint that the reference's directory of a run holds now."""
    reference = config.kl_reference_config
    if reference is None or reference.load_checkpoint_path is None:
        return config
    key = "kl_reference_config.load_checkpoint_path"
    given = reference.load_checkpoint_path
    path = locate_checkpoint(given, "sampler_weights", key, config.base_url)
    located = chz.replace(reference, load_checkpoint_path=path)
    return chz.replace(config, kl_reference_config=located)


def check_no_unused_keys(config: Config) -> None:
    """Keys that would have no effect, or leave no room for a prompt."""
    if not config.kl_penalty_coef:
        for key in ("kl_discount_factor", "kl_reference_config"):
            if getattr(config, key):
                raise ConfigurationError(
                    f"{key} has no effect without kl_penalty_coef: set it above 0, or drop {key}"
                )
    context = models.context_length(config.model_name)
    if config.max_tokens and context and config.max_tokens >= context:
        raise ConfigurationError(
            f"max_tokens={config.max_tokens}: {config.model_name} has a context of {context}"
            " tokens, for prompt and reply together; set it lower"
        )


def check_kl_reference(config: Config) -> None:
    """The weights that a run starts from are a training state, which nothing can be sampled from;
    and the base model is not what the user would compare with."""
    if (
        config.kl_penalty_coef
        and config.kl_reference_config is None
        and config.load_checkpoint_path is not None
    ):
        raise ConfigurationError(
            "kl_penalty_coef with load_checkpoint_path needs a reference: set"
            " kl_reference_config.base_model, and kl_reference_config.load_checkpoint_path to the"
            " sampler weights (tinker://.../sampler_weights/...) of that checkpoint, or to the"
            " directory of its run"
        )


def check_signals(config: Config) -> None:
    """A run with other settings of a signal must not pass for the same run."""
    for signal in config.signals:
        known = dataclasses.is_dataclass(signal) or chz.is_chz(signal)
        if not known and not callable(getattr(signal, "identity", None)):
            raise ConfigurationError(
                f"signals: {type(signal).__name__} does not say what its settings are; make it a"
                " dataclass, or give it identity() -> dict"
            )


def check_batch(config: Config, num_groups: int, asked: Config) -> None:
    """Raises ConfigurationError for keys that do not fit the data's batches."""
    for name in ("async_config", "stream_minibatch_config"):
        holder = getattr(asked, name)
        if holder is not None and holder.groups_per_batch != num_groups:
            raise ConfigurationError(
                f"{name}.groups_per_batch={holder.groups_per_batch}, but a batch of the data has"
                f" {num_groups} groups: set groups_per_batch of the data and here to the same"
            )
    parts = config.num_substeps * config.num_minibatches
    if parts > num_groups:
        key = "num_substeps" if config.num_substeps > num_groups else "num_minibatches"
        raise ConfigurationError(
            f"{key}={getattr(config, key)}: a batch has only {num_groups} groups to divide into"
            f" {config.num_substeps} optimizer steps of {config.num_minibatches} parts"
        )


def about(
    resolved: Resolved[Config, Groups],
    total_steps: int,
    num_groups: int,
    signals: Sequence[Signal],
) -> list[str]:
    """What a person should know of the run before it starts."""
    config = resolved.config
    how = "synchronous" if not config.max_lag else f"at most {config.max_lag} steps off-policy"
    lines = [
        f"{total_steps} steps of {num_groups} groups, {how}, {config.loss_fn}, learning_rate"
        f" {resolved.learning_rate:g} {config.lr_schedule}, LoRA rank {config.lora_rank}"
    ]
    whole = [type(signal).__name__ for signal in signals if signal.needs_batch]
    if whole and config.num_minibatches > 1:
        lines.append(
            f"{', '.join(whole)} looks at a whole optimizer step: groups are played and measured as"
            " they come, but trained on together (num_minibatches has no effect)"
        )
    return lines
