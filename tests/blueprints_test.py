"""Programs that begin with a recipe's blueprint: the same training as the recipe's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from recipes import rl_basic, sl_basic
from tinker_cookbook.cli_utils import parse
from tinker_cookbook.nano import PATH as NANO
from tinker_cookbook.utils.ml_log import read_metrics

pytestmark = pytest.mark.skipif(
    not (NANO / "model.safetensors").exists(), reason="nano is being built"
)
SHORT = {"max_steps": 2, "eval_every": 0, "save_every": 0, "engine.deterministic": True}
KEYS = {
    sl_basic: {**SHORT, "sample_replies": 0, "lora_rank": 4},
    rl_basic: {
        **SHORT,
        "dataset_builder.test_size": 2,
        "dataset_builder.group_size": 4,
        "dataset_builder.groups_per_batch": 2,
        "max_tokens": 8,
        "eval_greedy": False,
        "seed": 1,
    },
}
WORDS = {sl_basic: (), rl_basic: ("data=Arithmetic",)}


@pytest.mark.parametrize("recipe", [sl_basic, rl_basic], ids=["sl_basic", "rl_basic"])
async def test_a_blueprint_trains_as_its_recipe_does(recipe: Any, tmp_path: Path) -> None:
    blueprint = recipe.build_config_blueprint()
    config = blueprint.apply({**KEYS[recipe], "log_path": str(tmp_path / "program")}).make()
    assert type(config) is recipe.train.Config
    await recipe.train.main(config)
    words = [f"{key}={value}" for key, value in KEYS[recipe].items()]
    asked = [*WORDS[recipe], *words, f"log_path={tmp_path / 'recipe'}"]
    await recipe.main(parse(recipe.CLI, asked, recipe.ALIASES))
    names = {"train_mean_nll", "learning_rate", "env/all/reward/total", "optim/lr"}
    rows = [
        [{k: row[k] for k in row if k in names} for row in read_metrics(tmp_path / run)[:2]]
        for run in ("program", "recipe")
    ]
    assert rows[0] == rows[1] and len(rows[0]) == 2 and all(len(row) == 2 for row in rows[0])


def test_other_models_are_rendered_for_as_well() -> None:
    config = sl_basic.build_config_blueprint().apply({"model_name": "Qwen/Qwen3-8B"}).make()
    assert config.dataset_builder.common_config.model_name_for_tokenizer == "Qwen/Qwen3-8B"
    config = rl_basic.build_config_blueprint().apply({"seed": 3, "renderer_name": "qwen3"}).make()
    data = config.dataset_builder
    assert (data.seed, data.renderer_name, data.num_batches) == (3, "qwen3", 24)
