"""The losses and their gradients are those of TRL's trainers (extra `bench`), within 1e-4.

Compared: DPOTrainer's sigmoid, hinge, ipo (means over tokens there, too) and robust; CPOTrainer's
simpo; the odds ratio term of ORPOTrainer; cdpo as CPOTrainer's sigmoid with label smoothing, on
log ratios to the reference; KTOTrainer's loss "kto" with its rewards and its estimate of the KL
divergence, clamped at 0.

KTO differs outside the loss: for the KL, KTOTrainer pairs each prompt with the reply of the row
before it, even one to the same prompt, and averages the estimate over processes; ours takes the
next reply of the batch to another prompt. KTOTrainer's "apo_zero_unpaired" (no KL term) has no
counterpart here.
"""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tinker_cookbook.preference.losses import (
    KTOSettings,
    PairLogprobs,
    PairLoss,
    PairLossSettings,
    kto_kl,
    kto_losses,
    pair_losses,
)

pytest.importorskip("trl", reason="TRL is not installed (extra bench)")

BETA, SMOOTHING, GAMMA, PAIRS, TOKENS = 0.4, 0.15, 0.8, 5, 7
ACCELERATOR = SimpleNamespace(
    device="cpu", gather=lambda values: values, gather_for_metrics=lambda values: values
)


class Batch:
    """Logprobs of the completions' tokens, [2 P, T], chosen ones first, as TRL has them."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        lengths = torch.randint(1, TOKENS + 1, (2 * PAIRS,), generator=generator)
        self.mask = torch.arange(TOKENS)[None] < lengths[:, None]
        drawn = torch.rand(2, 2 * PAIRS, TOKENS, generator=generator, dtype=torch.float64)
        self.policy, self.reference = -3 * drawn * self.mask
        self.policy.requires_grad_()

    def pairs(self) -> PairLogprobs:
        sums = [*self.policy.sum(1).chunk(2), *self.mask.sum(1).double().chunk(2)]
        return PairLogprobs(*sums, *self.reference.sum(1).chunk(2))

    def means(self) -> tuple[torch.Tensor, ...]:
        return (self.policy.sum(1) / self.mask.sum(1)).chunk(2)


def ours(kind: PairLoss) -> tuple[float, torch.Tensor]:
    batch = Batch()
    smoothing = SMOOTHING if kind in ("cdpo", "robust") else 0.0
    settings = PairLossSettings(kind, BETA, smoothing, GAMMA if kind == "simpo" else 0.0)
    return value_and_gradient(pair_losses(batch.pairs(), settings).loss.mean(), batch)


def value_and_gradient(loss: torch.Tensor, batch: Batch) -> tuple[float, torch.Tensor]:
    (gradient,) = torch.autograd.grad(loss, batch.policy)
    return loss.item(), gradient * batch.mask


def dpo_trainer(kind: str, batch: Batch) -> torch.Tensor:
    """DPOTrainer's loss: the trainer is a stand-in with what the method reads."""
    from trl import DPOTrainer

    ones = torch.ones(2 * PAIRS, 1)
    completion_mask = torch.cat([ones * 0, batch.mask], dim=1)  # behind one token of a prompt
    chosen, rejected = batch.reference.sum(1).chunk(2)
    inputs = {
        "input_ids": completion_mask.long(),
        "attention_mask": completion_mask.long(),
        "completion_mask": completion_mask,
        "ref_chosen_logps": chosen,
        "ref_rejected_logps": rejected,
    }
    zeros = torch.zeros(2 * PAIRS, TOKENS)
    outputs = SimpleNamespace(
        log_probs=batch.policy, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool()
    )
    trainer: Any = SimpleNamespace(
        model=SimpleNamespace(training=True),
        accelerator=ACCELERATOR,
        aux_loss_enabled=False,
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        loss_types=[kind],
        loss_weights=[1.0],
        beta=BETA,
        label_smoothing=SMOOTHING if kind == "robust" else 0.0,
        use_weighting=False,
        _metrics=defaultdict(lambda: defaultdict(list)),
        _total_train_tokens=0,
        _tp_size=1,
    )
    return DPOTrainer._compute_loss(trainer, lambda **_: outputs, inputs, False)


def cpo_trainer(kind: str, chosen: torch.Tensor, rejected: torch.Tensor) -> torch.Tensor:
    from trl.experimental.cpo import CPOTrainer

    trainer: Any = SimpleNamespace(
        accelerator=ACCELERATOR,
        alpha=0.0,
        beta=BETA,
        loss_type=kind,
        simpo_gamma=GAMMA,
        label_smoothing=SMOOTHING if kind == "sigmoid" else 0.0,
    )
    return CPOTrainer.cpo_loss(trainer, chosen, rejected)[0].mean()


