r"""On-policy distillation from several teachers: one student learns each task from its own teacher.

./scripts/run recipes.distillation.on_policy_multi_teacher
"""

from __future__ import annotations

import chz

from recipes.distillation.nano_teachers import train_teacher
from recipes.distillation.prompt_data import Prompts  # noqa: F401 (a name for the command line)
from recipes.distillation.short_sums import ShortSums
from recipes.distillation.student import describe_student
from recipes.math_rl.arithmetic import Arithmetic
from tinker_cookbook.cli_utils import cli
from tinker_cookbook.distillation import train_on_policy
from tinker_cookbook.distillation.datasets import (
    DistillationDatasetConfig,
    TeacherDatasets,
)
from tinker_cookbook.distillation.teacher import TeacherConfig
from tinker_cookbook.distillation.train_on_policy import DEFAULTS, Config
from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.rl import problem_config
from tinker_cookbook.rl.problem_config import resolve_problem_config

NANO_STEPS = 60
NANO_GROUPS = {"sums": 8, "short_sums": 24}  # in a batch; short replies have a ninth of the tokens
ALIASES = {**problem_config.ALIASES, "datasets": "dataset_builder.datasets"}
FIRST_KEYS = tuple(
    "kl_discount_factor" if key == "teacher" else key for key in train_on_policy.FIRST_KEYS
)


@chz.chz
class CLI(Config):
    dataset_builder: TeacherDatasets | None = chz.field(
        default=None,
        doc="data sets with a teacher each (None: nano's sums, and sums without reasoning)",
    )


async def nano_datasets(config: Config) -> TeacherDatasets:
    """Two kinds of sums, with a teacher for each."""
    sums = TeacherConfig(load_checkpoint_path=await train_teacher("sums", config))
    short = TeacherConfig(load_checkpoint_path=await train_teacher("short_sums", config))
    return TeacherDatasets(
        datasets=[
            DistillationDatasetConfig(
                dataset_builder=Arithmetic(num_batches=NANO_STEPS),
                teacher_config=sums,
                groups_per_batch=NANO_GROUPS["sums"],
            ),
            DistillationDatasetConfig(
                dataset_builder=ShortSums(num_batches=NANO_STEPS),
                teacher_config=short,
                groups_per_batch=NANO_GROUPS["short_sums"],
            ),
        ]
    )


async def main(config: CLI) -> None:
    if config.dataset_builder is None:
        if config.model_name != "nano":
            raise ConfigurationError(
                "no data: set datasets.0.dataset_builder=, datasets.0.teacher_config.base_model=,"
                " datasets.0.groups_per_batch= and so on, see"
                " configs/on_policy_multi_teacher/qwen3-4b-1xh100.yaml"
            )
        config = chz.replace(config, dataset_builder=await nano_datasets(config))
    assert config.dataset_builder is not None
    resolved = resolve_problem_config(config, DEFAULTS, config.dataset_builder)
    directory = await train_on_policy.run(resolved, recipe="on_policy_multi_teacher")
    print(describe_student(directory))


if __name__ == "__main__":
    cli(main, CLI, ALIASES, FIRST_KEYS)
