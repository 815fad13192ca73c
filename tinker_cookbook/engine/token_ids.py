"""Token ids that a caller gives, checked before a model sees them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


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
