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
    MAY_CHANGE,
    NOT_NEGATIVE,
    POSITIVE,
    SEED,
    CheckedConfig,
)
from tinker_cookbook.training.run_directory import LogDirBehavior
from tinker_cookbook.utils.data_identity import adapter_identity
from tinker_cookbook.utils.display import DisplayMode
from tinker_cookbook.utils.json_types import Plain
from tinker_cookbook.utils.lr_scheduling import LRSchedule

if TYPE_CHECKING:
    import tinker

ADAM = {"beta1": 0.9, "beta2": 0.95, "eps": 1e-8}  # of every loop that has no keys of its own


@chz.chz
class LoopConfig(CheckedConfig):
    """What a loop's own Config inherits. None: what suits data, checkpoint and model, see
    `resolve_defaults`."""

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
        default=None, doc="peak rate (None: by the model)", metadata=NOT_NEGATIVE
    )
    lr_schedule: LRSchedule = chz.field(default="constant", doc="how the rate falls")
    max_steps: int | None = chz.field(
        default=None,
        doc="steps at most (None: all the data); the schedule ends with them",
        metadata=COUNT | MAY_CHANGE,
    )
    lora_rank: int = chz.field(default=32, doc="rank of the adapter", metadata=COUNT)
    train_attn: bool = chz.field(default=True, doc="adapter on the attention layers")
    train_mlp: bool = chz.field(default=True, doc="adapter on the MLP layers")
    train_unembed: bool = chz.field(default=True, doc="adapter on the unembedding")
    seed: int = chz.field(
        default=0, doc="seed of the adapter's start and of all that is drawn", metadata=SEED
    )
    adam_beta1: float = chz.field(
        default=ADAM["beta1"], doc="Adam: decay of the gradient's mean", metadata=DECAY
    )
    adam_beta2: float = chz.field(
        default=ADAM["beta2"], doc="Adam: decay of its square", metadata=DECAY
    )
    adam_eps: float = chz.field(
        default=ADAM["eps"], doc="Adam: added to the denominator", metadata=POSITIVE
    )
    weight_decay: float = chz.field(
        default=0.0, doc="AdamW: decoupled decay", metadata=NOT_NEGATIVE
    )
    grad_clip_norm: float = chz.field(
        default=0.0, doc="bound on the gradient's norm (0: none)", metadata=NOT_NEGATIVE
    )

    evaluator_builders: list[EvaluatorBuilder] = chz.field(
        default_factory=list,
        doc="evaluations every eval_every steps",
        metadata=MAY_CHANGE,
    )
    infrequent_evaluator_builders: list[EvaluatorBuilder] = chz.field(
        default_factory=list,
        doc="evaluations every infrequent_eval_every steps",
        metadata=MAY_CHANGE,
    )
    eval_every: int = chz.field(
        default=20,
        doc="steps (0: only before and after training)",
        metadata=NOT_NEGATIVE | MAY_CHANGE,
    )
    infrequent_eval_every: int = chz.field(
        default=100, doc="steps (0: as above)", metadata=NOT_NEGATIVE | MAY_CHANGE
    )
    save_every: int = chz.field(
        default=20,
        doc="steps between checkpoints (0: only the final one)",
        metadata=NOT_NEGATIVE | MAY_CHANGE,
    )
    rolling_save_every: int = chz.field(
        default=0,
        doc="steps between checkpoints that replace each other (0: none)",
        metadata=NOT_NEGATIVE | MAY_CHANGE,
    )
    ttl_seconds: int | None = chz.field(
        default=604_800,
        doc="seconds that periodic checkpoints are kept (None: for good)",
        metadata=COUNT | MAY_CHANGE,
    )

    log_path: str | None = chz.field(
        default=None,
        doc="directory of the run (None: one in the runs directory)",
        metadata=MAY_CHANGE,
    )
    behavior_if_log_dir_exists: LogDirBehavior | None = chz.field(
        default=None,
        doc="for a directory that holds a run (None: resume it if it is this run; resume: also"
        " where the code of yours that it runs was edited)",
        metadata=MAY_CHANGE,
    )
    base_url: str | None = chz.field(default=None, doc="server to train on (None: in process)")
    engine: EngineConfig = chz.field(
        default_factory=EngineConfig,
        doc="settings of the engine in process",
        metadata=MAY_CHANGE,
    )
    display: DisplayMode = chz.field(
        default="auto",
        doc="what is shown of each step (auto: live on a terminal, else plain)",
        metadata=MAY_CHANGE,
    )
    wandb_project: str | None = chz.field(
        default=None, doc="log to this wandb project", metadata=MAY_CHANGE
    )
    wandb_name: str | None = chz.field(
        default=None, doc="name of the wandb run", metadata=MAY_CHANGE
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
