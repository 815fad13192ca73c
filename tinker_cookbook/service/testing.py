"""For tests: data to train on."""

from __future__ import annotations

import numpy as np
from tinker import types


def datum(tokens: list[int], **inputs: np.ndarray) -> types.Datum:
    values = {"weights": np.ones(len(tokens) - 1, np.float32), **inputs}
    return types.Datum(
        model_input=types.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={"target_tokens": np.array(tokens[1:], np.int64), **values},
    )


DATA = [datum([5, 6, 7, 8, 9]), datum([11, 12, 13])]
