"""Off-policy distillation: supervised fine-tuning on a teacher's replies.

The supervised loop. With topk=None the replies are hard targets: cross-entropy against their
tokens. With topk=k the targets are soft: at each position of a reply, the teacher's k most probable
tokens with their probabilities (`SoftTargetObjective`). The teacher scores each batch as it is
needed, so it must share the student's tokenizer and chat template; hard targets are text, which any
teacher may have written.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import chz

from tinker_cookbook import models
from tinker_cookbook.distillation.soft_objective import SoftTargetObjective, TopKTeacher
from tinker_cookbook.distillation.soft_targets import check_topk
from tinker_cookbook.distillation.teacher import (
    TEACHER_ALIASES,
    TeacherConfig,
    check_teacher,
    locate_teacher,
)
from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.supervised import chat_config, train
from tinker_cookbook.supervised.chat_config import ChatConfig, resolve_chat_config
from tinker_cookbook.supervised.data import builder_for_path
from tinker_cookbook.supervised.defaults import NANO, Batches
from tinker_cookbook.tokenizer_utils import get_tokenizer
from tinker_cookbook.training.defaults import Defaults, ModelDefaults
from tinker_cookbook.training.fields import COUNT
from tinker_cookbook.training.resolve import Resolved

if TYPE_CHECKING:
    from tinker_cookbook.service.api import ServiceClient
    from tinker_cookbook.supervised.objective import Objective
    from tinker_cookbook.supervised.types import SupervisedDatasetBuilder
    from tinker_cookbook.training.journal import Journal

ALIASES = {**chat_config.ALIASES, **TEACHER_ALIASES}
# nano's rate: of 1e-3, 3e-3 and 6e-3, see recipes/distillation
DEFAULTS = Defaults(
    nano=dataclasses.replace(NANO, learning_rate=1e-3),
    others=ModelDefaults(Batches(batch_size=128, max_length=16_384), learning_rate=1e-3),
    within_context=("max_length",),
)


@chz.chz
class Config(ChatConfig):
    """`ChatConfig` plus the teacher of soft targets."""

    teacher: TeacherConfig = chz.field(default_factory=TeacherConfig, doc="the teacher")
    topk: int | None = chz.field(
        default=None,
        doc="soft targets: the teacher's topk most probable tokens at each position, renormalized"
        " (None: hard targets, i.e. the tokens of the replies)",
        metadata=COUNT,
    )


C = TypeVar("C", bound=Config)


async def main(config: Config) -> None:
    """Train on the conversations of `dataset_builder` or `dataset_path`."""
    data: SupervisedDatasetBuilder
    if config.dataset_builder is not None:
        data = config.dataset_builder
    elif config.dataset_path is not None:
        data = builder_for_path(config.dataset_path, "dataset_path")
    else:
        raise ConfigurationError("dataset_builder=None: set dataset_builder or dataset_path")
    check_teacher_keys(config)
    await run(resolve(config, data), recipe="off_policy_distillation")


def resolve(config: C, data: SupervisedDatasetBuilder) -> Resolved[C, Batches]:
    """`resolve_chat_config` with the defaults of off-policy distillation, and with the teacher of
    soft targets located and checked.

    Raises ConfigurationError for a teacher that does not share the student's tokens, and for a
    max_length that it cannot score.
    """
    if config.topk is None:
        return resolve_chat_config(config, DEFAULTS, data)
    check_topk(config.topk, config.model_name)
    longest = _longest_example(config)
    resolved = resolve_chat_config(config, _defaults_within(longest), data)
    config, student = resolved.config, resolved.model_name
    teacher = locate_teacher(config.teacher, student, "teacher_checkpoint", config.base_url)
    check_teacher(teacher, student, resolved.renderer_name, config.base_url)
    if longest is not None and config.max_length is not None and config.max_length > longest:
        raise ConfigurationError(
            f"max_length={config.max_length}: the teacher {teacher.base_model} scores examples of"
            f" up to {longest} tokens, one less than its context; set max_length={longest} or less"
        )
    filled = {**resolved.filled}
    if teacher.load_checkpoint_path != config.teacher.load_checkpoint_path:
        filled["teacher_checkpoint"] = teacher.load_checkpoint_path or ""
    config = chz.replace(config, teacher=teacher)
    return dataclasses.replace(resolved, config=config, filled=filled)


async def run(resolved: Resolved[C, Batches], recipe: str) -> Path:
    """Train with a config from `resolve`; returns the run's directory."""
    make = None
    if resolved.config.topk is not None:
        make = partial(
            make_objective, resolved.config.teacher, resolved.config.topk, resolved.model_name
        )
    return await train.run(resolved, recipe, make)


def make_objective(
    teacher: TeacherConfig, topk: int, model_name: str, service: ServiceClient, journal: Journal
) -> Objective:
    """The objective of soft targets; a `MakeObjective` once the first three are bound."""
    return SoftTargetObjective(TopKTeacher(service, teacher, topk), get_tokenizer(model_name))


def check_teacher_keys(config: Config) -> None:
    """Raise ConfigurationError for soft targets without a teacher, and for a teacher that has no
    effect on hard targets."""
    if config.topk is not None and config.teacher == TeacherConfig():
        raise ConfigurationError(
            f"topk={config.topk}: soft targets need the teacher's probabilities; set teacher_model="
            " or teacher_checkpoint=, or drop topk to train on the replies alone"
        )
    if config.topk is None and config.teacher != TeacherConfig():
        raise ConfigurationError(
            "a teacher has no effect on replies that are hard targets: set topk=20 for its"
            " probabilities, or drop teacher_model and teacher_checkpoint"
        )


def _longest_example(config: Config) -> int | None:
    """The maximum length of an example that the teacher can score; None if it is unknown here.

    An example is the prompt of a sample of one token, since services return the probabilities in a
    prompt with a sample.
    """
    context = models.context_length(config.teacher.base_model or config.model_name)
    return None if context is None else context - 1


def _defaults_within(longest: int | None) -> Defaults[Batches]:
    if longest is None:
        return DEFAULTS

    def limited(defaults: ModelDefaults[Batches]) -> ModelDefaults[Batches]:
        max_length = min(defaults.sizes.max_length, longest)
        sizes = dataclasses.replace(defaults.sizes, max_length=max_length)
        return dataclasses.replace(defaults, sizes=sizes)

    return dataclasses.replace(
        DEFAULTS, nano=limited(DEFAULTS.nano), others=limited(DEFAULTS.others)
    )
