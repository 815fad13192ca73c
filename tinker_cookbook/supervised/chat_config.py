"""The supervised loop's keys for conversations, flat: what recipes on chat data put on the
command line instead of a nested `common_config`."""

from __future__ import annotations

from typing import Any

import chz

from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.models import FilledConfig
from tinker_cookbook.renderers import TrainOnWhat
from tinker_cookbook.supervised import train
from tinker_cookbook.supervised.data import data_at
from tinker_cookbook.supervised.types import (
    EXAMPLE_LENGTH,
    ChatDatasetBuilder,
    ChatDatasetBuilderCommonConfig,
    SupervisedDatasetBuilder,
)
from tinker_cookbook.training import resolve as keys
from tinker_cookbook.training.fields import COUNT, rules
from tinker_cookbook.utils.plain_data import CLASS, plain
from tinker_cookbook.utils.run_config import rebuild

# `data=X data.path=Y` on the command line
ALIASES = {"data": "dataset_builder"}


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
        default=None, doc="examples a step (None: by the model)", metadata=rules(COUNT)
    )
    max_length: int | None = chz.field(
        default=None,
        doc="tokens an example; longer ones lose their end (None: by the model)",
        metadata=rules(EXAMPLE_LENGTH),
    )
    train_on_what: TrainOnWhat | None = chz.field(
        default=None, doc="which messages are trained (None: what the data is meant for)"
    )

    @staticmethod
    def before_resolve(config: dict[str, Any]) -> dict[str, Any]:
        """A plain config without what `resolve` has put into the data and taken from it."""
        data = config.get("dataset_builder")
        if not isinstance(data, dict) or not isinstance(data.get("common_config"), dict):
            return config
        common = {k: v for k, v in data["common_config"].items() if k != CLASS}
        if common != {name: config[key] for name, key in _COMMON.items()}:
            return config
        if common["max_length"] is None:  # no limit, where a key that is None asks for the usual
            return config
        builder = rebuild(data, "dataset_builder")
        evaluators = plain(builder.default_evaluator_builders(), identities=False)
        own = ("evaluator_builders",) if config.get("evaluator_builders") == evaluators else ()
        data = {key: value for key, value in data.items() if key != "common_config"}
        return {k: v for k, v in config.items() if k not in own} | {"dataset_builder": data}


# fields of common_config -> the keys that fill them
_COMMON = {
    "model_name_for_tokenizer": "model_name",
    **{key: key for key in ("renderer_name", "max_length", "batch_size", "train_on_what")},
}
# keys that only data without a common_config of its own can follow
_RENDERING_KEYS = ("batch_size", "max_length", "train_on_what")


def resolve(
    config: ChatConfig, method: str, default_data: SupervisedDatasetBuilder
) -> FilledConfig:
    """The checked config with every key that depends on model, checkpoint or data filled in, for
    `train.main`; and what was filled.

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
    config, filled = keys.fill(chz.replace(config, dataset_builder=data), method)
    keys.check(config)
    changes: dict[str, Any] = {"dataset_path": None}  # the builder says it; once is enough
    if isinstance(data, ChatDatasetBuilder) and data.common_config is None:
        filling = {name: getattr(config, key) for name, key in _COMMON.items()}
        common = ChatDatasetBuilderCommonConfig(**filling)
        changes["dataset_builder"] = data = chz.replace(data, common_config=common)
    else:
        _refuse_unused(asked, data)
        common = getattr(data, "common_config", None)
        for key in _RENDERING_KEYS:  # config.json tells what holds, not what nano would like
            filled.pop(key, None)
            changes[key] = getattr(common, key, None)
    if config.num_epochs is None:
        changes["num_epochs"] = filled["num_epochs"] = data.default_num_epochs()
    if not config.evaluator_builders:
        changes["evaluator_builders"] = data.default_evaluator_builders()
    return FilledConfig(chz.replace(config, **changes), filled)


def _refuse_unused(config: ChatConfig, data: SupervisedDatasetBuilder) -> None:
    for key in _RENDERING_KEYS:
        value = getattr(config, key)
        if value is not None:
            raise ConfigurationError(
                f"{key}={value} has no effect on {type(data).__name__}, which makes its batches "
                f"by settings of its own: drop {key}, or set it there"
            )