def orpo_trainer(batch: Batch) -> torch.Tensor:
    from trl.experimental.orpo import ORPOTrainer

    trainer: Any = SimpleNamespace(accelerator=ACCELERATOR, beta=BETA)
    chosen, rejected = batch.means()
    # ORPOTrainer's NLL of the chosen replies is a mean over all tokens of the batch; ours is a mean
    # over the replies of their means, as in the paper
    return (-chosen - ORPOTrainer.odds_ratio_loss(trainer, chosen, rejected)[0]).mean()


@pytest.mark.parametrize("kind", ["sigmoid", "hinge", "ipo", "robust", "cdpo", "simpo", "orpo"])
def test_values_and_gradients_are_trls(kind: PairLoss) -> None:
    batch = Batch()
    if kind == "simpo":
        theirs = cpo_trainer("simpo", *batch.means())
    elif kind == "orpo":
        theirs = orpo_trainer(batch)
    elif kind == "cdpo":
        theirs = cpo_trainer("sigmoid", *(batch.policy - batch.reference).sum(1).chunk(2))
    else:
        theirs = dpo_trainer(kind, batch)
    value, gradient = value_and_gradient(theirs, batch)
    our_value, our_gradient = ours(kind)
    assert our_value == pytest.approx(value, abs=1e-4)
    torch.testing.assert_close(our_gradient, gradient, atol=1e-4, rtol=1e-4)
    assert our_gradient.abs().max() > 1e-3


# -- KTO: the batch's 2 P replies are single ones, labelled good or bad

GOOD = torch.tensor([True, False, True, True, False, False, True, False, True, True])
WEIGHTS = {"desirable_weight": 1.5, "undesirable_weight": 0.6}


def kto_trainer(
    batch: Batch, kl_policy: torch.Tensor, kl_reference: torch.Tensor
) -> tuple[torch.Tensor, dict[str, list[float]]]:
    """KTOTrainer's loss and metrics: the trainer is a stand-in with what the method reads.

    kl_policy, kl_reference: log p of the mismatched replies, [D].
    """
    from trl import KTOTrainer

    completion_mask = torch.cat([torch.zeros(2 * PAIRS, 1), batch.mask], dim=1)  # and a prompt
    zeros = torch.zeros(2 * PAIRS, TOKENS)
    outputs = SimpleNamespace(log_probs=batch.policy, entropy=zeros, mean_logits=zeros)
    metrics: defaultdict[str, list[float]] = defaultdict(list)
    trainer: Any = SimpleNamespace(
        model=SimpleNamespace(training=True),
        accelerator=ACCELERATOR,
        aux_loss_enabled=False,
        calculate_KL=True,
        _compute_kl_logps=lambda model, inputs: kl_policy,
        precompute_ref_logps=True,
        loss_type="kto",
        beta=BETA,
        **WEIGHTS,
        _metrics={"train": metrics},
        _total_train_tokens=0,
        _tp_size=1,
    )
    inputs = {
        "input_ids": completion_mask.long(),
        "attention_mask": completion_mask.long(),
        "completion_mask": completion_mask,
        "label": GOOD,
        "ref_logps": batch.reference.sum(1),
        "ref_KL_logps": kl_reference,
    }
    return KTOTrainer._compute_loss(trainer, lambda **_: outputs, inputs, False), metrics


@pytest.mark.parametrize("offset", [1.7, -1.7])  # of the KL estimate: kept, clamped at 0
def test_kto_is_trls(offset: float) -> None:
    batch = Batch()
    generator = torch.Generator().manual_seed(1)
    kl_reference = -5 * torch.rand(2 * PAIRS, generator=generator, dtype=torch.float64)
    noise = torch.rand(2 * PAIRS, generator=generator, dtype=torch.float64)
    kl_policy = kl_reference + noise + offset
    loss, metrics = kto_trainer(batch, kl_policy, kl_reference)
    value, gradient = value_and_gradient(loss, batch)

    kl = kto_kl(kl_policy, kl_reference)
    assert (kl > 2) if offset > 0 else (kl == 0)
    assert metrics["kl"] == [pytest.approx(kl, abs=1e-4)]
    batch = Batch()
    logprob, reference = batch.policy.sum(1), batch.reference.sum(1)
    losses, rewards = kto_losses(logprob, reference, GOOD, kl, KTOSettings(BETA, **WEIGHTS))
    our_value, our_gradient = value_and_gradient(losses.mean(), batch)
    assert our_value == pytest.approx(value, abs=1e-4)
    torch.testing.assert_close(our_gradient, gradient, atol=1e-4, rtol=1e-4)
    assert our_gradient.abs().max() > 1e-3
    for name, mask in (("chosen", GOOD), ("rejected", ~GOOD)):
        mean = rewards[mask].mean().item()
        assert metrics[f"rewards/{name}"] == [pytest.approx(mean, abs=1e-4)]
