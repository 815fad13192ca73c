"""RL with pairwise rewards, the smallest example: among replies to one prompt, the shorter wins.

./scripts/run recipes.preference.shorter.train                                    nano
./scripts/run recipes.preference.shorter.train model_name=Qwen/Qwen3-8B
./scripts/run recipes.preference.shorter.train data=Shorter data.comparison_builder.prompt="Hi!"
"""

from __future__ import annotations

import chz

from recipes.preference.shorter.shorter_replies import ConstantPrompt, Shorter
from tinker_cookbook.cli_utils import cli
from tinker_cookbook.rl import train
from tinker_cookbook.rl.defaults import Groups
from tinker_cookbook.rl.problem_config import (
    ALIASES,
    FIRST_KEYS,
    ProblemConfig,
    resolve_problem_config,
)
from tinker_cookbook.rl.types import RLDatasetBuilder
from tinker_cookbook.training.defaults import Defaults, ModelDefaults

NANO_PROMPT = "Write a sentence about the kite."
NANO_STEPS = 30
DEFAULTS = Defaults(
    nano=ModelDefaults(
        Groups(groups_per_batch=8, group_size=16, max_tokens=64),
        learning_rate=1e-3,
        renderer_name="qwen3_instruct",
    ),
    others=ModelDefaults(
        Groups(groups_per_batch=32, group_size=16, max_tokens=64), learning_rate=3e-5
    ),
)


@chz.chz
class CLI(ProblemConfig):
    dataset_builder: RLDatasetBuilder | None = chz.field(
        default=None,
        doc="prompts, and the judge of the replies (None: data=Shorter, one prompt and the shorter"
        " reply wins)",
    )
    compute_post_kl: bool = chz.field(
        default=True,
        doc="measure the KL of the sampling policy to the policy after each step, on the step's"
        " samples",
    )


def default_data(model_name: str) -> Shorter:
    if model_name != "nano":
        return Shorter()
    num_prompts = NANO_STEPS * DEFAULTS.nano.sizes.groups_per_batch
    return Shorter(comparison_builder=ConstantPrompt(prompt=NANO_PROMPT, num_prompts=num_prompts))


async def main(config: CLI) -> None:
    data = default_data(config.model_name)
    await train.run(resolve_problem_config(config, DEFAULTS, data), recipe="shorter")


if __name__ == "__main__":
    cli(main, CLI, ALIASES, FIRST_KEYS)
