"""Losses against float64 formulas written out by hand, values and gradients."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.preference.losses import (
    KTOSettings,
    PairLogprobs,
    PairLoss,
    PairLossSettings,
    kto_kl,
    kto_losses,
    pair_losses,
)
from tinker_cookbook.preference.train_dpo import compute_dpo_loss

BETA, SMOOTHING, GAMMA = 0.3, 0.2, 0.7
CHOSEN = [-4.0, -31.5, -2.25, -0.5, -400.0]
REJECTED = [-6.5, -30.0, -9.0, -0.75, -40.0]
CHOSEN_REFERENCE = [-5.0, -30.0, -2.5, -0.5, -30.0]
REJECTED_REFERENCE = [-6.0, -29.0, -2.0, -0.5, -45.0]
CHOSEN_TOKENS = [3, 40, 2, 1, 50]
REJECTED_TOKENS = [5, 33, 7, 2, 60]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > -700 else 0.0


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x)) if x > -30 else x


def by_hand(kind: str, i: int, chosen: float, rejected: float) -> float:
    """The loss of pair i, from its definition in the paper."""
    n_chosen, n_rejected = CHOSEN_TOKENS[i], REJECTED_TOKENS[i]
    ratio_chosen, ratio_rejected = chosen - CHOSEN_REFERENCE[i], rejected - REJECTED_REFERENCE[i]
    h = BETA * (ratio_chosen - ratio_rejected)
    if kind == "sigmoid":
        return -log_sigmoid(h)
    if kind == "hinge":
        return max(0.0, 1 - h)
    if kind == "ipo":
        return (ratio_chosen / n_chosen - ratio_rejected / n_rejected - 1 / (2 * BETA)) ** 2
    if kind == "cdpo":
        return -(1 - SMOOTHING) * log_sigmoid(h) - SMOOTHING * log_sigmoid(-h)
    if kind == "robust":
        right, flipped = -log_sigmoid(h), -log_sigmoid(-h)
        return ((1 - SMOOTHING) * right - SMOOTHING * flipped) / (1 - 2 * SMOOTHING)
    if kind == "simpo":
        return -log_sigmoid(BETA * (chosen / n_chosen - rejected / n_rejected) - GAMMA)
    p_chosen, p_rejected = math.exp(chosen / n_chosen), math.exp(rejected / n_rejected)
    odds_ratio = (p_chosen / (1 - p_chosen)) / (p_rejected / (1 - p_rejected))
    return -chosen / n_chosen - BETA * log_sigmoid(math.log(odds_ratio))


def settings(kind: PairLoss) -> PairLossSettings:
    smoothing = SMOOTHING if kind in ("cdpo", "robust") else 0.0
    return PairLossSettings(kind, BETA, smoothing, GAMMA if kind == "simpo" else 0.0)


def numerical_gradient(function: Callable[[float], float], at: float, step: float = 1e-5) -> float:
    return (function(at + step) - function(at - step)) / (2 * step)


@pytest.mark.parametrize("kind", ["sigmoid", "ipo", "hinge", "robust", "cdpo", "simpo", "orpo"])
def test_values_and_gradients_by_hand(kind: PairLoss) -> None:
    chosen = torch.tensor(CHOSEN, dtype=torch.float64, requires_grad=True)
    rejected = torch.tensor(REJECTED, dtype=torch.float64, requires_grad=True)
    pairs = PairLogprobs(
        chosen,
        rejected,
        torch.tensor(CHOSEN_TOKENS, dtype=torch.float64),
        torch.tensor(REJECTED_TOKENS, dtype=torch.float64),
        torch.tensor(CHOSEN_REFERENCE, dtype=torch.float64),
        torch.tensor(REJECTED_REFERENCE, dtype=torch.float64),
    )
    losses = pair_losses(pairs, settings(kind)).loss
    losses.sum().backward()
    assert chosen.grad is not None and rejected.grad is not None
    for i, (c, r) in enumerate(zip(CHOSEN, REJECTED)):
        assert losses[i].item() == pytest.approx(by_hand(kind, i, c, r), rel=1e-12)
        by_chosen = numerical_gradient(lambda x, i=i, r=r: by_hand(kind, i, x, r), c)
        by_rejected = numerical_gradient(lambda x, i=i, c=c: by_hand(kind, i, c, x), r)
        assert chosen.grad[i].item() == pytest.approx(by_chosen, rel=1e-6, abs=1e-8)
        assert rejected.grad[i].item() == pytest.approx(by_rejected, rel=1e-6, abs=1e-8)


def test_rewards_are_scaled_log_ratios() -> None:
    tensors = [
        torch.tensor(values, dtype=torch.float64)
        for values in (
            *(CHOSEN, REJECTED, CHOSEN_TOKENS, REJECTED_TOKENS),
            *(CHOSEN_REFERENCE, REJECTED_REFERENCE),
        )
    ]
    losses = pair_losses(PairLogprobs(*tensors), settings("sigmoid"))
    expected = BETA * (np.array(CHOSEN) - np.array(CHOSEN_REFERENCE))
    np.testing.assert_allclose(losses.chosen_reward.numpy(), expected)
    without_reference = pair_losses(PairLogprobs(*tensors[:4]), settings("simpo"))
    expected = BETA * np.array(REJECTED) / np.array(REJECTED_TOKENS)
    np.testing.assert_allclose(without_reference.rejected_reward.numpy(), expected)


def test_orpo_is_finite_for_a_reply_that_is_certain() -> None:
    certain = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    other = torch.tensor([-3.0], dtype=torch.float64)
    ones = torch.ones(1, dtype=torch.float64)
    loss = pair_losses(PairLogprobs(certain, other, ones, ones), settings("orpo")).loss
    loss.sum().backward()
    assert loss.isfinite().all() and certain.grad is not None and certain.grad.isfinite().all()


def test_compute_dpo_loss_is_the_mean_of_the_sigmoid_loss() -> None:
    lists = [
        [torch.tensor(value, dtype=torch.float64) for value in values]
        for values in (CHOSEN, REJECTED, CHOSEN_REFERENCE, REJECTED_REFERENCE)
    ]
    loss, metrics = compute_dpo_loss(*lists, BETA)
    expected = np.mean(
        [by_hand("sigmoid", i, c, r) for i, (c, r) in enumerate(zip(CHOSEN, REJECTED))]
    )
    assert loss.item() == pytest.approx(expected) == pytest.approx(metrics["dpo_loss"])
    h = BETA * (np.array(CHOSEN) - CHOSEN_REFERENCE - (np.array(REJECTED) - REJECTED_REFERENCE))
    assert metrics["margin"] == pytest.approx(h.mean())
    assert metrics["accuracy"] == (h > 0).mean() == 0.6


def test_kto_by_hand() -> None:
    logprobs = torch.tensor([-3.0, -8.0, -2.0], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([-4.0, -6.0, -5.0], dtype=torch.float64)
    good = torch.tensor([True, False, False])
    constants = KTOSettings(BETA, desirable_weight=1.0, undesirable_weight=1.5)
    losses, rewards = kto_losses(logprobs, reference, good, 0.25, constants)
    losses.sum().backward()
    centred = [BETA * (1.0 - 0.25), BETA * (-2.0 - 0.25), BETA * (3.0 - 0.25)]
    expected = [
        1 - sigmoid(centred[0]),
        1.5 * (1 - sigmoid(-centred[1])),
        1.5 * (1 - sigmoid(-centred[2])),
    ]
    np.testing.assert_allclose(losses.detach().numpy(), expected)
    np.testing.assert_allclose(rewards.detach().numpy(), [BETA, -2 * BETA, 3 * BETA])
    slopes = [sigmoid(x) * (1 - sigmoid(x)) * BETA for x in centred]
    assert logprobs.grad is not None
    np.testing.assert_allclose(
        logprobs.grad.numpy(), [-slopes[0], 1.5 * slopes[1], 1.5 * slopes[2]]
    )
    assert kto_kl(logprobs.detach(), reference) == pytest.approx(2 / 3)
    assert kto_kl(reference, logprobs.detach()) == 0.0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "dpo"}, "loss=dpo: expected sigmoid, ipo"),
        ({"beta": 0.0}, "dpo_beta=0.0: expected above 0"),
        ({"kind": "cdpo"}, "label_smoothing=0.0: loss=cdpo needs"),
        ({"kind": "robust", "label_smoothing": 0.5}, "label_smoothing=0.5: loss=robust needs"),
    ],
)
def test_refuses(values: dict[str, float | str], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        PairLossSettings(**values)  # type: ignore[arg-type]
