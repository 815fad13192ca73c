"""Self-distillation from demonstrations: the model imitates itself with an example in view.

    ./scripts/run recipes.sdft.train                                  nano, generated facts
    ./scripts/run recipes.sdft.train reverse=True teacher_sync_every=10
    ./scripts/run recipes.sdft.train model_name=Qwen/Qwen3-8B \\
        renderer_name=qwen3_disable_thinking dataset=sciknoweval
    ./scripts/run recipes.sdft.train model_name=Qwen/Qwen3-8B \\
        renderer_name=qwen3_disable_thinking dataset=chats.jsonl
    ./scripts/run recipes.sdft.train config=configs/sdft/qwen3-8b-sciknoweval-1xh100.yaml

SDFT (Shenfeld et al. 2026, arXiv 2601.19897): the student replies to a question; the same model,
which also reads how a demonstration answers it, says what it would have written at each token; the
student is trained towards that. The teacher has to be able to use a demonstration: the base model
is asked with one before training.

Without keys, nano on 70 questions about 35 invented facts ("Who has the lamp?"), 40 steps of 32
questions, seeds 0, 1 and 2 (29 November 2026, 2 CPU cores, one thread: 55 to 58 s of CPU time):

| step | forward KL | facts right, trained questions | facts right, other questions | sums right |
|---|---|---|---|---|
| 0 | 1.52, 1.42, 1.57 | 0 | 0 | 0.82 |
| 10 | 0.22, 0.25, 0.18 | 0.56, 0.57, 0.63 | 0.34, 0.46, 0.49 | 0.82, 0.80, 0.84 |
| 20 | 0.05, 0.04, 0.06 | 1.00, 1.00, 1.00 | 0.97, 1.00, 0.94 | 0.95, 0.90, 0.97 |
| 30 | 0.05, 0.01, 0.02 | 1.00, 1.00, 1.00 | 0.97, 1.00, 0.97 | 0.97, 0.93, 0.96 |
| 40 | 0.01, 0.04, 0.01 | 1.00, 1.00, 1.00 | 1.00, 1.00, 0.97 | 0.99, 0.95, 0.97 |

(The KL of row 40 is that of step 39.) Replies are greedy. The sums have nothing to do with the
facts: supervised fine-tuning on the same demonstrations at the same rate learns the facts as well,
and forgets sums (0.73, 0.76, 0.63). More settings: recipes/sdft/README.md.
"""

from __future__ import annotations

import asyncio

import chz

from recipes.distillation.student import describe_student
from recipes.sdft.datasets import demonstrations_at, demonstrations_of
from recipes.sdft.evaluation import default_max_tokens
from tinker_cookbook import models
from tinker_cookbook.cli_utils import cli
from tinker_cookbook.distillation import sdft
from tinker_cookbook.distillation.demonstrations import DemonstrationDatasetBuilder
from tinker_cookbook.distillation.sdft_defaults import SDFT_DEFAULTS
from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.supervised import chat_config
from tinker_cookbook.supervised.chat_config import FIRST_KEYS, resolve_chat_config
from tinker_cookbook.supervised.defaults import Batches
from tinker_cookbook.training.resolve import Resolved, restore_unset_fields, set_unset_fields
from tinker_cookbook.utils.json_types import Json
from tinker_cookbook.utils.run_config import rebuild

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

    @staticmethod
    def drop_resolved_keys(config: dict[str, Json]) -> dict[str, Json]:
        config = _drop_evaluation_limit(sdft.Config.drop_resolved_keys(config))
        named = ("dataset_builder",) if config.get("dataset") else ()  # dataset= says it
        return {key: value for key, value in config.items() if key not in named}


def _drop_evaluation_limit(config: dict[str, Json]) -> dict[str, Json]:
    """The stored config without the limit that it takes from `max_tokens`."""
    data = config.get("dataset_builder")
    if not isinstance(data, dict):
        return config
    limit = {"eval_max_tokens": config.get("max_tokens")}
    restored = restore_unset_fields(data, type(rebuild(data, "dataset_builder")), limit)
    return {**config, "dataset_builder": restored}


CLIConfig = CLI  # the Tinker cookbook's name


async def main(config: CLI) -> None:
    if config.dataset and (config.dataset_builder or config.dataset_path):
        other = "data=" if config.dataset_builder else f"dataset_path={config.dataset_path}"
        raise ConfigurationError(
            f"dataset={config.dataset} and {other} both name the data: drop either"
        )
    directory = await sdft.run(resolve(config), recipe="sdft")
    print(describe_student(directory))


def resolve(config: CLI) -> Resolved[CLI, Batches]:
    """Resolve the config; replies in the evaluation may be as long as those in training."""
    limit = {"eval_max_tokens": config.max_tokens or default_max_tokens(config.model_name)}
    if config.dataset_builder is not None:
        data = set_unset_fields(config.dataset_builder, limit)
        config = chz.replace(config, dataset_builder=data)
    data = set_unset_fields(data_of(config), limit)
    return resolve_chat_config(config, SDFT_DEFAULTS, data, demonstrations_at)


def data_of(config: CLI) -> DemonstrationDatasetBuilder:
    """The data that `dataset=` names, or the model's default."""
    default = "nano_facts" if models.is_nano(config.model_name) else "sciknoweval"
    return demonstrations_of(config.dataset or default)


def cli_main(config: CLI) -> None:
    """`main` for programs that are not asynchronous."""
    asyncio.run(main(config))


if __name__ == "__main__":
    cli(main, CLI, ALIASES, HELP_KEYS)
