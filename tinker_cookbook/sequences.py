"""Token sequences with one value per token, and the one place that shifts them by a position.

Everything above this file speaks of tokens as they were rendered or sampled: token i has weight
i. A model predicts token i+1 at position i, so a `tinker.Datum` holds the first N-1 tokens as input
and everything that belongs to the last N-1 tokens as targets. `to_datum` alone knows that.
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
    """N tokens with one value per token in each further field, unshifted: `weights[i]` belongs to
    `tokens[i]`.

    Lists and tensors are accepted and stored as arrays: tokens int32 [N] (a vocabulary is far below
    2**31, and a data set is held in memory), the rest float32 [N].

    weights: of the loss; a token is trained where its weight is not 0.
    logprobs: in nats, of the tokens that a model has sampled; 0 elsewhere.
    advantages: of the tokens that are trained by a policy loss; 0 elsewhere.

    A further per-token field is added here with a default of None and, in `to_datum`, to the dict
    of fields that are shifted.
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
        """The first `max_length` tokens (None: all): a sequence is cut at its end."""
        if max_length is None or len(self) <= max_length:
            return self
        given = {name: values for name, values in vars(self).items() if values is not None}
        return Sequence(**{name: values[:max_length] for name, values in given.items()})

    @property
    def loss_mask(self) -> np.ndarray:
        """Whether a token is trained, bool [N]. The first never is: nothing predicts it."""
        mask = self.weights != 0
        mask[:1] = False
        return mask

    @property
    def num_loss_tokens(self) -> int:
        """Tokens that are trained."""
        return int(np.count_nonzero(self.loss_mask))


def to_datum(
    sequence: Sequence, max_length: int | None = None, reduction: Reduction = "none"
) -> tinker.Datum:
    """Shift a sequence of N tokens into a datum of N-1 positions.

    Cuts to `max_length` tokens from the right first. `loss_fn_inputs`: `target_tokens` int64 [N-1],
    and float32 [N-1] each

    - without advantages, for `cross_entropy`: `weights`. reduction "none" keeps them, "mean"
      divides them so that the example's weights sum to 1, and a long answer counts as much as a
      short one;
    - with advantages, for a policy loss: `logprobs`, `advantages`, and `mask`, 1 where a token is
      trained. Losses do not take the mask: see `remove_mask`.

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
    if sequence.advantages is not None:
        shifted = _policy_inputs(sequence, sequence.advantages, reduction)
    elif reduction == "mean":
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


def remove_mask(datum: tinker.Datum) -> tinker.Datum:
    """The datum without `mask`, which tells readers what is trained and is no input of a loss."""
    return tinker.Datum(
        model_input=datum.model_input,
        loss_fn_inputs={k: v for k, v in datum.loss_fn_inputs.items() if k != "mask"},
    )


def from_datum(datum: tinker.Datum) -> Sequence:
    """The sequence of N tokens behind a datum of N-1 positions: `to_datum(from_datum(d))` equals d.

    The first token's values are not in a datum and come back as 0, which is what it trains. Weights
    are those of `weights` or `mask`.
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
    """The tokens of a text prompt. Raises DataValidationError where a chunk is not text."""
    for chunk in model_input.chunks:
        if not isinstance(chunk, tinker.EncodedTextChunk):
            raise DataValidationError(
                f"only text can be trained on: found a chunk of type {type(chunk).__name__}"
            )
    return model_input.to_ints()


def as_numpy(values: Values) -> np.ndarray:
    """float64 array of a TensorData, tensor, array or list; None becomes NaN."""
    if isinstance(values, tinker.TensorData):
        values = values.to_numpy()
    elif hasattr(values, "detach"):
        values = values.detach().cpu().numpy()  # type: ignore[union-attr] (torch)
    return np.asarray(values, dtype=np.float64)


def _policy_inputs(
    sequence: Sequence, advantages: np.ndarray, reduction: Reduction
) -> dict[str, np.ndarray]:
    """The inputs of a policy loss, shifted."""
    if sequence.logprobs is None:
        raise DataValidationError("a sequence with advantages needs the sampled logprobs, too")
    if reduction != "none":
        raise DataValidationError(
            f'reduction={reduction!r} divides weights, a policy loss has none: use "none", and'
            " scale the advantages"
        )
    return {
        "logprobs": sequence.logprobs[1:],
        "advantages": advantages[1:],
        "mask": sequence.loss_mask[1:].astype(np.float32),
    }


def _normalised(weights: np.ndarray) -> np.ndarray:
    total = weights.sum(dtype=np.float64)
    if not total > 0:
        raise DataValidationError(
            f'reduction="mean" needs weights with a positive sum, found {total:g}: '
            'use reduction="none"'
        )
    return (weights / total).astype(np.float32)
