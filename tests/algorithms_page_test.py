"""docs/algorithms.md has every loss, advantage and key of the code, with the code's defaults."""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import get_args

import chz
import numpy as np
import pytest

from tinker_cookbook import hyperparam_utils
from tinker_cookbook.distillation import sdft
from tinker_cookbook.engine.lora import LoraSpec
from tinker_cookbook.engine.losses import LOSSES, get_loss
from tinker_cookbook.engine.requests import AdamConfig
from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.preference import train_dpo
from tinker_cookbook.preference.envs import MATCHUP_GROUP_SIZE
from tinker_cookbook.preference.losses import PreferenceLoss
from tinker_cookbook.rl import train as rl
from tinker_cookbook.rl.signals import AdvantageKind, group_advantages
from tinker_cookbook.rl.training_step import NUM_PROBED
from tinker_cookbook.supervised import train as supervised
from tinker_cookbook.supervised.chat_config import ChatConfig

SCRIPTS = Path(__file__).parent.parent / "scripts"
# Keys that decide about data, rollouts, evaluations, checkpoints and display, not about what is
# computed from the data: a new key belongs here or into a table of the page.
NOT_ALGORITHMS = {
    "base_url",
    "behavior_if_log_dir_exists",
    "dataset_builder",
    "display",
    "engine",
    "eval_every",
    "eval_greedy",
    "evaluator_builders",
    "infrequent_eval_every",
    "infrequent_evaluator_builders",
    "limits",
    "load_checkpoint_path",
    "log_path",
    "max_tokens",
    "model_name",
    "renderer_name",
    "rolling_save_every",
    "rollout_strategy",
    "sample_replies",
    "save_every",
    "submit_ahead",
    "transcripts_every",
    "ttl_seconds",
    "wandb_name",
    "wandb_project",
}


