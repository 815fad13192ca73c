"""Preference optimization on pairs of replies: DPO, IPO, SimPO, ORPO and other losses; KTO.

    ./scripts/run recipes.preference.dpo.train                                  nano, polite replies
    ./scripts/run recipes.preference.dpo.train loss=kto
    ./scripts/run recipes.preference.dpo.train model_name=Qwen/Qwen3-8B dataset=hhh
    ./scripts/run recipes.preference.dpo.train dataset=pairs.jsonl load_checkpoint_path=runs/sft
    ./scripts/run recipes.preference.dpo.train config=configs/dpo/qwen3-8b-1xh100.yaml

The reference model is the weights before training. Batch sizes count pairs. Formulas:
docs/algorithms.md.

Without keys, nano on 1,280 generated pairs in which a friendly sentence is preferred to a terse
answer; 40 steps, seeds 0, 1 and 2 (29 November 2026, 2 CPU cores, one thread: 43 s):

| step | sampled replies that are polite | win rate against the base model | held-out margin |
|---|---|---|---|
| 0 | 0.11 | 0.5 | 0 |
| 10 | 0.34, 0.34, 0.34 | 0.62, 0.61, 0.59 | 0.22, 0.22, 0.22 |
| 20 | 0.71, 0.70, 0.66 | 0.84, 0.83, 0.80 | 0.62, 0.61, 0.64 |
| 30 | 0.91, 0.94, 0.89 | 0.92, 0.92, 0.91 | 0.97, 0.97, 0.98 |
| 40 | 0.94, 0.93, 0.95 | 0.93, 0.93, 0.92 | 1.14, 1.15, 1.15 |

The judge of the win rate is the rule that made the pairs, in both orders of the replies.

With learning_rate=1e-3 the margin grows to 4.0 while the polite replies fall to 0.02 again
(over-optimization); the other losses: recipes/preference/README.md.
"""

from __future__ import annotations

import asyncio
from functools import partial

import chz

from recipes.preference.datasets import DATASETS, check_dataset_path
from tinker_cookbook.cli_utils import cli
from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.preference import train_dpo
from tinker_cookbook.preference.defaults import DPO_DEFAULTS
from tinker_cookbook.preference.dpo_datasets import DPODatasetBuilderFromComparisons
from tinker_cookbook.preference.losses import PreferenceLoss
from tinker_cookbook.preference.preference_datasets import HubComparisons
from tinker_cookbook.preference.unpaired_datasets import (
    KTODatasetBuilder,
    KTODatasetBuilderFromComparisons,
)
from tinker_cookbook.renderers.chats import check_file_exists
from tinker_cookbook.supervised.chat_config import ALIASES, FIRST_KEYS, resolve_chat_config
from tinker_cookbook.supervised.types import ChatDatasetBuilder
from tinker_cookbook.utils.json_types import Json


@chz.chz
class CLI(train_dpo.Config):
    dataset: str | None = chz.field(
        default=None,
        doc="comparisons: hhh, helpsteer3, ultrafeedback, nano_pairs, a file, a directory or a hub"
        " data set; labelled replies for loss=kto (None: nano_pairs for nano, else hhh)",
    )

    @staticmethod
    def drop_resolved_keys(config: dict[str, Json]) -> dict[str, Json]:
        config = train_dpo.Config.drop_resolved_keys(config)
        named = ("dataset_builder",) if config.get("dataset") else ()  # dataset= says it
        return {key: value for key, value in config.items() if key not in named}


CLIConfig = CLI  # the Tinker cookbook's name


def data_of(config: CLI) -> ChatDatasetBuilder:
    name = config.dataset or ("nano_pairs" if config.model_name == "nano" else "hhh")
    if name in DATASETS:
        comparisons = DATASETS[name]()
        if config.loss == "kto":
            return KTODatasetBuilderFromComparisons(comparison_builder=comparisons)
        return DPODatasetBuilderFromComparisons(comparison_builder=comparisons)
    check_dataset_path(name)
    return data_at(config.loss, name, "dataset")


def data_at(loss: PreferenceLoss, path: str, key: str) -> ChatDatasetBuilder:
    """The data at a path: comparisons, or for loss=kto rows of prompt, completion and label."""
    check_file_exists(path, key)
    if loss == "kto":
        return KTODatasetBuilder(path=path)
    return DPODatasetBuilderFromComparisons(comparison_builder=HubComparisons(path=path))


async def main(config: CLI) -> None:
    if config.dataset and (config.dataset_builder or config.dataset_path):
        other = "data=" if config.dataset_builder else f"dataset_path={config.dataset_path}"
        raise ConfigurationError(
            f"dataset={config.dataset} and {other} both name the data: drop either"
        )
    resolved = resolve_chat_config(
        config, DPO_DEFAULTS, data_of(config), partial(data_at, config.loss)
    )
    await train_dpo.run(resolved, recipe="dpo")


def cli_main(config: CLI) -> None:
    """`main` for programs that are not asynchronous."""
    asyncio.run(main(config))


if __name__ == "__main__":
    cli(main, CLI, ALIASES, ["dataset" if k == "dataset_path" else k for k in FIRST_KEYS])
