"""The reinforcement-learning loop's keys for problems in groups, flat: what recipes put on the
command line instead of the fields of their data set."""

from __future__ import annotations

import dataclasses
from typing import TypeVar

import chz

from tinker_cookbook.rl import train
from tinker_cookbook.rl.defaults import Groups
from tinker_cookbook.rl.types import RLDatasetBuilder
from tinker_cookbook.training.defaults import Defaults
from tinker_cookbook.training.fields import COUNT
from tinker_cookbook.training.resolve import (
    Resolved,
    check_no_unused_keys,
    resolve_defaults,
    restore_unset_fields,
    set_unset_fields,
    unset_fields,
)
from tinker_cookbook.utils.json_types import Json
from tinker_cookbook.utils.run_config import rebuild

# `data=X data.path=Y` on the command line, and names of the Tinker cookbook
ALIASES = {
    "data": "dataset_builder",
    "max_steps_off_policy": "max_lag",
}
# the keys that `--help` explains first
FIRST_KEYS = (
    "model_name",
    "data",
    "learning_rate",
    "groups_per_batch",
    "group_size",
    "max_tokens",
    "max_steps",
    "kl_penalty_coef",
    "max_lag",
    "log_path",
)


@chz.chz
class ProblemConfig(train.Config):
    """`train.Config` with the keys that a data set of problems is made by."""

    dataset_builder: RLDatasetBuilder | None = chz.field(
        default=None, doc="what to play, e.g. data=Gsm8k (None: the recipe's own)"
    )
    group_size: int | None = chz.field(
        default=None,
        doc="attempts at each problem, compared with one another (None: by the model)",
        metadata=COUNT,
    )
    groups_per_batch: int | None = chz.field(
        default=None, doc="problems in a step (None: by the model)", metadata=COUNT
    )

    @staticmethod
    def drop_resolved_keys(config: dict[str, Json]) -> dict[str, Json]:
        """A stored config without the keys that `resolve_defaults` derived, as plain data."""
        data = config.get("dataset_builder")
        if not isinstance(data, dict):
            return config
        values = {name: config[key] for name, key in _FILLED.items()}
        own = restore_unset_fields(data, type(rebuild(data, "dataset_builder")), values)
        return {**config, "dataset_builder": own}


# fields that a data set's builder may leave open -> the recipe's keys that they follow then
_FILLED = {
    "model_name_for_tokenizer": "model_name",
    "renderer_name": "renderer_name",
    "group_size": "group_size",
    "groups_per_batch": "groups_per_batch",
    "seed": "seed",
}
C = TypeVar("C", bound=ProblemConfig)


def resolve_problem_config(
    config: C, defaults: Defaults[Groups], default_data: RLDatasetBuilder
) -> Resolved[C, Groups]:
    """`training.resolve` for problems in groups: the data is chosen, too, and follows the recipe's
    keys in all that it leaves open.

    Raises ConfigurationError for keys that cannot work, or that the data would not follow.
    """
    asked = config
    data = config.dataset_builder or default_data
    config = chz.replace(config, dataset_builder=data)
    suits_data = None if config.model_name == "nano" else data.default_max_tokens()
    if config.max_tokens is None and suits_data:
        config = chz.replace(config, max_tokens=suits_data)
    run = resolve_defaults(config, defaults)
    filled = dict(run.filled)
    if asked.max_tokens is None:
        filled["max_tokens"] = run.sizes.max_tokens
    config, names = run.config, unset_fields(data)
    for key in ("group_size", "groups_per_batch"):
        if key not in names:
            own = getattr(data, key, None)
            if getattr(asked, key) != own:
                check_no_unused_keys(key, getattr(asked, key), data)
            filled.pop(key, None)
            config = chz.replace(config, **{key: own})
    values = {name: getattr(config, key) for name, key in _FILLED.items()}
    config = chz.replace(config, dataset_builder=set_unset_fields(data, values))
    return dataclasses.replace(run, config=config, filled=filled)
