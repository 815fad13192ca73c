"""What becomes of a group when one of its episodes fails.

An episode fails when its environment raises, takes longer than `RolloutLimits.env_timeout`, or pays
a reward that is not a finite number. Failures of sampling are not an environment's: they always end
the run.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import chz

from tinker_cookbook.exceptions import ConfigurationError, TrainingError
from tinker_cookbook.rl.types import RolloutError


class RolloutFailedError(TrainingError):
    """An episode or a group that failed; `error` is what is known of it."""

    def __init__(self, error: RolloutError) -> None:
        super().__init__(error.message)
        self.error = error


@chz.chz
class RolloutStrategy(ABC):
    """Two questions that a group asks while it is played."""

    @abstractmethod
    def again(self, failure: RolloutFailedError, attempt: int) -> bool:
        """Whether what failed is done again (attempt: 1 for the first failure); else it is given
        up. May raise `failure` instead, which ends the run.

        An episode is played again in a fresh env of the same builder, so its members must not
        depend on one another; where they do (players of one game), use another strategy.
        """

    @abstractmethod
    def accepts(self, survivors: int, members: int) -> bool:
        """Whether the episodes that did not fail are a group to train on; at least one."""


@chz.chz
class FailFast(RolloutStrategy):
    """The first failure ends the run: for environments that are being written."""

    def again(self, failure: RolloutFailedError, attempt: int) -> bool:
        raise failure

    def accepts(self, survivors: int, members: int) -> bool:
        return survivors == members


@chz.chz
class RetryOnFailure(RolloutStrategy):
    """What failed is done again; a group with a member that keeps failing is given up."""

    max_retries: int = chz.field(default=3, doc="times that a failed episode is played again")

    @chz.validate
    def _range(self) -> None:
        if self.max_retries < 0:
            raise ConfigurationError(f"max_retries={self.max_retries}: expected 0 or more")

    def again(self, failure: RolloutFailedError, attempt: int) -> bool:
        return attempt <= self.max_retries

    def accepts(self, survivors: int, members: int) -> bool:
        return survivors == members


@chz.chz
class MinViableGroup(RolloutStrategy):
    """Failed members are left out, as long as enough are left to compare."""

    min_size: int = chz.field(
        default=2, doc="members that a group needs (or all that it has, if they are fewer)"
    )

    @chz.validate
    def _range(self) -> None:
        if self.min_size < 1:
            raise ConfigurationError(f"min_size={self.min_size}: expected 1 or more")

    def again(self, failure: RolloutFailedError, attempt: int) -> bool:
        return False

    def accepts(self, survivors: int, members: int) -> bool:
        return survivors >= min(self.min_size, members)
