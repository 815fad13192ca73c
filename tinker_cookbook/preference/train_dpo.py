"""Preference optimization on pairs of replies: DPO and the losses of `losses.py`.

The supervised loop with another objective. Data: `DPODatasetBuilderFromComparisons`, batches of
[chosen, rejected, chosen, rejected, ...]. The reference model is the weights at step 0, from
`load_checkpoint_path` or the base model, in a resumed run as well.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import chz
import torch

from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.preference.defaults import DPO_DEFAULTS
from tinker_cookbook.preference.losses import (
    WITH_SMOOTHING,
    PairLogprobs,
    PairLoss,
    PairLossSettings,
    pair_losses,
)
from tinker_cookbook.preference.objective import PairObjective
from tinker_cookbook.preference.reference import ReferenceLogprobs
from tinker_cookbook.supervised import train
from tinker_cookbook.supervised.chat_config import ChatConfig, resolve_chat_config
from tinker_cookbook.supervised.defaults import Batches
from tinker_cookbook.training.fields import COUNT, FRACTION, NON_NEGATIVE, POSITIVE
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

    loss: PairLoss = chz.field(
        default="sigmoid",
        doc="loss on pairs: sigmoid (DPO), ipo, hinge, robust, cdpo, simpo or orpo, see"
        " preference/losses.py",
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
        metadata=FRACTION,
    )
    simpo_gamma: float | None = chz.field(
        default=None,
        doc=f"target margin of the rewards, for loss=simpo only (None: {SIMPO_GAMMA:g})",
        metadata=NON_NEGATIVE,
    )
    batch_size: int | None = chz.field(
        default=None, doc="pairs per step (None: the default for the model)", metadata=COUNT
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
        self.loss_settings()

    def loss_settings(self) -> PairLossSettings:
        """The loss with its constants; raises ConfigurationError for invalid ones."""
        simpo = self.loss == "simpo"
        default_beta = SIMPO_BETA if simpo else DEFAULT_BETA
        default_gamma = SIMPO_GAMMA if simpo else 0.0
        return PairLossSettings(
            self.loss,
            default_beta if self.dpo_beta is None else self.dpo_beta,
            self.label_smoothing,
            default_gamma if self.simpo_gamma is None else self.simpo_gamma,
        )


def main(config: Config) -> None:
    """Train; for programs that are not asynchronous. Raises ConfigurationError without data."""
    if config.dataset_builder is None:
        raise ConfigurationError("train_dpo.main needs dataset_builder, found None")
    resolved = resolve_chat_config(config, DPO_DEFAULTS, config.dataset_builder)
    asyncio.run(run(resolved, recipe="dpo"))


async def run(resolved: Resolved[Config, Batches], recipe: str) -> None:
    """Train with a config that is already resolved, e.g. by `chat_config.resolve_chat_config`."""
    config = resolved.config
    settings = config.loss_settings()

    def make_objective(service: ServiceClient, journal: Journal) -> Objective:
        reference = None
        if settings.needs_reference:
            reference = ReferenceLogprobs(service, config, journal.log_path)
        capabilities = service.get_server_capabilities()
        return PairObjective(settings, reference, getattr(capabilities, "tokens_per_pass", None))

    await train.run(resolved, recipe, make_objective)


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
