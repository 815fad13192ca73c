"""Teachers for nano: adapters that reinforcement learning trains once, for all later runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from recipes.distillation.who_has import WhoHas
from recipes.math_rl.arithmetic import Arithmetic
from tinker_cookbook.checkpoint_utils import base_model_of_checkpoint
from tinker_cookbook.exceptions import CheckpointError, ConfigurationError, RunFinished
from tinker_cookbook.rl import train
from tinker_cookbook.rl.defaults import RL_DEFAULTS
from tinker_cookbook.rl.problem_config import ProblemConfig, resolve_problem_config
from tinker_cookbook.rl.types import RLDatasetBuilder
from tinker_cookbook.service import locate_checkpoint
from tinker_cookbook.training.config import ProgramConfig
from tinker_cookbook.training.run_directory import wait_for_lock
from tinker_cookbook.training.stages import program_directory

Task = Literal["sums", "who_has"]
STEPS = 24
_DATA: Mapping[Task, RLDatasetBuilder] = {
    "sums": Arithmetic(num_batches=STEPS),
    "who_has": WhoHas(num_batches=STEPS),
}


async def train_teacher(task: Task, student: ProgramConfig) -> str:
    """Train nano on a task where the student is trained, unless that was done before; return the
    run's directory.

    Seed and length are fixed. The directory is named after all settings, so that others give
    another teacher. Several students that start at once wait for one of them to train it.
    """
    config = ProblemConfig(
        eval_every=0,
        behavior_if_log_dir_exists="skip",
        base_url=student.base_url,
        engine=student.engine,
        display=student.display,
    )
    recipe = f"nano-teacher-{task}"
    resolved = resolve_problem_config(config, RL_DEFAULTS, _DATA[task])
    directory = program_directory(resolved.config, recipe)
    lock = await wait_for_lock(directory)
    try:
        print(f"teacher: {directory}", flush=True)
        await train.run(resolved, recipe)
    except RunFinished:
        _check_weights(directory, student.base_url)
    finally:
        if lock is not None:
            lock.close()
    return str(directory)


def _check_weights(directory: Path, base_url: str | None) -> None:
    """Raise ConfigurationError if the weights of a finished teacher were deleted from the store."""
    try:
        base_model_of_checkpoint(
            locate_checkpoint(str(directory), "sampler_weights", "teacher", base_url), base_url
        )
    except CheckpointError as error:
        raise ConfigurationError(
            f"{error}; delete {directory} to train nano's teacher again"
        ) from None
