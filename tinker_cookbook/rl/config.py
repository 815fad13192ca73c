"""Keys of the reinforcement-learning loop, and their checks before the first rollout."""

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
from tinker_cookbook.training.fields import COUNT, FRACTION, MAY_CHANGE, NON_NEGATIVE, POSITIVE
from tinker_cookbook.training.resolve import Resolved
from tinker_cookbook.utils.data_identity import adapter_identity
from tinker_cookbook.utils.json_types import Plain

LossName = Literal["importance_sampling", "ppo", "cispo", "dro", "gspo"]


@chz.chz
class KLReferenceConfig:
    """The reference model of the KL penalty (kl_penalty_coef)."""

    base_model: str = chz.field(
        doc="base model of the reference: name or directory; must have the policy's tokenizer"
    )
    load_checkpoint_path: str | None = chz.field(
        default=None,
        doc="weights of the reference: tinker://.../sampler_weights/..., a run directory or a"
        " PEFT adapter directory (None: the base model itself)",
    )

    def identity(self) -> Mapping[str, Plain]:
        """The adapter's content, since the files in a directory may be replaced."""
        return adapter_identity(self.load_checkpoint_path)


@chz.chz
class AsyncConfig:
    """The Tinker cookbook's name for max_lag."""

    max_steps_off_policy: int = chz.field(doc="same as max_lag")
    groups_per_batch: int = chz.field(doc="groups per batch; must equal the data set's")


@chz.chz
class StreamMinibatchConfig:
    """The Tinker cookbook's name for num_minibatches."""

    groups_per_batch: int = chz.field(doc="groups per batch; must equal the data set's")
    num_minibatches: int = chz.field(doc="same as the top-level num_minibatches")


@chz.chz
class Config(LoopConfig):
    """Keys of the reinforcement-learning loop. None: a default that depends on the model, see
    `defaults.py`."""

    dataset_builder: RLDatasetBuilder = chz.field(doc="environments to train on")
    max_tokens: int | None = chz.field(
        default=None,
        doc="maximum tokens per completion (None: the default for model and data)",
        metadata=COUNT,
    )
    temperature: float = chz.field(
        default=1.0,
        doc="sampling temperature; the loss and the KL penalty also use softmax(logits /"
        " temperature)",
        metadata=POSITIVE,
    )
    limits: RolloutLimits = chz.field(
        default_factory=RolloutLimits, doc="limits on an episode's turns, tokens and waiting times"
    )
    rollout_strategy: RolloutStrategy = chz.field(
        default_factory=MinViableGroup, doc="what to do with a group in which an environment fails"
    )

    advantage: AdvantageKind = chz.field(
        default="centered", doc="how rewards of a group become advantages, see rl/signals.py"
    )
    remove_constant_reward_groups: bool = chz.field(
        default=False, doc="skip groups whose rewards are all equal"
    )
    kl_penalty_coef: float = chz.field(
        default=0.0,
        doc="coefficient of the KL penalty against a reference model (0: no penalty)",
        metadata=NON_NEGATIVE,
    )
    kl_discount_factor: float = chz.field(
        default=0.0,
        doc="discount factor of later tokens' KL penalty (0: each token is charged for its own KL"
        " only)",
        metadata=FRACTION,
    )
    kl_reference_config: KLReferenceConfig | None = chz.field(
        default=None, doc="reference model of the KL penalty (None: the model before training)"
    )
    loss_fn: LossName = chz.field(default="importance_sampling", doc="policy loss")
    loss_fn_config: dict[str, float] | None = chz.field(
        default=None, doc="settings of the loss, e.g. loss_fn_config.clip_high_threshold=1.28"
    )
    num_substeps: int = chz.field(default=1, doc="optimizer steps per batch", metadata=COUNT)
    max_lag: int = chz.field(
        default=0,
        doc="maximum off-policy steps: by how many steps the sampling weights may lag (0:"
        " synchronous)",
        metadata=NON_NEGATIVE,
    )
    num_minibatches: int = chz.field(
        default=1,
        doc="minibatches per optimizer step, each trained on as soon as its rollouts are complete",
        metadata=COUNT,
    )
    async_config: AsyncConfig | None = chz.field(
        default=None, doc="async_config.max_steps_off_policy is another name of max_lag"
    )
    stream_minibatch_config: StreamMinibatchConfig | None = chz.field(
        default=None,
        doc="stream_minibatch_config.num_minibatches is another name of num_minibatches",
    )
    groups_at_a_time: int | None = chz.field(
        default=None,
        doc="groups rolled out concurrently (None: as many as a batch has)",
        metadata=COUNT | MAY_CHANGE,
    )

    max_logprob_gap: float | None = chz.field(
        default=0.1,
        doc="stop if sampling and training logprobs differ by more with the same weights: mean"
        " |difference| over sampled tokens, in nats (None: never)",
        metadata=POSITIVE | MAY_CHANGE,
    )
    compute_post_kl: bool = chz.field(
        default=False,
        doc="measure the KL of the sampling policy to the policy after each step, on the step's"
        " samples",
        metadata=MAY_CHANGE,
    )
    eval_greedy: bool = chz.field(
        default=False,
        doc="also evaluate with greedy decoding, as test_greedy/...",
        metadata=MAY_CHANGE,
    )
    transcripts_every: int = chz.field(
        default=1,
        doc="steps between transcripts of all rollouts (0: none); about 30 bytes per token on disk",
        metadata=NON_NEGATIVE | MAY_CHANGE,
    )
    signals: list[Signal] = chz.field(
        default_factory=list,
        doc="additional signals that write advantages (Python only); dataclasses, or objects with"
        " identity(), so that other settings make another run",
    )


