"""Objectives of the supervised loop for preference optimization."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import tinker
import torch

from tinker_cookbook.exceptions import DataValidationError
from tinker_cookbook.preference.losses import (
    KTOSettings,
    PairLogprobs,
    PairLosses,
    PairLossSettings,
    kto_kl,
    kto_losses,
    pair_losses,
)
from tinker_cookbook.preference.reference import ReferenceLogprobs, weighted_sum
from tinker_cookbook.preference.unpaired_datasets import LABEL, label_of, remove_label
from tinker_cookbook.sequences import Sequence as TokenSequence
from tinker_cookbook.sequences import as_numpy, from_datum, to_datum
from tinker_cookbook.supervised.common import compute_mean_nll
from tinker_cookbook.supervised.nll_evaluator import forward_logprobs
from tinker_cookbook.supervised.objective import Objective, Outputs, logprobs_of
from tinker_cookbook.supervised.passes import split_into_passes
from tinker_cookbook.training.evaluators import Evaluator, TrainingClientEvaluator

if TYPE_CHECKING:
    from tinker.lib.public_interfaces.api_future import APIFuture

    from tinker_cookbook.service.api import TrainingClient

Futures = Sequence["APIFuture[tinker.ForwardBackwardOutput]"]
Loss = tuple[torch.Tensor, dict[str, float]]


class PreferenceObjective(Objective):
    """Base: a custom loss of whole replies' log p, and its evaluation on held-out data."""

    def inputs(self, batch: Sequence[tinker.Datum]) -> list[tinker.Datum]:
        """The datums whose logprobs `evaluate` takes."""
        return list(batch)

    @abstractmethod
    async def evaluate(
        self, client: TrainingClient, data: list[tinker.Datum], logprobs: Sequence[np.ndarray]
    ) -> dict[str, float]:
        """The metrics of held-out data, from its logprobs under the client's weights."""

    def evaluators(self, test: list[tinker.Datum]) -> list[Evaluator]:
        return [_HeldOutEvaluator(self, test)]


