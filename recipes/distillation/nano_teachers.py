"""Teachers for nano: adapters that are trained once, for all later runs."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Awaitable
from pathlib import Path
from typing import Literal, TypedDict, assert_never

from recipes.distillation.polite_sums import PoliteChats
from recipes.math_rl.arithmetic import Arithmetic
from tinker_cookbook.exceptions import RunFinished
from tinker_cookbook.rl import train as rl_train
from tinker_cookbook.rl.defaults import RL_DEFAULTS
from tinker_cookbook.rl.problem_config import ProblemConfig, resolve_problem_config
from tinker_cookbook.service import EngineConfig
from tinker_cookbook.supervised import train as sl_train
from tinker_cookbook.supervised.chat_config import ChatConfig, resolve_chat_config
from tinker_cookbook.supervised.defaults import SL_DEFAULTS
from tinker_cookbook.training.config import ProgramConfig
from tinker_cookbook.training.run_directory import LogDirBehavior
from tinker_cookbook.training.stages import finished_stage
from tinker_cookbook.utils.display import DisplayMode
from tinker_cookbook.utils.misc_utils import runs_path

Task = Literal["sums", "polite_sums"]
_RL_STEPS = 24
_SFT_RATE = 1e-3


class _Place(TypedDict):
    """The keys that a teacher's run takes from the student's, and those of its directory."""

    log_path: str
    behavior_if_log_dir_exists: LogDirBehavior
    base_url: str | None
    engine: EngineConfig
    display: DisplayMode


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
        place = _Place(
            log_path=str(directory),
            behavior_if_log_dir_exists="skip",
            base_url=student.base_url,
            engine=student.engine,
            display=student.display,
        )
        with contextlib.suppress(RunFinished):  # by another process in the meantime
            await _train(task, place)
    return str(directory)


def _train(task: Task, place: _Place) -> Awaitable[Path]:
    recipe = f"nano-teacher-{task}"
    match task:
        case "sums":
            config = ProblemConfig(eval_every=0, **place)
            data = Arithmetic(num_batches=_RL_STEPS)
            return rl_train.run(resolve_problem_config(config, RL_DEFAULTS, data), recipe)
        case "polite_sums":
            chats = ChatConfig(learning_rate=_SFT_RATE, sample_replies=0, **place)
            return sl_train.run(resolve_chat_config(chats, SL_DEFAULTS, PoliteChats()), recipe)
        case _:
            assert_never(task)
