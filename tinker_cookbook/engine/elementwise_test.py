"""The functions against float64 definitions and against transformers' modules."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM

from tinker_cookbook.engine import elementwise
from tinker_cookbook.engine.elementwise import GatedProduct, RMSNorm
from tinker_cookbook.engine.testing import PLAIN, TINY
from tinker_cookbook.families import FAMILIES

WITH_OWN_NORM = [tiny for tiny, name in (PLAIN | TINY).items() if FAMILIES[name].norm]


def norm64(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    x, weight = x.double(), weight.double()
    return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt() * weight


@pytest.mark.parametrize("shape", [(7, 64), (2, 5, 3, 16)])
def test_norm_equals_its_definition(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    x, dy = torch.randn(2, *shape, generator=generator).unbind()
    weight = torch.randn(shape[-1], generator=generator)
    ours, exact = x.clone().requires_grad_(), x.double().requires_grad_()
    y = RMSNorm.apply(ours, weight, 1e-6)
    expected = norm64(exact, weight, 1e-6)
    y.backward(dy)
    expected.backward(dy.double())
    assert (y - expected).abs().max() <= 2e-6
    assert ours.grad is not None and exact.grad is not None
    assert (ours.grad - exact.grad).abs().max() <= 5e-6
    assert torch.equal(ours.detach(), x)  # the backward modifies only its own tensors


def test_gated_product_equals_its_definition() -> None:
    generator = torch.Generator().manual_seed(0)
    gate, up, dy = torch.randn(3, 9, 33, generator=generator).unbind()
    ours = [t.clone().requires_grad_() for t in (gate, up)]
    exact = [t.double().requires_grad_() for t in (gate, up)]
    y, expected = GatedProduct.apply(*ours), F.silu(exact[0]) * exact[1]
    y.backward(dy)
    expected.backward(dy.double())
    assert (y - expected).abs().max() <= 2e-6
    for one, other in zip(ours, exact):
        assert one.grad is not None and other.grad is not None
        assert (one.grad - other.grad).abs().max() <= 2e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", WITH_OWN_NORM)
def test_modules_compute_what_transformers_computes(
    family: str, dtype: torch.dtype, request: pytest.FixtureRequest
) -> None:
    """Every norm and MLP of the family is replaced, and equals the original up to rounding."""
    path = request.getfixturevalue(family)
    plain, ours = (AutoModelForCausalLM.from_pretrained(path, dtype=dtype) for _ in range(2))
    elementwise.install(ours)
    replaced = 0
    for one, other in zip(plain.modules(), ours.modules(), strict=True):
        if type(one).__name__.endswith(("RMSNorm", "MLP")):
            assert "forward" in vars(other), type(one).__name__
            replaced += 1
            x = torch.randn(3, 5, one.weight.shape[0] if hasattr(one, "weight") else 64).to(dtype)
            tolerance = 2e-6 if dtype == torch.float32 else 2e-2
            difference = (one(x) - other(x)).abs().max() / one(x).abs().max()
            assert difference <= tolerance
    assert replaced >= 7
