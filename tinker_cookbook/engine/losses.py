"""Losses: pure functions of per-token logprobs. They are sums, never means.

    lp   log p(target) under the weights being trained, [T] (cross_entropy also [T, K]), at the
         temperature that the configuration gives (1): p = softmax(logits / temperature)
    q    `logprobs`: log p(target) under the weights that sampled it, as the sampler returned it:
         at the temperature of sampling, which must be the one of lp
    A    `advantages`
    r    the ratio exp(lp - q)

Gradients accumulate over forward_backward calls until optim_step, so a mean is written into weights
or advantages by the caller. A token whose advantage is 0 is masked, in every loss but `dro`, which
has a `mask` for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from tinker_cookbook.engine.requests import LOWEST_TEMPERATURE, TrainSequence
from tinker_cookbook.exceptions import ConfigurationError, DataValidationError

Inputs = Mapping[str, torch.Tensor]
Config = Mapping[str, float]
TEMPERATURE = "temperature"  # key of every loss's configuration
ROW = "row"  # in Inputs: which row of the request a token belongs to, int64 [T]


def cross_entropy(logprobs: torch.Tensor, inputs: Inputs, config: Config) -> torch.Tensor:
    """Weighted negative log-likelihood, -sum(w * lp); weights may be any real number."""
    return -(inputs["weights"] * logprobs).sum()


def importance_sampling(logprobs: torch.Tensor, inputs: Inputs, config: Config) -> torch.Tensor:
    """-sum(r * A): the policy gradient, unbiased for samples of other weights."""
    ratio = torch.exp(logprobs - inputs["logprobs"])
    return -(ratio * inputs["advantages"]).sum()


def ppo(logprobs: torch.Tensor, inputs: Inputs, config: Config) -> torch.Tensor:
    """-sum(min(r * A, clamp(r, low, high) * A)) (Schulman et al. 2017, arXiv 1707.06347).

    The thresholds bound the ratio itself.
    """
    return _clipped(torch.exp(logprobs - inputs["logprobs"]), inputs, config)


def cispo(logprobs: torch.Tensor, inputs: Inputs, config: Config) -> torch.Tensor:
    """-sum(sg(clamp(r, low, high)) * lp * A): REINFORCE with a clipped importance weight, which
    keeps every token's gradient (MiniMax-M1 2025, arXiv 2506.13585)."""
    low, high = _thresholds(inputs, config)
    weight = torch.exp(logprobs - inputs["logprobs"]).detach().clamp(low, high)
    return -(weight * logprobs * inputs["advantages"]).sum()


def dro(logprobs: torch.Tensor, inputs: Inputs, config: Config) -> torch.Tensor:
    """-sum(lp * A - beta / 2 * (lp - q)^2): a quadratic pull towards the sampling weights
    (Richemond et al. 2024, arXiv 2405.19107).

    The drift lp - q counts where `mask` is not 0 (without a mask: everywhere). A prompt token was
    not sampled and has no q: unmasked, it would be pulled towards whatever stands in its place.
    """
    drift = logprobs - inputs["logprobs"]
    if "mask" in inputs:
        drift = drift * (inputs["mask"] != 0)
    return -(logprobs * inputs["advantages"] - 0.5 * config["beta"] * drift**2).sum()


def gspo(logprobs: torch.Tensor, inputs: Inputs, config: Config) -> torch.Tensor:
    """PPO's form with one ratio per sequence, s = exp(mean of sg(lp) - q over the tokens whose
    `sequence_ratio_mask` is not 0); token t has r = s * exp(lp - sg(lp)) (Zheng et al. 2025, arXiv
    2507.18071, the token form)."""
    row = inputs[ROW]
    mask = (inputs["sequence_ratio_mask"] != 0).to(logprobs.dtype)
    drift = (logprobs.detach() - inputs["logprobs"]) * mask
    sums = torch.zeros(int(row.max()) + 1, 2, dtype=logprobs.dtype, device=logprobs.device)
    sums.index_add_(0, row, torch.stack([drift, mask], dim=1))
    log_ratio = sums[:, 0] / sums[:, 1].clamp(min=1)  # a row without any masked-in token: ratio 1
    ratio = log_ratio.exp()[row] * torch.exp(logprobs - logprobs.detach())
    return _clipped(ratio, inputs, config)


def _clipped(ratio: torch.Tensor, inputs: Inputs, config: Config) -> torch.Tensor:
    low, high = _thresholds(inputs, config)
    advantages = inputs["advantages"]
    return -torch.minimum(ratio * advantages, ratio.clamp(low, high) * advantages).sum()


def _thresholds(inputs: Inputs, config: Config) -> tuple[torch.Tensor, torch.Tensor]:
    """Bounds of the ratio: per token where the datum brings them, else from the configuration."""
    like = inputs["advantages"]
    low, high = (
        inputs.get(key, like.new_tensor(config[key]))
        for key in ("clip_low_threshold", "clip_high_threshold")
    )
    return low, high


