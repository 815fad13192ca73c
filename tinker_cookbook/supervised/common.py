"""Datum construction and NLL metrics for cross-entropy training (thin wrappers of sequences.py)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import tinker

from tinker_cookbook import sequences
from tinker_cookbook.exceptions import DataValidationError
from tinker_cookbook.sequences import Reduction, as_numpy

if TYPE_CHECKING:
    from tinker_cookbook.sequences import Values
    from tinker_cookbook.tokenizer_utils import Tokenizer


def create_rightshifted_model_input_and_leftshifted_targets(
    chunks: Sequence[tinker.ModelInputChunk],
) -> tuple[tinker.ModelInput, list[int]]:
    """Split N tokens into a model input (the first N-1) and its targets (the last N-1)."""
    tokens = sequences.model_input_tokens(tinker.ModelInput(chunks=list(chunks)))
    datum = sequences.to_datum(sequences.Sequence(tokens, np.ones(len(tokens))))
    return datum.model_input, datum.loss_fn_inputs["target_tokens"].tolist()


def datum_from_model_input_weights(
    model_input: tinker.ModelInput,
    weights: Values,
    max_length: int | None = None,
    reduction: Reduction = "none",
) -> tinker.Datum:
    """Build a datum from unshifted tokens and weights [N]; see `sequences.to_datum`."""
    tokens = sequences.model_input_tokens(model_input)
    return sequences.to_datum(
        sequences.Sequence(tokens, as_numpy(weights)), max_length=max_length, reduction=reduction
    )


def compute_mean_nll(logprobs_list: Sequence[Values], weights_list: Sequence[Values]) -> float:
    """Weighted mean NLL in nats: -sum(logprob * weight) / sum(weight) over all sequences.

    With 0/1 weights this is the mean per token. With weights that sum to 1 per example (reduction
    "mean") it is the mean over examples of the per-example mean. NaN if all weights are 0.
    """
    total, total_weight = 0.0, 0.0
    for logprobs, weights in _aligned_arrays(logprobs_list, weights_list):
        # Select instead of multiplying by 0: the logprob of an untrained token may be NaN (the
        # first token has none), and NaN * 0 is NaN.
        trained = weights != 0
        total -= float(np.dot(logprobs[trained], weights[trained]))
        total_weight += float(weights.sum())
    return total / total_weight if total_weight else math.nan


def compute_bpb(
    logprobs_list: Sequence[Values],
    weights_list: Sequence[Values],
    target_tokens_list: Sequence[Values],
    tokenizer: Tokenizer,
) -> float:
    """Bits per byte over the trained, non-special tokens: -sum(logprob) / (ln 2 * UTF-8 bytes).

    Unlike nats per token, it is comparable across tokenizers. Every counted token has weight 1,
    whatever its loss weight. NaN if there is no text.
    """
    special = np.asarray(sorted(tokenizer.all_special_ids), dtype=np.int64)
    nats, num_bytes = 0.0, 0
    for (logprobs, weights), targets in zip(
        _aligned_arrays(logprobs_list, weights_list), map(as_numpy, target_tokens_list), strict=True
    ):
        targets = targets.astype(np.int64)
        counted = (weights > 0) & ~np.isin(targets, special)
        nats -= float(logprobs[counted].sum())
        # Adjacent tokens are decoded together: one token can hold part of a UTF-8 character, and
        # decoded alone it would become U+FFFD, which has another number of bytes.
        num_bytes += sum(
            len(str(tokenizer.decode(targets[start:end].tolist())).encode("utf-8"))
            for start, end in _true_runs(counted)
        )
    return nats / (math.log(2) * num_bytes) if num_bytes else math.nan


def _aligned_arrays(
    logprobs_list: Sequence[Values], weights_list: Sequence[Values]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (logprobs, weights) of each sequence; DataValidationError if their shapes differ."""
    for logprobs, weights in zip(
        map(as_numpy, logprobs_list), map(as_numpy, weights_list), strict=True
    ):
        if logprobs.shape != weights.shape:
            raise DataValidationError(
                f"logprobs and weights must have the same shape: {logprobs.shape} and"
                f" {weights.shape}"
            )
        yield logprobs, weights


def _true_runs(flags: np.ndarray) -> list[tuple[int, int]]:
    """[start, end) of each maximal run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(np.int8)))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist()))
