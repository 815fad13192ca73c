"""Preference optimization as the objective of the supervised loop: DPO and its relatives."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import tinker
import torch

from tinker_cookbook.preference.losses import (
    PairLogprobs,
    PairLosses,
    PairLossSettings,
    pair_losses,
)
from tinker_cookbook.preference.reference import (
    DATUMS_PER_REQUEST,
    ReferenceLogprobs,
    weighted_sum,
)
from tinker_cookbook.sequences import as_numpy
from tinker_cookbook.supervised.common import compute_mean_nll
from tinker_cookbook.supervised.nll_evaluator import all_datums
from tinker_cookbook.supervised.objective import Objective, Outputs, logprobs_of
from tinker_cookbook.training.evaluators import Evaluator, TrainingClientEvaluator

if TYPE_CHECKING:
    from tinker.lib.public_interfaces.api_future import APIFuture

    from tinker_cookbook.service.api import TrainingClient
    from tinker_cookbook.supervised.types import SupervisedDataset


class PairObjective(Objective):
    """The mean of a pair loss over a batch of datums [chosen, rejected, chosen, rejected, ...].

    tokens_per_pass: a batch goes to the engine in calls of whole pairs that fit into one pass each,
    because the engine computes a custom loss over more than that with a second forward. None: one
    call per batch.
    """

    def __init__(
        self,
        settings: PairLossSettings,
        reference: ReferenceLogprobs | None,
        tokens_per_pass: int | None = None,
    ) -> None:
        self._settings, self._reference = settings, reference
        self._tokens_per_pass = tokens_per_pass

    async def prepare(self, batch: Sequence[tinker.Datum]) -> None:
        if self._reference is not None:
            await self._reference.compute(batch)

    def submit(
        self, client: TrainingClient, batch: list[tinker.Datum]
    ) -> Sequence[APIFuture[tinker.ForwardBackwardOutput]]:
        loss = partial(self._mean_loss, num_pairs=len(batch) // 2)
        return [
            client.forward_backward_custom(part, loss)
            for part in whole_pairs(batch, self._tokens_per_pass)
        ]

    def _mean_loss(
        self, data: list[tinker.Datum], logprobs: list[torch.Tensor], *, num_pairs: int
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """The part of the batch's mean loss that comes from these pairs. In float64, as sums over
        long replies differ by little."""
        sums = torch.stack(
            [
                torch.dot(_weights(datum).to(values.device), values.double())
                for datum, values in zip(data, logprobs, strict=True)
            ]
        )
        return self._losses(data, sums).loss.sum() / num_pairs, {}

    def _losses(self, data: Sequence[tinker.Datum], sums: torch.Tensor) -> PairLosses:
        """Losses and rewards from the policy's log p of each reply [D], float64."""
        tokens = torch.stack([_weights(datum).sum() for datum in data]).to(sums)
        reference = None
        if self._reference is not None:
            reference = torch.from_numpy(self._reference.values(data)).to(sums)
        pairs = PairLogprobs(
            sums[::2],
            sums[1::2],
            tokens[::2],
            tokens[1::2],
            None if reference is None else reference[::2],
            None if reference is None else reference[1::2],
        )
        return pair_losses(pairs, self._settings)

    def metrics(self, batch: Sequence[tinker.Datum], outputs: Outputs) -> dict[str, float]:
        return {"num_pairs": len(batch) // 2, **self.pair_metrics(batch, logprobs_of(outputs))}

    def pair_metrics(
        self, data: Sequence[tinker.Datum], logprobs: Sequence[np.ndarray]
    ) -> dict[str, float]:
        """accuracy: share of pairs whose chosen reply has the higher reward. chosen_logprob,
        rejected_logprob: mean log p of the replies, in nats."""
        sums = np.array([weighted_sum(*pair) for pair in zip(data, logprobs, strict=True)])
        losses = self._losses(data, torch.from_numpy(sums))
        chosen, rejected = losses.chosen_reward.numpy(), losses.rejected_reward.numpy()
        return {
            "dpo_loss": float(losses.loss.mean()),
            "accuracy": float((chosen > rejected).mean()),
            "margin": float((chosen - rejected).mean()),
            "chosen_reward": float(chosen.mean()),
            "rejected_reward": float(rejected.mean()),
            "chosen_logprob": float(sums[::2].mean()),
            "rejected_logprob": float(sums[1::2].mean()),
        }

    def evaluators(self, test: SupervisedDataset) -> list[Evaluator]:
        return [_PairEvaluator(self, all_datums(test))]

    def reference_replies(self, batch: Sequence[tinker.Datum]) -> Sequence[tinker.Datum]:
        return batch[::2]


class _PairEvaluator(TrainingClientEvaluator):
    """The metrics of held-out pairs as `test/...`; test/nll: over the tokens of all replies."""

    def __init__(self, objective: PairObjective, data: list[tinker.Datum]) -> None:
        self._objective, self._data = objective, data

    async def __call__(self, client: TrainingClient, /) -> dict[str, float]:
        await self._objective.prepare(self._data)
        futures = [
            client.forward(self._data[start : start + DATUMS_PER_REQUEST], "cross_entropy")
            for start in range(0, len(self._data), DATUMS_PER_REQUEST)
        ]
        logprobs = logprobs_of([await future for future in futures])
        metrics = self._objective.pair_metrics(self._data, logprobs)
        weights = [datum.loss_fn_inputs["weights"] for datum in self._data]
        metrics["nll"] = compute_mean_nll(logprobs, weights)
        return {f"test/{name}": value for name, value in metrics.items()}


def whole_pairs(
    batch: list[tinker.Datum], tokens_per_pass: int | None
) -> Iterator[list[tinker.Datum]]:
    """Split interleaved pairs into parts of at most `tokens_per_pass` tokens (None: one part).

    A pair that is longer makes a part of its own.
    """
    part: list[tinker.Datum] = []
    tokens = 0
    for chosen, rejected in zip(batch[::2], batch[1::2], strict=True):
        length = chosen.model_input.length + rejected.model_input.length
        if part and tokens_per_pass is not None and tokens + length > tokens_per_pass:
            yield part
            part, tokens = [], 0
        part += [chosen, rejected]
        tokens += length
    if part:
        yield part


def _weights(datum: tinker.Datum) -> torch.Tensor:
    return torch.from_numpy(as_numpy(datum.loss_fn_inputs["weights"]))
