"""Reinforcement learning, the first recipe: nano learns to add by learning to think first.

    ./scripts/run recipes.rl_basic                                    nano, no key needed
    ./scripts/run recipes.rl_basic model_name=Qwen/Qwen3-8B           GSM8K from the hub
    ./scripts/run recipes.rl_basic max_lag=2 num_minibatches=4        off-policy by up to 2 steps
    ./scripts/run recipes.rl_basic config=configs/rl_basic/qwen3-8b-1xh100.yaml

nano is asked for sums of two numbers below 100 and paid 1 for a right answer. At first it mostly
answers with a bare number; it finds out that sums worked out column by column in <think> are right.
500 held-out sums are evaluated every 12 steps, sampled and greedily. Every rollout can be read in
the run's directory: iteration_000012/train.html.

Without keys, seeds 0, 1 and 2 (29 November 2026, 2 CPU cores, one thread: 107 to 110 s of CPU time,
a third of it evaluations); 24 steps of 32 sums with 8 replies each:

| step | mean reward | reply tokens | held-out right, sampled | held-out right, greedy |
|---|---|---|---|---|
| 0 | 0.47, 0.49, 0.50 | 10, 11, 10 | 0.48 | 0.91 |
| 3 | 0.62, 0.59, 0.64 | 12, 13, 12 | | |
| 6 | 0.81, 0.83, 0.82 | 19, 19, 18 | | |
| 9 | 0.93, 0.96, 0.93 | 25, 24, 24 | | |
| 12 | 0.97, 0.94, 0.96 | 27, 26, 26 | 0.97, 0.97, 0.97 | 1.00, 1.00, 1.00 |
| 23 | 0.96, 0.98, 0.98 | 26, 26, 27 | 0.97, 0.98, 0.97 | 1.00, 1.00, 1.00 |

(Held-out figures of row 23 are those after the last step.) Other learning rates and ranks:
docs/choosing.md.
"""

from __future__ import annotations

import chz
from chz.blueprint import Reference

from recipes.math_rl.arithmetic import Arithmetic
from recipes.math_rl.gsm8k import Gsm8k
from tinker_cookbook.cli_utils import cli
from tinker_cookbook.rl import train
from tinker_cookbook.rl.defaults import RL
from tinker_cookbook.rl.problem_config import (
    ALIASES,
    FIRST_KEYS,
    ProblemConfig,
    resolve_problem_config,
)


@chz.chz
class CLI(ProblemConfig):
    eval_every: int = chz.field(default=12, doc="steps (0: only before and after training)")
    eval_greedy: bool = chz.field(
        default=True, doc="evaluate the most likely replies, too: test_greedy/..."
    )


async def main(config: CLI) -> None:
    bundled = config.model_name == "nano"
    data = Arithmetic(num_batches=24) if bundled else Gsm8k()
    await train.run(resolve_problem_config(config, RL, data), recipe="rl_basic")


def build_config_blueprint() -> chz.Blueprint[train.Config]:
    """The run without keys, for programs that apply keys of their own and call `train.main`."""
    config = resolve_problem_config(CLI(), RL, Arithmetic(num_batches=24)).config
    return chz.Blueprint(train.Config).apply(
        {
            "dataset_builder": Arithmetic,
            "dataset_builder.num_batches": 24,
            "dataset_builder.model_name_for_tokenizer": Reference("model_name"),
            "dataset_builder.renderer_name": Reference("renderer_name"),
            "dataset_builder.seed": Reference("seed"),
            "dataset_builder.group_size": config.group_size,
            "dataset_builder.groups_per_batch": config.groups_per_batch,
            "model_name": config.model_name,
            "renderer_name": config.renderer_name,
            "seed": config.seed,
            "eval_every": config.eval_every,
            "eval_greedy": config.eval_greedy,
        }
    )


if __name__ == "__main__":
    cli(main, CLI, ALIASES, FIRST_KEYS)
