"""Metadata of config fields: the range of valid numbers, and whether a resumed run may change them.

    @chz.chz
    class Config(CheckedConfig):
        batch_size: int = chz.field(default=8, doc="examples per step", metadata=COUNT)
        shown: int = chz.field(default=3, doc="samples shown", metadata=NON_NEGATIVE | MAY_CHANGE)

A class that redeclares an inherited field, e.g. for another default, inherits its metadata.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from numbers import Real
from typing import NamedTuple

import chz

from tinker_cookbook.exceptions import ConfigurationError


class Range(NamedTuple):
    """The valid numbers of a field. `expected`: the same in words, for the error message."""

    contains: Callable[[float], bool]  # False for NaN
    expected: str


Metadata = dict[str, Range | bool]
_RANGE, _MAY_CHANGE = "range", "may_change"


def in_range(contains: Callable[[float], bool], expected: str) -> Metadata:
    """Metadata that restricts a field to these numbers; None passes if the type allows it."""
    return {_RANGE: Range(contains, expected)}


COUNT = in_range(lambda value: 1 <= value < math.inf, "1 or more")
NON_NEGATIVE = in_range(lambda value: 0 <= value < math.inf, "0 or more")
POSITIVE = in_range(lambda value: 0 < value < math.inf, "above 0")
DECAY_RATE = in_range(lambda value: 0 <= value < 1, "0 or more and below 1")
FRACTION = in_range(lambda value: 0 <= value <= 1, "0 to 1")
# NumPy's generators take no larger seed, and `epoch_seed` of one stays below 2**63
SEED = in_range(lambda value: 0 <= value < 2**32, "0 to 4294967295")
# for fields that affect how a run is computed, measured, stored or shown, but not what it learns
MAY_CHANGE: Metadata = {_MAY_CHANGE: True}


@chz.chz
class CheckedConfig:
    """Base class of configs whose fields have ranges, which are checked on construction."""

    @chz.validate
    def _check_ranges(self) -> None:
        for key in chz.chz_fields(self):
            _check_range(key, getattr(self, key), range_of(type(self), key))


def _check_range(key: str, value: object, allowed: Range | None) -> None:
    # None is valid here, and a value of the wrong type is reported by `check_types`
    if allowed is None or not isinstance(value, Real):
        return
    if not allowed.contains(float(value)):
        raise ConfigurationError(f"{key}={value}: expected {allowed.expected}")


def range_of(config_class: type, key: str) -> Range | None:
    allowed = _merged_metadata(config_class, key).get(_RANGE)
    return allowed if isinstance(allowed, Range) else None


def _merged_metadata(config_class: type, key: str) -> Metadata:
    """The metadata of a field over all classes that declare it; derived classes take precedence."""
    merged: Metadata = {}
    for cls in reversed(config_class.__mro__):
        if chz.is_chz(cls) and key in (fields := chz.chz_fields(cls)):
            merged |= fields[key].metadata or {}
    return merged


def iter_changeable_fields(config: object, prefix: str = "") -> Iterator[str]:
    """The dotted names of the fields marked MAY_CHANGE in a chz class or object.

    Of an object, the fields of nested configs, too.
    """
    if not chz.is_chz(config):
        return
    config_class = config if isinstance(config, type) else type(config)
    for key in chz.chz_fields(config_class):
        if _merged_metadata(config_class, key).get(_MAY_CHANGE):
            yield f"{prefix}{key}"
        elif not isinstance(config, type):
            yield from iter_changeable_fields(getattr(config, key), f"{prefix}{key}.")
