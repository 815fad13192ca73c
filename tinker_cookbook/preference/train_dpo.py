"""Preference optimization: DPO and the other losses of `losses.py`.

The supervised loop with another objective. Data: `DPODatasetBuilderFromComparisons`, batches of
[chosen, rejected, chosen, rejected, ...]; for loss=kto, the data sets of `unpaired_datasets`. The
reference model is the weights at step 0, from `load_checkpoint_path` or the base model, in a
resumed run as well.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING

import chz
import torch

from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.preference.defaults import DPO_DEFAULTS
from tinker_cookbook.preference.losses import (
    WITH_SMOOTHING,
    KTOSettings,
    PairLogprobs,
    PairLoss,
    PairLossSettings,
    PreferenceLoss,
    pair_losses,
)
from tinker_cookbook.preference.objective import (
    KTOObjective,
    PairObjective,
)
from tinker_cookbook.preference.reference import ReferenceLogprobs
from tinker_cookbook.supervised import train
from tinker_cookbook.supervised.chat_config import ChatConfig, resolve_chat_config
from tinker_cookbook.supervised.defaults import Batches
from tinker_cookbook.supervised.passes import tokens_per_pass_of
from tinker_cookbook.training.fields import COUNT, NON_NEGATIVE, POSITIVE, in_range
from tinker_cookbook.training.resolve import Resolved

if TYPE_CHECKING:
    from tinker_cookbook.service.api import ServiceClient
    from tinker_cookbook.supervised.objective import Objective
    from tinker_cookbook.training.journal import Journal

DEFAULT_BETA = 0.1
SIMPO_BETA = 2.0
SIMPO_GAMMA = 1.0


@chz.chz
class Config(ChatConfig):
    """`ChatConfig` plus the keys of the loss. Batch sizes count pairs."""

    loss: PreferenceLoss = chz.field(
        default="sigmoid",
        doc="loss: sigmoid (DPO), ipo, hinge, robust, cdpo, simpo or orpo on pairs, kto on single"
        " replies labelled good or bad",
    )
    dpo_beta: float | None = chz.field(
        default=None,
        doc="scale of the implicit rewards: the larger, the closer the policy stays to the"
        f" reference (None: {SIMPO_BETA:g} for simpo, else {DEFAULT_BETA})",
        metadata=POSITIVE,
    )
    label_smoothing: float = chz.field(
        default=0.0,
        doc="assumed rate of flipped preferences, for loss=robust and loss=cdpo only",
        metadata=in_range(lambda value: 0 <= value < 0.5, "0 or more and below 0.5"),
    )
    simpo_gamma: float | None = chz.field(
        default=None,
        doc=f"target margin of the rewards, for loss=simpo only (None: {SIMPO_GAMMA:g})",
        metadata=NON_NEGATIVE,
    )
    desirable_weight: float = chz.field(
        default=1.0, doc="weight of good replies, for loss=kto only", metadata=POSITIVE
    )
    undesirable_weight: float = chz.field(
        default=1.0, doc="weight of bad replies, for loss=kto only", metadata=POSITIVE
    )
    batch_size: int | None = chz.field(
        default=None,
        doc="pairs per step, replies for loss=kto (None: the default for the model)",
        metadata=COUNT,
    )

    @chz.validate
    def _check_loss_keys(self) -> None:
        if self.label_smoothing and self.loss not in WITH_SMOOTHING:
            raise ConfigurationError(
                f"label_smoothing={self.label_smoothing} has no effect with loss={self.loss}:"
                " set loss=cdpo or loss=robust, or drop label_smoothing"
            )
        if self.simpo_gamma is not None and self.loss != "simpo":
            raise ConfigurationError(
                f"simpo_gamma={self.simpo_gamma} has no effect with loss={self.loss}: drop it"
            )
        for key in ("desirable_weight", "undesirable_weight"):
            if getattr(self, key) != 1 and self.loss != "kto":
                raise ConfigurationError(
                    f"{key}={getattr(self, key)} has no effect with loss={self.loss}: drop it"
                )
        if self.loss != "kto":
            self.pair_loss_settings(self.loss)
        elif self.batch_size == 1:
            raise ConfigurationError(
                "batch_size=1: loss=kto compares a batch's prompts with one another's replies: set"
                " it to 2 or more"
            )

    def pair_loss_settings(self, loss: PairLoss) -> PairLossSettings:
        """The loss on pairs with its constants; raises ConfigurationError for invalid ones."""
        simpo = loss == "simpo"
        default_beta = SIMPO_BETA if simpo else DEFAULT_BETA
        default_gamma = SIMPO_GAMMA if simpo else 0.0
        return PairLossSettings(
            loss,
            default_beta if self.dpo_beta is None else self.dpo_beta,
            self.label_smoothing,
            default_gamma if self.simpo_gamma is None else self.simpo_gamma,
        )


def main(config: Config) -> None:
    """Train; for programs that are not asynchronous. Raises ConfigurationError without data."""
    if config.dataset_builder is None:
        raise ConfigurationError(
            "train_dpo.main needs dataset_builder, found None (dataset_path is a key of"
            " recipes.preference.dpo.train)"
        )
    resolved = resolve_chat_config(config, DPO_DEFAULTS, config.dataset_builder)
    asyncio.run(run(resolved, recipe="dpo"))


async def run(resolved: Resolved[Config, Batches], recipe: str) -> None:
    """Train with a config that is already resolved, e.g. by `chat_config.resolve_chat_config`."""
    await train.run(resolved, recipe, partial(make_objective, resolved.config))


def make_objective(config: Config, service: ServiceClient, journal: Journal) -> Objective:
    """The objective of a run, with a reference model if its loss needs one."""
    tokens_per_pass = tokens_per_pass_of(service)
    make_reference = partial(ReferenceLogprobs, service, config, journal.log_path)
    if config.loss == "kto":
        beta = DEFAULT_BETA if config.dpo_beta is None else config.dpo_beta
        constants = KTOSettings(beta, config.desirable_weight, config.undesirable_weight)
        return KTOObjective(constants, make_reference(), tokens_per_pass)
    settings = config.pair_loss_settings(config.loss)
    reference = make_reference() if settings.needs_reference else None
    return PairObjective(settings, reference, tokens_per_pass)


def compute_dpo_loss(
    chosen_logprobs: list[torch.Tensor],
    rejected_logprobs: list[torch.Tensor],
    chosen_ref_logprobs: list[torch.Tensor],
    rejected_ref_logprobs: list[torch.Tensor],
    dpo_beta: float,
) -> tuple[torch.Tensor, dict[str, float]]:
    """Mean DPO loss of pairs and its metrics, from the log p of each reply (scalar tensors)."""
    stacked = [
        torch.stack(list(values))
        for values in (
            chosen_logprobs,
            rejected_logprobs,
            chosen_ref_logprobs,
            rejected_ref_logprobs,
        )
    ]
    chosen, rejected, chosen_reference, rejected_reference = stacked
    ones = torch.ones_like(chosen)
    pairs = PairLogprobs(chosen, rejected, ones, ones, chosen_reference, rejected_reference)
    losses = pair_losses(pairs, PairLossSettings(beta=dpo_beta))
    difference = losses.chosen_reward - losses.rejected_reward
    loss = losses.loss.mean()
    return loss, {
        "dpo_loss": loss.item(),
        "accuracy": (difference > 0).double().mean().item(),
        "margin": difference.mean().item(),
        "chosen_reward": losses.chosen_reward.mean().item(),
        "rejected_reward": losses.rejected_reward.mean().item(),
    }
