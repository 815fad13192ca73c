"""The reinforcement-learning loop's keys for problems in groups, flat: what recipes put on the
command line instead of the fields of their data set."""

from __future__ import annotations

from typing import Any

import chz

from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.models import FilledConfig
from tinker_cookbook.rl import train
from tinker_cookbook.rl.types import RLDatasetBuilder
from tinker_cookbook.training import resolve as keys
from tinker_cookbook.training.fields import COUNT, rules
from tinker_cookbook.utils.run_config import rebuild

# `data=X data.path=Y` on the command line, and names of the Tinker cookbook
ALIASES = {
    "data": "dataset_builder",
    "max_steps_off_policy": "max_lag",
}


@chz.chz
class ProblemConfig(train.Config):
    """`train.Config` with the keys that a data set of problems is made by."""

    dataset_builder: RLDatasetBuilder | None = chz.field(
        default=None, doc="what to play, e.g. data=Gsm8k (None: the recipe's own)"
    )
    group_size: int | None = chz.field(
        default=None,
        doc="attempts at each problem, compared with one another (None: by the model)",
        metadata=rules(COUNT),
    )
    groups_per_batch: int | None = chz.field(
        default=None, doc="problems in a step (None: by the model)", metadata=rules(COUNT)
    )

    @staticmethod
    def before_resolve(config: dict[str, Any]) -> dict[str, Any]:
        """A plain config without what `resolve` has put into the data."""
        data = config.get("dataset_builder")
        if not isinstance(data, dict):
            return config
        fields = chz.chz_fields(type(rebuild(data, "dataset_builder")))
        own = {
            name
            for name, key in _FILLED.items()
            if name in fields
            and fields[name]._default is None
            and data.get(name) == config.get(key)
        }
        return config | {"dataset_builder": {k: v for k, v in data.items() if k not in own}}


# fields of a data set's builder that a recipe's keys fill in: builder's name -> recipe's name
_FILLED = {
    "model_name_for_tokenizer": "model_name",
    "renderer_name": "renderer_name",
    "group_size": "group_size",
    "groups_per_batch": "groups_per_batch",
    "seed": "seed",
}


def resolve(config: ProblemConfig, method: str, default_data: RLDatasetBuilder) -> FilledConfig:
    """The checked config with every key that depends on model or data filled in, for `train.main`;
    and what was filled.

    Raises ConfigurationError for keys that cannot work, or that the data would not follow.
    """
    asked = config
    data = config.dataset_builder or default_data
    tokens = None if config.model_name == "nano" else data.default_max_tokens()
    suits_data = {} if config.max_tokens or not tokens else {"max_tokens": tokens}
    config, filled = keys.fill(chz.replace(config, dataset_builder=data, **suits_data), method)
    filled |= suits_data
    keys.check(config)
    fields = chz.chz_fields(data)
    changes: dict[str, Any] = {}
    for name, key in _FILLED.items():
        if name in fields and getattr(data, name) is None:
            changes[name] = getattr(config, key)
            continue
        if key in ("group_size", "groups_per_batch"):
            own = getattr(data, name, None)
            if getattr(asked, key) not in (None, own):
                raise ConfigurationError(
                    f"{key}={getattr(asked, key)} has no effect on {type(data).__name__}, which"
                    f" makes its batches by settings of its own: drop {key}, or set it there"
                )
            filled.pop(key, None)
            config = chz.replace(config, **{key: own})
    return FilledConfig(chz.replace(config, dataset_builder=chz.replace(data, **changes)), filled)
