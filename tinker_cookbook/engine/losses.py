"""Losses: pure functions of per-token logprobs. They are sums, never means.

Symbols: lp = log p(target) under the weights being trained, shape [T]. Gradients accumulate over
forward_backward calls until optim_step, so a mean is written into the weights by the caller.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from tinker_cookbook.engine.rows import TrainRow
from tinker_cookbook.exceptions import ConfigurationError, DataValidationError

Inputs = Mapping[str, torch.Tensor]


def cross_entropy(logprobs: torch.Tensor, inputs: Inputs) -> torch.Tensor:
    """Weighted negative log-likelihood, -sum(w * lp); weights may be any real number."""
    return -(inputs["weights"] * logprobs).sum()


@dataclass(frozen=True)
class Loss:
    """A loss and what it needs. Elementwise: token t's gradient depends on token t alone, so the
    head can be differentiated chunk by chunk while its logits exist."""

    function: Callable[[torch.Tensor, Inputs], torch.Tensor]
    inputs: tuple[str, ...]

    def value_and_grad(
        self, logprobs: torch.Tensor, inputs: Inputs
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss of these tokens and its derivative by their logprobs, both detached, fp32."""
        with torch.enable_grad():
            leaf = logprobs.detach().requires_grad_()
            value = self.function(leaf, inputs)
            (grad,) = torch.autograd.grad(value, leaf)
        return value.detach(), grad


LOSSES = {"cross_entropy": Loss(cross_entropy, ("weights",))}


def get_loss(name: str, config: Mapping[str, float | str] | None) -> Loss:
    """The loss of this name; unknown names and configuration keys are refused."""
    if name not in LOSSES:
        raise ConfigurationError(f"unknown loss_fn {name!r}; known: {', '.join(sorted(LOSSES))}")
    if config:
        raise ConfigurationError(
            f"loss_fn_config key {next(iter(config))!r} is unknown: {name} takes no configuration"
        )
    return LOSSES[name]


def check_rows(rows: Sequence[TrainRow], name: str, loss: Loss) -> None:
    """Every row has exactly the inputs of the loss, in the right length, finite."""
    if not rows:
        raise DataValidationError("the batch holds no datum")
    for index, row in enumerate(rows):
        where = f"datum {index}"
        if row.targets.shape != row.tokens.shape:
            raise DataValidationError(
                f"{where}: target_tokens has shape {list(row.targets.shape)},"
                f" model_input has {row.length} tokens"
            )
        unknown = sorted(set(row.inputs) - set(loss.inputs))
        missing = sorted(set(loss.inputs) - set(row.inputs))
        if unknown or missing:
            what = f"unknown input {unknown[0]!r}" if unknown else f"no input {missing[0]!r}"
            raise DataValidationError(
                f"{where}: {what}; {name} takes target_tokens, {', '.join(loss.inputs)}"
            )
        for key, array in row.inputs.items():
            if array.shape != row.tokens.shape:
                raise DataValidationError(
                    f"{where}: {key} has shape {list(array.shape)},"
                    f" model_input has {row.length} tokens"
                )
            if not np.isfinite(array).all():
                raise DataValidationError(f"{where}: {key} holds NaN or infinite values")
