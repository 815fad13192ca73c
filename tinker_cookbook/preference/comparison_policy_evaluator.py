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
        replies = await asyncio.gather(*(policy(c.prompt_conversation) for c in self.comparisons))
        pairs = [replace(c, completion_B=[reply]) for c, reply in zip(self.comparisons, replies)]
        rate, stderr = await compute_win_rate(self.preference_model, pairs)
        return {"win_rate": rate, "stderr": stderr}


async def compute_win_rate(
    preference_model: PreferenceModel, pairs: Sequence[Comparison]
) -> tuple[float, float]:
    """Win rate of completion B over A with its standard error; each pair in both orders."""
    verdicts, swapped = [
        np.array(await asyncio.gather(*map(preference_model, ordered)))
        for ordered in (pairs, [pair.swap() for pair in pairs])
    ]
    wins = (verdicts - swapped + 2) / 4
    return float(wins.mean()), float(wins.std() / len(wins) ** 0.5)
