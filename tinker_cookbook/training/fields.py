"""What the declaration of a key says beside its type and default: which numbers it takes, and
whether a run may go on with another value.

    @chz.chz
    class Config(CheckedConfig):
        batch_size: int = chz.field(default=8, doc="examples a step", metadata=rules(COUNT))
        shown: int = chz.field(default=3, doc="replies shown", metadata=rules(may_change=True))

A class that declares an inherited key again, for another default or doc, inherits these.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from numbers import Real
from typing import NamedTuple

import chz

from tinker_cookbook.exceptions import ConfigurationError

_RULES = "rules"  # in the metadata of a field


class Range(NamedTuple):
    """Numbers that a key takes. `expected`: the same in words, for the error."""

    holds: Callable[[float], bool]  # False for NaN
    expected: str


COUNT = Range(lambda value: 1 <= value < math.inf, "1 or more")
NOT_NEGATIVE = Range(lambda value: 0 <= value < math.inf, "0 or more")
POSITIVE = Range(lambda value: 0 < value < math.inf, "above 0")
DECAY = Range(lambda value: 0 <= value < 1, "0 or more and below 1")
SHARE = Range(lambda value: 0 <= value <= 1, "0 to 1")
# random generators of several libraries take it, and with an epoch number it stays below 2**63
SEED = Range(lambda value: 0 <= value < 2**32, "0 to 4294967295")


class Rules(NamedTuple):
    allowed: Range | None = None
    may_change: bool | None = None


def rules(allowed: Range | None = None, *, may_change: bool | None = None) -> dict[str, Rules]:
    """The `metadata` of a field. allowed: its numbers; None goes where the type allows it.
    may_change: the value decides how a run is computed, measured, kept or shown, but not what is
    learned, so that a run may go on with another."""
    return {_RULES: Rules(allowed, may_change)}


@chz.chz
class CheckedConfig:
    """Base of configs whose keys have ranges: they are checked whenever one is made."""

    @chz.validate
    def _in_range(self) -> None:
        for key in chz.chz_fields(self):
            check_range(key, getattr(self, key), declared(type(self), key).allowed)


def check_range(key: str, value: object, allowed: Range | None) -> None:
    """Raises ConfigurationError for a number outside. What is no number: see `check_types`."""
    if allowed is None or not isinstance(value, Real):
        return
    if not allowed.holds(float(value)):
        raise ConfigurationError(f"{key}={value}: expected {allowed.expected}")


def declared(config_class: type, key: str) -> Rules:
    """The rules of a key, those of base classes where a class is silent."""
    found = Rules()
    for cls in config_class.__mro__:
        field = chz.chz_fields(cls).get(key) if chz.is_chz(cls) else None
        own = (field.metadata or {}).get(_RULES, Rules()) if field is not None else Rules()
        found = Rules(
            own.allowed if found.allowed is None else found.allowed,
            own.may_change if found.may_change is None else found.may_change,
        )
    return found


def may_change(config: object, prefix: str = "") -> Iterator[str]:
    """The dotted names of the keys, of a chz object or class and of objects in it, that a run may
    go on with, changed."""
    if not chz.is_chz(config):
        return
    config_class = config if isinstance(config, type) else type(config)
    for key in chz.chz_fields(config_class):
        if declared(config_class, key).may_change:
            yield f"{prefix}{key}"
        elif not isinstance(config, type):
            yield from may_change(getattr(config, key), f"{prefix}{key}.")
