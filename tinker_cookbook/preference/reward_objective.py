"""The Bradley-Terry objective of a pointwise reward model."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import tinker
import torch

from tinker_cookbook.exceptions import DataValidationError
from tinker_cookbook.preference.objective import (
    Futures,
    Loss,
    PreferenceObjective,
)
from tinker_cookbook.preference.reward_model import RewardRenderer
from tinker_cookbook.sequences import as_numpy
from tinker_cookbook.supervised.objective import Outputs, logprobs_of
from tinker_cookbook.supervised.passes import split_into_passes, tokens_per_pass_of

if TYPE_CHECKING:
    from tinker_cookbook.preference.reward_model import RewardDatasetBuilderFromComparisons
    from tinker_cookbook.service.api import ServiceClient, TrainingClient
    from tinker_cookbook.training.journal import Journal


class BradleyTerryObjective(PreferenceObjective):
    """The mean of -log sigmoid(r_chosen - r_rejected) over pairs of datums [chosen, rejected, ...].

    r = log p(yes) - log p(no) for the last target of a datum. labels: the tokens (yes, no).
    tokens_per_pass: see `PairObjective`.
    """

    def __init__(self, labels: Sequence[int], tokens_per_pass: int | None = None) -> None:
        self._labels, self._tokens_per_pass = labels, tokens_per_pass

    def inputs(self, batch: Sequence[tinker.Datum]) -> list[tinker.Datum]:
        check_reward_pairs(batch, self._labels[0])
        return [with_label_targets(datum, self._labels) for datum in batch]

    async def submit(self, client: TrainingClient, batch: list[tinker.Datum]) -> Futures:
        loss = partial(self._mean_loss, num_pairs=len(batch) // 2)
        parts = split_into_passes(self.inputs(batch), self._tokens_per_pass, unit=2)
        return [client.forward_backward_custom(part, loss) for part in parts]

    def _mean_loss(
        self, data: list[tinker.Datum], logprobs: list[torch.Tensor], *, num_pairs: int
    ) -> Loss:
        """The part of the batch's mean loss that comes from these pairs."""
        labels = [values[-1].double() for values in logprobs]
        rewards = torch.stack([yes - no for yes, no in labels])
        return pair_losses(rewards).sum() / num_pairs, {}

    def metrics(self, batch: Sequence[tinker.Datum], outputs: Outputs) -> dict[str, float]:
        return {"num_pairs": len(batch) // 2, **reward_metrics(logprobs_of(outputs))}

    async def evaluate(
        self, client: TrainingClient, data: list[tinker.Datum], logprobs: Sequence[np.ndarray]
    ) -> dict[str, float]:
        return reward_metrics(logprobs)

    def target_replies(self, batch: Sequence[tinker.Datum]) -> Sequence[tinker.Datum]:
        return []


def make_reward_objective(
    data: RewardDatasetBuilderFromComparisons, service: ServiceClient, journal: Journal
) -> BradleyTerryObjective:
    """The objective for the data of a run; a `MakeObjective` once `data` is bound."""
    labels = RewardRenderer(data.renderer).labels.tokens
    return BradleyTerryObjective(labels, tokens_per_pass_of(service))


def pair_losses(rewards: torch.Tensor) -> torch.Tensor:
    """-log sigmoid(r_chosen - r_rejected) [D / 2] from rewards [D] of chosen, rejected, ..."""
    return -torch.nn.functional.logsigmoid(rewards[::2] - rewards[1::2])


def reward_metrics(logprobs: Sequence[np.ndarray]) -> dict[str, float]:
    """accuracy: share of pairs whose chosen reply has the higher reward, ties half; margin: mean
    difference of the rewards, in nats."""
    rewards = np.array([values[-1, 0] - values[-1, 1] for values in logprobs])
    chosen, rejected = rewards[::2], rewards[1::2]
    return {
        "rm_loss": float(pair_losses(torch.from_numpy(rewards)).mean()),
        "accuracy": float(np.sign(chosen - rejected).mean() + 1) / 2,
        "margin": float((chosen - rejected).mean()),
        "chosen_reward": float(chosen.mean()),
        "rejected_reward": float(rejected.mean()),
    }


def with_label_targets(datum: tinker.Datum, labels: Sequence[int]) -> tinker.Datum:
    """The datum with two targets at each position, [N, 2]: its own twice, yes and no at the last.

    The weights are for evaluations, whose forward takes no datum without: as a cross-entropy they
    give -r. The custom loss ignores them.
    """
    targets = np.repeat(as_numpy(datum.loss_fn_inputs["target_tokens"])[:, None], 2, axis=1)
    targets[-1] = labels
    weights = np.zeros(targets.shape, np.float32)
    weights[-1] = 1, -1
    inputs = {"target_tokens": targets.astype(np.int64), "weights": weights}
    return tinker.Datum(
        model_input=datum.model_input,
        loss_fn_inputs={
            name: tinker.TensorData.from_numpy(values) for name, values in inputs.items()
        },
    )


def check_reward_pairs(batch: Sequence[tinker.Datum], yes: int) -> None:
    """Raise DataValidationError unless the datums are an even number of chats that end with the
    token `yes`, their only trained one."""
    problem = f"a batch has {len(batch)} examples" if len(batch) % 2 else None
    for datum in batch:
        weights = as_numpy(datum.loss_fn_inputs["weights"])
        if np.flatnonzero(weights).tolist() != [len(weights) - 1]:
            problem = "an example does not train its last token alone"
        elif as_numpy(datum.loss_fn_inputs["target_tokens"])[-1] != yes:
            problem = "an example does not end with 'Yes'"
    if problem:
        raise DataValidationError(
            f"the data is not of pairs for a reward model: {problem}; use"
            " data=RewardDatasetBuilderFromComparisons"
        )
