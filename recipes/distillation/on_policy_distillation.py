r"""On-policy distillation: a student learns from a teacher's probabilities of its own replies.

    ./scripts/run recipes.distillation.on_policy_distillation
    ./scripts/run recipes.distillation.on_policy_distillation teacher_checkpoint=RUN data=Arithmetic
    ./scripts/run recipes.distillation.on_policy_distillation model_name=Qwen/Qwen3-4B-Base \
        renderer_name=qwen3 teacher_model=Qwen/Qwen3-8B dataset=deepmath
    ./scripts/run recipes.distillation.on_policy_distillation \
        config=configs/on_policy_distillation/qwen3-4b-1xh100.yaml

The teacher is a model with the student's tokenizer and chat template: a larger one, or any
checkpoint, e.g. of reinforcement learning. It does not reply, it only scores the student's replies.
As an adapter of the student's base model it shares the student's batches.

Without keys, nano learns sums from itself after 24 steps of reinforcement learning (rl_basic),
which are run once for all later runs. Seeds 0, 1 and 2 (29 November 2026, 2 CPU cores, one thread:
65 to 72 s of CPU time, and 80 s once for the teacher), 20 steps of 32 sums with 4 replies each:

| step | 0 | 4 | 6 | 8 | 10 | 19 |
|---|---|---|---|---|---|---|
| teacher_kl, seed 0 | 1.31 | 0.39 | 0.12 | 0.020 | 0.012 | 0.002 |
| seed 1 | 1.06 | 0.34 | 0.14 | 0.020 | 0.007 | -0.000 |
| seed 2 | 0.97 | 0.29 | 0.12 | 0.025 | 0.020 | 0.002 |
| sums right, mean of the seeds | 0.44 | 0.63 | 0.77 | 0.93 | 0.92 | 0.96 |
| tokens sampled before the step | 0 | 6,000 | 11,000 | 17,000 | 23,500 | 54,000 |

Held-out sums right, sampled: 0.48 before, 0.95, 0.94 and 0.97 after; the teacher 0.97. The teacher
was in 0.93 of its training sums right after 42,000 sampled tokens and took 137,000 in all.
"""

from __future__ import annotations

import chz

from recipes.distillation.nano_teachers import train_teacher
from recipes.distillation.prompt_data import prompts_of
from recipes.distillation.student import describe_student
from recipes.math_rl.arithmetic import Arithmetic
from tinker_cookbook import models
from tinker_cookbook.cli_utils import cli
from tinker_cookbook.distillation import train_on_policy
from tinker_cookbook.distillation.teacher import TeacherConfig
from tinker_cookbook.distillation.train_on_policy import ALIASES, DEFAULTS, FIRST_KEYS, Config
from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.rl.problem_config import resolve_problem_config
from tinker_cookbook.rl.types import RLDatasetBuilder
from tinker_cookbook.utils.json_types import Json

NANO_STEPS = 20


@chz.chz
class CLI(Config):
    dataset: str | None = chz.field(
        default=None,
        doc="prompts: deepmath, tulu3, a file, a directory or a hub data set (None: deepmath;"
        " nano: sums)",
    )
    dataset_builder: RLDatasetBuilder | None = chz.field(
        default=None,
        doc="prompts with more keys, or problems, whose rewards are measured and not trained on,"
        " e.g. data=Gsm8k (None: see dataset)",
    )

    @staticmethod
    def drop_resolved_keys(config: dict[str, Json]) -> dict[str, Json]:
        config = Config.drop_resolved_keys(config)
        named = ("dataset_builder",) if config.get("dataset") else ()  # dataset= says it
        return {key: value for key, value in config.items() if key not in named}


async def main(config: CLI) -> None:
    if config.dataset and config.dataset_builder:
        raise ConfigurationError(
            f"dataset={config.dataset} and data= both name the prompts: drop either"
        )
    config = chz.replace(config, teacher=await _teacher(config))
    resolved = resolve_problem_config(config, DEFAULTS, data_of(config))
    directory = await train_on_policy.run(resolved, recipe="on_policy_distillation")
    print(describe_student(directory))


def data_of(config: CLI) -> RLDatasetBuilder:
    if config.dataset is None and models.is_nano(config.model_name):
        return Arithmetic(num_batches=NANO_STEPS)
    return prompts_of(config.dataset or "deepmath")


async def _teacher(config: CLI) -> TeacherConfig:
    """The teacher; nano's default is trained first, if it is not there."""
    if config.teacher != TeacherConfig():
        return config.teacher
    if not models.is_nano(config.model_name) or config.dataset or config.dataset_builder:
        raise ConfigurationError(
            "no teacher: set teacher_model= to a model with the same tokenizer, e.g. a larger one,"
            " or teacher_checkpoint="
        )
    return TeacherConfig(load_checkpoint_path=await train_teacher("sums", config))


if __name__ == "__main__":
    cli(main, CLI, ALIASES, ["dataset" if key == "data" else key for key in FIRST_KEYS])
