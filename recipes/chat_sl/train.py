"""Supervised fine-tuning on chat data sets.

    ./scripts/run recipes.chat_sl.train
    ./scripts/run recipes.chat_sl.train model_name=Qwen/Qwen3-8B dataset=no_robots
    ./scripts/run recipes.chat_sl.train model_name=Qwen/Qwen3-8B dataset=tulu3
    ./scripts/run recipes.chat_sl.train dataset=my.jsonl
    ./scripts/run recipes.chat_sl.train data=HubChats data.path=org/name data.message_field=chat
    ./scripts/run recipes.chat_sl.train dataset=gsm8k                                from the hub
    ./scripts/run recipes.chat_sl.train data=Gsm8kChats data.path=DIRECTORY          a local copy
    ./scripts/run recipes.chat_sl.train data=Oasst data.path=trees.jsonl data.test_size=20
    ./scripts/run recipes.chat_sl.train config=configs/chat_sl/qwen3-8b-1xh100.yaml
    ./scripts/run recipes.chat_sl.train config=configs/chat_sl/smollm2-135m-gsm8k.yaml

`dataset=gsm8k` is evaluated on 200 problems of the test split: the loss, and the final answers of
greedy replies. `dataset=oasst` takes one conversation from each tree of OpenAssistant.

Without keys, nano on the bundled conversations of sl_basic, with its curve; seed 0 (29 November
2026, 2 CPU cores, one thread: 22 s of CPU time): loss 8.2 -> 0.19 (step 20) -> 0.005 (40) -> 0.002
(59), held-out numbers right 0 -> 8 (step 20) -> 29 (40) -> 29 (60) of 30.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import chz

from recipes.chat_sl.gsm8k import Gsm8kChats
from recipes.chat_sl.oasst import Oasst
from recipes.number_words import NumberWords
from tinker_cookbook.cli_utils import cli
from tinker_cookbook.eval.inspect_evaluators import InspectEvaluatorBuilder
from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.supervised import train
from tinker_cookbook.supervised.chat_config import (
    ALIASES,
    FIRST_KEYS,
    ChatConfig,
    resolve_chat_config,
)
from tinker_cookbook.supervised.data import NoRobots, Tulu3, builder_for_path
from tinker_cookbook.supervised.defaults import NANO, Batches
from tinker_cookbook.supervised.types import ChatDatasetBuilder
from tinker_cookbook.training.defaults import Defaults, ModelDefaults
from tinker_cookbook.training.fields import COUNT, MAY_CHANGE
from tinker_cookbook.training.resolve import Resolved
from tinker_cookbook.utils.json_types import Json

DEFAULTS = Defaults(
    nano=NANO,
    others=ModelDefaults(Batches(batch_size=256, max_length=16_384)),
    within_context=("max_length",),
)
DATASETS = {
    "no_robots": NoRobots,
    "tulu3": Tulu3,
    "gsm8k": Gsm8kChats,
    "oasst": Oasst,
    "number_words": NumberWords,
}


@chz.chz
class CLI(ChatConfig):
    dataset: str | None = chz.field(
        default=None,
        doc="no_robots, tulu3, gsm8k, oasst, number_words, or anything that dataset_path accepts"
        " (None: number_words for nano, else no_robots)",
    )
    inline_evals: Literal["inspect"] | None = chz.field(
        default=None,
        doc="inspect: also evaluate on the Inspect tasks in inspect_tasks, every"
        " infrequent_eval_every steps",
        metadata=MAY_CHANGE,
    )
    inspect_tasks: list[str] = chz.field(
        default_factory=list,
        doc="Inspect tasks of inline_evals, e.g. inspect_tasks=ifeval,gsm8k (empty: nano_sums for"
        " nano, else gsm8k and ifeval)",
        metadata=MAY_CHANGE,
    )
    inspect_limit: int | None = chz.field(
        default=100,
        doc="samples of each Inspect task, from the first (None: all)",
        metadata=COUNT | MAY_CHANGE,
    )
    eval_every: int = chz.field(
        default=20, doc="steps between evaluations (0: only before and after training)"
    )

    @staticmethod
    def drop_resolved_keys(config: dict[str, Json]) -> dict[str, Json]:
        config = ChatConfig.drop_resolved_keys(config)
        if config.get("inline_evals"):  # its evaluator was added behind the user's own
            builders = config["infrequent_evaluator_builders"]
            assert isinstance(builders, list)
            config = {**config, "infrequent_evaluator_builders": builders[:-1]}
        named = ("dataset_builder",) if config.get("dataset") else ()  # dataset= says it
        return {key: value for key, value in config.items() if key not in named}


def data_of(config: CLI) -> ChatDatasetBuilder:
    name = config.dataset or ("number_words" if config.model_name == "nano" else "no_robots")
    if name in DATASETS:
        return DATASETS[name]()
    if not Path(name).suffix and "/" not in name and not Path(name).exists():
        raise ConfigurationError(
            f"dataset={name!r} is unknown; set {', '.join(DATASETS)}, a file, a directory, org/name"
            " of a hub data set, or data="
        )
    return builder_for_path(name, "dataset")


def with_inline_evals(run: Resolved[CLI, Batches]) -> Resolved[CLI, Batches]:
    """Add the evaluator of `inline_evals`, with the run's model and renderer."""
    config = run.config
    if config.inline_evals is None:
        if config.inspect_tasks:
            raise ConfigurationError("inspect_tasks= has no effect without inline_evals=inspect")
        return run
    default = ["nano_sums"] if config.model_name == "nano" else ["gsm8k", "ifeval"]
    builder = InspectEvaluatorBuilder(
        tasks=config.inspect_tasks or default,
        renderer_name=run.renderer_name,
        model_name=run.model_name,
        max_tokens=None,  # as in an evaluation afterwards
        limit=config.inspect_limit,
    )
    builders = [*config.infrequent_evaluator_builders, builder]
    return replace(run, config=chz.replace(config, infrequent_evaluator_builders=builders))


async def main(config: CLI) -> None:
    if config.dataset and (config.dataset_builder or config.dataset_path):
        raise ConfigurationError(f"dataset={config.dataset} and data= both name the data")
    run = resolve_chat_config(config, DEFAULTS, data_of(config))
    await train.run(with_inline_evals(run), recipe="chat_sl")


if __name__ == "__main__":
    cli(main, CLI, ALIASES, ["dataset" if k == "dataset_path" else k for k in FIRST_KEYS])
