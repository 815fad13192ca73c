"""Evaluators: programs that measure a model now and then while it is trained."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tinker_cookbook.service.api import SamplingClient, TrainingClient


class _Evaluator:
    def lines(self) -> list[str]:
        """What a person should see of the last evaluation, e.g. a few replies. Here: nothing."""
        return []


class TrainingClientEvaluator(_Evaluator, ABC):
    """Measures the weights that are being trained, e.g. by `forward`.

    A base class and not a protocol: the loop tells the two kinds of evaluator apart by it.
    """

    @abstractmethod
    async def __call__(self, client: TrainingClient, /) -> dict[str, float]: ...


class SamplingClientEvaluator(_Evaluator, ABC):
    """Measures a snapshot of the weights, e.g. by sampling from it."""

    @abstractmethod
    async def __call__(self, client: SamplingClient, /) -> dict[str, float]: ...


Evaluator = TrainingClientEvaluator | SamplingClientEvaluator
EvaluatorBuilder = Callable[[], Evaluator]
