"""The preference recipe as a user runs it: data by name or path, and what nano learns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from recipes.preference.datasets import HHHComparisonBuilder, NanoPairs
from recipes.preference.dpo import train as dpo
from recipes.preference.sampled_style import SampledStyle
from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.preference.defaults import DPO_DEFAULTS
from tinker_cookbook.preference.dpo_datasets import DPODatasetBuilderFromComparisons
from tinker_cookbook.preference.preference_datasets import HubComparisons
from tinker_cookbook.preference.unpaired_datasets import (
    KTODatasetBuilder,
    KTODatasetBuilderFromComparisons,
)
from tinker_cookbook.preference.win_rate import WinRate
from tinker_cookbook.supervised.chat_config import resolve_chat_config


def rows(log_path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (log_path / "metrics.jsonl").read_text().splitlines()]


def test_data_by_name_and_by_path(tmp_path: Path) -> None:
    path = str(tmp_path / "pairs.jsonl")
    Path(path).write_text("{}\n")
    pairs, kto = DPODatasetBuilderFromComparisons, KTODatasetBuilderFromComparisons
    for keys, expected in (
        ({}, pairs(comparison_builder=NanoPairs())),
        ({"model_name": "Qwen/Qwen3-8B"}, pairs(comparison_builder=HHHComparisonBuilder())),
        ({"dataset": "hhh"}, pairs(comparison_builder=HHHComparisonBuilder())),
        ({"dataset": path}, pairs(comparison_builder=HubComparisons(path=path))),
        ({"loss": "kto"}, kto(comparison_builder=NanoPairs())),
        ({"loss": "kto", "dataset": path}, KTODatasetBuilder(path=path)),
    ):
        assert dpo.data_of(dpo.CLI(**keys)) == expected, keys


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"dataset": "hh"}, "dataset='hh' is unknown; set hhh, helpsteer3"),
        ({"dataset": "no.jsonl"}, r"dataset=no\.jsonl: no such file"),
    ],
)
def test_data_that_is_not_there(keys: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        dpo.data_of(dpo.CLI(**keys))


async def test_two_names_for_the_data(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"hhh and dataset_path=x\.jsonl both name"):
        await dpo.main(dpo.CLI(dataset="hhh", dataset_path="x.jsonl"))


def test_nanos_defaults() -> None:
    config = resolve_chat_config(dpo.CLI(), DPO_DEFAULTS, dpo.data_of(dpo.CLI())).config
    assert (config.learning_rate, config.batch_size, config.num_epochs) == (6e-4, 32, 1)
    style, win_rate = config.evaluator_builders
    assert isinstance(style, SampledStyle) and style.preference == "polite"
    assert isinstance(win_rate, WinRate) and win_rate.baseline_path is None


@pytest.mark.slow
async def test_nano_learns_to_be_polite(tmp_path: Path) -> None:
    await dpo.main(dpo.CLI(log_path=str(tmp_path / "run"), display="none"))
    first, *_, last = [row for row in rows(tmp_path / "run") if "sampled/polite" in row]
    assert first["step"] == 0 and last["step"] == 40
    assert first["sampled/polite"] < 0.15 and last["sampled/polite"] >= 0.75
    assert last["test/margin"] >= 0.8
