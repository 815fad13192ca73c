"""A first RL recipe: the bundled model nano learns addition by learning to reason first.

    ./scripts/run recipes.rl_basic                                    nano, all defaults
    ./scripts/run recipes.rl_basic model_name=Qwen/Qwen3-8B           GSM8K from the hub
    ./scripts/run recipes.rl_basic max_lag=2 num_minibatches=4        off-policy by up to 2 steps
    ./scripts/run recipes.rl_basic config=configs/rl_basic/qwen3-8b-1xh100.yaml

nano is asked to add two numbers below 100; a correct answer has reward 1. At first it mostly
answers with a bare number; it learns to work sums out column by column in <think> first.
It is evaluated on 500 held-out sums every 12 steps, with sampling and with greedy decoding. Every
rollout can be read in the run's directory: iteration_000012/train.html.

Results with all defaults for seeds 0, 1 and 2: 24 steps, 32 sums per step, 8 replies per sum
(29 November 2026, 2 CPU cores, one thread: 107 to 110 s of CPU time, a third of it for evaluation):

| step | mean reward | reply tokens | held-out right, sampled | held-out right, greedy |
|---|---|---|---|---|
| 0 | 0.47, 0.49, 0.50 | 10, 11, 10 | 0.48 | 0.91 |
| 3 | 0.62, 0.59, 0.64 | 12, 13, 12 | | |
| 6 | 0.81, 0.83, 0.82 | 19, 19, 18 | | |
| 9 | 0.93, 0.96, 0.93 | 25, 24, 24 | | |
| 12 | 0.97, 0.94, 0.96 | 27, 26, 26 | 0.97, 0.97, 0.97 | 1.00, 1.00, 1.00 |
| 23 | 0.96, 0.98, 0.98 | 26, 26, 27 | 0.97, 0.98, 0.97 | 1.00, 1.00, 1.00 |

(In row 23, held-out accuracy is from after the last step.) Other learning rates and ranks:
docs/choosing.md.
"""

from __future__ import annotations

import chz
from chz.blueprint import Reference

from recipes.math_rl.arithmetic import Arithmetic
from recipes.math_rl.gsm8k import Gsm8k
from tinker_cookbook.cli_utils import cli
from tinker_cookbook.rl import train
from tinker_cookbook.rl.defaults import RL_DEFAULTS
from tinker_cookbook.rl.problem_config import (
    ALIASES,
    FIRST_KEYS,
    ProblemConfig,
    resolve_problem_config,
)


@chz.chz
class CLI(ProblemConfig):
    eval_every: int = chz.field(
        default=12, doc="steps between evaluations (0: only before and after training)"
    )
    eval_greedy: bool = chz.field(
        default=True, doc="also evaluate with greedy decoding, as test_greedy/..."
    )


async def main(config: CLI) -> None:
    is_nano = config.model_name == "nano"
    data = Arithmetic(num_batches=24) if is_nano else Gsm8k()
    await train.run(resolve_problem_config(config, RL_DEFAULTS, data), recipe="rl_basic")


def build_config_blueprint() -> chz.Blueprint[train.Config]:
    """Return the default run as a blueprint, for programs that override its fields and then call
    `train.main`."""
    # Set only what differs from train.Config's defaults. References keep the data set consistent
    # with the policy if the caller changes the model, renderer or seed.
    config = resolve_problem_config(CLI(), RL_DEFAULTS, Arithmetic(num_batches=24)).config
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
