"""What the declaration of a key says beside its type and default: which numbers it takes, and
whether a run may go on with another value.

    @chz.chz
    class Config(CheckedConfig):
        batch_size: int = chz.field(default=8, doc="examples a step", metadata=COUNT)
        shown: int = chz.field(default=3, doc="replies shown", metadata=NOT_NEGATIVE | MAY_CHANGE)

A class that declares an inherited key again, for another default or doc, inherits these.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from numbers import Real
from typing import NamedTuple

import chz

from tinker_cookbook.exceptions import ConfigurationError


class Range(NamedTuple):
    """Numbers that a key takes. `expected`: the same in words, for the error."""

    holds: Callable[[float], bool]  # False for NaN
    expected: str


Metadata = dict[str, Range | bool]
_RANGE, _MAY_CHANGE = "range", "may_change"


def in_range(holds: Callable[[float], bool], expected: str) -> Metadata:
    """Metadata of a field that takes these numbers; None goes where the type allows it."""
    return {_RANGE: Range(holds, expected)}


COUNT = in_range(lambda value: 1 <= value < math.inf, "1 or more")
NOT_NEGATIVE = in_range(lambda value: 0 <= value < math.inf, "0 or more")
POSITIVE = in_range(lambda value: 0 < value < math.inf, "above 0")
DECAY = in_range(lambda value: 0 <= value < 1, "0 or more and below 1")
SHARE = in_range(lambda value: 0 <= value <= 1, "0 to 1")
# random generators of several libraries take it, and with an epoch number it stays below 2**63
SEED = in_range(lambda value: 0 <= value < 2**32, "0 to 4294967295")
# it decides how a run is computed, measured, kept or shown, but not what is learned
MAY_CHANGE: Metadata = {_MAY_CHANGE: True}


@chz.chz
class CheckedConfig:
    """Base of configs whose keys have ranges: they are checked whenever one is made."""

    @chz.validate
    def _in_range(self) -> None:
        for key in chz.chz_fields(self):
            _check_range(key, getattr(self, key), range_of(type(self), key))


def _check_range(key: str, value: object, allowed: Range | None) -> None:
    """What is no number: see `check_types`."""
    if allowed is None or not isinstance(value, Real):
        return
    if not allowed.holds(float(value)):
        raise ConfigurationError(f"{key}={value}: expected {allowed.expected}")


def range_of(config_class: type, key: str) -> Range | None:
    found = _declared(config_class, key).get(_RANGE)
    return found if isinstance(found, Range) else None


def _declared(config_class: type, key: str) -> Metadata:
    """The metadata of a key, with those of base classes where a class is silent."""
    found: Metadata = {}
    for cls in reversed(config_class.__mro__):
        if chz.is_chz(cls) and key in (fields := chz.chz_fields(cls)):
            found |= fields[key].metadata or {}
    return found


def may_change(config: object, prefix: str = "") -> Iterator[str]:
    """The dotted names of the keys, of a chz object or class and of objects in it, that a run may
    go on with, changed."""
    if not chz.is_chz(config):
        return
    config_class = config if isinstance(config, type) else type(config)
    for key in chz.chz_fields(config_class):
        if _declared(config_class, key).get(_MAY_CHANGE):
            yield f"{prefix}{key}"
        elif not isinstance(config, type):
            yield from may_change(getattr(config, key), f"{prefix}{key}.")
