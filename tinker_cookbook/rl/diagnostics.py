"""Diagnostics of a run: three signs of trouble in its metrics, with what to try."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable
from statistics import mean, variance
from typing import NamedTuple

from tinker_cookbook.utils.ml_log import Metrics

WINDOW = 5  # steps averaged at the start of the run, and now
FEW_MIXED = 0.2  # fraction of mixed groups below which training has little signal
ONE_SIDED = 0.7  # fraction of all-bad or of all-good groups that decides what to try
SHORTER = 0.7  # times the reply length at the start
COLLAPSED = 0.5  # times the entropy at the start
CLEARLY = 2.0  # standard errors between two mean rewards that differ by more than noise

REWARD = "env/all/reward/total"
FRAC_MIXED = "env/all/by_group/frac_mixed"
FRAC_ALL_BAD = "env/all/by_group/frac_all_bad"
FRAC_ALL_GOOD = "env/all/by_group/frac_all_good"
REPLY_TOKENS = "env/all/ac_tokens_per_turn"
ENTROPY = "optim/entropy"
_KEYS = (REWARD, FRAC_MIXED, FRAC_ALL_BAD, FRAC_ALL_GOOD, REPLY_TOKENS, ENTROPY)


class RunDiagnostics:
    """Watches the metrics of each training step and reports each sign of trouble once per run.

    few groups have a signal      `by_group/frac_mixed` below FEW_MIXED, unless the run itself has
                                  raised the reward until most groups are all good
    replies shorten               `ac_tokens_per_turn` below SHORTER times that of the first steps
                                  while the reward is clearly lower
    the entropy collapses         `optim/entropy` below COLLAPSED times that of the first steps
                                  without a clearly higher reward (falling entropy with rising
                                  reward is normal learning)

    All values are means over WINDOW steps. Means of rewards are compared in standard errors, which
    come from the rewards of the single steps.
    """

    def __init__(self, past_rows: Iterable[Metrics] = ()) -> None:
        """past_rows: the rows of a resumed run. What they show was reported when they were written,
        and is not reported again."""
        self._first: list[dict[str, float]] = []
        self._last: deque[dict[str, float]] = deque(maxlen=WINDOW)
        self._num_steps = 0
        self._reported: set[str] = set()
        for row in past_rows:
            self.lines(row)

    def lines(self, row: Metrics) -> list[str]:
        """Add a row of metrics.jsonl; return the lines to print, usually none.

        Rows without a training reward, such as that of the last evaluation, are no steps.
        """
        if REWARD not in row:
            return []
        step = {key: _number(row, key) for key in _KEYS}
        self._num_steps += 1
        self._last.append(step)
        if len(self._first) < WINDOW:
            self._first.append(step)
        if self._num_steps < WINDOW:
            return []
        checks: list[Callable[[], str | None]] = [self._check_mixed_groups]
        if self._num_steps >= 2 * WINDOW:  # before, the windows overlap
            checks += [self._check_reply_length, self._check_entropy]
        lines = []
        for check in checks:
            if check.__name__ not in self._reported and (line := check()):
                self._reported.add(check.__name__)
                lines.append(line)
        return lines

    def _check_mixed_groups(self) -> str | None:
        mixed, all_bad, all_good = map(self._now, (FRAC_MIXED, FRAC_ALL_BAD, FRAC_ALL_GOOD))
        if not mixed < FEW_MIXED:  # true for NaN
            return None
        if all_bad >= ONE_SIDED:
            advice = "easier problems, a larger group_size, or supervised training first"
        elif all_good >= ONE_SIDED:
            if self._reward_change().is_rise:
                return None  # the run has solved its problems: no trouble
            advice = "harder problems"
        else:
            advice = "problems of medium difficulty, a larger group_size or a higher temperature"
        return (
            f"few groups have a signal: over the last {WINDOW} steps the rewards differ within"
            f" {mixed:.0%} of the groups ({all_bad:.0%} all bad, {all_good:.0%} all good); try"
            f" {advice}"
        )

    def _check_reply_length(self) -> str | None:
        before, now = self._start(REPLY_TOKENS), self._now(REPLY_TOKENS)
        reward = self._reward_change()
        if now < SHORTER * before and reward.is_fall:
            return (
                f"replies shorten while the reward falls: from {before:.1f} to {now:.1f} tokens per"
                f" turn, {reward} (first and last {WINDOW} steps); try a lower learning_rate or a"
                " higher kl_penalty_coef, and check that the format reward does not favour short"
                " replies"
            )
        return None

    def _check_entropy(self) -> str | None:
        before, now = self._start(ENTROPY), self._now(ENTROPY)
        reward = self._reward_change()
        if now < COLLAPSED * before and not reward.is_rise:
            return (
                f"the entropy collapses without a higher reward: from {before:.3g} to {now:.3g}"
                f" nats per token, {reward} (first and last {WINDOW} steps); try a lower"
                " learning_rate or a higher kl_penalty_coef"
            )
        return None

    def _start(self, key: str) -> float:
        return mean(step[key] for step in self._first)

    def _now(self, key: str) -> float:
        return mean(step[key] for step in self._last)

    def _reward_change(self) -> _RewardChange:
        windows = [[step[REWARD] for step in steps] for steps in (self._first, self._last)]
        error = math.sqrt(sum(variance(rewards) / len(rewards) for rewards in windows))
        return _RewardChange(mean(windows[0]), mean(windows[1]), error)


class _RewardChange(NamedTuple):
    """Mean rewards of two windows of steps. error: the standard error of their difference."""

    before: float
    now: float
    error: float

    @property
    def is_rise(self) -> bool:
        return self.now - self.before > CLEARLY * self.error

    @property
    def is_fall(self) -> bool:
        return self.before - self.now > CLEARLY * self.error

    def __str__(self) -> str:
        return f"reward from {self.before:.3g} to {self.now:.3g} (standard error {self.error:.2g})"


def _number(row: Metrics, key: str) -> float:
    """A metric; NaN if the row lacks it, so that every comparison with it is false."""
    value = row.get(key)
    return math.nan if value is None or isinstance(value, str) else float(value)
