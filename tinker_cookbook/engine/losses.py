"""Losses: pure functions of per-token logprobs, summed over tokens.

    lp   training logprobs: log p(target) under the current weights, [T] (cross_entropy also
         [T, K]), where p = softmax(logits / temperature) and the configuration gives the
         temperature (default 1)
    q    `logprobs`, sampling logprobs: log p(target) as the sampler returned it. The sampling
         temperature must equal the temperature of lp
    A    `advantages`
    r    the importance ratio exp(lp - q)
    sg   stop gradient

Losses are sums because gradients accumulate over forward_backward calls until optim_step: only the
caller knows the number of tokens to divide by, and scales weights or advantages. A token with an
advantage of 0 is masked, except in `dro`, which takes a separate `mask`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from tinker_cookbook.engine.requests import MIN_TEMPERATURE, TrainSequence
from tinker_cookbook.exceptions import ConfigurationError, DataValidationError

Inputs = Mapping[str, torch.Tensor]
Config = Mapping[str, float]
TEMPERATURE = "temperature"  # a key of every loss's configuration
# A key of Inputs: the index within the request of the sequence that a token belongs to, int64 [T]
SEQUENCE_INDEX = "sequence_index"


def cross_entropy(logprobs: torch.Tensor, inputs: Inputs, config: Config) -> torch.Tensor:
    """Weighted negative log-likelihood, -sum(w * lp); weights may be any real number."""
    return -(inputs["weights"] * logprobs).sum()


def importance_sampling(logprobs: torch.Tensor, inputs: Inputs, config: Config) -> torch.Tensor:
    """-sum(r * A): the off-policy policy gradient; each ratio corrects for its own token only."""
    ratio = torch.exp(logprobs - inputs["logprobs"])
    return -(ratio * inputs["advantages"]).sum()


def ppo(logprobs: torch.Tensor, inputs: Inputs, config: Config) -> torch.Tensor:
    """-sum(min(r * A, clamp(r, low, high) * A)) (Schulman et al. 2017, arXiv 1707.06347).

    The thresholds are bounds of r itself, not distances from 1.
    """
    return _clipped(torch.exp(logprobs - inputs["logprobs"]), inputs, config)


def cispo(logprobs: torch.Tensor, inputs: Inputs, config: Config) -> torch.Tensor:
    """-sum(sg(clamp(r, low, high)) * lp * A) (MiniMax-M1 2025, arXiv 2506.13585).

    REINFORCE with a clipped importance weight: unlike in PPO, clipped tokens keep a gradient.
    """
    low, high = _thresholds(inputs, config)
    weight = torch.exp(logprobs - inputs["logprobs"]).detach().clamp(low, high)
    return -(weight * logprobs * inputs["advantages"]).sum()


def dro(logprobs: torch.Tensor, inputs: Inputs, config: Config) -> torch.Tensor:
    """-sum(lp * A - beta / 2 * (lp - q)^2) (Richemond et al. 2024, arXiv 2405.19107).

    The second term is a quadratic penalty on drift from the sampling weights. It applies to tokens
    whose `mask` is not 0, or to all tokens without a mask. Prompt tokens must be masked: they were
    not sampled, so their q is a placeholder that they would be pulled towards.
    """
    drift = logprobs - inputs["logprobs"]
    if "mask" in inputs:
        drift = drift * (inputs["mask"] != 0)
    return -(logprobs * inputs["advantages"] - 0.5 * config["beta"] * drift**2).sum()


def gspo(logprobs: torch.Tensor, inputs: Inputs, config: Config) -> torch.Tensor:
    """PPO with one ratio per sequence (Zheng et al. 2025, arXiv 2507.18071, GSPO-token).

    s = exp(mean of sg(lp) - q over the tokens whose `sequence_ratio_mask` is not 0); a token's
    ratio is r = s * exp(lp - sg(lp)), whose value is s and whose gradient flows through lp.
    """
    sequence = inputs[SEQUENCE_INDEX]
    mask = (inputs["sequence_ratio_mask"] != 0).to(logprobs.dtype)
    drift = (logprobs.detach() - inputs["logprobs"]) * mask
    sums = torch.zeros(int(sequence.max()) + 1, 2, dtype=logprobs.dtype, device=logprobs.device)
    sums.index_add_(0, sequence, torch.stack([drift, mask], dim=1))
    log_ratio = sums[:, 0] / sums[:, 1].clamp(min=1)  # ratio 1 if the mask is all 0
    ratio = log_ratio.exp()[sequence] * torch.exp(logprobs - logprobs.detach())
    return _clipped(ratio, inputs, config)


def _clipped(ratio: torch.Tensor, inputs: Inputs, config: Config) -> torch.Tensor:
    low, high = _thresholds(inputs, config)
    advantages = inputs["advantages"]
    return -torch.minimum(ratio * advantages, ratio.clamp(low, high) * advantages).sum()


def _thresholds(inputs: Inputs, config: Config) -> tuple[torch.Tensor, torch.Tensor]:
    """Bounds of the ratio: per token if the datum has them, else from the configuration."""
    like = inputs["advantages"]
    low, high = (
        inputs.get(key, like.new_tensor(config[key]))
        for key in ("clip_low_threshold", "clip_high_threshold")
    )
    return low, high


@dataclass(frozen=True)
class Loss:
    """A loss function, its inputs and configuration, and the structure that the engine exploits.

    elementwise: a token's gradient depends on that token alone, so the head can be differentiated
    chunk by chunk while the logits exist (`head.py`). temperature: that of the training logprobs.
    """

    name: str
    function: Callable[[torch.Tensor, Inputs, Config], torch.Tensor]
    inputs: tuple[str, ...]
    optional: tuple[str, ...] = ()
    config: Config = field(default_factory=dict)  # its keys and their defaults
    elementwise: bool = True
    several_targets: bool = False  # whether it also takes targets of shape [N, K]
    temperature: float = 1.0

    def value(self, logprobs: torch.Tensor, inputs: Inputs) -> torch.Tensor:
        return self.function(logprobs, inputs, self.config)

    def value_and_grad(
        self, logprobs: torch.Tensor, inputs: Inputs
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss of these tokens and its derivative with respect to their logprobs, detached."""
        with torch.enable_grad():
            leaf = logprobs.detach().requires_grad_()
            value = self.value(leaf, inputs)
            (grad,) = torch.autograd.grad(value, leaf)
        return value.detach(), grad


