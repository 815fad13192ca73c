"""Default hyperparameters of self-distillation: for nano and for all other models."""

from __future__ import annotations

from dataclasses import dataclass

from tinker_cookbook.renderers.lengths import MAX_LENGTH, NANO_MAX_LENGTH
from tinker_cookbook.supervised.defaults import Batches
from tinker_cookbook.training.defaults import Defaults, ModelDefaults


@dataclass(frozen=True)
class SelfDistillationSizes(Batches):
    """batch_size: questions per step. max_tokens: tokens per completion. skip_first_tokens: tokens
    at the beginning of a completion that are not trained."""

    max_tokens: int
    skip_first_tokens: int


# nano's replies begin with what matters; its rate: of 1e-3, 3e-3, 6e-3 and 1e-2, see recipes/sdft
SDFT_DEFAULTS = Defaults(
    nano=ModelDefaults(
        SelfDistillationSizes(
            batch_size=32, max_length=NANO_MAX_LENGTH, max_tokens=24, skip_first_tokens=0
        ),
        learning_rate=6e-3,
        renderer_name="qwen3_instruct",
    ),
    others=ModelDefaults(
        SelfDistillationSizes(
            batch_size=32, max_length=MAX_LENGTH, max_tokens=2048, skip_first_tokens=3
        ),
        learning_rate=2e-5,
    ),
    within_context=("max_length",),
)
