"""The reinforcement-learning loop's keys for data sets of problems: recipes offer these flat keys
on the command line in place of the fields of their data set builder."""

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
    check_key_has_effect,
    resolve_defaults,
    restore_unset_fields,
    set_unset_fields,
    unset_fields,
)
from tinker_cookbook.utils.json_types import Json
from tinker_cookbook.utils.run_config import rebuild

# `data=X data.path=Y` on the command line, and the Tinker cookbook's names
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
    """`train.Config` plus the keys that configure a data set of problems."""

    dataset_builder: RLDatasetBuilder | None = chz.field(
        default=None, doc="problems to train on, e.g. data=Gsm8k (None: the recipe's default)"
    )
    group_size: int | None = chz.field(
        default=None,
        doc="rollouts per problem, whose rewards are compared (None: the default for the model)",
        metadata=COUNT,
    )
    groups_per_batch: int | None = chz.field(
        default=None, doc="problems per step (None: the default for the model)", metadata=COUNT
    )

    @staticmethod
    def drop_resolved_keys(config: dict[str, Json]) -> dict[str, Json]:
        """Return a stored config without the values derived by `resolve_defaults`."""
        data = config.get("dataset_builder")
        if not isinstance(data, dict):
            return config
        values = {name: config[key] for name, key in _INHERITED_FIELDS.items()}
        own = restore_unset_fields(data, type(rebuild(data, "dataset_builder")), values)
        return {**config, "dataset_builder": own}


# fields of a data set builder -> the recipe's keys that provide their values if they are None
_INHERITED_FIELDS = {
    "model_name_for_tokenizer": "model_name",
    "policy_model_name": "model_name",
    "renderer_name": "renderer_name",
    "policy_renderer_name": "renderer_name",
    "group_size": "group_size",
    "groups_per_batch": "groups_per_batch",
    "batch_size": "groups_per_batch",
    "seed": "seed",
}
C = TypeVar("C", bound=ProblemConfig)


def resolve_problem_config(
    config: C, defaults: Defaults[Groups], default_data: RLDatasetBuilder
) -> Resolved[C, Groups]:
    """Apply `training.resolve` to a recipe for problems: also choose the data set, and set the
    fields it leaves as None from the recipe's keys.

    Raises ConfigurationError for invalid keys, and for keys that the data set would ignore.
    """
    asked = config
    data = config.dataset_builder or default_data
    config = chz.replace(config, dataset_builder=data)
    # not for nano, which writes out its reasoning and needs more tokens than Arithmetic's default
    data_max_tokens = None if config.model_name == "nano" else data.default_max_tokens()
    if config.max_tokens is None and data_max_tokens:
        config = chz.replace(config, max_tokens=data_max_tokens)
    run = resolve_defaults(config, defaults)
    filled = dict(run.filled)
    if asked.max_tokens is None:
        filled["max_tokens"] = run.sizes.max_tokens
    config, inherited = run.config, {_INHERITED_FIELDS.get(name) for name in unset_fields(data)}
    for key in ("group_size", "groups_per_batch"):
        if key not in inherited:
            data_value = _batch_setting(data, key)
            # the builder's own value wins, so a different one in the recipe's key is an error
            if getattr(asked, key) != data_value:
                check_key_has_effect(key, getattr(asked, key), data)
            filled.pop(key, None)
            config = chz.replace(config, **{key: data_value})
    values = {name: getattr(config, key) for name, key in _INHERITED_FIELDS.items()}
    config = chz.replace(config, dataset_builder=set_unset_fields(data, values))
    return dataclasses.replace(run, config=config, filled=filled)


def _batch_setting(data: RLDatasetBuilder, key: str) -> int | None:
    """The builder's value for a recipe's key; None if the builder has no field for it."""
    names = [name for name, recipe_key in _INHERITED_FIELDS.items() if recipe_key == key]
    return next((getattr(data, name) for name in names if hasattr(data, name)), None)
