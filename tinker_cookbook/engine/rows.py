"""The engine's currency: plain numpy, no SDK types. N is the number of tokens of a row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

StopReason = Literal["stop", "length"]
LOWEST_TEMPERATURE = 1e-4  # below, logits / temperature leave too few digits of fp32 for a softmax


@dataclass(frozen=True)
class TrainRow:
    """One sequence of a training batch, already shifted: position i predicts `targets[i]`."""

    tokens: np.ndarray  # int64 [N], what the model reads
    targets: np.ndarray  # int64 [N], or [N, K] where each position has K targets
    inputs: Mapping[str, np.ndarray] = field(default_factory=dict)  # float32, shaped like targets

    @property
    def length(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True)
class TrainResult:
    """What forward and forward_backward return, in the order of the rows."""

    logprobs: list[np.ndarray]  # float32 per row, shaped like its targets, before any update
    metrics: dict[str, float]  # "name:reduction"; "loss:sum", or a custom loss's own


@dataclass(frozen=True)
class SampleRequest:
    """`num_samples` continuations of one prompt.

    temperature 0 is greedy. `stop_tokens` and `stop_strings` end a sequence and stay in it.
    `max_tokens=0` only scores the prompt: every sample is empty and ends by its length. A seed
    fixes the random numbers of every sample. What is asked of the prompt is scored at
    `prompt_temperature`, whatever the samples are drawn at.
    """

    prompt: np.ndarray  # int64 [P]
    max_tokens: int
    num_samples: int = 1
    temperature: float = 1.0
    top_k: int = -1  # -1: all
    top_p: float = 1.0
    seed: int | None = None
    stop_tokens: frozenset[int] = frozenset()
    stop_strings: tuple[str, ...] = ()
    prompt_temperature: float = 1.0
    prompt_logprobs: bool = False
    prompt_top_k: int = 0  # most likely tokens to report at each prompt position
    sample_top_k: int = 0  # ... and at each sampled position
    prompt_targets: np.ndarray | None = None  # int64 [P-1, K]: tokens to score at positions
    # 1..P-1; -1 asks for nothing and is answered with 0


@dataclass(frozen=True)
class TopK:
    """The most likely tokens of several positions, the likeliest first."""

    tokens: np.ndarray  # int32 [positions, k]
    logprobs: np.ndarray  # float32 [positions, k]


@dataclass
class SampledTokens:
    tokens: list[int]
    logprobs: list[float]
    stop_reason: StopReason
    top_k: list[TopK] = field(default_factory=list)  # one position each


@dataclass
class SampleResult:
    """Everything about the prompt is at the request's `prompt_temperature`."""

    sequences: list[SampledTokens]
    prompt_logprobs: np.ndarray | None = None  # float32 [P], NaN at position 0
    prompt_top_k: TopK | None = None  # of positions 1..P-1
    prompt_target_logprobs: np.ndarray | None = None  # float32 [P-1, K]


def check_tokens(tokens: np.ndarray | Sequence[int], vocab_size: int, what: str) -> np.ndarray:
    """Token ids as int64 [N] or [N, K]; a ValueError names the first one outside the vocabulary."""
    array = np.asarray(tokens)
    if array.ndim == 0 or array.size == 0:
        raise ValueError(f"{what} must be a non-empty list of token ids, got shape {array.shape}")
    if array.dtype.kind not in "iu":
        raise ValueError(f"{what} has dtype {array.dtype}; token ids are whole numbers (int64)")
    array = array.astype(np.int64, copy=False)
    bad = np.argwhere((array < 0) | (array >= vocab_size))
    if bad.size:
        raise ValueError(
            f"{what} holds token id {array[tuple(bad[0])]} at position {bad[0][0]};"
            f" this model's ids are 0 to {vocab_size - 1}"
        )
    return array
