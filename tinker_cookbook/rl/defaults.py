"""What reinforcement learning takes where the user says nothing."""

from __future__ import annotations

from dataclasses import dataclass

from tinker_cookbook.training.defaults import Defaults, ModelDefaults


@dataclass(frozen=True)
class Groups:
    """groups_per_batch: problems a step. group_size: attempts at each. max_tokens: of a reply."""

    groups_per_batch: int
    group_size: int
    max_tokens: int


# What the recipes of the Tinker cookbook have in common, well below the rate of supervised
# fine-tuning: the gradients are noisier, and a policy that changes fast no longer fits what it has
# sampled.
LEARNING_RATE = 4e-5

NANO = ModelDefaults(
    Groups(groups_per_batch=32, group_size=8, max_tokens=40),
    learning_rate=1e-3,
    renderer_name="qwen3_instruct",
)
RL = Defaults(
    nano=NANO,
    others=ModelDefaults(
        Groups(groups_per_batch=128, group_size=16, max_tokens=256), learning_rate=LEARNING_RATE
    ),
)
