"""The supervised loop's keys for conversations, flat: what recipes on chat data put on the
command line instead of a nested `common_config`."""

from __future__ import annotations

from typing import TypeVar

import chz

from tinker_cookbook import models
from tinker_cookbook.checkpoint_utils import resolve_renderer_name_from_checkpoint_or_default
from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.renderers import TrainOnWhat
from tinker_cookbook.supervised import train
from tinker_cookbook.supervised.data import JsonlChats
from tinker_cookbook.supervised.types import (
    ChatDatasetBuilder,
    ChatDatasetBuilderCommonConfig,
    SupervisedDatasetBuilder,
)

# `data=X data.path=Y` on the command line
ALIASES = {"data": "dataset_builder"}


@chz.chz
class ChatConfig(train.Config):
    """`train.Config` with the keys that turn conversations into batches."""

    dataset_builder: SupervisedDatasetBuilder | None = chz.field(
        default=None, doc="what to train on, e.g. data=NoRobots (None: the recipe's own)"
    )
    dataset_path: str | None = chz.field(
        default=None, doc="short for data=JsonlChats data.path=..., a JSONL file of conversations"
    )
    batch_size: int | None = chz.field(default=None, doc="examples a step (None: by the model)")
    max_length: int | None = chz.field(
        default=None, doc="tokens an example; longer ones lose their end (None: by the model)"
    )
    train_on_what: TrainOnWhat | None = chz.field(
        default=None, doc="which messages are trained (None: what the data is meant for)"
    )


C = TypeVar("C", bound=ChatConfig)


def resolve(config: C, method: str, default_data: ChatDatasetBuilder) -> C:
    """The config with every key that depends on model, checkpoint or data filled in."""
    if config.dataset_path is not None and config.dataset_builder is not None:
        raise ConfigurationError(
            f"dataset_path={config.dataset_path} and data= both name the data: drop either"
        )
    if config.load_checkpoint_path is not None:
        name = resolve_renderer_name_from_checkpoint_or_default(
            model_name=config.model_name,
            explicit_renderer_name=config.renderer_name,
            load_checkpoint_path=config.load_checkpoint_path,
            base_url=config.base_url,
        )
        config = chz.replace(config, renderer_name=name)
    config, _ = models.fill_defaults(config, method)
    data = config.dataset_builder or default_data
    if config.dataset_path is not None:
        data = JsonlChats(path=config.dataset_path)
    if isinstance(data, ChatDatasetBuilder) and data.common_config is None:
        assert config.renderer_name is not None and config.batch_size is not None
        common = ChatDatasetBuilderCommonConfig(
            model_name_for_tokenizer=config.model_name,
            renderer_name=config.renderer_name,
            max_length=config.max_length,
            batch_size=config.batch_size,
            train_on_what=config.train_on_what,
        )
        data = chz.replace(data, common_config=common)
    # dataset_path is said by the builder now; once is enough
    return chz.replace(config, dataset_builder=data, dataset_path=None)
