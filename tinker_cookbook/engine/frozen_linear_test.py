from __future__ import annotations

import pytest
import torch

from tinker_cookbook.engine.frozen_linear import FrozenLinear, can_prepack


@pytest.mark.parametrize("bias", [False, True])
def test_the_packed_weight_gives_the_same_bits(bias: bool) -> None:
    torch.manual_seed(0)
    for shape in ((96, 64), (307, 64), (2048, 768)):
        weight = torch.randn(shape, dtype=torch.bfloat16)
        if not can_prepack(weight):
            pytest.skip("no bf16 kernels with a layout of their own here")
        own = torch.randn(shape[0], dtype=torch.bfloat16) if bias else None
        plain, packed = FrozenLinear(weight, own), FrozenLinear(weight, own, prepack=True)
        for rows in (1, 3, 16, 32, 64, 65, 300):
            x = torch.randn(rows, shape[1], dtype=torch.bfloat16)
            assert torch.equal(packed(x), plain(x)) and packed._prepacked is None
            with torch.inference_mode():
                assert torch.equal(packed(x), plain(x)) and packed._prepacked is not None
            packed._prepacked = None


def test_other_types_stay_plain() -> None:
    weight = torch.randn(8, 4)
    with torch.inference_mode():
        x = torch.randn(3, 4)
        assert torch.equal(FrozenLinear(weight, prepack=True)(x), x @ weight.t())