@dataclass(frozen=True)
class Loss:
    """A loss, what it needs, and what the engine may use of its structure.

    elementwise: a token's gradient depends on that token alone, so the head can be differentiated
    chunk by chunk while its logits exist. temperature: of the logprobs that it is a function of.
    """

    name: str
    function: Callable[[torch.Tensor, Inputs, Config], torch.Tensor]
    inputs: tuple[str, ...]
    optional: tuple[str, ...] = ()
    config: Config = field(default_factory=dict)  # keys and defaults
    elementwise: bool = True
    several_targets: bool = False  # also targets of shape [N, K]
    temperature: float = 1.0

    def value(self, logprobs: torch.Tensor, inputs: Inputs) -> torch.Tensor:
        return self.function(logprobs, inputs, self.config)

    def value_and_grad(
        self, logprobs: torch.Tensor, inputs: Inputs
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss of these tokens and its derivative by their logprobs, both detached, fp32."""
        with torch.enable_grad():
            leaf = logprobs.detach().requires_grad_()
            value = self.value(leaf, inputs)
            (grad,) = torch.autograd.grad(value, leaf)
        return value.detach(), grad


_SAMPLED = ("logprobs", "advantages")
_CLIP = ("clip_low_threshold", "clip_high_threshold")


def _bounds(low: float, high: float) -> Config:
    return dict(zip(_CLIP, (low, high)))


LOSSES = {
    loss.name: loss
    for loss in (
        Loss("cross_entropy", cross_entropy, ("weights",), several_targets=True),
        Loss("importance_sampling", importance_sampling, _SAMPLED),
        Loss("ppo", ppo, _SAMPLED, _CLIP, _bounds(0.8, 1.2)),
        Loss("cispo", cispo, _SAMPLED, _CLIP, _bounds(0.0, 4.0)),
        Loss("dro", dro, _SAMPLED, ("mask",), config={"beta": 0.05}),
        Loss(
            "gspo",
            gspo,
            (*_SAMPLED, "sequence_ratio_mask"),
            _CLIP,
            _bounds(0.9997, 1.0004),  # the paper's 3e-4 and 4e-4
            elementwise=False,
        ),
    )
}


def get_loss(name: str, config: Mapping[str, float | str] | None) -> Loss:
    """The loss of this name with its configuration; what is unknown is refused by name."""
    if not isinstance(name, str) or name not in LOSSES:
        raise ConfigurationError(f"unknown loss_fn {name!r}; known: {', '.join(sorted(LOSSES))}")
    loss = LOSSES[name]
    values = {**loss.config, TEMPERATURE: loss.temperature}
    for key, value in (config or {}).items():
        if key not in values:
            known = ", ".join(values)
            raise ConfigurationError(f"loss_fn_config key {key!r}: {name} takes {known}")
        if not isinstance(value, (int, float)) or not math.isfinite(value):
            raise ConfigurationError(f"loss_fn_config {key}={value!r} must be a finite number")
        values[key] = float(value)
    temperature = values.pop(TEMPERATURE)
    if temperature < LOWEST_TEMPERATURE:
        raise ConfigurationError(
            f"loss_fn_config {TEMPERATURE}={temperature:g}: expected at least"
            f" {LOWEST_TEMPERATURE:g}; it is the temperature that the tokens were sampled at"
        )
    low, high = (values.get(key) for key in _CLIP)
    if low is not None and high is not None and not 0 <= low <= high:
        raise ConfigurationError(
            f"loss_fn_config {_CLIP[0]}={low:g} and {_CLIP[1]}={high:g}:"
            " they bound the ratio, 0 <= low <= high"
        )
    return replace(loss, config=values, temperature=temperature)


def check_rows(rows: Sequence[TrainSequence], loss: Loss) -> None:
    """Every row has exactly the inputs of the loss, in the right shape, finite."""
    if not rows:
        raise DataValidationError("the batch holds no datum")
    for index, row in enumerate(rows):
        where = f"datum {index}"
        _check_targets(row, rows[0], loss, where)
        unknown = sorted(set(row.inputs) - {*loss.inputs, *loss.optional})
        missing = sorted(set(loss.inputs) - set(row.inputs))
        if unknown or missing:
            what = f"unknown input {unknown[0]!r}" if unknown else f"no input {missing[0]!r}"
            raise DataValidationError(
                f"{where}: {what}; {loss.name} takes target_tokens,"
                f" {', '.join((*loss.inputs, *loss.optional))}"
            )
        if row.inputs.keys() != rows[0].inputs.keys():
            raise DataValidationError(
                f"{where} has inputs {sorted(row.inputs)}, datum 0 {sorted(rows[0].inputs)}:"
                " they must be the same in a batch"
            )
        for key, array in row.inputs.items():
            if array.shape != row.targets.shape:
                raise DataValidationError(
                    f"{where}: {key} has shape {list(array.shape)},"
                    f" target_tokens {list(row.targets.shape)}"
                )
            if not np.isfinite(array).all():
                raise DataValidationError(f"{where}: {key} holds NaN or infinite values")


def _check_targets(row: TrainSequence, first: TrainSequence, loss: Loss, where: str) -> None:
    shape = list(row.targets.shape)
    if not shape or shape[0] != row.length:
        raise DataValidationError(
            f"{where}: target_tokens has shape {shape}, model_input has {row.length} tokens"
        )
    if len(shape) > (2 if loss.several_targets else 1) or 0 in shape[1:]:
        allowed = "[N] or [N, K]" if loss.several_targets else "[N]"
        raise DataValidationError(
            f"{where}: target_tokens has shape {shape}; {loss.name} takes {allowed}"
        )
    if shape[1:] != list(first.targets.shape[1:]):
        raise DataValidationError(
            f"{where}: target_tokens has shape {shape}, datum 0 {list(first.targets.shape)}:"
            " the number of targets per token must be the same in a batch"
        )
