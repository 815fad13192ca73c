"""RL with pairwise rewards, the smallest example: among replies to one prompt, the shorter wins.

    ./scripts/run recipes.preference.shorter.train                                    nano
    ./scripts/run recipes.preference.shorter.train model_name=Qwen/Qwen3-8B
    ./scripts/run recipes.preference.shorter.train data=Shorter data.comparison_builder.prompt="Hi!"
    ./scripts/run recipes.preference.shorter.train config=configs/shorter/qwen3-8b-1xh100.yaml

The replies of a group are compared in fours, each pair in both orders; the one with fewer
characters wins. The reward is (wins - losses) / comparisons, so its mean is 0 in every step: reply
tokens show the progress.

Without keys, nano is asked to "Write a sentence about the kite.", 8 groups of 16 replies per step;
30 steps, seeds 0, 1 and 2 (29 November 2026, one thread: 54 to 59 s of CPU time):

| step | reply tokens | characters | the most frequent reply of seed 0 |
|---|---|---|---|
| 0 | 9.4, 9.6, 9.7 | 28, 28, 28 | The kite is near the train. |
| 5 | 8.7, 9.0, 9.0 | 25, 25, 25 | The kite is near the train. |
| 10 | 8.8, 8.8, 8.7 | 23, 22, 23 | Emma has a white kite. |
| 15 | 8.5, 8.5, 8.6 | 20, 20, 20 | Ben has a brown kite. |
| 18 | 6.3, 4.5, 7.3 | 14, 9, 16 | Ben |
| 20 | 3.2, 3.1, 7.0 | 4, 3, 16 | Ben |
| 25 | 3.1, 2.0, 4.4 | 3, 1, 6 | Ben |
| 29 | 2.0, 2.0, 4.0 | 1, 1, 4 | B |

First nano finds the short names and words among its sentences, then that nothing but the length
counts: seeds 0 and 1 end with "B", seed 2 with "Bye!". The policy does exactly what the judge
rewards. With kl_penalty_coef=0.3, seed 0 still writes sentences after 30 steps ("Sam has a brown
kite."), 8.5 tokens long; with 0.1 it ends with "Bye!", 4.0 tokens.
"""

from __future__ import annotations

import chz

from recipes.preference.shorter.shorter_replies import ConstantPrompt, Shorter
from tinker_cookbook.cli_utils import cli
from tinker_cookbook.preference import (  # classes for the keys of data=
    preference_datasets,  # noqa: F401
    prompted_judge,  # noqa: F401
)
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
