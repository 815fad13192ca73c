"""What a step of the supervised loop minimizes: cross-entropy, or the loss of another method."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import tinker

from tinker_cookbook.sequences import as_numpy
from tinker_cookbook.supervised.common import compute_bpb, compute_mean_nll
from tinker_cookbook.supervised.nll_evaluator import NLLEvaluator

if TYPE_CHECKING:
    import numpy as np
    from tinker.lib.public_interfaces.api_future import APIFuture

    from tinker_cookbook.service.api import ServiceClient, TrainingClient
    from tinker_cookbook.tokenizer_utils import Tokenizer
    from tinker_cookbook.training.evaluators import Evaluator
    from tinker_cookbook.training.journal import Journal

    MakeObjective = Callable[[ServiceClient, Journal], "Objective"]

Outputs = Sequence[tinker.ForwardBackwardOutput]


class Objective(ABC):
    """The loss of a run, its metrics, and how it is evaluated on held-out data."""

    @abstractmethod
    async def submit(
        self, client: TrainingClient, batch: list[tinker.Datum]
    ) -> Sequence[APIFuture[tinker.ForwardBackwardOutput]]:
        """Submit the calls whose gradients add up to that of the batch, in the batch's order.

        Called once for each step, in order, from the first step of the run on (`start_step`).
        May first await whatever the loss needs, e.g. logprobs of another model: a request to stop
        the run cancels that, unless a step is in flight. Awaits nothing after the first call.
        """

    @abstractmethod
    def metrics(self, batch: Sequence[tinker.Datum], outputs: Outputs) -> dict[str, float]:
        """Metrics of a step before its update, from the results of `submit`; called in the order
        of the steps. `num_sequences` and `num_tokens` replace the batch's, if it trains others."""

    @abstractmethod
    def evaluators(self, test: list[tinker.Datum]) -> list[Evaluator]:
        """Evaluators of held-out data."""

    def target_replies(self, batch: Sequence[tinker.Datum]) -> Sequence[tinker.Datum]:
        """The examples of a batch that end with a reply the model is to learn."""
        return batch


class CrossEntropy(Objective):
    """Supervised fine-tuning: the weighted sum of -log p over the target tokens."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    async def submit(
        self, client: TrainingClient, batch: list[tinker.Datum]
    ) -> Sequence[APIFuture[tinker.ForwardBackwardOutput]]:
        return [client.forward_backward(batch, "cross_entropy")]

    def metrics(self, batch: Sequence[tinker.Datum], outputs: Outputs) -> dict[str, float]:
        """`train_mean_nll` uses the loss weights: with weights that sum to 1 per example, it is the
        mean over examples. `num_loss_tokens` counts trained tokens, whatever their weight."""
        logprobs = logprobs_of(outputs)
        weights = [datum.loss_fn_inputs["weights"] for datum in batch]
        targets = [datum.loss_fn_inputs["target_tokens"] for datum in batch]
        return {
            "num_loss_tokens": sum(int((values.to_numpy() != 0).sum()) for values in weights),
            "train_mean_nll": compute_mean_nll(logprobs, weights),
            "train_mean_bpb": compute_bpb(logprobs, weights, targets, self._tokenizer),
        }

    def evaluators(self, test: list[tinker.Datum]) -> list[Evaluator]:
        return [NLLEvaluator(test, tokenizer=self._tokenizer)]


def logprobs_of(outputs: Outputs) -> list[np.ndarray]:
    """Logprobs of the target tokens, one float64 array per datum, in the order of the calls."""
    return [as_numpy(datum["logprobs"]) for each in outputs for datum in each.loss_fn_outputs]
