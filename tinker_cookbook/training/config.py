"""The keys that every training loop has: model, adapter, optimizer, evaluations, run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import chz

from tinker_cookbook.service import EngineConfig
from tinker_cookbook.training.evaluators import EvaluatorBuilder
from tinker_cookbook.training.fields import (
    COUNT,
    DECAY,
    NOT_NEGATIVE,
    POSITIVE,
    SEED,
    CheckedConfig,
    rules,
)
from tinker_cookbook.training.run_directory import LogDirBehavior
from tinker_cookbook.utils.data_identity import adapter_identity
from tinker_cookbook.utils.display import DisplayMode
from tinker_cookbook.utils.lr_scheduling import LRSchedule
from tinker_cookbook.utils.plain_data import Plain

if TYPE_CHECKING:
    import tinker


@chz.chz
class LoopConfig(CheckedConfig):
    """What a loop's own Config inherits. None: what suits data, checkpoint and model, see
    `resolve`."""

    model_name: str = chz.field(
        default="nano", doc="base model: nano (bundled), a hub name, or a directory"
    )
    renderer_name: str | None = chz.field(
        default=None, doc="how messages become tokens (None: what suits model or checkpoint)"
    )
    load_checkpoint_path: str | None = chz.field(
        default=None,
        doc="tinker://..., the directory of a run (its last checkpoint) or of a PEFT adapter, to"
        " start from its weights with a fresh optimizer",
    )

    learning_rate: float | None = chz.field(
        default=None, doc="peak rate (None: by the model)", metadata=rules(NOT_NEGATIVE)
    )
    lr_schedule: LRSchedule = chz.field(default="constant", doc="how the rate falls")
    max_steps: int | None = chz.field(
        default=None,
        doc="steps at most (None: all the data); the schedule ends with them",
        metadata=rules(COUNT, may_change=True),
    )
    lora_rank: int = chz.field(default=32, doc="rank of the adapter", metadata=rules(COUNT))
    train_attn: bool = chz.field(default=True, doc="adapter on the attention layers")
    train_mlp: bool = chz.field(default=True, doc="adapter on the MLP layers")
    train_unembed: bool = chz.field(default=True, doc="adapter on the unembedding")
    seed: int = chz.field(
        default=0, doc="seed of the adapter's start and of all that is drawn", metadata=rules(SEED)
    )
    adam_beta1: float = chz.field(
        default=0.9, doc="Adam: decay of the gradient's mean", metadata=rules(DECAY)
    )
    adam_beta2: float = chz.field(
        default=0.95, doc="Adam: decay of its square", metadata=rules(DECAY)
    )
    adam_eps: float = chz.field(
        default=1e-8, doc="Adam: added to the denominator", metadata=rules(POSITIVE)
    )
    weight_decay: float = chz.field(
        default=0.0, doc="AdamW: decoupled decay", metadata=rules(NOT_NEGATIVE)
    )
    grad_clip_norm: float = chz.field(
        default=0.0, doc="bound on the gradient's norm (0: none)", metadata=rules(NOT_NEGATIVE)
    )

    evaluator_builders: list[EvaluatorBuilder] = chz.field(
        default_factory=list,
        doc="evaluations every eval_every steps",
        metadata=rules(may_change=True),
    )
    infrequent_evaluator_builders: list[EvaluatorBuilder] = chz.field(
        default_factory=list,
        doc="evaluations every infrequent_eval_every steps",
        metadata=rules(may_change=True),
    )
    eval_every: int = chz.field(
        default=20,
        doc="steps (0: only before and after training)",
        metadata=rules(NOT_NEGATIVE, may_change=True),
    )
    infrequent_eval_every: int = chz.field(
        default=100, doc="steps (0: as above)", metadata=rules(NOT_NEGATIVE, may_change=True)
    )
    save_every: int = chz.field(
        default=20,
        doc="steps between checkpoints (0: only the final one)",
        metadata=rules(NOT_NEGATIVE, may_change=True),
    )
    rolling_save_every: int = chz.field(
        default=0,
        doc="steps between checkpoints that replace each other (0: none)",
        metadata=rules(NOT_NEGATIVE, may_change=True),
    )
    ttl_seconds: int | None = chz.field(
        default=604_800,
        doc="seconds that periodic checkpoints are kept (None: for good)",
        metadata=rules(COUNT, may_change=True),
    )

    log_path: str | None = chz.field(
        default=None,
        doc="directory of the run (None: one in the runs directory)",
        metadata=rules(may_change=True),
    )
    behavior_if_log_dir_exists: LogDirBehavior | None = chz.field(
        default=None,
        doc="for a directory that holds a run (None: resume it if it is this run; resume: also"
        " where the code of yours that it runs was edited)",
        metadata=rules(may_change=True),
    )
    base_url: str | None = chz.field(default=None, doc="server to train on (None: in process)")
    engine: EngineConfig = chz.field(
        default_factory=EngineConfig,
        doc="settings of the engine in process",
        metadata=rules(may_change=True),
    )
    display: DisplayMode = chz.field(
        default="auto",
        doc="what is shown of each step (auto: live on a terminal, else plain)",
        metadata=rules(may_change=True),
    )
    wandb_project: str | None = chz.field(
        default=None, doc="log to this wandb project", metadata=rules(may_change=True)
    )
    wandb_name: str | None = chz.field(
        default=None, doc="name of the wandb run", metadata=rules(may_change=True)
    )

    def identity(self) -> Mapping[str, Plain]:
        """Another adapter in the same directory is another run."""
        return adapter_identity(self.load_checkpoint_path)


def adam_params(config: LoopConfig, learning_rate: float) -> tinker.AdamParams:
    import tinker  # brings torch along, which a program that only reads its keys need not wait for

    return tinker.AdamParams(
        learning_rate=learning_rate,
        beta1=config.adam_beta1,
        beta2=config.adam_beta2,
        eps=config.adam_eps,
        weight_decay=config.weight_decay,
        grad_clip_norm=config.grad_clip_norm,
    )
