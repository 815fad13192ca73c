"""The devices that exactness is tested on."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(
    params=[
        pytest.param("cpu", id=pytest.HIDDEN_PARAM),
        pytest.param("cuda", marks=pytest.mark.gpu),
    ]
)
def device(request: pytest.FixtureRequest) -> str:
    """`engine.device` of a test; what it is compared with is computed on the CPU.

    The GPU's turn is taken with `pytest -m gpu`, in fp32 without TF32, which is torch's default.
    """
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("torch sees no GPU")
    return request.param
