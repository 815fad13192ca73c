"""Why a loss is not finite: the datum and the input to look at. Only asked once it is not."""

from __future__ import annotations

import torch

from tinker_cookbook.engine.losses import SEQUENCE_INDEX, Inputs, Loss
from tinker_cookbook.exceptions import DataValidationError, TinkerCookbookError, TrainingError

LARGEST_DRIFT = 80.0  # nats; exp(89) is beyond fp32


def refusal(loss: Loss, logprobs: torch.Tensor, inputs: Inputs) -> TinkerCookbookError:
    """The error of a request whose loss of these tokens, or its slope, is NaN or infinite.

    `logprobs` [N] or [N, K] are the model's; `inputs` are those of the loss, including
    `losses.SEQUENCE_INDEX`.
    """
    finite = logprobs.isfinite().reshape(len(logprobs), -1).all(dim=1)
    if not finite.all():
        sequence = int(inputs[SEQUENCE_INDEX][~finite][0])
        return TrainingError(
            f"{loss.name}: the model's logprobs of datum {sequence} are not finite, so its weights"
            " have overflowed: load an earlier checkpoint and lower learning_rate"
        )
    if not loss.inputs:  # a function of the user's, which must not be called with less
        return DataValidationError(
            f"the derivative of the {loss.name} loss with respect to the logprobs is not finite"
        )
    for sequence in inputs[SEQUENCE_INDEX].unique().tolist():
        own = inputs[SEQUENCE_INDEX] == sequence
        values = {key: array[own] for key, array in inputs.items()}
        value, slope = loss.value_and_grad(logprobs[own], values)
        if not (value.isfinite() and slope.isfinite().all()):
            what = f"loss is {value.item():g}" if not value.isfinite() else "gradient overflows"
            return DataValidationError(
                f"{loss.name}: datum {sequence}'s {what}: {_cause(loss, logprobs[own], values)}"
            )
    return DataValidationError(
        f"{loss.name}: the sum over the datums overflows: {_cause(loss, logprobs, inputs)}"
    )


def _cause(loss: Loss, logprobs: torch.Tensor, inputs: Inputs) -> str:
    """The input that most likely is at fault, with its value."""
    if "logprobs" in loss.inputs:
        drift = (logprobs - inputs["logprobs"]).abs()
        at = int(drift.argmax())
        if not drift[at] <= LARGEST_DRIFT:
            return (
                f"its input logprobs is {inputs['logprobs'][at].item():g} at position {at}, the"
                f" model's is {logprobs[at].item():g}; give those that the sampler returned"
            )
    sizes = {key: inputs[key].abs().max().item() for key in loss.inputs if key != "logprobs"}
    key = max(sizes, key=lambda key: sizes[key])
    return f"its input {key} goes up to {sizes[key]:g}; scale it down"
