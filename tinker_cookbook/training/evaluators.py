"""Evaluators: callables that measure a model periodically during training."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tinker_cookbook.service.api import SamplingClient, TrainingClient
    from tinker_cookbook.utils.ml_log import Sample


class _Evaluator:
    def lines(self) -> list[str]:
        """Lines to log after an evaluation, e.g. a few completions. None by default."""
        return []

    def samples(self) -> Mapping[str, Iterable[Sample]]:
        """Tables of sampled replies of the last evaluation, by name, for loggers that show tables.
        None by default."""
        return {}


class TrainingClientEvaluator(_Evaluator, ABC):
    """Measures the weights in training, e.g. by `forward`.

    A base class rather than a protocol, because both kinds of evaluator have the same methods and
    `run_evals` distinguishes them by isinstance.
    """

    @abstractmethod
    async def __call__(self, client: TrainingClient, /) -> dict[str, float]: ...


class SamplingClientEvaluator(_Evaluator, ABC):
    """Measures a snapshot of the weights, e.g. by sampling from it."""

    @abstractmethod
    async def __call__(self, client: SamplingClient, /) -> dict[str, float]: ...


Evaluator = TrainingClientEvaluator | SamplingClientEvaluator
EvaluatorBuilder = Callable[[], Evaluator]
SamplingClientEvaluatorBuilder = Callable[[], SamplingClientEvaluator]
