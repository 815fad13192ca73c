"""Strategies for failed episodes: whether to retry them, and whether to keep their group.

An episode fails if its environment raises, takes longer than `RolloutLimits.env_timeout`, or
returns a reward that is not a finite number. Sampling failures are not the environment's fault:
they always end the run.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import chz

from tinker_cookbook.exceptions import ConfigurationError, TrainingError
from tinker_cookbook.rl.types import RolloutError


class RolloutFailedError(TrainingError):
    """Raised for a failed episode or group; `error` is its record."""

    def __init__(self, error: RolloutError) -> None:
        super().__init__(error.message)
        self.error = error


@chz.chz
class RolloutStrategy(ABC):
    """Decides about failures while a group's rollouts are collected."""

    @abstractmethod
    def should_retry(self, failure: RolloutFailedError, attempt: int) -> bool:
        """Whether to retry after the failure of attempt `attempt`, counted from 1. May raise
        `failure` instead, which ends the run.

        A retried episode runs in a fresh env of the same builder, so retries suit only groups whose
        members are independent of one another, not e.g. the players of one game.
        """

    @abstractmethod
    def accepts(self, survivors: int, members: int) -> bool:
        """Whether the `survivors` (at least one) of `members` episodes are enough to train on."""


@chz.chz
class FailFast(RolloutStrategy):
    """The first failure ends the run. For developing an environment."""

    def should_retry(self, failure: RolloutFailedError, attempt: int) -> bool:
        raise failure

    def accepts(self, survivors: int, members: int) -> bool:
        return survivors == members


@chz.chz
class RetryOnFailure(RolloutStrategy):
    """Retry failures; drop a group if one of its members fails for good."""

    max_retries: int = chz.field(default=3, doc="times that a failed episode is played again")

    @chz.validate
    def _range(self) -> None:
        if self.max_retries < 0:
            raise ConfigurationError(f"max_retries={self.max_retries}: expected 0 or more")

    def should_retry(self, failure: RolloutFailedError, attempt: int) -> bool:
        return attempt <= self.max_retries

    def accepts(self, survivors: int, members: int) -> bool:
        return survivors == members


@chz.chz
class MinViableGroup(RolloutStrategy):
    """Never retry; leave failed members out if enough members remain to compare."""

    min_size: int = chz.field(
        default=2, doc="members that a group needs (or all that it has, if they are fewer)"
    )

    @chz.validate
    def _range(self) -> None:
        if self.min_size < 1:
            raise ConfigurationError(f"min_size={self.min_size}: expected 1 or more")

    def should_retry(self, failure: RolloutFailedError, attempt: int) -> bool:
        return False

    def accepts(self, survivors: int, members: int) -> bool:
        return survivors >= min(self.min_size, members)