@pytest.fixture
def builder(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module("build_algorithms_page")


@pytest.fixture
def written(builder: ModuleType) -> str:
    return builder.PAGE.read_text(encoding="utf-8")


def rows_of(written: str, table: str) -> list[list[str]]:
    """The cells of a table's rows, without its head."""
    text = written.split(f"<!-- {table} -->\n")[1].split("<!-- end -->")[0]
    return [re.split(r" ?\| ?", line)[1:-1] for line in text.splitlines()[2:]]


def test_the_tables_are_current(builder: ModuleType, written: str) -> None:
    assert written == builder.page(written), "run scripts/build_algorithms_page.py"


def test_every_table_is_on_the_page_once(builder: ModuleType, written: str) -> None:
    assert sorted(re.findall(r"<!-- (\w+) -->\n\|", written)) == sorted(builder.TABLES)


def test_a_changed_default_changes_the_page(
    builder: ModuleType, written: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cispo = LOSSES["cispo"]
    other = type(cispo)(
        **{**vars(cispo), "config": {"clip_low_threshold": 0.0, "clip_high_threshold": 5.0}}
    )
    monkeypatch.setitem(LOSSES, "cispo", other)
    assert builder.page(written) != written


def test_every_loss_has_rows_and_a_formula(written: str) -> None:
    assert [row[0].split("`")[1] for row in rows_of(written, "losses")] == list(LOSSES)
    section = written.split("\n## Losses")[1].split("\n## ")[0]
    assert re.findall(r"^### (\w+)\n\n```math\n", section, re.M) == list(LOSSES)
    settings = [(row[0].strip("`"), row[1].strip("`")) for row in rows_of(written, "loss_settings")]
    known = [(name, key) for name, loss in LOSSES.items() for key in (*loss.config, "temperature")]
    assert settings == known


def test_every_advantage_has_a_row_and_a_formula(written: str) -> None:
    kinds = list(get_args(AdvantageKind))
    assert [row[0].split("`")[1] for row in rows_of(written, "advantages")] == kinds
    section = written.split("\n## Advantages")[1].split("\n## ")[0]
    assert re.findall(r"^### (\w+)\n\n```math\n", section, re.M) == kinds


def test_every_preference_loss_has_a_row(written: str) -> None:
    section = written.split("\n## Preference losses")[1].split("\n## ")[0]
    names = re.findall(r"^\| `(\w+)` \| \$", section, re.M)
    assert names == list(get_args(PreferenceLoss))


def test_every_key_of_the_loops_has_a_place(builder: ModuleType, written: str) -> None:
    of_preference = {*chz.chz_fields(train_dpo.Config)} - {*chz.chz_fields(ChatConfig)}
    of_self_distillation = {*chz.chz_fields(sdft.Config)} - {*chz.chz_fields(ChatConfig)}
    of_loops = {
        *chz.chz_fields(supervised.Config),
        *chz.chz_fields(rl.Config),
        *of_preference,
        *of_self_distillation,
    }
    on_page = [row[0].strip("`") for table in builder.KEYS for row in rows_of(written, table)]
    assert len(on_page) == len(set(on_page))
    assert {*on_page, *NOT_ALGORITHMS} == of_loops
    assert {row[0].strip("`") for row in rows_of(written, "preference_keys")} == of_preference
    own = {row[0].strip("`") for row in rows_of(written, "self_distillation_keys")}
    assert own | {"max_tokens", "temperature"} == of_self_distillation
    assert not {*on_page} & NOT_ALGORITHMS


Settings = list[Mapping[str, float]]
ACCEPTED: dict[str, Settings] = {
    "clip_low_threshold": [
        {"clip_low_threshold": 0.0},
        {"clip_low_threshold": 1.0, "clip_high_threshold": 1.0},
    ],
    "clip_high_threshold": [{"clip_low_threshold": 0.5, "clip_high_threshold": 0.5}],
    "beta": [{"beta": -1e6}, {"beta": 0.0}, {"beta": 1e6}],
    "temperature": [{"temperature": 1e-4}, {"temperature": 100.0}],
}
REFUSED: dict[str, Settings] = {
    "clip_low_threshold": [
        {"clip_low_threshold": -1e-9},
        {"clip_low_threshold": 2.0, "clip_high_threshold": 1.9},
    ],
    "clip_high_threshold": [{"clip_low_threshold": 0.5, "clip_high_threshold": 0.49}],
    "beta": [{"beta": float("inf")}, {"beta": float("nan")}],
    "temperature": [{"temperature": 0.99e-4}, {"temperature": -1.0}],
}


@pytest.mark.parametrize("key", ACCEPTED)
def test_the_ranges_of_loss_settings_are_so(builder: ModuleType, key: str) -> None:
    assert builder.LOSS_RANGES.keys() == ACCEPTED.keys() == REFUSED.keys()
    for name, loss in LOSSES.items():
        if key not in {*loss.config, "temperature"}:
            with pytest.raises(ConfigurationError, match=key):
                get_loss(name, {key: 1.0})
            continue
        for settings in ACCEPTED[key]:
            get_loss(name, settings)
        for settings in REFUSED[key]:
            with pytest.raises(ConfigurationError, match=key):
                get_loss(name, settings)


def test_numbers_in_the_prose(written: str) -> None:
    text = " ".join(written.split())
    assert f"\\alpha = {LoraSpec().alpha:g}" in text
    assert f"{NUM_PROBED} sequences are scored again" in text
    assert f"chunks of at most {MATCHUP_GROUP_SIZE} (`matchup_group_size`)" in text
    assert f"Tinker's own eps, {AdamConfig().eps:g}" in text
    # 5e-5 * 10 * (2000 / h)^p, at Qwen3-8B's h and p
    assert hyperparam_utils.get_lr("Qwen/Qwen3-8B") == pytest.approx(
        5e-5 * 10 * (2000 / 4096) ** 0.0775
    )
    assert hyperparam_utils.get_lora_lr_over_full_finetune_lr("Qwen/Qwen3-8B") == 10


def test_the_formula_of_grpo_is_the_codes() -> None:
    """std of a sample, 1e-6 beside it, divided by the trained tokens."""
    rewards, tokens = np.array([1.0, 0.0, 0.5]), [4, 5, 6]
    by_hand = (rewards - rewards.mean()) / (rewards.std(ddof=1) + 1e-6) / tokens
    np.testing.assert_allclose(group_advantages(list(rewards), "grpo", tokens), by_hand, rtol=1e-12)


def test_links_within_the_page_and_to_files_lead_somewhere(written: str) -> None:
    headings = {
        re.sub(r"[^\w -]", "", line).strip().lower().replace(" ", "-")
        for line in re.findall(r"^#+ (.*)$", written, re.M)
    }
    for target in re.findall(r"\]\(([^)]+)\)", written):
        if target.startswith("#"):
            assert target[1:] in headings, target
        elif not target.startswith("http"):
            assert (SCRIPTS.parent / "docs" / target.split("#")[0]).exists(), target
