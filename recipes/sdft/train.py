"""TODO"""

from __future__ import annotations

import asyncio

import chz

from recipes.sdft.datasets import demonstrations_at, demonstrations_of
from tinker_cookbook.cli_utils import cli
from tinker_cookbook.distillation import sdft
from tinker_cookbook.distillation.sdft_defaults import SDFT_DEFAULTS
from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.supervised import chat_config
from tinker_cookbook.supervised.chat_config import FIRST_KEYS, resolve_chat_config
from tinker_cookbook.utils.json_types import Json

# `groups_per_batch` is the Tinker cookbook's name
ALIASES = {**chat_config.ALIASES, "groups_per_batch": "batch_size"}
HELP_KEYS = ["dataset" if key == "dataset_path" else key for key in FIRST_KEYS]


@chz.chz
class CLI(sdft.Config):
    dataset: str | None = chz.field(
        default=None,
        doc="demonstrations: sciknoweval, toolalpaca, nano_facts, or conversations in a file, a"
        " directory or a hub data set (None: nano_facts for nano, else sciknoweval)",
    )
    lora_rank: int = chz.field(default=128, doc="LoRA rank")

    @staticmethod
    def drop_resolved_keys(config: dict[str, Json]) -> dict[str, Json]:
        config = sdft.Config.drop_resolved_keys(config)
        named = ("dataset_builder",) if config.get("dataset") else ()  # dataset= says it
        return {key: value for key, value in config.items() if key not in named}


CLIConfig = CLI  # the Tinker cookbook's name


async def main(config: CLI) -> None:
    if config.dataset and (config.dataset_builder or config.dataset_path):
        other = "data=" if config.dataset_builder else f"dataset_path={config.dataset_path}"
        raise ConfigurationError(
            f"dataset={config.dataset} and {other} both name the data: drop either"
        )
    name = config.dataset or ("nano_facts" if config.model_name == "nano" else "sciknoweval")
    resolved = resolve_chat_config(
        config, SDFT_DEFAULTS, demonstrations_of(name), demonstrations_at
    )
    await sdft.run(resolved, recipe="sdft")


def cli_main(config: CLI) -> None:
    """`main` for programs that are not asynchronous."""
    asyncio.run(main(config))


if __name__ == "__main__":
    cli(main, CLI, ALIASES, HELP_KEYS)
