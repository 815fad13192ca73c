"""Token sequences with per-token values, and the only place that shifts them into datums.

All code above this file uses unshifted tokens, as rendered or sampled: weight i belongs to token i.
A model predicts token i+1 at position i, so a `tinker.Datum` has the first N-1 tokens as input, and
the last N-1 tokens and their values as targets. Only `to_datum` and its inverse `from_datum` deal
with that shift.
"""

from __future__ import annotations

from collections.abc import Sequence as AbstractSequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt
import tinker

from tinker_cookbook.exceptions import DataValidationError

if TYPE_CHECKING:
    import torch

    Values = tinker.TensorData | torch.Tensor | np.ndarray | AbstractSequence[float | None]

Reduction = Literal["none", "mean"]


@dataclass(frozen=True, eq=False, init=False)
class Sequence:
    """N tokens and their per-token values, unshifted: `weights[i]` belongs to `tokens[i]`.

    Lists and tensors are accepted and stored as arrays: tokens int32 [N] (to save memory, as data
    sets are held in memory and no vocabulary comes near 2**31), all others float32 [N].

    weights: loss weights; a token is trained if its weight is not 0.
    logprobs: sampling logprobs in nats; 0 for tokens that were not sampled.
    advantages: of the tokens that a policy loss trains; 0 for all others.

    To add a per-token field, add it here with a default of None, and to the shifted fields in
    `to_datum`.
    """

    tokens: np.ndarray
    weights: np.ndarray
    logprobs: np.ndarray | None = None
    advantages: np.ndarray | None = None

    def __init__(
        self,
        tokens: npt.ArrayLike,
        weights: npt.ArrayLike,
        logprobs: npt.ArrayLike | None = None,
        advantages: npt.ArrayLike | None = None,
    ) -> None:
        tokens = np.asarray(tokens, dtype=np.int32)
        values = {"weights": weights, "logprobs": logprobs, "advantages": advantages}
        object.__setattr__(self, "tokens", tokens)
        for name, given in values.items():
            array = None if given is None else np.asarray(given, dtype=np.float32)
            if array is not None and (tokens.ndim != 1 or tokens.shape != array.shape):
                raise DataValidationError(
                    f"a sequence needs one {name.removesuffix('s')} per token: found tokens of"
                    f" shape {tokens.shape} and {name} of shape {array.shape}"
                )
            object.__setattr__(self, name, array)

    def __len__(self) -> int:
        return len(self.tokens)

    def truncate(self, max_length: int | None) -> Sequence:
        """Truncate on the right to `max_length` tokens (None: keep all)."""
        if max_length is None or len(self) <= max_length:
            return self
        fields = {name: values for name, values in vars(self).items() if values is not None}
        return Sequence(**{name: values[:max_length] for name, values in fields.items()})

    @property
    def loss_mask(self) -> np.ndarray:
        """Whether each token is trained, bool [N]. The first never is, because no position
        predicts it."""
        mask = self.weights != 0
        mask[:1] = False
        return mask

    @property
    def num_loss_tokens(self) -> int:
        """Number of trained tokens."""
        return int(np.count_nonzero(self.loss_mask))


