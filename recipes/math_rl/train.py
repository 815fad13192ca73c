r"""Reinforcement learning on problems whose answers can be checked.

    ./scripts/run recipes.math_rl.train                                        nano adds
    ./scripts/run recipes.math_rl.train env=gsm8k data.path=DIRECTORY          a local copy
    ./scripts/run recipes.math_rl.train model_name=Qwen/Qwen3-8B env=math      from the hub
    ./scripts/run recipes.math_rl.train env=OwnProblems data.path=problems.jsonl
    ./scripts/run recipes.math_rl.train config=configs/math_rl/qwen3-8b-gsm8k-1xh100.yaml

`env` (or `data`, the same): arithmetic, word_problems (generated), gsm8k, math (trained without
MATH-500, tested on it), polaris, deepmath, or a file of your own.

Without keys, nano learns to add: the first 24 steps are those of rl_basic, and it goes on to 100.
Seed 0 (29 November 2026, 2 CPU cores, one thread: 5 min 40 s of CPU time): held-out sums right,
sampled, 0.48 (step 0) -> 0.98 (20) -> 0.99 (40) -> 0.98 (60) -> 0.99 (80) -> 0.99 (100).

GSM8K is too hard for nano, so `env=gsm8k` only shows that everything runs: 3 steps of 32 x 8
replies, 26 s of CPU time, held out 0 of 100 right before and after. nano writes a number into the
box that it is asked for, but its sums have two numbers and no story:

    How much does she save? ... Put the answer in \boxed{}.  ->  \boxed{61}

Word problems are too hard for nano, too. `env=word_problems max_steps=2 groups_per_batch=8
group_size=4 data.test_size=32` takes 7 s of CPU time, held out 1 of 32 right before and 2 after:

    step 0/2  reward 0.2469  mixed groups 0.125  reply tokens 5.188  ...  test correct 0.03125
    step 1/2  reward -0.003125  mixed groups 0.125  reply tokens 4.812  ...
    step 2/2  test reward 0.0625  test correct 0.0625

SmolLM2-135M learns them on a laptop, from 9 % to 82 % of the held-out ones in 60 steps (two seeds),
those of two operations from 10 % to 38 %: configs/math_rl/smollm2-135m-word-problems.yaml,
docs/real_model.md.

AIME is for evaluation: recipes.math_rl.aime.
"""

from __future__ import annotations

from typing import Any

import chz

from recipes.math_rl.arithmetic import Arithmetic
from recipes.math_rl.deepmath import DeepMath
from recipes.math_rl.gsm8k import Gsm8k
from recipes.math_rl.hendrycks_math import Math
from recipes.math_rl.math_datasets import MathDatasetBuilder
from recipes.math_rl.own_problems import OwnProblems
from recipes.math_rl.polaris import Polaris
from recipes.math_rl.word_problems import WordProblems
from tinker_cookbook.cli_utils import cli
from tinker_cookbook.rl import problem_config, train
from tinker_cookbook.rl.defaults import LEARNING_RATE, NANO, Groups
from tinker_cookbook.rl.problem_config import ProblemConfig, resolve_problem_config
from tinker_cookbook.rl.types import RLDatasetBuilder
from tinker_cookbook.training.defaults import Defaults, ModelDefaults

DEFAULTS = Defaults(
    nano=NANO,
    others=ModelDefaults(
        Groups(groups_per_batch=100, group_size=4, max_tokens=1024), learning_rate=LEARNING_RATE
    ),
)
ENVS: dict[str, type[MathDatasetBuilder]] = {
    "arithmetic": Arithmetic,
    "word_problems": WordProblems,
    "gsm8k": Gsm8k,
    "math": Math,
    "polaris": Polaris,
    "deepmath": DeepMath,
    "own": OwnProblems,
}
ALIASES = {**problem_config.ALIASES, "env": "dataset_builder"}


class _ByName(chz.factories.standard):
    """Looks a data set up by its short name in ENVS, or else by its class name."""

    names = ENVS

    def from_string(self, factory: str) -> Any:
        return super().from_string(ENVS[factory].__name__ if factory in ENVS else factory)


@chz.chz
class CLI(ProblemConfig):
    dataset_builder: RLDatasetBuilder | None = chz.field(
        default=None,
        meta_factory=_ByName(annotation=RLDatasetBuilder | None),
        doc="problems to train on, by name or class (None: arithmetic)",
    )


async def main(config: CLI) -> None:
    await train.run(resolve_problem_config(config, DEFAULTS, Arithmetic()), recipe="math_rl")


if __name__ == "__main__":
    cli(main, CLI, ALIASES, ["env" if k == "data" else k for k in problem_config.FIRST_KEYS])