class PairObjective(PreferenceObjective):
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

    async def submit(self, client: TrainingClient, batch: list[tinker.Datum]) -> Futures:
        check_pairs(batch)
        if self._reference is not None:
            await self._reference.compute(batch)
        loss = partial(self._mean_loss, num_pairs=len(batch) // 2)
        parts = split_into_passes(batch, self._tokens_per_pass, unit=2)
        return [client.forward_backward_custom(part, loss) for part in parts]

    def _mean_loss(
        self, data: list[tinker.Datum], logprobs: list[torch.Tensor], *, num_pairs: int
    ) -> Loss:
        """The part of the batch's mean loss that comes from these pairs."""
        return self._losses(data, reply_logprobs(data, logprobs)).loss.sum() / num_pairs, {}

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
        return {"num_pairs": len(batch) // 2, **self._metrics(batch, logprobs_of(outputs))}

    async def evaluate(
        self, client: TrainingClient, data: list[tinker.Datum], logprobs: Sequence[np.ndarray]
    ) -> dict[str, float]:
        check_pairs(data)
        if self._reference is not None:
            await self._reference.compute(data)
        return {**self._metrics(data, logprobs), "nll": mean_nll(data, logprobs)}

    def _metrics(
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

    def target_replies(self, batch: Sequence[tinker.Datum]) -> Sequence[tinker.Datum]:
        return batch[::2]


class KTOObjective(PreferenceObjective):
    """The mean of KTO's loss over a batch of replies that are labelled good or bad.

    Its estimate of the KL divergence comes from each prompt with the reply to another one, whose
    logprobs need a forward of their own before each step.
    """

    def __init__(
        self,
        settings: KTOSettings,
        reference: ReferenceLogprobs,
        tokens_per_pass: int | None = None,
    ) -> None:
        self._settings, self._reference = settings, reference
        self._tokens_per_pass = tokens_per_pass

    async def submit(self, client: TrainingClient, batch: list[tinker.Datum]) -> Futures:
        kl = await self._estimate_kl(client, batch)
        # The labels stay here: a server would refuse them as an input that it does not know.
        return [
            client.forward_backward_custom(
                list(map(remove_label, part)),
                partial(self._mean_loss, part, num_replies=len(batch), kl=kl),
            )
            for part in split_into_passes(batch, self._tokens_per_pass)
        ]

    async def _estimate_kl(self, client: TrainingClient, batch: list[tinker.Datum]) -> float:
        check_labels(batch)
        mismatched = mismatched_replies(batch)
        await self._reference.compute([*map(remove_label, batch), *mismatched])
        if not mismatched:
            return 0.0
        logprobs = await forward_logprobs(client, mismatched)
        sums = [weighted_sum(*pair) for pair in zip(mismatched, logprobs, strict=True)]
        reference = torch.from_numpy(self._reference.values(mismatched))
        return kto_kl(torch.tensor(sums, dtype=torch.float64), reference)

    def _mean_loss(
        self,
        labeled: list[tinker.Datum],
        data: list[tinker.Datum],
        logprobs: list[torch.Tensor],
        *,
        num_replies: int,
        kl: float,
    ) -> Loss:
        """The part of the batch's mean loss that comes from these replies."""
        losses, _ = self._losses(labeled, reply_logprobs(data, logprobs), kl)
        return losses.sum() / num_replies, {"kl": kl}

    def _losses(
        self, data: Sequence[tinker.Datum], sums: torch.Tensor, kl: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        reference = torch.from_numpy(self._reference.values(list(map(remove_label, data))))
        good = torch.tensor([label_of(datum) for datum in data], device=sums.device)
        return kto_losses(sums, reference.to(sums), good, kl, self._settings)

    def metrics(self, batch: Sequence[tinker.Datum], outputs: Outputs) -> dict[str, float]:
        return self._metrics(batch, logprobs_of(outputs), outputs[0].metrics["kl"])

    async def evaluate(
        self, client: TrainingClient, data: list[tinker.Datum], logprobs: Sequence[np.ndarray]
    ) -> dict[str, float]:
        metrics = self._metrics(data, logprobs, await self._estimate_kl(client, data))
        return {**metrics, "nll": mean_nll(data, logprobs)}

    def _metrics(
        self, data: Sequence[tinker.Datum], logprobs: Sequence[np.ndarray], kl: float
    ) -> dict[str, float]:
        """kl in nats per reply; rewards and log p as means over the good and the bad replies."""
        sums = np.array([weighted_sum(*pair) for pair in zip(data, logprobs, strict=True)])
        losses, rewards = (t.numpy() for t in self._losses(data, torch.from_numpy(sums), kl))
        good = np.array([label_of(datum) for datum in data])
        metrics = {"kto_loss": float(losses.mean()), "kl": kl, "frac_good": float(good.mean())}
        for name, mask in (("good", good), ("bad", ~good)):
            if mask.any():
                metrics[f"{name}_reward"] = float(rewards[mask].mean())
                metrics[f"{name}_logprob"] = float(sums[mask].mean())
        return metrics

    def target_replies(self, batch: Sequence[tinker.Datum]) -> Sequence[tinker.Datum]:
        return [datum for datum in batch if label_of(datum)]


class _HeldOutEvaluator(TrainingClientEvaluator):
    """The metrics of held-out data as `test/...`."""

    def __init__(self, objective: PreferenceObjective, data: list[tinker.Datum]) -> None:
        self._objective, self._data = objective, data

    async def __call__(self, client: TrainingClient, /) -> dict[str, float]:
        logprobs = await forward_logprobs(client, self._objective.inputs(self._data))
        metrics = await self._objective.evaluate(client, self._data, logprobs)
        return {f"test/{name}": value for name, value in metrics.items()}


def mean_nll(data: Sequence[tinker.Datum], logprobs: Sequence[np.ndarray]) -> float:
    """Mean NLL over the tokens of all replies."""
    return compute_mean_nll(logprobs, [datum.loss_fn_inputs["weights"] for datum in data])


def check_pairs(batch: Sequence[tinker.Datum]) -> None:
    """Raise DataValidationError unless the datums are pairs of replies to the same prompt."""
    problem = None
    if len(batch) % 2:
        problem = f"a batch has {len(batch)} examples"
    for chosen, rejected in zip(batch[::2], batch[1::2]):
        prompts = []
        for datum in (chosen, rejected):
            sequence = from_datum(remove_label(datum))
            prompts.append(sequence.tokens[: _reply_start(sequence)].tolist())
            if not set(sequence.weights.tolist()) <= {0.0, 1.0}:
                problem = "an example has weights other than 0 and 1"
            if LABEL in datum.loss_fn_inputs:
                problem = "an example has a label"
        if prompts[0] != prompts[1]:
            problem = "two examples that should be a pair have different prompts"
    if problem:
        raise DataValidationError(
            f"the data is not of pairs of a chosen and a rejected reply: {problem}; use"
            " data=DPODatasetBuilderFromComparisons, or loss=kto for replies labelled good or bad"
        )


def check_labels(batch: Sequence[tinker.Datum]) -> None:
    """Raise DataValidationError unless all datums have a label."""
    if any(LABEL not in datum.loss_fn_inputs for datum in batch):
        raise DataValidationError(
            "loss=kto needs replies labelled good or bad, found examples without a label: use"
            " data=KTODatasetBuilder or data=KTODatasetBuilderFromComparisons, or another loss"
        )


def mismatched_replies(batch: Sequence[tinker.Datum]) -> list[tinker.Datum]:
    """Each prompt of a batch with the reply to the next other prompt, truncated to the longest
    datum; [] if there is only one prompt."""
    sequences = [from_datum(remove_label(datum)) for datum in batch]
    starts = list(map(_reply_start, sequences))
    prompts = [tuple(s.tokens[:start].tolist()) for s, start in zip(sequences, starts)]
    longest = max(map(len, sequences))
    mismatched = []
    for i, (sequence, start) in enumerate(zip(sequences, starts)):
        others = [*range(i + 1, len(sequences)), *range(i)]
        j = next((j for j in others if prompts[j] != prompts[i]), None)
        if j is None:
            return []
        tokens = np.concatenate([sequence.tokens[:start], sequences[j].tokens[starts[j] :]])
        weights = np.concatenate([sequence.weights[:start], sequences[j].weights[starts[j] :]])
        mismatched.append(to_datum(TokenSequence(tokens, weights).truncate(longest)))
    return mismatched


def _reply_start(sequence: TokenSequence) -> int:
    return int(np.flatnonzero(sequence.loss_mask)[0])


def reply_logprobs(data: Sequence[tinker.Datum], logprobs: list[torch.Tensor]) -> torch.Tensor:
    """log p of each reply [D]: sums of weight * logprob, with gradients.

    In float64: the sums over long replies differ by little. Untrained tokens may be NaN.
    """
    sums = []
    for datum, values in zip(data, logprobs, strict=True):
        weights = _weights(datum).to(values.device)
        trained = weights != 0
        sums.append(torch.dot(weights[trained], values[trained].double()))
    return torch.stack(sums)


def _weights(datum: tinker.Datum) -> torch.Tensor:
    return torch.from_numpy(as_numpy(datum.loss_fn_inputs["weights"]))
