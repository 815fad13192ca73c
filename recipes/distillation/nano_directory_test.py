"""nano, given as a directory, has the data and the teacher of `model_name=nano`."""

from __future__ import annotations

import pytest

from recipes.distillation import (
    off_policy_reasoning,
    on_policy_distillation,
    on_policy_multi_teacher,
)
from recipes.math_rl.arithmetic import Arithmetic
from tinker_cookbook import models
from tinker_cookbook.distillation.teacher import TeacherConfig
from tinker_cookbook.training.config import ProgramConfig

DIRECTORY = models.load_path("nano")


class Stopped(Exception):
    """Where the recipe would train a teacher."""


@pytest.fixture(autouse=True)
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    async def train_teacher(task: str, student: ProgramConfig) -> str:
        raise Stopped(task)

    for module in (off_policy_reasoning, on_policy_distillation, on_policy_multi_teacher):
        monkeypatch.setattr(module, "train_teacher", train_teacher)


def test_on_policy_data() -> None:
    config = on_policy_distillation.CLI(model_name=DIRECTORY)
    assert isinstance(on_policy_distillation.data_of(config), Arithmetic)


async def test_the_teachers() -> None:
    for recipe in (off_policy_reasoning, on_policy_distillation, on_policy_multi_teacher):
        with pytest.raises(Stopped, match="sums"):
            await recipe.main(recipe.CLI(model_name=DIRECTORY))


async def test_off_policy_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(off_policy_reasoning.TeacherReplies, "sample", lambda *_: _nothing())
    teacher = TeacherConfig(base_model="nano")
    config = off_policy_reasoning.CLI(model_name=DIRECTORY, teacher=teacher)
    resolved = (await off_policy_reasoning.sample_data(config)).config
    assert (resolved.num_prompts, resolved.max_tokens) == (200, 40)
    assert len(resolved.evaluator_builders) == 1


async def _nothing() -> None:
    pass
