"""Diagnose a loss or gradient that is not finite: which datum and which input caused it.

Runs only after the fact, so training pays nothing for it.
"""

from __future__ import annotations

import torch

from tinker_cookbook.engine.losses import SEQUENCE_INDEX, Inputs, Loss
from tinker_cookbook.exceptions import DataValidationError, TinkerCookbookError, TrainingError

# Difference of model and sampling logprobs that counts as the cause, in nats: exp(89) overflows
# fp32, and importance ratios are exponentials of it.
MAX_LOGPROB_DIFF = 80.0


def not_finite_error(loss: Loss, logprobs: torch.Tensor, inputs: Inputs) -> TinkerCookbookError:
    """Return the error for a request whose loss or gradient at these tokens is NaN or infinite.

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
    # A custom loss takes all sequences at once and cannot be evaluated for each of them.
    if not loss.inputs:
        return DataValidationError(
            f"the derivative of the {loss.name} loss with respect to the logprobs is not finite"
        )
    for sequence in inputs[SEQUENCE_INDEX].unique().tolist():
        member = inputs[SEQUENCE_INDEX] == sequence
        values = {key: array[member] for key, array in inputs.items()}
        value, grad = loss.value_and_grad(logprobs[member], values)
        if not (value.isfinite() and grad.isfinite().all()):
            problem = f"loss is {value.item():g}" if not value.isfinite() else "gradient overflows"
            return DataValidationError(
                f"{loss.name}: datum {sequence}'s {problem}:"
                f" {_describe_cause(loss, logprobs[member], values)}"
            )
    return DataValidationError(
        f"{loss.name}: the sum over the datums overflows: {_describe_cause(loss, logprobs, inputs)}"
    )


def _describe_cause(loss: Loss, logprobs: torch.Tensor, inputs: Inputs) -> str:
    """Name the input that is most likely at fault, with its value and a fix."""
    if "logprobs" in loss.inputs:
        diff = (logprobs - inputs["logprobs"]).abs()
        worst = int(diff.argmax())
        if not diff[worst] <= MAX_LOGPROB_DIFF:  # `not <=` includes NaN
            return (
                f"its input logprobs is {inputs['logprobs'][worst].item():g} at position {worst},"
                f" the model's is {logprobs[worst].item():g}; pass the logprobs that the sampler"
                " returned"
            )
    sizes = {key: inputs[key].abs().max().item() for key in loss.inputs if key != "logprobs"}
    key = max(sizes, key=lambda key: sizes[key])
    return f"its input {key} goes up to {sizes[key]:g}; scale it down"
