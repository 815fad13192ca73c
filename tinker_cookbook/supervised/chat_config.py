"""The supervised loop's keys for conversations, flat: what recipes on chat data put on the
command line instead of a nested `common_config`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TypeVar

import chz

from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.renderers import TrainOnWhat
from tinker_cookbook.supervised import train
from tinker_cookbook.supervised.data import data_at
from tinker_cookbook.supervised.defaults import Batches
from tinker_cookbook.supervised.types import (
    EXAMPLE_LENGTH,
    ChatDatasetBuilder,
    ChatDatasetBuilderCommonConfig,
    SupervisedDatasetBuilder,
)
from tinker_cookbook.training.defaults import Defaults
from tinker_cookbook.training.fields import COUNT
from tinker_cookbook.training.resolve import (
    Resolved,
    Value,
    check_no_unused_keys,
    resolve_defaults,
    restore_unset_fields,
    set_unset_fields,
)
from tinker_cookbook.utils.json_types import Json
from tinker_cookbook.utils.plain_data import CLASS, plain
from tinker_cookbook.utils.run_config import rebuild

# `data=X data.path=Y` on the command line
ALIASES = {"data": "dataset_builder"}
# the keys that `--help` explains first
FIRST_KEYS = (
    "model_name",
    "data",
    "dataset_path",
    "learning_rate",
    "batch_size",
    "max_length",
    "num_epochs",
    "max_steps",
    "eval_every",
    "log_path",
)


@chz.chz
class ChatConfig(train.Config):
    """`train.Config` with the keys that turn conversations into batches."""

    dataset_builder: SupervisedDatasetBuilder | None = chz.field(
        default=None, doc="what to train on, e.g. data=NoRobots (None: the recipe's own)"
    )
    dataset_path: str | None = chz.field(
        default=None,
        doc="conversations: a JSONL file (short for data=JsonlChats data.path=...), else another"
        " file, a directory or a name on the hub (data=HubChats)",
    )
    num_epochs: int | None = chz.field(
        default=None, doc="passes over the data (None: what suits the data, most often 1)"
    )
    batch_size: int | None = chz.field(
        default=None, doc="examples a step (None: by the model)", metadata=COUNT
    )
    max_length: int | None = chz.field(
        default=None,
        doc="tokens an example; longer ones lose their end (None: by the model)",
        metadata=EXAMPLE_LENGTH,
    )
    train_on_what: TrainOnWhat | None = chz.field(
        default=None, doc="which messages are trained (None: what the data is meant for)"
    )

    @staticmethod
    def drop_resolved_keys(config: dict[str, Json]) -> dict[str, Json]:
        """A stored config without the keys that `resolve_defaults` derived, as plain data."""
        data = config.get("dataset_builder")
        # max_length: no limit, where a key that is None asks for the usual
        if not isinstance(data, dict) or config["max_length"] is None:
            return config
        builder = rebuild(data, "dataset_builder")
        own = restore_unset_fields(data, type(builder), {"common_config": _rendering(config)})
        if own == data:
            return config
        evaluators = plain(builder.default_evaluator_builders(), identities=False)
        derived = ("evaluator_builders",) if config.get("evaluator_builders") == evaluators else ()
        kept = {k: v for k, v in config.items() if k not in derived}
        return {**kept, "dataset_builder": own}


C = TypeVar("C", bound=ChatConfig)


def _rendering(config: Mapping[str, Json]) -> dict[str, Json]:
    """What `resolve_defaults` fills common_config with, as plain data."""
    keys = ("renderer_name", "max_length", "batch_size", "train_on_what")
    return {
        CLASS: plain(ChatDatasetBuilderCommonConfig),
        "model_name_for_tokenizer": config["model_name"],
        **{key: config[key] for key in keys},
    }


def resolve_chat_config(
    config: C, defaults: Defaults[Batches], default_data: SupervisedDatasetBuilder
) -> Resolved[C, Batches]:
    """`training.resolve` for conversations: the data is chosen, too, and follows the recipe's keys
    where it has no common_config of its own.

    Raises ConfigurationError for keys that cannot work, or that the data would not follow.
    """
    if config.dataset_path is not None and config.dataset_builder is not None:
        raise ConfigurationError(
            f"dataset_path={config.dataset_path} and data= both name the data: drop either"
        )
    asked = config
    data = config.dataset_builder or default_data
    if config.dataset_path is not None:
        data = data_at(config.dataset_path, "dataset_path")
    run = resolve_defaults(chz.replace(config, dataset_builder=data), defaults)
    filled, sizes = dict(run.filled), run.sizes
    config = chz.replace(run.config, dataset_path=None)  # the builder says it; once is enough
    if isinstance(data, ChatDatasetBuilder) and data.common_config is None:
        common = ChatDatasetBuilderCommonConfig(
            model_name_for_tokenizer=run.model_name,
            renderer_name=run.renderer_name,
            max_length=sizes.max_length,
            batch_size=sizes.batch_size,
            train_on_what=config.train_on_what,
        )
        data = set_unset_fields(data, {"common_config": common})
        config = chz.replace(config, dataset_builder=data)
    else:
        config = _with_rendering_of(data, asked, config, filled)
    if config.num_epochs is None:
        filled["num_epochs"] = data.default_num_epochs()
        config = chz.replace(config, num_epochs=filled["num_epochs"])
    if not config.evaluator_builders:
        config = chz.replace(config, evaluator_builders=data.default_evaluator_builders())
    return dataclasses.replace(run, config=config, filled=filled)


def _with_rendering_of(
    data: SupervisedDatasetBuilder, asked: ChatConfig, config: C, filled: dict[str, Value]
) -> C:
    """config.json tells what holds for data with settings of its own, not what a model would
    like."""
    for key in ("batch_size", "max_length", "train_on_what"):
        check_no_unused_keys(key, getattr(asked, key), data)
        filled.pop(key, None)
    common = getattr(data, "common_config", None)
    return chz.replace(
        config,
        batch_size=common and common.batch_size,
        max_length=common and common.max_length,
        train_on_what=common and common.train_on_what,
    )
