"""Flat config keys for chat data: recipes offer these on the command line instead of a nested
`common_config`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TypeVar

import chz

from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.renderers import TrainOnWhat
from tinker_cookbook.supervised import train
from tinker_cookbook.supervised.data import builder_for_path
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
    check_key_has_effect,
    resolve_defaults,
    restore_unset_fields,
    set_unset_fields,
)
from tinker_cookbook.utils.json_types import Json
from tinker_cookbook.utils.plain_data import CLASS, plain, without_identities
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
    """`train.Config` plus the keys that control rendering and batching of conversations."""

    dataset_builder: SupervisedDatasetBuilder | None = chz.field(
        default=None, doc="data to train on, e.g. data=NoRobots (None: the recipe's default)"
    )
    dataset_path: str | None = chz.field(
        default=None,
        doc="conversations: JSONL file, local directory or hub data set (None: recipe's default)",
    )
    num_epochs: int | None = chz.field(
        default=None, doc="passes over the data (None: the data set's default, usually 1)"
    )
    batch_size: int | None = chz.field(
        default=None, doc="examples per step (None: the default for the model)", metadata=COUNT
    )
    max_length: int | None = chz.field(
        default=None,
        doc="tokens per example; longer ones are truncated on the right (None: the default for"
        " the model)",
        metadata=EXAMPLE_LENGTH,
    )
    train_on_what: TrainOnWhat | None = chz.field(
        default=None, doc="which messages to train on (None: the data set's default)"
    )

    @staticmethod
    def drop_resolved_keys(config: dict[str, Json]) -> dict[str, Json]:
        """Return a stored config (plain data) without the keys that `resolve_defaults` derived.

        With `config=<run>/config.json` the derived keys must be derived again: otherwise a new
        `batch_size=` would be ignored, because the stored `common_config` already has one.
        """
        data = config.get("dataset_builder")
        # max_length=None in the stored config means "no limit", but None as a key means "use the
        # default", so the stored builder has to be kept as it is.
        if not isinstance(data, dict) or config["max_length"] is None:
            return config
        builder = rebuild(data, "dataset_builder")
        common_config = {"common_config": _derived_common_config(config)}
        restored = restore_unset_fields(data, type(builder), common_config)
        if restored == data:
            return config
        evaluators = plain(builder.default_evaluator_builders(), identities=False)
        stored = without_identities(config.get("evaluator_builders"))
        derived = ("evaluator_builders",) if stored == evaluators else ()
        explicit = {k: v for k, v in config.items() if k not in derived}
        return {**explicit, "dataset_builder": restored}


C = TypeVar("C", bound=ChatConfig)


def _derived_common_config(config: Mapping[str, Json]) -> dict[str, Json]:
    """The common_config that `resolve_chat_config` builds from the recipe's keys, as plain data."""
    keys = ("renderer_name", "max_length", "batch_size", "train_on_what")
    return {
        CLASS: plain(ChatDatasetBuilderCommonConfig),
        "model_name_for_tokenizer": config["model_name"],
        **{key: config[key] for key in keys},
    }


def resolve_chat_config(
    config: C,
    defaults: Defaults[Batches],
    default_data: SupervisedDatasetBuilder,
    data_at: Callable[[str, str], SupervisedDatasetBuilder] = builder_for_path,
) -> Resolved[C, Batches]:
    """Resolve a chat config: choose the data, then resolve every key that is None.

    data_at: (dataset_path, "dataset_path") -> the data there.

    Data without its own `common_config` takes model, renderer, lengths and batch size from the
    recipe's keys. Raises ConfigurationError for keys that contradict each other and for keys that
    the data would ignore.
    """
    if config.dataset_path is not None and config.dataset_builder is not None:
        raise ConfigurationError(
            f"dataset_path={config.dataset_path} and data= both name the data: drop either"
        )
    original = config
    data = config.dataset_builder or default_data
    if config.dataset_path is not None:
        data = data_at(config.dataset_path, "dataset_path")
    run = resolve_defaults(chz.replace(config, dataset_builder=data), defaults)
    filled, sizes = dict(run.filled), run.sizes
    config = chz.replace(run.config, dataset_path=None)  # now stored in dataset_builder
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
        config = _take_settings_of_data(data, original, config, filled)
    if config.num_epochs is None:
        filled["num_epochs"] = data.default_num_epochs()
        config = chz.replace(config, num_epochs=filled["num_epochs"])
    if not config.evaluator_builders:
        config = chz.replace(config, evaluator_builders=data.default_evaluator_builders())
    return dataclasses.replace(run, config=config, filled=filled)


def _take_settings_of_data(
    data: SupervisedDatasetBuilder, original: ChatConfig, config: C, filled: dict[str, Value]
) -> C:
    """Copy batch_size, max_length and train_on_what from data that has its own settings.

    config.json must show the values in effect. The model's defaults are not in effect here, so they
    are also removed from `filled`, which is printed as the list of chosen defaults.
    """
    for key in ("batch_size", "max_length", "train_on_what"):
        check_key_has_effect(key, getattr(original, key), data)
        filled.pop(key, None)
    common = getattr(data, "common_config", None)
    return chz.replace(
        config,
        batch_size=common and common.batch_size,
        max_length=common and common.max_length,
        train_on_what=common and common.train_on_what,
    )