def with_alias_keys(config: Config) -> Config:
    """Return the config with `async_config` and `stream_minibatch_config` moved into the keys they
    are other names for."""
    alias_keys = {
        "max_lag": (config.async_config, "async_config", "max_steps_off_policy", 0),
        "num_minibatches": (
            config.stream_minibatch_config,
            "stream_minibatch_config",
            "num_minibatches",
            1,
        ),
    }
    changes: dict[str, int | None] = {}
    for key, (alias_config, alias, name, default) in alias_keys.items():
        if alias_config is None:
            continue
        value, alias_value = getattr(config, key), getattr(alias_config, name)
        if value not in (default, alias_value):
            raise ConfigurationError(
                f"{key}={value} and {alias}.{name}={alias_value} set the same thing to different"
                " values: drop one of them"
            )
        changes |= {key: alias_value, alias: None}
    return chz.replace(config, **changes)


def with_located_kl_reference(config: Config) -> Config:
    """Return the config with the path of the KL reference's checkpoint in place of a run's
    directory: its latest one now, which stays the reference if that run continues."""
    reference = config.kl_reference_config
    if reference is None or reference.load_checkpoint_path is None:
        return config
    key = "kl_reference_config.load_checkpoint_path"
    given = reference.load_checkpoint_path
    path = locate_checkpoint(given, "sampler_weights", key, config.base_url)
    located = chz.replace(reference, load_checkpoint_path=path)
    return chz.replace(config, kl_reference_config=located)


def check_rl_keys(config: Config) -> None:
    """Raise ConfigurationError for keys that have no effect, or a max_tokens without room for a
    prompt."""
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
            " tokens for prompt and reply together; set it lower"
        )


def check_kl_reference(config: Config) -> None:
    """Raise ConfigurationError if a run from a checkpoint with a KL penalty names no reference.

    There is no good default: load_checkpoint_path is a training state, which cannot be sampled
    from, and the base model is not the policy before training.
    """
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
    """Raise ConfigurationError for a signal without comparable settings: a changed signal must not
    resume the same run."""
    for signal in config.signals:
        has_settings = dataclasses.is_dataclass(signal) or chz.is_chz(signal)
        if not has_settings and not callable(getattr(signal, "identity", None)):
            raise ConfigurationError(
                f"signals: {type(signal).__name__} does not expose its settings; make it a"
                " dataclass, or give it a method identity() -> dict"
            )


def check_batch(config: Config, num_groups: int, asked: Config) -> None:
    """Raise ConfigurationError for keys that do not fit the data's batches."""
    for name in ("async_config", "stream_minibatch_config"):
        alias_config = getattr(asked, name)
        if alias_config is not None and alias_config.groups_per_batch != num_groups:
            raise ConfigurationError(
                f"{name}.groups_per_batch={alias_config.groups_per_batch}, but the data's batches"
                f" have {num_groups} groups: set both to the same value"
            )
    parts = config.num_substeps * config.num_minibatches
    if parts > num_groups:
        key = "num_substeps" if config.num_substeps > num_groups else "num_minibatches"
        raise ConfigurationError(
            f"{key}={getattr(config, key)}: a batch has only {num_groups} groups, too few for"
            f" {config.num_substeps} optimizer steps of {config.num_minibatches} minibatches"
        )


def startup_lines(
    resolved: Resolved[Config, Groups],
    total_steps: int,
    num_groups: int,
    signals: Sequence[Signal],
) -> list[str]:
    """Lines about the run to log before training starts."""
    config = resolved.config
    mode = "synchronous" if not config.max_lag else f"at most {config.max_lag} steps off-policy"
    lines = [
        f"{total_steps} steps of {num_groups} groups, {mode}, {config.loss_fn}, learning_rate"
        f" {resolved.learning_rate:g} {config.lr_schedule}, LoRA rank {config.lora_rank}"
    ]
    batch_signals = [type(signal).__name__ for signal in signals if signal.needs_batch]
    if batch_signals and config.num_minibatches > 1:
        lines.append(
            f"{', '.join(batch_signals)} needs the whole batch of an optimizer step:"
            " num_minibatches has no effect"
        )
    return lines
