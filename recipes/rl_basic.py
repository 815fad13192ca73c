"""Reinforcement learning, the first recipe: nano learns to add by learning to think first.

./scripts/run recipes.rl_basic                                    nano, no key needed
./scripts/run recipes.rl_basic model_name=Qwen/Qwen3-8B           GSM8K from the hub
./scripts/run recipes.rl_basic max_lag=2 num_minibatches=4        playing while it trains
./scripts/run recipes.rl_basic config=configs/rl_basic/qwen3-8b-1xh100.yaml
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
