"""Check the token ids of a request before they reach the model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def check_tokens(tokens: np.ndarray | Sequence[int], vocab_size: int, name: str) -> np.ndarray:
    """Return token ids as int64 [N] or [N, K]; raise ValueError naming the first invalid one."""
    array = np.asarray(tokens)
    if array.ndim == 0 or array.size == 0:
        raise ValueError(f"{name} must be a non-empty list of token ids, got shape {array.shape}")
    if array.dtype.kind not in "iu":
        raise ValueError(f"{name} has dtype {array.dtype}; token ids are whole numbers (int64)")
    array = array.astype(np.int64, copy=False)
    invalid = np.argwhere((array < 0) | (array >= vocab_size))
    if invalid.size:
        raise ValueError(
            f"{name} holds token id {array[tuple(invalid[0])]} at position {invalid[0][0]};"
            f" this model's ids are 0 to {vocab_size - 1}"
        )
    return array
