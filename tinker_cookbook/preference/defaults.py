"""Default hyperparameters of preference optimization: for nano and for all other models."""

from __future__ import annotations

from tinker_cookbook.renderers.lengths import NANO_MAX_LENGTH
from tinker_cookbook.supervised.defaults import Batches
from tinker_cookbook.training.defaults import Defaults, ModelDefaults

# batch_size counts pairs. nano's rate: of 3e-4, 6e-4 and 1e-3, see recipes/preference/dpo.
DPO_DEFAULTS = Defaults(
    nano=ModelDefaults(
        Batches(batch_size=32, max_length=NANO_MAX_LENGTH),
        learning_rate=6e-4,
        renderer_name="qwen3_instruct",
    ),
    others=ModelDefaults(Batches(batch_size=256, max_length=8192), learning_rate=1e-5),
    within_context=("max_length",),
)
