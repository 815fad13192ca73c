"""Default sizes and learning rates of reinforcement learning."""

from __future__ import annotations

from dataclasses import dataclass

from tinker_cookbook.training.defaults import Defaults, ModelDefaults


@dataclass(frozen=True)
class Groups:
    """groups_per_batch: problems per step. group_size: attempts at each. max_tokens: maximum length
    of a reply."""

    groups_per_batch: int
    group_size: int
    max_tokens: int


# The Tinker cookbook's usual value, well below learning rates of supervised fine-tuning: policy
# gradients are noisier, and a policy that changes quickly moves away from the samples it is trained
# on.
LEARNING_RATE = 4e-5

NANO = ModelDefaults(
    Groups(groups_per_batch=32, group_size=8, max_tokens=40),
    learning_rate=1e-3,
    renderer_name="qwen3_instruct",
)
RL_DEFAULTS = Defaults(
    nano=NANO,
    others=ModelDefaults(
        Groups(groups_per_batch=128, group_size=16, max_tokens=256), learning_rate=LEARNING_RATE
    ),
)
