"""Shifting and measuring for cross-entropy training: known names, thin over sequences.py."""

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
    """Chunks of N tokens -> (input of the first N-1 tokens, the last N-1 tokens as targets)."""
    tokens = sequences.model_input_tokens(tinker.ModelInput(chunks=list(chunks)))
    datum = sequences.to_datum(sequences.Sequence(tokens, np.ones(len(tokens))))
    return datum.model_input, datum.loss_fn_inputs["target_tokens"].tolist()


def datum_from_model_input_weights(
    model_input: tinker.ModelInput,
    weights: Values,
    max_length: int | None = None,
    reduction: Reduction = "none",
) -> tinker.Datum:
    """A renderer's tokens and weights [N], unshifted -> datum; see `sequences.to_datum`."""
    tokens = sequences.model_input_tokens(model_input)
    return sequences.to_datum(
        sequences.Sequence(tokens, as_numpy(weights)), max_length=max_length, reduction=reduction
    )


def compute_mean_nll(logprobs_list: Sequence[Values], weights_list: Sequence[Values]) -> float:
    """-sum(logprob * weight) / sum(weight) over all tokens of all sequences, in nats.

    With token weights of 0 and 1 this is the mean per token. With weights that were normalised per
    example (reduction "mean") it is the mean over examples of their per-token means.
    NaN where nothing is weighted.
    """
    total, total_weight = 0.0, 0.0
    for logprobs, weights in _pairs(logprobs_list, weights_list):
        trained = weights != 0  # elsewhere a logprob may be NaN (a first token has none)
        total -= float(np.dot(logprobs[trained], weights[trained]))
        total_weight += float(weights.sum())
    return total / total_weight if total_weight else math.nan


def compute_bpb(
    logprobs_list: Sequence[Values],
    weights_list: Sequence[Values],
    target_tokens_list: Sequence[Values],
    tokenizer: Tokenizer,
) -> float:
    """Bits per byte: -sum(logprob) / (ln 2 * UTF-8 bytes), over trained tokens, special ones not.

    Unlike nats per token it can be compared between tokenizers. The bytes are those of each run of
    adjacent counted tokens, decoded together. Every such token counts 1, whatever its weight.
    NaN where there is no text.
    """
    special = np.asarray(sorted(tokenizer.all_special_ids), dtype=np.int64)
    nats, num_bytes = 0.0, 0
    for (logprobs, weights), targets in zip(
        _pairs(logprobs_list, weights_list), map(as_numpy, target_tokens_list), strict=True
    ):
        targets = targets.astype(np.int64)
        counted = (weights > 0) & ~np.isin(targets, special)
        nats -= float(logprobs[counted].sum())
        num_bytes += sum(
            len(str(tokenizer.decode(targets[start:end].tolist())).encode("utf-8"))
            for start, end in _runs(counted)
        )
    return nats / (math.log(2) * num_bytes) if num_bytes else math.nan


def _pairs(
    logprobs_list: Sequence[Values], weights_list: Sequence[Values]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for logprobs, weights in zip(
        map(as_numpy, logprobs_list), map(as_numpy, weights_list), strict=True
    ):
        if logprobs.shape != weights.shape:
            raise DataValidationError(
                f"logprobs and weights differ in shape: {logprobs.shape} and {weights.shape}"
            )
        yield logprobs, weights


def _runs(flags: np.ndarray) -> list[tuple[int, int]]:
    """[start, end) of each run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(np.int8)))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist()))
