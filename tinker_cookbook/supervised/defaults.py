"""What supervised fine-tuning takes where the user says nothing."""

from __future__ import annotations

from dataclasses import dataclass

from tinker_cookbook.hyperparam_utils import NANO_LR
from tinker_cookbook.renderers.lengths import MAX_LENGTH, NANO_MAX_LENGTH
from tinker_cookbook.training.defaults import Defaults, ModelDefaults


@dataclass(frozen=True)
class Batches:
    """batch_size: examples a step. max_length: tokens an example."""

    batch_size: int
    max_length: int


NANO = ModelDefaults(
    Batches(batch_size=32, max_length=NANO_MAX_LENGTH),
    learning_rate=NANO_LR,
    renderer_name="qwen3_instruct",
)
SL = Defaults(
    nano=NANO,
    others=ModelDefaults(Batches(batch_size=128, max_length=MAX_LENGTH)),
    within_context=("max_length",),
)
