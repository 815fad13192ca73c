"""Teachers for nano: adapters that reinforcement learning trains once, for all later runs."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from recipes.distillation.repeating import Repeating
from recipes.math_rl.arithmetic import Arithmetic
from tinker_cookbook.exceptions import RunFinished
from tinker_cookbook.rl import train
from tinker_cookbook.rl.defaults import RL_DEFAULTS
from tinker_cookbook.rl.problem_config import ProblemConfig, resolve_problem_config
from tinker_cookbook.rl.types import RLDatasetBuilder
from tinker_cookbook.training.config import ProgramConfig
from tinker_cookbook.training.stages import finished_stage
from tinker_cookbook.utils.misc_utils import runs_path

Task = Literal["sums", "repeating"]
STEPS = 24
_DATA: Mapping[Task, RLDatasetBuilder] = {
    "sums": Arithmetic(num_batches=STEPS),
    "repeating": Repeating(),
}


def teacher_directory(task: Task, base_url: str | None) -> Path:
    """The run directory of a teacher: one for each server, which has its weights."""
    place = "" if base_url is None else f"-{hashlib.sha256(base_url.encode()).hexdigest()[:8]}"
    return runs_path(f"nano-teacher-{task}{place}")


async def train_teacher(task: Task, student: ProgramConfig) -> str:
    """Train nano on a task where the student is trained, unless that was done before; return the
    run's directory. Seed and length are fixed."""
    directory = teacher_directory(task, student.base_url)
    if finished_stage(directory) is None:
        print(f"training the teacher first, once for all runs: {directory}", flush=True)
        config = ProblemConfig(
            max_steps=STEPS,
            eval_every=0,
            log_path=str(directory),
            behavior_if_log_dir_exists="skip",
            base_url=student.base_url,
            engine=student.engine,
            display=student.display,
        )
        with contextlib.suppress(RunFinished):  # by another process in the meantime
            resolved = resolve_problem_config(config, RL_DEFAULTS, _DATA[task])
            await train.run(resolved, recipe=f"nano-teacher-{task}")
    return str(directory)
