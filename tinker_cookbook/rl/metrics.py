"""Logprob differences between sampler, trainer and other models, on sampled tokens.

All values are in nats, over tokens with a nonzero `mask`. Compared logprobs refer to the sampling
temperature (with one exception, see rl/temperature.py).
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
    """Statistics of the differences sampled - other logprob of the same tokens.

    Keeps sums rather than means, so that a step trained in chunks has the exact statistics of the
    whole step. A value that is not finite makes the statistics so, too: check a bound as
    `not x <= bound`, which is true for NaN.
    """

    def __init__(self) -> None:
        self.num_tokens = 0
        self.max = 0.0  # of |difference|
        self._sampled = self._difference = self._absolute = self._square = 0.0

    def add(self, data_D: Sequence[tinker.Datum], logprobs_D: Sequence[Values]) -> None:
        """Add datums with `logprobs` (sampled) and `mask`, and the other logprobs [N] of each
        datum's N targets."""
        if len(data_D) != len(logprobs_D):
            raise DataValidationError(
                f"{len(data_D)} datums, but logprobs of {len(logprobs_D)}: expected one array for"
                " each"
            )
        for number, (datum, logprobs) in enumerate(zip(data_D, logprobs_D)):
            sampled, mask = (as_numpy(datum.loss_fn_inputs[key]) for key in ("logprobs", "mask"))
            others = as_numpy(logprobs)
            if others.shape != sampled.shape:
                raise DataValidationError(
                    f"datum {number} has {len(sampled)} targets, but logprobs of shape"
                    f" {others.shape}"
                )
            trained = mask != 0
            self._add(sampled[trained], others[trained])

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
        """mean(|difference|)."""
        return self._per_token(self._absolute)

    @property
    def kl_v1(self) -> float:
        """mean(difference): an unbiased estimate of KL(sampled || other), per token."""
        return self._per_token(self._difference)

    @property
    def kl_v2(self) -> float:
        """mean(difference^2) / 2: a biased estimate of the same KL with lower variance, never
        negative (Schulman 2020, http://joschu.net/blog/kl-approx.html)."""
        return self._per_token(0.5 * self._square)

    @property
    def entropy(self) -> float:
        """-mean(sampled logprob): an estimate of the sampled policy's entropy per token."""
        return self._per_token(-self._sampled)

    def _per_token(self, total: float) -> float:
        return total / self.num_tokens if self.num_tokens else math.nan


class SampleTrainGap(LogprobGap):
    """Differences between the sampler's logprobs and those that forward_backward returned."""

    def metrics(self, num_sampled_tokens: int | None = None) -> dict[str, float]:
        """Metrics of the differences; none if no token was added.

        optim/kl_sample_train_v1, _v2     estimates of KL(sampler || trainer), see kl_v1 and kl_v2
        optim/entropy                     estimate of the sampled policy's entropy, per token
        optim/logprob_gap_mean, _max      |sampler - trainer| logprob
        optim/frac_masked                 fraction of the step's sampled tokens that were not
                                          trained: turns that are not trainable, groups left out

        num_sampled_tokens: over all groups of the step; without it, there is no optim/frac_masked.
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
    """The metrics of SampleTrainGap, from datums with `mask` and the logprobs that
    `forward_backward` returned."""
    gap = SampleTrainGap()
    gap.add(data_D, training_logprobs_D)
    return gap.metrics()


async def compute_post_kl(
    data_D: Sequence[tinker.Datum], post_sampling_client: SamplingClient, temperature: float = 1.0
) -> dict[str, float]:
    """Estimate how far a step moved the policy: `kl_pre_post_v1` and `_v2`, KL(sampler || policy
    after the step), on the sampled tokens of datums with `mask`. temperature: that of sampling."""
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
    """Add the penalty of `signals.ReferenceKL` to the `advantages` of datums, in place.

    The mean is over these datums. A discounted sum stays within a datum, since datums do not tell
    which of them belong to the same episode. temperature: that of sampling.
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
    """The Tinker cookbook's name for `signals.discounted_future_sum`."""
    return discounted_future_sum(x, gamma)


async def _datum_logprobs(
    data_D: Sequence[tinker.Datum], client: SamplingClient, temperature: float
) -> list[np.ndarray]:
    """The client's logprobs of each datum's N targets, float64 [N]."""
    tokens = [from_datum(datum).tokens.tolist() for datum in data_D]
    return [logprobs[1:] for logprobs in await sequence_logprobs(client, tokens, temperature)]
