"""Losses on pairs of replies: DPO and its relatives. Pure functions of tensors.

Suffixes: _P pairs of a batch. `chosen`, `rejected`: the policy's log p(reply | prompt), a sum over
the reply's tokens in nats; `*_reference`: the same under the reference model; `*_tokens`: lengths
of the replies. With the implicit rewards (Rafailov et al. 2023, arXiv 2305.18290)

    r = beta * (log p - log p_reference)        h = r_chosen - r_rejected

| loss | per pair | arXiv |
|---|---|---|
| sigmoid | -log sigmoid(h) | 2305.18290, DPO |
| hinge | max(0, 1 - h) | 2305.10425, SLiC-HF |
| ipo | (m - 1 / (2 beta))^2, where m = h / beta with means over tokens | 2310.12036 |
| cdpo | -(1 - e) log sigmoid(h) - e log sigmoid(-h) | 2305.18290, with flipped labels |
| robust | (-(1 - e) log sigmoid(h) + e log sigmoid(-h)) / (1 - 2 e) | 2403.00409 |
| simpo | -log sigmoid(beta * (mean log p_chosen - mean log p_rejected) - gamma) | 2405.14734 |
| orpo | -mean log p_chosen - beta * log sigmoid(odds_chosen - odds_rejected) | 2403.07691 |

e is label_smoothing, the assumed rate of flipped labels. simpo and orpo need no reference model and
use means over tokens; odds is log(p / (1 - p)) of that mean. IPO's paper has sums over tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch.nn.functional import logsigmoid

from tinker_cookbook.exceptions import ConfigurationError

PairLoss = Literal["sigmoid", "ipo", "hinge", "robust", "cdpo", "simpo", "orpo"]
PreferenceLoss = Literal[PairLoss, "kto"]
WITHOUT_REFERENCE = ("simpo", "orpo")
WITH_SMOOTHING = ("robust", "cdpo")


@dataclass(frozen=True)
class PairLogprobs:
    """Policy and reference log p of each pair's replies, [P] each; reference None: not needed."""

    chosen: torch.Tensor
    rejected: torch.Tensor
    chosen_tokens: torch.Tensor
    rejected_tokens: torch.Tensor
    chosen_reference: torch.Tensor | None = None
    rejected_reference: torch.Tensor | None = None


class PairLosses(NamedTuple):
    """Loss and rewards of each pair, [P] each."""

    loss: torch.Tensor
    chosen_reward: torch.Tensor
    rejected_reward: torch.Tensor


@dataclass(frozen=True)
class PairLossSettings:
    """kind, and its constants. label_smoothing: the assumed rate of flipped labels, of robust and
    cdpo. simpo_gamma: the margin of simpo, not multiplied by beta."""

    kind: PairLoss = "sigmoid"
    beta: float = 0.1
    label_smoothing: float = 0.0
    simpo_gamma: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in _LOSSES:
            raise ConfigurationError(f"loss={self.kind}: expected {', '.join(_LOSSES)}")
        if not 0 < self.beta < math.inf:
            raise ConfigurationError(f"dpo_beta={self.beta}: expected above 0")
        if self.kind in WITH_SMOOTHING and not 0 < self.label_smoothing < 0.5:
            raise ConfigurationError(
                f"label_smoothing={self.label_smoothing}: loss={self.kind} needs a rate of flipped"
                " labels above 0 and below 0.5"
            )

    @property
    def needs_reference(self) -> bool:
        return self.kind not in WITHOUT_REFERENCE


def pair_losses(pairs: PairLogprobs, settings: PairLossSettings) -> PairLosses:
    """The loss and the rewards of each pair. Rewards are beta * (log p - log p_reference) with the
    loss's sums or means over tokens, and beta * mean log p for losses without a reference."""
    return _LOSSES[settings.kind](pairs, settings)


