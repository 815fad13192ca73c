"""Strategies on the command line; what they do to a group: group_test.py."""

from __future__ import annotations

import chz
import pytest

from tinker_cookbook.cli_utils import parse
from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.rl.rollouts.strategy import (
    FailFast,
    MinViableGroup,
    RetryOnFailure,
    RolloutStrategy,
)


@chz.chz
class Config:
    rollout_strategy: RolloutStrategy = chz.field(default_factory=MinViableGroup)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("", MinViableGroup(min_size=2)),
        ("rollout_strategy=FailFast", FailFast()),
        (
            "rollout_strategy=RetryOnFailure rollout_strategy.max_retries=5",
            RetryOnFailure(max_retries=5),
        ),
        ("rollout_strategy=MinViableGroup rollout_strategy.min_size=4", MinViableGroup(min_size=4)),
    ],
)
def test_by_name(words: str, expected: RolloutStrategy) -> None:
    assert parse(Config, words.split()).rollout_strategy == expected


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("rollout_strategy=Retry", "FailFast or RetryOnFailure or MinViableGroup"),
        ("rollout_strategy=RetryOnFailure rollout_strategy.max_retries=-1", "max_retries=-1"),
        ("rollout_strategy=MinViableGroup rollout_strategy.min_size=0", "min_size=0"),
    ],
)
def test_refused(words: str, text: str) -> None:
    with pytest.raises(ConfigurationError, match=text):
        parse(Config, words.split())


@pytest.mark.parametrize(
    ("min_size", "members", "enough"), [(2, 8, 2), (8, 4, 4), (1, 8, 1), (2, 1, 1)]
)
def test_enough_survivors(min_size: int, members: int, enough: int) -> None:
    strategy = MinViableGroup(min_size=min_size)
    accepted = [n for n in range(1, members + 1) if strategy.accepts(n, members)]
    assert accepted == list(range(enough, members + 1))
