"""On-policy distillation: the reinforcement-learning loop with a teacher in place of a reward.

The student replies to prompts; the teacher scores the student's tokens; the advantage of each token
is minus the difference of the two logprobs (`ReverseKL`). Rewards of the data are measured, not
trained on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import chz

from tinker_cookbook.distillation.datasets import DistillationDatasetConfig, TeacherDatasets
from tinker_cookbook.distillation.reverse_kl import ReverseKL
from tinker_cookbook.distillation.teacher import (
    TEACHER_ALIASES,
    TeacherConfig,
    check_teacher,
    connect_teacher,
    locate_teacher,
)
from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.rl import problem_config
from tinker_cookbook.rl import train as rl_train
from tinker_cookbook.rl.defaults import Groups
from tinker_cookbook.rl.problem_config import ProblemConfig
from tinker_cookbook.rl.signals import Signal
from tinker_cookbook.service.api import ServiceClient
from tinker_cookbook.training.defaults import Defaults, ModelDefaults
from tinker_cookbook.training.fields import FRACTION, POSITIVE
from tinker_cookbook.training.resolve import Resolved

ALIASES = {**problem_config.ALIASES, **TEACHER_ALIASES}
FIRST_KEYS = (
    "model_name",
    "data",
    "teacher",
    "learning_rate",
    "groups_per_batch",
    "group_size",
    "max_tokens",
    "max_steps",
    "kl_penalty_coef",
    "log_path",
)
DEFAULTS = Defaults(
    nano=ModelDefaults(
        Groups(groups_per_batch=32, group_size=4, max_tokens=40),
        learning_rate=1e-3,
        renderer_name="qwen3_instruct",
    ),
    others=ModelDefaults(
        Groups(groups_per_batch=1024, group_size=4, max_tokens=4096), learning_rate=1e-4
    ),
)


@chz.chz
class Config(ProblemConfig):
    """The loop's config with a teacher. Keys that concern the reward are rejected."""

    dataset_configs: list[DistillationDatasetConfig] = chz.field(
        default_factory=list,
        doc="data sets with a teacher each, another name of dataset_builder=TeacherDatasets",
    )
    teacher: TeacherConfig = chz.field(
        default_factory=TeacherConfig, doc="the teacher, if there is one for all prompts"
    )
    kl_penalty_coef: float = chz.field(
        default=1.0,
        doc="coefficient of the reverse KL divergence to the teacher",
        metadata=POSITIVE,
    )
    kl_discount_factor: float = chz.field(
        default=0.0,
        doc="discount factor of later tokens' divergence (0: each token is charged for its own"
        " only)",
        metadata=FRACTION,
    )


C = TypeVar("C", bound=Config)


async def main(config: Config) -> None:
    """Train on `dataset_builder` or `dataset_configs`."""
    config = with_dataset_configs(config)
    if config.dataset_builder is None:
        raise ConfigurationError("dataset_builder=None: set dataset_builder or dataset_configs")
    resolved = problem_config.resolve_problem_config(config, DEFAULTS, config.dataset_builder)
    await run(resolved, recipe="on_policy_distillation")


def with_dataset_configs(config: C) -> C:
    """The config with `dataset_configs` as its `dataset_builder`."""
    if not config.dataset_configs:
        return config
    if config.dataset_builder is not None:
        raise ConfigurationError("dataset_configs and dataset_builder are both set: drop one")
    data = TeacherDatasets(datasets=config.dataset_configs)
    return chz.replace(config, dataset_builder=data, dataset_configs=[])


async def run(resolved: Resolved[C, Groups], recipe: str) -> Path:
    """Train with a config that a recipe has resolved; return the run's directory.

    Raises ConfigurationError for a teacher that does not share the student's tokens, and for keys
    without effect.
    """
    check_keys(resolved.config)
    config = with_located_teachers(resolved.config)
    teachers = _teachers(config)
    _check_teachers_differ(config, teachers)
    for teacher in teachers:
        check_teacher(teacher, resolved.model_name, resolved.renderer_name, config.base_url)

    async def make_signals(service: ServiceClient) -> list[Signal]:
        clients = [await connect_teacher(service, teacher) for teacher in teachers]
        coef, discount = config.kl_penalty_coef, config.kl_discount_factor
        return [ReverseKL(clients, coef, discount, temperature=config.temperature)]

    filled = {**resolved.filled}
    if teachers != _teachers(resolved.config):
        names = [each.load_checkpoint_path or str(each.base_model) for each in teachers]
        filled["teacher"] = ", ".join(names)
    resolved = dataclasses.replace(resolved, config=config, filled=filled)
    return await rl_train.run(resolved, recipe, make_signals)


def with_located_teachers(config: C) -> C:
    """The config with the teachers' base models and the paths of their checkpoints."""
    data, student, url = config.dataset_builder, config.model_name, config.base_url
    if not isinstance(data, TeacherDatasets):
        key = "teacher_checkpoint"
        return chz.replace(config, teacher=locate_teacher(config.teacher, student, key, url))
    if config.teacher != TeacherConfig():
        raise ConfigurationError(
            "teacher has no effect on TeacherDatasets, where each data set has its own: drop it, or"
            " set dataset_builder.datasets.0.teacher_config and so on"
        )
    located = []
    for number, each in enumerate(data.datasets):
        key = f"dataset_builder.datasets.{number}.teacher_config"
        if each.teacher_config == TeacherConfig():
            raise ConfigurationError(
                f"{key} names no teacher: set base_model or load_checkpoint_path in it"
            )
        key = f"{key}.load_checkpoint_path"
        teacher = locate_teacher(each.teacher_config, student, key, url)
        located.append(chz.replace(each, teacher_config=teacher))
    return chz.replace(config, dataset_builder=chz.replace(data, datasets=located))


def _teachers(config: Config) -> list[TeacherConfig]:
    data = config.dataset_builder
    if isinstance(data, TeacherDatasets):
        return [each.teacher_config for each in data.datasets]
    return [config.teacher]


def check_keys(config: Config) -> None:
    """Raise ConfigurationError for keys of the reward or of a reference model."""
    default = ProblemConfig()
    for key in ("advantage", "remove_constant_reward_groups", "kl_reference_config"):
        if getattr(config, key) != getattr(default, key):
            raise ConfigurationError(
                f"{key} has no effect in distillation, which trains on the teacher's probabilities"
                f" alone: drop {key}"
            )


def _check_teachers_differ(config: Config, teachers: Sequence[TeacherConfig]) -> None:
    """Raise ConfigurationError if the student starts as its only teacher."""
    start = TeacherConfig(base_model=config.model_name)
    if config.load_checkpoint_path is None and all(teacher == start for teacher in teachers):
        raise ConfigurationError(
            f"the teacher is {config.model_name} itself, from which the student starts: set another"
            " base model or a checkpoint (teacher_model=, teacher_checkpoint=)"
        )