_POLICY_INPUTS = ("logprobs", "advantages")
_CLIP_KEYS = ("clip_low_threshold", "clip_high_threshold")


def _clip_config(low: float, high: float) -> Config:
    return dict(zip(_CLIP_KEYS, (low, high)))


LOSSES = {
    loss.name: loss
    for loss in (
        Loss("cross_entropy", cross_entropy, ("weights",), several_targets=True),
        Loss("importance_sampling", importance_sampling, _POLICY_INPUTS),
        Loss("ppo", ppo, _POLICY_INPUTS, _CLIP_KEYS, _clip_config(0.8, 1.2)),
        Loss("cispo", cispo, _POLICY_INPUTS, _CLIP_KEYS, _clip_config(0.0, 4.0)),
        Loss("dro", dro, _POLICY_INPUTS, ("mask",), config={"beta": 0.05}),
        Loss(
            "gspo",
            gspo,
            (*_POLICY_INPUTS, "sequence_ratio_mask"),
            _CLIP_KEYS,
            _clip_config(0.9997, 1.0004),  # 1 - 3e-4 and 1 + 4e-4, as in the paper
            elementwise=False,
        ),
    )
}


def get_loss(name: str, config: Mapping[str, float | str] | None) -> Loss:
    """Look up a loss and apply a configuration. Raises ConfigurationError for unknown keys."""
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
    if temperature < MIN_TEMPERATURE:
        raise ConfigurationError(
            f"loss_fn_config {TEMPERATURE}={temperature:g}: expected at least"
            f" {MIN_TEMPERATURE:g}; set it to the temperature that the tokens were sampled at"
        )
    low, high = (values.get(key) for key in _CLIP_KEYS)
    if low is not None and high is not None and not 0 <= low <= high:
        raise ConfigurationError(
            f"loss_fn_config {_CLIP_KEYS[0]}={low:g} and {_CLIP_KEYS[1]}={high:g}:"
            " they bound the ratio; set 0 <= low <= high"
        )
    return replace(loss, config=values, temperature=temperature)


def check_sequences(sequences: Sequence[TrainSequence], loss: Loss) -> None:
    """Check that every sequence has exactly the loss's inputs, of the right shape and finite.

    Raises DataValidationError that names the datum.
    """
    if not sequences:
        raise DataValidationError("the batch holds no datum: give at least one")
    for index, sequence in enumerate(sequences):
        where = f"datum {index}"
        _check_targets(sequence, sequences[0], loss, where)
        unknown = sorted(set(sequence.inputs) - {*loss.inputs, *loss.optional})
        missing = sorted(set(loss.inputs) - set(sequence.inputs))
        if unknown or missing:
            what = f"unknown input {unknown[0]!r}" if unknown else f"no input {missing[0]!r}"
            raise DataValidationError(
                f"{where}: {what}; {loss.name} takes target_tokens,"
                f" {', '.join((*loss.inputs, *loss.optional))}"
            )
        if sequence.inputs.keys() != sequences[0].inputs.keys():
            raise DataValidationError(
                f"{where} has inputs {sorted(sequence.inputs)}, datum 0"
                f" {sorted(sequences[0].inputs)}: they must be the same in a batch"
            )
        for key, array in sequence.inputs.items():
            if array.shape != sequence.targets.shape:
                raise DataValidationError(
                    f"{where}: {key} has shape {list(array.shape)},"
                    f" target_tokens {list(sequence.targets.shape)}"
                )
            if not np.isfinite(array).all():
                raise DataValidationError(f"{where}: {key} holds NaN or infinite values")


def _check_targets(sequence: TrainSequence, first: TrainSequence, loss: Loss, where: str) -> None:
    shape = list(sequence.targets.shape)
    if not shape or shape[0] != sequence.length:
        raise DataValidationError(
            f"{where}: target_tokens has shape {shape}, model_input has {sequence.length} tokens"
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
