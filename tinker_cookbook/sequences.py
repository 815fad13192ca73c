"""Token sequences with one value per token, and the one place that shifts them by a position.

Everything above this file speaks of tokens as they were rendered or sampled: token i has weight
i. A model predicts token i+1 at position i, so a `tinker.Datum` holds the first N-1 tokens as input
and everything that belongs to the last N-1 tokens as targets. `to_datum` alone knows that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import tinker

from tinker_cookbook.exceptions import DataValidationError

Reduction = Literal["none", "mean"]


@dataclass(frozen=True, eq=False, init=False)
class Sequence:
    """N tokens with their N loss weights, unshifted: `weights[i]` belongs to `tokens[i]`.

    Lists and tensors are accepted and stored as arrays: tokens int32 [N] (a vocabulary is far below
    2**31, and a data set is held in memory), weights float32 [N]. A token is trained where its
    weight is not 0.

    A further per-token field is added here with a default of None and, in `to_datum`, to the dict
    of fields that are shifted.
    """

    tokens: np.ndarray
    weights: np.ndarray

    def __init__(self, tokens: npt.ArrayLike, weights: npt.ArrayLike) -> None:
        tokens = np.asarray(tokens, dtype=np.int32)
        weights = np.asarray(weights, dtype=np.float32)
        if tokens.ndim != 1 or tokens.shape != weights.shape:
            raise DataValidationError(
                f"a sequence needs one weight per token: found tokens of shape {tokens.shape} "
                f"and weights of shape {weights.shape}"
            )
        object.__setattr__(self, "tokens", tokens)
        object.__setattr__(self, "weights", weights)

    def __len__(self) -> int:
        return len(self.tokens)

    def truncate(self, max_length: int | None) -> Sequence:
        """The first `max_length` tokens (None: all): a sequence is cut at its end."""
        if max_length is None or len(self) <= max_length:
            return self
        return Sequence(self.tokens[:max_length], self.weights[:max_length])

    @property
    def num_loss_tokens(self) -> int:
        """Tokens that are trained. The first never is: there is nothing to predict it from."""
        return int(np.count_nonzero(self.weights[1:]))


def to_datum(
    sequence: Sequence, max_length: int | None = None, reduction: Reduction = "none"
) -> tinker.Datum:
    """Shift a sequence of N tokens into a datum of N-1 positions, for `cross_entropy`.

    Cuts to `max_length` tokens from the right first. `loss_fn_inputs`: `target_tokens` int64 [N-1]
    and `weights` float32 [N-1]. reduction "none" keeps the weights, "mean" divides them so that the
    example's weights sum to 1, and a long answer counts as much as a short one.

    Raises DataValidationError where fewer than two tokens or no trained token are left.
    """
    length = len(sequence)
    sequence = sequence.truncate(max_length)
    cut = f" of {length} (max_length={max_length})" if len(sequence) < length else ""
    if len(sequence) < 2:
        raise DataValidationError(
            f"{len(sequence)} tokens{cut} cannot be trained on: at least 2 are needed"
        )
    if sequence.num_loss_tokens == 0:
        raise DataValidationError(f"no trained token among the {len(sequence)} tokens{cut}")

    tokens = sequence.tokens.astype(np.int64)
    shifted = {"weights": sequence.weights[1:]}
    if reduction == "mean":
        shifted["weights"] = _normalised(shifted["weights"])
    elif reduction != "none":
        raise DataValidationError(f'reduction={reduction!r}: expected "none" or "mean"')
    return tinker.Datum(
        model_input=tinker.ModelInput.from_ints(tokens[:-1].tolist()),
        loss_fn_inputs={
            # A copy: a view would share the sequence's memory with whoever gets the datum.
            name: tinker.TensorData.from_numpy(values.copy())
            for name, values in {"target_tokens": tokens[1:], **shifted}.items()
        },
    )


def from_datum(datum: tinker.Datum) -> Sequence:
    """The sequence of N tokens behind a datum of N-1 positions: `to_datum(from_datum(d))` equals d.

    The first token's weight is not in a datum and comes back as 0, which is what it trains.
    """
    targets = datum.loss_fn_inputs["target_tokens"].to_numpy()
    weights = datum.loss_fn_inputs["weights"].to_numpy()
    inputs = model_input_tokens(datum.model_input)
    return Sequence(
        np.concatenate([inputs, targets[-1:]]), np.concatenate([np.zeros(1, np.float32), weights])
    )


def model_input_tokens(model_input: tinker.ModelInput) -> list[int]:
    """The tokens of a text prompt. Raises DataValidationError where a chunk is not text."""
    for chunk in model_input.chunks:
        if not isinstance(chunk, tinker.EncodedTextChunk):
            raise DataValidationError(
                f"only text can be trained on: found a chunk of type {type(chunk).__name__}"
            )
    return model_input.to_ints()


def _normalised(weights: np.ndarray) -> np.ndarray:
    total = weights.sum(dtype=np.float64)
    if not total > 0:
        raise DataValidationError(
            f'reduction="mean" needs weights with a positive sum, found {total:g}: '
            'use reduction="none"'
        )
    return (weights / total).astype(np.float32)
