r"""On-policy distillation from several teachers: one student learns each task from its own teacher.

    ./scripts/run recipes.distillation.on_policy_multi_teacher
    ./scripts/run recipes.distillation.on_policy_multi_teacher max_steps=30 kl_discount_factor=0.5
    ./scripts/run recipes.distillation.on_policy_multi_teacher \
        config=configs/on_policy_multi_teacher/qwen3-4b-1xh100.yaml

Every batch has a fixed number of groups of each data set, each scored by the teacher of its data
set. README.md shows how data sets and teachers are given.

Without keys, nano learns sums and who has what ("Ben gave the pen to Ivy. Who has the pen?") from
two adapters of itself. 24 steps of reinforcement learning on one of the tasks have trained each,
once for all later runs. 60 steps of 16 + 16 prompts with 4 replies each, seeds 0, 1 and 2 (29
November 2026, 2 CPU cores, one thread: 178 to 193 s of CPU time); held out, sampled:

| step | sums right | who has what, right |
|---|---|---|
| 0 | 0.48 | 0.27 |
| 20 | 0.96, 0.95, 0.96 | 0.53, 0.53, 0.53 |
| 40 | 0.96, 0.95, 0.97 | 0.64, 0.64, 0.64 |
| 60 | 0.98, 0.98, 0.97 | 0.68, 0.67, 0.67 |
| its teacher | 0.97 | 0.70 |

teacher_kl/dataset_0 falls from 1.1 to 0.002 in 20 steps, dataset_1 from 0.9 to 0.01 in 40.
"""

from __future__ import annotations

import chz

from recipes.distillation.nano_teachers import train_teacher
from recipes.distillation.prompt_data import Prompts  # noqa: F401 (a name for the command line)
from recipes.distillation.student import describe_student
from recipes.distillation.who_has import WhoHas
from recipes.math_rl.arithmetic import Arithmetic
from recipes.math_rl.train import ENVS  # noqa: F401 (names for data=)
from tinker_cookbook import models
from tinker_cookbook.cli_utils import cli
from tinker_cookbook.distillation import train_on_policy
from tinker_cookbook.distillation.datasets import (
    DistillationDatasetConfig,
    TeacherDatasets,
)
from tinker_cookbook.distillation.teacher import TeacherConfig
from tinker_cookbook.distillation.train_on_policy import (
    DEFAULTS,
    Config,
    check_keys,
    with_dataset_configs,
)
from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.rl import problem_config
from tinker_cookbook.rl.problem_config import resolve_problem_config

NANO_STEPS = 60
NANO_GROUPS = 16  # of each data set in a batch
ALIASES = {**problem_config.ALIASES, "datasets": "dataset_builder.datasets"}
FIRST_KEYS = tuple(
    "kl_discount_factor" if key == "teacher" else key for key in train_on_policy.FIRST_KEYS
)


@chz.chz
class CLI(Config):
    dataset_builder: TeacherDatasets | None = chz.field(
        default=None,
        doc="data sets with a teacher each (None: nano's sums, and who has what)",
    )


async def nano_datasets(config: Config) -> TeacherDatasets:
    """Sums, and who has what, with a teacher for each."""
    sums = TeacherConfig(load_checkpoint_path=await train_teacher("sums", config))
    who_has = TeacherConfig(load_checkpoint_path=await train_teacher("who_has", config))
    return TeacherDatasets(
        datasets=[
            DistillationDatasetConfig(
                dataset_builder=Arithmetic(num_batches=NANO_STEPS),
                teacher_config=sums,
                groups_per_batch=NANO_GROUPS,
            ),
            DistillationDatasetConfig(
                dataset_builder=WhoHas(num_batches=NANO_STEPS),
                teacher_config=who_has,
                groups_per_batch=NANO_GROUPS,
            ),
        ]
    )


async def main(config: CLI) -> None:
    config = with_dataset_configs(config)
    check_keys(config)
    if config.teacher != TeacherConfig():
        raise ConfigurationError(
            "teacher has no effect here, where each data set has its own: set"
            " datasets.0.teacher_config.base_model= and so on"
        )
    if config.dataset_builder is None:
        if not models.is_nano(config.model_name):
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
