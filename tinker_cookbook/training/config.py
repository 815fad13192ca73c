"""Config fields common to all training loops: model, adapter, optimizer, evaluation, run.

The `doc=` texts are shown by every recipe's `--help`. A loop that redeclares a field instead of
inheriting it must use the same text; tests/help_texts_test.py checks this.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import chz

from tinker_cookbook.service import EngineConfig
from tinker_cookbook.training.evaluators import EvaluatorBuilder
from tinker_cookbook.training.fields import (
    COUNT,
    DECAY_RATE,
    MAY_CHANGE,
    NON_NEGATIVE,
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

# the defaults of adam_beta1, adam_beta2 and adam_eps; loops without these fields use them directly
ADAM = {"beta1": 0.9, "beta2": 0.95, "eps": 1e-8}


@chz.chz
class ProgramConfig(CheckedConfig):
    """The keys that the stages of a program share: its model, directory, service and display."""

    model_name: str = chz.field(default="nano", doc="base model: nano (bundled), hub name or path")
    renderer_name: str | None = chz.field(
        default=None,
        doc="renderer, i.e. chat template (None: the checkpoint's, else the model's default)",
    )
    max_steps: int | None = chz.field(
        default=None,
        doc="maximum number of steps (None: all the data); also the length of the learning-rate"
        " schedule",
        metadata=COUNT | MAY_CHANGE,
    )
    seed: int = chz.field(
        default=0, doc="random seed (initialization, data, sampling)", metadata=SEED
    )

    log_path: str | None = chz.field(
        default=None, doc="run directory (None: named after the config)", metadata=MAY_CHANGE
    )
    behavior_if_log_dir_exists: LogDirBehavior | None = chz.field(
        default=None,
        doc="what to do if the run directory already holds a run (None: resume it if config and"
        " code match; resume: also with edited code; skip: exit if it is finished)",
        metadata=MAY_CHANGE,
    )
    base_url: str | None = chz.field(
        default=None, doc="Tinker API server URL (None: run in process)"
    )
    engine: EngineConfig = chz.field(
        default_factory=EngineConfig, doc="in-process engine settings", metadata=MAY_CHANGE
    )
    display: DisplayMode = chz.field(
        default="auto", doc="progress display (auto: live on a terminal)", metadata=MAY_CHANGE
    )
    wandb_project: str | None = chz.field(
        default=None, doc="Weights & Biases project (None: no wandb)", metadata=MAY_CHANGE
    )
    wandb_name: str | None = chz.field(
        default=None, doc="name of the Weights & Biases run", metadata=MAY_CHANGE
    )


@chz.chz
class LoopConfig(ProgramConfig):
    """Base class of the loops' configs. `resolve_defaults` replaces the Nones at start-up."""

    load_checkpoint_path: str | None = chz.field(
        default=None,
        doc="initial weights, with a fresh optimizer: a tinker:// path, a run directory (its last"
        " checkpoint) or a PEFT adapter directory (None: a new adapter)",
    )

    learning_rate: float | None = chz.field(
        default=None,
        doc="learning rate, before any schedule (None: the default for the model)",
        metadata=NON_NEGATIVE,
    )
    lr_schedule: LRSchedule = chz.field(
        default="constant",
        doc="learning-rate schedule, without warm-up; linear and cosine decay to 0 over the run",
    )
    lora_rank: int = chz.field(default=32, doc="LoRA rank", metadata=COUNT)
    train_attn: bool = chz.field(default=True, doc="train LoRA weights on the attention layers")
    train_mlp: bool = chz.field(default=True, doc="train LoRA weights on the MLP layers")
    train_unembed: bool = chz.field(default=True, doc="train LoRA weights on the unembedding layer")
    adam_beta1: float = chz.field(
        default=ADAM["beta1"], doc="Adam: decay rate of the first moment", metadata=DECAY_RATE
    )
    adam_beta2: float = chz.field(
        default=ADAM["beta2"], doc="Adam: decay rate of the second moment", metadata=DECAY_RATE
    )
    adam_eps: float = chz.field(
        default=ADAM["eps"], doc="Adam: epsilon, added to the denominator", metadata=POSITIVE
    )
    weight_decay: float = chz.field(
        default=0.0, doc="AdamW: decoupled weight decay", metadata=NON_NEGATIVE
    )
    grad_clip_norm: float = chz.field(
        default=0.0, doc="maximum gradient norm (0: no clipping)", metadata=NON_NEGATIVE
    )

    evaluator_builders: list[EvaluatorBuilder] = chz.field(
        default_factory=list, doc="evaluators to run every eval_every steps", metadata=MAY_CHANGE
    )
    infrequent_evaluator_builders: list[EvaluatorBuilder] = chz.field(
        default_factory=list,
        doc="evaluators to run every infrequent_eval_every steps",
        metadata=MAY_CHANGE,
    )
    eval_every: int = chz.field(
        default=20,
        doc="steps between evaluations (0: only before and after training)",
        metadata=NON_NEGATIVE | MAY_CHANGE,
    )
    infrequent_eval_every: int = chz.field(
        default=100,
        doc="steps between infrequent evaluations (0: only before and after training)",
        metadata=NON_NEGATIVE | MAY_CHANGE,
    )
    save_every: int = chz.field(
        default=20,
        doc="steps between checkpoints (0: only the final one)",
        metadata=NON_NEGATIVE | MAY_CHANGE,
    )
    rolling_save_every: int = chz.field(
        default=0,
        doc="steps between rolling checkpoints, each replacing the one before (0: none)",
        metadata=NON_NEGATIVE | MAY_CHANGE,
    )
    ttl_seconds: int | None = chz.field(
        default=604_800,
        doc="seconds to keep a periodic checkpoint after the next one is saved (None: forever)",
        metadata=COUNT | MAY_CHANGE,
    )

    def identity(self) -> Mapping[str, Plain]:
        """Identify a PEFT adapter by its content, so replacing its files makes a different run."""
        return adapter_identity(self.load_checkpoint_path)


def adam_params(config: LoopConfig, learning_rate: float) -> tinker.AdamParams:
    import tinker  # imported here, so that --help and config errors do not wait for torch

    return tinker.AdamParams(
        learning_rate=learning_rate,
        beta1=config.adam_beta1,
        beta2=config.adam_beta2,
        eps=config.adam_eps,
        weight_decay=config.weight_decay,
        grad_clip_norm=config.grad_clip_norm,
    )
