"""How far the logprobs of sampler, trainer and other models are apart, on sampled tokens.

Everything here is in nats and over the tokens whose `mask` is not 0. Logprobs that are compared are
of the temperature at which the tokens were sampled (one exception: see rl/temperature.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import tinker

from tinker_cookbook.exceptions import DataValidationError
from tinker_cookbook.rl.signals import discounted_future_sum, kl_advantages, sequence_logprobs
from tinker_cookbook.sequences import as_numpy, from_datum

if TYPE_CHECKING:
    from tinker_cookbook.sequences import Values
    from tinker_cookbook.service.api import SamplingClient


class LogprobGap:
    """Differences of logprobs, sampled minus others, of the same tokens: sums over all that was
    added, so that a step whose datums come in parts has the figures of the whole step.

    Values that are not finite make every figure so: a bound on them must read `not x <= bound`.
    """

    def __init__(self) -> None:
        self.num_tokens = 0
        self.max = 0.0  # of |difference|
        self._sampled = self._difference = self._absolute = self._square = 0.0

    def add(self, data_D: Sequence[tinker.Datum], logprobs_D: Sequence[Values]) -> None:
        """Datums with `logprobs` (sampled) and `mask`; logprobs [N] of each datum's N targets."""
        if len(data_D) != len(logprobs_D):
            raise DataValidationError(
                f"{len(data_D)} datums, but logprobs of {len(logprobs_D)}: expected one for each"
            )
        for number, (datum, given) in enumerate(zip(data_D, logprobs_D)):
            sampled, mask = (as_numpy(datum.loss_fn_inputs[key]) for key in ("logprobs", "mask"))
            others = as_numpy(given)
            if others.shape != sampled.shape:
                raise DataValidationError(
                    f"datum {number} has {len(sampled)} targets, but logprobs of shape"
                    f" {others.shape}"
                )
            chosen = mask != 0
            self._add(sampled[chosen], others[chosen])

    def _add(self, sampled: np.ndarray, others: np.ndarray) -> None:
        difference = sampled - others
        self.num_tokens += len(difference)
        self._sampled += float(sampled.sum())
        self._difference += float(difference.sum())
        self._absolute += float(np.abs(difference).sum())
        self._square += float(np.square(difference).sum())
        self.max = float(np.max(np.abs(difference), initial=self.max))  # NaN stays NaN

    @property
    def mean(self) -> float:
        """Of |difference|."""
        return self._per_token(self._absolute)

    @property
    def kl_v1(self) -> float:
        """mean(difference): estimates KL(sampled || others) without bias."""
        return self._per_token(self._difference)

    @property
    def kl_v2(self) -> float:
        """mean(difference^2) / 2: estimates it with less variance, and is never negative."""
        return self._per_token(0.5 * self._square)

    @property
    def entropy(self) -> float:
        """-mean(sampled logprob): estimates the entropy per token of what was sampled from."""
        return self._per_token(-self._sampled)

    def _per_token(self, total: float) -> float:
        return total / self.num_tokens if self.num_tokens else math.nan


class SampleTrainGap(LogprobGap):
    """Of the sampler's and the trainer's logprobs, before the update."""

    def metrics(self, num_sampled_tokens: int | None = None) -> dict[str, float]:
        """{} where there was no token.

        num_sampled_tokens: of all actions that were played for the step (the
        `num_sampled_tokens` of its groups). Adds `optim/frac_masked`, the fraction of them that no
        datum trains: tokens of turns that are not trainable, and of groups that were left out.
        """
        metrics: dict[str, float] = {}
        if self.num_tokens:
            metrics = {
                "optim/kl_sample_train_v1": self.kl_v1,
                "optim/kl_sample_train_v2": self.kl_v2,
                "optim/entropy": self.entropy,
                "optim/logprob_gap_mean": self.mean,
                "optim/logprob_gap_max": self.max,
            }
        if num_sampled_tokens:
            metrics["optim/frac_masked"] = 1.0 - self.num_tokens / num_sampled_tokens
        return metrics


def compute_kl_sample_train(
    data_D: Sequence[tinker.Datum], training_logprobs_D: Sequence[Values]
) -> dict[str, float]:
    """The metrics of SampleTrainGap for datums with `mask` and what `forward_backward` returned."""
    gap = SampleTrainGap()
    gap.add(data_D, training_logprobs_D)
    return gap.metrics()


async def compute_post_kl(
    data_D: Sequence[tinker.Datum], post_sampling_client: SamplingClient, temperature: float = 1.0
) -> dict[str, float]:
    """How far a step has moved the policy: `kl_pre_post_v1` and `_v2` between the sampled logprobs
    and those of the weights after it, on the tokens of the datums (which have `mask`). temperature:
    at which they were sampled."""
    gap = LogprobGap()
    gap.add(data_D, await _datum_logprobs(data_D, post_sampling_client, temperature))
    if not gap.num_tokens:
        return {}
    return {"kl_pre_post_v1": gap.kl_v1, "kl_pre_post_v2": gap.kl_v2}


async def incorporate_kl_penalty(
    data_D: Sequence[tinker.Datum],
    base_sampling_client: SamplingClient,
    kl_penalty_coef: float,
    kl_discount_factor: float,
    temperature: float = 1.0,
) -> dict[str, float]:
    """`signals.ReferenceKL` on datums: replaces their `advantages` by those with the penalty.

    The mean is over these datums, and a discounted sum goes over one datum, as it does not know
    which others are of the same episode. temperature: at which the tokens were sampled.
    """
    reference_D = await _datum_logprobs(data_D, base_sampling_client, temperature)
    masks = [as_numpy(datum.loss_fn_inputs["mask"]) != 0 for datum in data_D]
    differences = [
        (as_numpy(datum.loss_fn_inputs["logprobs"]) - reference)[mask]
        for datum, reference, mask in zip(data_D, reference_D, masks)
    ]
    if not sum(len(d) for d in differences):
        return {}
    mean = float(np.concatenate(differences).mean())
    for datum, mask, d in zip(data_D, masks, differences):
        advantages = as_numpy(datum.loss_fn_inputs["advantages"]).copy()
        advantages[mask] += kl_advantages(d, kl_penalty_coef, kl_discount_factor, centre=mean)
        datum.loss_fn_inputs["advantages"] = tinker.TensorData.from_numpy(
            advantages.astype(np.float32)
        )
    return {"kl_policy_base": mean}


def discounted_future_sum_vectorized(x: np.ndarray, gamma: float) -> np.ndarray:
    """A known name of `signals.discounted_future_sum`."""
    return discounted_future_sum(x, gamma)


async def _datum_logprobs(
    data_D: Sequence[tinker.Datum], client: SamplingClient, temperature: float
) -> list[np.ndarray]:
    """Of each datum's N targets, float64 [N]."""
    tokens = [from_datum(datum).tokens.tolist() for datum in data_D]
    return [logprobs[1:] for logprobs in await sequence_logprobs(client, tokens, temperature)]
