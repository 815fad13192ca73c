"""Evaluate a policy by comparing its replies with given ones, judged by a preference model."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from tinker_cookbook.completers import MessageCompleter
from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.preference.types import Comparison, PreferenceModel


class ComparisonEvaluator:
    """Win rate of a policy's replies against completion A of comparisons; completion B is ignored.

    Each pair is judged in both orders, so that a judge that prefers a position cannot decide.
    """

    def __init__(
        self, preference_model: PreferenceModel, comparisons: Sequence[Comparison]
    ) -> None:
        if not comparisons:
            raise ConfigurationError("ComparisonEvaluator has no comparisons: pass at least one")
        self.preference_model = preference_model
        self.comparisons = comparisons

    async def __call__(self, policy: MessageCompleter) -> dict[str, float]:
        """`win_rate`, from 0 to 1 with ties as a half, and its standard error `stderr`."""
        wins = np.array(await asyncio.gather(*(self._win(policy, c) for c in self.comparisons)))
        return {"win_rate": float(wins.mean()), "stderr": float(wins.std() / len(wins) ** 0.5)}

    async def _win(self, policy: MessageCompleter, comparison: Comparison) -> float:
        reply = await policy(comparison.prompt_conversation)
        pair = replace(comparison, completion_B=[reply])
        second, first = await asyncio.gather(
            self.preference_model(pair), self.preference_model(pair.swap())
        )
        return (second - first + 2) / 4