def _rewards(
    pairs: PairLogprobs, settings: PairLossSettings, mean: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Implicit rewards of chosen and rejected; `mean`: with log p as means over tokens."""
    chosen, rejected = pairs.chosen, pairs.rejected
    if settings.needs_reference:
        assert pairs.chosen_reference is not None and pairs.rejected_reference is not None
        chosen, rejected = chosen - pairs.chosen_reference, rejected - pairs.rejected_reference
    if mean:
        chosen, rejected = chosen / pairs.chosen_tokens, rejected / pairs.rejected_tokens
    return settings.beta * chosen, settings.beta * rejected


def _sigmoid(pairs: PairLogprobs, settings: PairLossSettings) -> PairLosses:
    chosen, rejected = _rewards(pairs, settings)
    return PairLosses(-logsigmoid(chosen - rejected), chosen, rejected)


def _hinge(pairs: PairLogprobs, settings: PairLossSettings) -> PairLosses:
    chosen, rejected = _rewards(pairs, settings)
    return PairLosses(torch.relu(1 - (chosen - rejected)), chosen, rejected)


def _ipo(pairs: PairLogprobs, settings: PairLossSettings) -> PairLosses:
    chosen, rejected = _rewards(pairs, settings, mean=True)
    margin = (chosen - rejected) / settings.beta
    return PairLosses((margin - 1 / (2 * settings.beta)) ** 2, chosen, rejected)


def _cdpo(pairs: PairLogprobs, settings: PairLossSettings) -> PairLosses:
    chosen, rejected = _rewards(pairs, settings)
    h, flipped = chosen - rejected, settings.label_smoothing
    loss = -(1 - flipped) * logsigmoid(h) - flipped * logsigmoid(-h)
    return PairLosses(loss, chosen, rejected)


def _robust(pairs: PairLogprobs, settings: PairLossSettings) -> PairLosses:
    chosen, rejected = _rewards(pairs, settings)
    h, flipped = chosen - rejected, settings.label_smoothing
    loss = (-(1 - flipped) * logsigmoid(h) + flipped * logsigmoid(-h)) / (1 - 2 * flipped)
    return PairLosses(loss, chosen, rejected)


def _simpo(pairs: PairLogprobs, settings: PairLossSettings) -> PairLosses:
    chosen, rejected = _rewards(pairs, settings, mean=True)
    return PairLosses(-logsigmoid(chosen - rejected - settings.simpo_gamma), chosen, rejected)


def _orpo(pairs: PairLogprobs, settings: PairLossSettings) -> PairLosses:
    chosen = pairs.chosen / pairs.chosen_tokens
    rejected = pairs.rejected / pairs.rejected_tokens
    ratio = logsigmoid(_log_odds(chosen) - _log_odds(rejected))
    return PairLosses(
        -chosen - settings.beta * ratio, settings.beta * chosen, settings.beta * rejected
    )


def _log_odds(logprob: torch.Tensor) -> torch.Tensor:
    """log(p / (1 - p)) of a log p below 0. A reply that is certain to the last bit has no odds:
    the limit keeps the loss finite."""
    limit = -torch.finfo(logprob.dtype).eps
    bounded = logprob.clamp(max=limit)
    return bounded - torch.log(-torch.expm1(bounded))


_LOSSES = {
    "sigmoid": _sigmoid,
    "ipo": _ipo,
    "hinge": _hinge,
    "robust": _robust,
    "cdpo": _cdpo,
    "simpo": _simpo,
    "orpo": _orpo,
}


@dataclass(frozen=True)
class KTOSettings:
    """Constants of KTO. desirable_weight, undesirable_weight: of good and of bad replies."""

    beta: float = 0.1
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0


def kto_losses(
    logprob: torch.Tensor,
    reference: torch.Tensor,
    good: torch.Tensor,
    kl: float,
    settings: KTOSettings,
) -> tuple[torch.Tensor, torch.Tensor]:
    """KTO of single replies labelled good or bad (Ethayarajh et al. 2024, arXiv 2402.01306).

    Returns (loss, reward) of each reply, with reward = beta * (log p - log p_reference):

        good: desirable_weight * (1 - sigmoid(reward - beta * kl))
        bad:  undesirable_weight * (1 - sigmoid(beta * kl - reward))

    kl: the batch's estimate of KL(policy || reference) in nats, 0 or more, without a gradient:
    the mean of log p - log p_reference over replies to other prompts (`kto_kl`).
    """
    reward = settings.beta * (logprob - reference)
    centred = reward - settings.beta * kl
    weight = torch.where(good, settings.desirable_weight, settings.undesirable_weight)
    return weight * (1 - torch.sigmoid(torch.where(good, centred, -centred))), reward


def kto_kl(logprob: torch.Tensor, reference: torch.Tensor) -> float:
    """max(0, mean(log p - log p_reference)) over a batch's replies to prompts not their own."""
    return max(0.0, float((logprob - reference).mean()))
