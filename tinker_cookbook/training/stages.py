"""Programs of several training stages, each an ordinary run in a subdirectory of its own.

A stage is a loop's config under a key of the program's config. It takes the keys of `ProgramConfig`
from the program. A finished stage is skipped, an unfinished one resumes.
"""

from __future__ import annotations

from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import chz

from tinker_cookbook.checkpoint_utils import CheckpointRecord, get_last_checkpoint
from tinker_cookbook.exceptions import ConfigurationError, RunFinished
from tinker_cookbook.training.config import LoopConfig, ProgramConfig
from tinker_cookbook.training.run_directory import RunLock, holds_run
from tinker_cookbook.training.run_identity import LENGTH_KEYS, RunIdentity
from tinker_cookbook.utils import jsonl, ml_log
from tinker_cookbook.utils.files import replace_file

S = TypeVar("S", bound=LoopConfig)

# the shared keys that a stage may set for itself
_OWN_KEYS = ("max_steps", "renderer_name")
_ADAPTER_KEYS = ("lora_rank", "train_attn", "train_mlp", "train_unembed")


def program_directory(program: ProgramConfig, recipe: str) -> Path:
    """log_path, or else a directory named after recipe, model and config."""
    return RunIdentity(program, recipe).directory()


@contextmanager
def open_program(program: ProgramConfig, recipe: str) -> Iterator[None]:
    """Lock the directory of a program and keep its config.json, for `config=` of a later one.

    A program that ends with an error does not replace the config.json of one before it. Raises
    ConfigurationError if the directory itself holds a run, or another process is using it.
    """
    identity = RunIdentity(program, recipe)
    directory = identity.directory()
    lock = RunLock(directory)
    try:
        if holds_run(directory):
            raise ConfigurationError(
                f"log_path={directory} holds a run; the stages of {recipe} need their own: set"
                " another log_path"
            )
        file = directory / ml_log.CONFIG_FILE
        text = jsonl.encode(identity.config_json, indent=2) + "\n"
        if not file.exists():
            replace_file(file, text)
        yield
        replace_file(file, text)
    finally:
        lock.release()


def stage_config(program: ProgramConfig, name: str, stage: S, directory: Path) -> S:
    """The config of a stage with the shared keys of its program.

    name: the key of the stage, for messages. directory: the program's. Raises ConfigurationError
    for a shared key that the stage sets to another value than the program; `...seed=1`, which sets
    the same value in both, is accepted.
    """
    shared = {key: getattr(program, key) for key in chz.chz_fields(ProgramConfig)}
    unset = LoopConfig()
    for key in shared:
        value = getattr(stage, key)
        if value in (getattr(unset, key), shared[key]):
            continue
        if key not in _OWN_KEYS:
            raise ConfigurationError(f"{name}.{key}={value}: all stages share {key}; set {key}=")
        shared[key] = value
    shared["log_path"] = str(directory / name)
    if program.wandb_project is not None:  # a name that tells the stages apart
        shared["wandb_name"] = f"{program.wandb_name or directory.resolve().name}-{name}"
    behavior = program.behavior_if_log_dir_exists
    # "resume" and "ask" concern unfinished stages: a finished one would be run again in a new
    # directory, from which no later stage reads
    resumes = behavior in ("resume", "ask") and finished_stage(directory / name) is not None
    if behavior is None or resumes:
        shared["behavior_if_log_dir_exists"] = "skip"
    return chz.replace(stage, **shared)


def check_same_adapter(name: str, stage: LoopConfig, start: str, start_stage: LoopConfig) -> None:
    """Raise ConfigurationError if a stage cannot load the adapter of the one that it starts from.

    name, start: the keys of the stages.
    """
    for key in _ADAPTER_KEYS:
        value, trained = getattr(stage, key), getattr(start_stage, key)
        if value != trained:
            raise ConfigurationError(
                f"{start}.{key}={trained} and {name}.{key}={value}: stage {name} trains the"
                f" adapter of stage {start}; set both to the same value"
            )


def check_not_continued(directory: Path, name: str, stage: LoopConfig, later: str) -> None:
    """Raise ConfigurationError if a finished stage would do more steps although a later stage has
    started from its weights.

    stage: with its defaults resolved. name, later: the keys of the stages.
    """
    last = finished_stage(directory / name)
    if last is None or not holds_run(directory / later):
        return
    for key in LENGTH_KEYS:
        done, asked = last.extra.get(key), getattr(stage, key, None)
        if isinstance(done, int) and (asked is None or asked > done):
            raise ConfigurationError(
                f"{key}={asked} would continue stage {name} ({key}={done}), from which stage"
                f" {later} has started: set {name}.{key}={done}, and {later}.{key}= to continue"
                " that one; or set another log_path"
            )


@contextmanager
def errors_of(stage: str) -> Iterator[None]:
    """Name the stage in configuration errors, whose keys are those of the stage."""
    try:
        yield
    except ConfigurationError as error:
        raise ConfigurationError(f"stage {stage}: {error}") from error


def last_metrics(directory: Path, prefix: str) -> dict[str, float]:
    """The last value of each metric of a run whose name begins with `prefix`."""
    rows = [line.value for line in jsonl.read_lines(directory / ml_log.METRICS_FILE)]
    return {key: row[key] for row in rows for key in row if key.startswith(prefix)}


async def run_stage(title: str, run: Awaitable[Path | None]) -> None:
    """Run a stage, unless it is finished."""
    print(title, flush=True)
    try:
        await run
    except RunFinished as finished:
        print(finished, flush=True)


def finished_stage(directory: Path) -> CheckpointRecord | None:
    """The final checkpoint of a finished run in a directory; None if there is none."""
    last = get_last_checkpoint(directory)
    return last if last is not None and last.final else None


def result_of_stage(directory: Path, name: str) -> str | None:
    """The directory of a finished stage; None if it has not begun. ConfigurationError if it is not
    finished: its last checkpoint is not what the next stage is meant to start from."""
    stage = directory / name
    if not holds_run(stage):
        return None
    if finished_stage(stage) is None:
        raise ConfigurationError(
            f"run_{name}=False, and {stage} holds an unfinished run: set run_{name}=True to finish"
            " it"
        )
    return str(stage)
