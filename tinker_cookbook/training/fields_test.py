"""What the declaration of a key says: its range, and whether it may change."""

import math

import chz
import numpy as np
import pytest

from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.training.fields import (
    COUNT,
    FRACTION,
    MAY_CHANGE,
    NON_NEGATIVE,
    CheckedConfig,
    in_range,
    iter_changeable_fields,
    range_of,
)

SECONDS = in_range(lambda value: value > 0, "seconds, above 0")


@chz.chz
class Limits(CheckedConfig):
    timeout: float = chz.field(default=9.0, metadata=SECONDS | MAY_CHANGE)
    turns: int = chz.field(default=1, metadata=COUNT)


@chz.chz
class Base(CheckedConfig):
    size: int | None = chz.field(default=None, metadata=COUNT)
    share: float = chz.field(default=0.5, metadata=FRACTION)
    shown_every: int = chz.field(default=1, metadata=NON_NEGATIVE | MAY_CHANGE)
    name: str = "x"
    limits: Limits = chz.field(default_factory=Limits)


@chz.chz
class Loop(Base):
    shown_every: int = chz.field(default=20, doc="for another default")
    size: int | None = chz.field(default=4, metadata=MAY_CHANGE)
    teacher_sync_every: int = chz.field(default=3, metadata=COUNT)


@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf, np.int64(0), np.float32(0.5)])
@pytest.mark.parametrize("config", [Base, Loop])
def test_a_value_out_of_range_is_refused_wherever_a_config_is_made(
    config: type[Base] | type[Loop], value: object
) -> None:
    for make in (lambda: config(size=value), lambda: chz.replace(config(), size=value)):
        with pytest.raises(ConfigurationError) as error:
            make()
        assert str(error.value) == f"size={value}: expected 1 or more"


def test_values_at_the_edge_and_what_is_no_number_are_left_alone() -> None:
    Base(size=1, share=0.0, shown_every=0)
    Base(size=None, share=1.0)
    Base(size="three")  # type: ignore[arg-type] (check_types says what is wrong with it)


def test_a_key_that_is_declared_again_keeps_what_the_base_says() -> None:
    with pytest.raises(ConfigurationError, match=r"^shown_every=-1: expected 0 or more$"):
        Loop(shown_every=-1)
    assert range_of(Loop, "size") is range_of(Base, "size") is not None
    assert range_of(Loop, "name") is None


def test_names_of_the_keys_that_may_change() -> None:
    assert list(iter_changeable_fields(Loop())) == ["size", "shown_every", "limits.timeout"]
    assert list(iter_changeable_fields(Base)) == ["shown_every"]
    assert list(iter_changeable_fields({"shown_every": 1})) == []
