"""The chunked head against a plain float64 softmax over the whole vocabulary."""

from __future__ import annotations

import pytest
import torch

from tinker_cookbook.engine.head import HeadLogprobs
from tinker_cookbook.engine.lora import UNEMBED, Adapter, LoraSpec
from tinker_cookbook.engine.losses import get_loss
from tinker_cookbook.engine.testing import on_cpu


@pytest.mark.parametrize("temperature", [1.0, 0.5, 1.7])
@pytest.mark.parametrize("chunk", [1, 7, 64])
@pytest.mark.parametrize("with_adapter", [True, False])
def test_head_against_float64(
    chunk: int, with_adapter: bool, temperature: float, device: str
) -> None:
    tolerance = 1e-5 / min(temperature, 1.0) ** 2  # logits are divided by it, derivatives again
    generator = torch.Generator().manual_seed(0)
    tokens, hidden_size, vocab = 20, 16, 50
    weight = torch.randn(vocab, hidden_size, generator=generator)
    hidden = torch.randn(tokens, hidden_size, generator=generator)
    targets = torch.randint(0, vocab, (tokens,), generator=generator)
    weights = torch.randn(tokens, generator=generator)
    spec = LoraSpec(rank=3, train_attn=False, train_mlp=False)
    shapes = {UNEMBED: (vocab, hidden_size)}
    adapter = Adapter.new(spec, shapes, torch.device(device), torch.float32)
    with torch.no_grad():
        noise = torch.randn(vocab, spec.rank, generator=generator) * 0.1
        adapter.master[f"{UNEMBED}.lora_B"].copy_(noise)
    adapter.refresh()
    used = adapter if with_adapter else None

    h = hidden.double().requires_grad_()
    master = on_cpu(adapter.master)
    a, b = (master[f"{UNEMBED}.lora_{x}"].double().requires_grad_() for x in "AB")
    logits = h @ weight.double().T
    if with_adapter:
        logits = logits + spec.scale * (h @ a.T) @ b.T
    logprobs = (logits / temperature).log_softmax(-1)[torch.arange(tokens), targets]
    loss = -(weights.double() * logprobs).sum()
    loss.backward()

    weight, hidden, targets, weights = (
        each.to(device) for each in (weight, hidden, targets, weights)
    )
    head = HeadLogprobs(weight, chunk)
    inputs = {"weights": weights}
    known = get_loss("cross_entropy", {"temperature": temperature})
    out = head.backward(hidden, targets, inputs, known, used)
    assert out.loss.item() == pytest.approx(loss.item(), abs=1e-4)
    assert (out.logprobs.cpu() - logprobs).abs().max() <= tolerance
    scored = head.logprobs(hidden, targets, used, temperature)
    assert (scored.cpu() - logprobs).abs().max() <= tolerance
    assert (out.hidden.cpu() - h.grad).abs().max() <= tolerance
    own = on_cpu(out.adapter)
    if with_adapter:
        assert (own[f"{UNEMBED}.lora_A"] - a.grad).abs().max() <= tolerance
        assert (own[f"{UNEMBED}.lora_B"] - b.grad).abs().max() <= tolerance
    else:
        assert own == {}