def to_datum(
    sequence: Sequence, max_length: int | None = None, reduction: Reduction = "none"
) -> tinker.Datum:
    """Shift a sequence of N tokens into a datum of N-1 positions.

    First truncates it on the right to `max_length` tokens. `loss_fn_inputs` has `target_tokens`,
    int64 [N-1], and as float32 [N-1]:

    - without advantages, for `cross_entropy`: `weights`. reduction "none" keeps them; "mean" scales
      them to sum 1 per example, so that long and short answers count the same;
    - with advantages, for a policy loss: `logprobs`, `advantages`, and `mask`, 1 for trained
      tokens. Losses do not accept the mask: see `remove_mask`.

    Raises DataValidationError if fewer than two tokens, or no trained token, remain.
    """
    length = len(sequence)
    sequence = sequence.truncate(max_length)
    truncated = f" of {length} (max_length={max_length})" if len(sequence) < length else ""
    if len(sequence) < 2:
        raise DataValidationError(
            f"{len(sequence)} tokens{truncated} cannot be trained on: at least 2 are needed"
        )
    if sequence.num_loss_tokens == 0:
        raise DataValidationError(f"no trained token among the {len(sequence)} tokens{truncated}")

    tokens = sequence.tokens.astype(np.int64)
    shifted = {"weights": sequence.weights[1:]}
    if sequence.advantages is not None:
        shifted = _policy_inputs(sequence, sequence.advantages, reduction)
    elif reduction == "mean":
        shifted["weights"] = _normalise_weights(shifted["weights"])
    elif reduction != "none":
        raise DataValidationError(f'reduction={reduction!r}: expected "none" or "mean"')
    return tinker.Datum(
        model_input=tinker.ModelInput.from_ints(tokens[:-1].tolist()),
        loss_fn_inputs={
            # Copies: with views, a caller that edits the datum would edit the sequence.
            name: tinker.TensorData.from_numpy(values.copy())
            for name, values in {"target_tokens": tokens[1:], **shifted}.items()
        },
    )


def remove_mask(datum: tinker.Datum) -> tinker.Datum:
    """The datum without `mask`, which is for readers: no loss accepts it as an input."""
    return tinker.Datum(
        model_input=datum.model_input,
        loss_fn_inputs={k: v for k, v in datum.loss_fn_inputs.items() if k != "mask"},
    )


def from_datum(datum: tinker.Datum) -> Sequence:
    """Invert `to_datum`: N tokens from N-1 positions; `to_datum(from_datum(d))` equals d.

    A datum has no values for the first token. They become 0, as that token is never trained. The
    weights are the datum's `weights` or `mask`.
    """
    values = {name: tensor.to_numpy() for name, tensor in datum.loss_fn_inputs.items()}
    weights = "mask" if "mask" in values else "weights"
    if not {"target_tokens", weights} <= values.keys():
        raise DataValidationError(
            f"a datum needs target_tokens and weights (or mask), found {sorted(values)}"
        )
    unshifted = {
        name: np.pad(values[key], (1, 0))
        for name, key in (("weights", weights), *((k, k) for k in ("logprobs", "advantages")))
        if key in values
    }
    tokens = [*model_input_tokens(datum.model_input), values["target_tokens"][-1]]
    return Sequence(tokens, **unshifted)


def model_input_tokens(model_input: tinker.ModelInput) -> list[int]:
    """The tokens of a text prompt. Raises DataValidationError if a chunk is not text."""
    for chunk in model_input.chunks:
        if not isinstance(chunk, tinker.EncodedTextChunk):
            raise DataValidationError(
                f"only text can be trained on: found a chunk of type {type(chunk).__name__}"
            )
    return model_input.to_ints()


def as_numpy(values: Values) -> np.ndarray:
    """A float64 array from a TensorData, tensor, array or list; None becomes NaN."""
    if isinstance(values, tinker.TensorData):
        values = values.to_numpy()
    elif hasattr(values, "detach"):
        values = values.detach().cpu().numpy()  # type: ignore[union-attr] (torch)
    return np.asarray(values, dtype=np.float64)


def _policy_inputs(
    sequence: Sequence, advantages: np.ndarray, reduction: Reduction
) -> dict[str, np.ndarray]:
    """The shifted inputs of a policy loss."""
    if sequence.logprobs is None:
        raise DataValidationError("a sequence with advantages needs sampling logprobs, too")
    if reduction != "none":
        raise DataValidationError(
            f"reduction={reduction!r} scales weights, which a policy loss does not have: use"
            ' "none", and scale the advantages'
        )
    return {
        "logprobs": sequence.logprobs[1:],
        "advantages": advantages[1:],
        "mask": sequence.loss_mask[1:].astype(np.float32),
    }


def _normalise_weights(weights: np.ndarray) -> np.ndarray:
    total = weights.sum(dtype=np.float64)
    if not total > 0:
        raise DataValidationError(
            f'reduction="mean" needs weights with a positive sum, found {total:g}: '
            'use reduction="none"'
        )
    return (weights / total).astype(np.float32)
