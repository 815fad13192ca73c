"""On-policy distillation: a student learns from a teacher's probabilities of its own replies.

./scripts/run recipes.distillation.on_policy_distillation
"""

from __future__ import annotations

import chz

from recipes.distillation.nano_teachers import train_teacher
from recipes.math_rl.arithmetic import Arithmetic
from tinker_cookbook.cli_utils import cli
from tinker_cookbook.distillation import train_on_policy
from tinker_cookbook.distillation.datasets import PromptOnlyDatasetBuilder
from tinker_cookbook.distillation.teacher import TeacherConfig
from tinker_cookbook.distillation.train_on_policy import ALIASES, DEFAULTS, FIRST_KEYS, Config
from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.rl.problem_config import resolve_problem_config
from tinker_cookbook.rl.types import RLDatasetBuilder

NANO_STEPS = 20


@chz.chz
class CLI(Config):
    dataset_builder: RLDatasetBuilder | None = chz.field(
        default=None,
        doc="prompts, e.g. data=Gsm8k (None: DeepMath's questions; nano: sums). Their rewards are"
        " measured, not trained on",
    )


async def main(config: CLI) -> None:
    nano = config.model_name == "nano"
    if config.teacher == TeacherConfig():
        if not nano:
            raise ConfigurationError(
                "no teacher: set teacher_model= to a larger model with the same tokenizer, or"
                " teacher_checkpoint="
            )
        if config.dataset_builder is None:
            teacher = TeacherConfig(load_checkpoint_path=await train_teacher("sums", config))
            config = chz.replace(config, teacher=teacher)
    data = Arithmetic(num_batches=NANO_STEPS) if nano else PromptOnlyDatasetBuilder()
    resolved = resolve_problem_config(config, DEFAULTS, data)
    await train_on_policy.run(resolved, recipe="on_policy_distillation")


if __name__ == "__main__":
    cli(main, CLI, ALIASES, FIRST_KEYS)
