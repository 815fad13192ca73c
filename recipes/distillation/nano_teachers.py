"""Teachers for nano: adapters that reinforcement learning trains once, for all later runs."""

from __future__ import annotations

import hashlib
from pathlib import Path

from recipes.distillation.spelling import Spelling
from recipes.math_rl.arithmetic import Arithmetic
from tinker_cookbook.exceptions import RunFinished
from tinker_cookbook.rl import train
from tinker_cookbook.rl.defaults import RL_DEFAULTS
from tinker_cookbook.rl.problem_config import ProblemConfig, resolve_problem_config
from tinker_cookbook.rl.types import RLDatasetBuilder
from tinker_cookbook.training.config import ProgramConfig
from tinker_cookbook.training.stages import finished_stage
from tinker_cookbook.utils.misc_utils import runs_path

STEPS = 24
_TASKS: dict[str, RLDatasetBuilder] = {"sums": Arithmetic(), "spelling": Spelling()}


def teacher_directory(task: str, base_url: str | None) -> Path:
    """The run directory of a teacher: one for each server, as its weights are there."""
    place = "" if base_url is None else f"-{hashlib.sha256(base_url.encode()).hexdigest()[:8]}"
    return runs_path(f"nano-teacher-{task}{place}")


async def train_teacher(task: str, config: ProgramConfig) -> str:
    """Train nano on a task, unless that was done before, and return the run's directory.

    task: "sums" or "spelling". config: where to train it. Its seed and length are fixed.
    """
    directory = teacher_directory(task, config.base_url)
    if finished_stage(directory) is not None:
        return str(directory)
    print(f"training the teacher first, once for all runs: {STEPS} steps on {task}", flush=True)
    teacher = ProblemConfig(
        max_steps=STEPS,
        eval_every=STEPS,
        log_path=str(directory),
        behavior_if_log_dir_exists="skip",
        base_url=config.base_url,
        engine=config.engine,
        display=config.display,
    )
    try:
        resolved = resolve_problem_config(teacher, RL_DEFAULTS, _TASKS[task])
        await train.run(resolved, recipe=f"nano-teacher-{task}")
    except RunFinished:  # by another process in the meantime
        pass
    return str(directory)
