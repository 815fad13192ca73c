"""Every file under configs/ is a configuration of the recipe that its folder is named after."""

from __future__ import annotations

from pathlib import Path

import pytest

from recipes import rl_basic, rl_loop, sl_basic, sl_loop
from recipes.chat_sl import train as chat_sl
from recipes.distillation import (
    off_policy_reasoning,
    on_policy_distillation,
    on_policy_multi_teacher,
)
from recipes.math_rl import train as math_rl
from recipes.math_rl.math_datasets import MathDatasetBuilder
from recipes.preference.constitutional import train as constitutional
from recipes.preference.datasets import DATASETS
from recipes.preference.dpo import train as dpo
from recipes.preference.rlhf import rlhf_pipeline, stages
from recipes.preference.shorter import train as shorter
from recipes.prompt_distillation import train as prompt_distillation
from recipes.sdft import datasets as sdft_datasets
from recipes.sdft import train as sdft
from tinker_cookbook import models
from tinker_cookbook.cli_utils import parse
from tinker_cookbook.distillation import train_off_policy, train_on_policy
from tinker_cookbook.distillation.datasets import PromptOnlyDatasetBuilder, TeacherDatasets
from tinker_cookbook.distillation.sdft_defaults import SDFT_DEFAULTS
from tinker_cookbook.preference.defaults import DPO_DEFAULTS
from tinker_cookbook.rl.defaults import RL_DEFAULTS
from tinker_cookbook.supervised.chat_config import ALIASES
from tinker_cookbook.supervised.defaults import SL_DEFAULTS, Batches
from tinker_cookbook.supervised.types import ChatDatasetBuilder
from tinker_cookbook.training.resolve import resolve_defaults
from tinker_cookbook.training.stages import stage_config

CONFIGS = Path(__file__).parent.parent / "configs"
RECIPES = {
    "sl_basic": (sl_basic.CLI, SL_DEFAULTS),
    "sl_loop": (sl_loop.Config, SL_DEFAULTS),
    "chat_sl": (chat_sl.CLI, chat_sl.DEFAULTS),
    "dpo": (dpo.CLI, DPO_DEFAULTS),
    "rl_basic": (rl_basic.CLI, RL_DEFAULTS),
    "rl_loop": (rl_loop.Config, RL_DEFAULTS),
    "math_rl": (math_rl.CLI, math_rl.DEFAULTS),
    "shorter": (shorter.CLI, shorter.DEFAULTS),
    "on_policy_distillation": (on_policy_distillation.CLI, train_on_policy.DEFAULTS),
    "on_policy_multi_teacher": (on_policy_multi_teacher.CLI, train_on_policy.DEFAULTS),
    "off_policy_reasoning": (off_policy_reasoning.CLI, train_off_policy.DEFAULTS),
    "sdft": (sdft.CLI, SDFT_DEFAULTS),
    "prompt_distillation": (prompt_distillation.CLI, prompt_distillation.DEFAULTS),
}
# renderers that base models are trained with, too
CHAT_RENDERERS = ("qwen3", "qwen3_instruct", "role_colon")
DISTILLED = PromptOnlyDatasetBuilder | TeacherDatasets
# folder -> config class, and the key and defaults of each stage that is a run of its own
PROGRAMS = {
    "constitutional": (constitutional.CLI, {"sft": SL_DEFAULTS, "dpo": DPO_DEFAULTS}),
    "rlhf": (
        rlhf_pipeline.CLI,
        {"sft": stages.SFT_DEFAULTS, "rm": stages.RM_DEFAULTS, "rl": stages.RL_DEFAULTS},
    ),
}
FILES = sorted(file for name in RECIPES for file in (CONFIGS / name).glob("*.yaml"))
PROGRAM_FILES = sorted(file for name in PROGRAMS for file in (CONFIGS / name).glob("*.yaml"))


def test_every_recipe_has_one() -> None:
    assert {file.parent.name for file in FILES} == set(RECIPES)
    assert {file.parent.name for file in PROGRAM_FILES} == set(PROGRAMS)
    assert set(CONFIGS.rglob("*.yaml")) == {*FILES, *PROGRAM_FILES}


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}/{file.name}")
def test_it_parses(file: Path) -> None:
    config_class, defaults = RECIPES[file.parent.name]
    aliases = ALIASES | math_rl.ALIASES | train_on_policy.ALIASES | on_policy_multi_teacher.ALIASES
    config = parse(config_class, [f"config={file}", "save_every=7"], aliases)
    assert config.save_every == 7
    info = models.lookup(config.model_name)
    assert config.renderer_name in (*info.renderers, *CHAT_RENDERERS)
    data = getattr(config, "dataset_builder", None)
    assert data is None or isinstance(data, ChatDatasetBuilder | MathDatasetBuilder | DISTILLED)
    named = getattr(config, "dataset", None)
    by_recipe = {
        "chat_sl": chat_sl.DATASETS,
        "dpo": DATASETS,
        "off_policy_reasoning": (off_policy_reasoning.OPEN_THOUGHTS,),
        "sdft": sdft_datasets.DATASETS,
    }
    known = by_recipe.get(file.parent.name, {})
    assert named is None or (named in known and data is None)
    if isinstance(defaults.nano.sizes, Batches):
        assert config.max_length <= info.context_length
    else:
        assert config.max_tokens < info.context_length
    assert 1e-5 <= resolve_defaults(config, defaults).learning_rate < 1e-2


@pytest.mark.parametrize("file", PROGRAM_FILES, ids=lambda file: f"{file.parent.name}/{file.name}")
def test_a_program_of_stages_parses(file: Path, tmp_path: Path) -> None:
    config_class, stage_defaults = PROGRAMS[file.parent.name]
    config = parse(config_class, [f"config={file}", "...save_every=7"])
    info = models.lookup(config.model_name)
    assert config.renderer_name in (*info.renderers, *CHAT_RENDERERS)
    for name, defaults in stage_defaults.items():
        stage = stage_config(config, name, getattr(config, name), tmp_path)
        assert stage.save_every == 7
        assert 1e-5 <= resolve_defaults(stage, defaults).learning_rate < 1e-2
