"""The chunked head against a plain float64 softmax over the whole vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import pytest
import torch

from tinker_cookbook.engine import head as head_module
from tinker_cookbook.engine.base_model import BaseModel
from tinker_cookbook.engine.config import EngineConfig
from tinker_cookbook.engine.head import HeadGradients, HeadLogprobs
from tinker_cookbook.engine.lora import (
    UNEMBED,
    Adapter,
    AdapterStack,
    LoraSpec,
    PerTokenAdapters,
)
from tinker_cookbook.engine.losses import LOSSES, get_loss
from tinker_cookbook.engine.requests import SampleRequest
from tinker_cookbook.engine.testing import VOCAB, on_cpu, sample_all, trainer_logprobs
from tinker_cookbook.engine.torch_sampler import TorchSampler
from tinker_cookbook.engine.trainer import AdapterTrainer


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


TOKENS, HIDDEN = 40, 64


def make_adapter(vocab: int, rank: int = 3, alpha: float = 32.0) -> Adapter:
    """A bf16 adapter of the unembedding alone, with a B that is not zero."""
    spec = LoraSpec(rank=rank, alpha=alpha, train_attn=False, train_mlp=False)
    adapter = Adapter.new(spec, {UNEMBED: (vocab, HIDDEN)}, torch.device("cpu"), torch.bfloat16)
    generator = torch.Generator().manual_seed(rank)
    noise = torch.randn(vocab, rank, generator=generator) * 0.05
    adapter.master[f"{UNEMBED}.lora_B"].copy_(noise)
    adapter.refresh()
    return adapter


class Reference(NamedTuple):
    """Logprobs and gradients in float64."""

    logprobs: torch.Tensor
    hidden: torch.Tensor  # dL/dh [T, H]
    pair: list[torch.Tensor]  # dL/dA [r, H] and dL/dB [V, r], if there is an adapter


def _pair64(adapter: Adapter | None) -> list[torch.Tensor]:
    """A and B as the products use them: rounded to bf16."""
    pair = adapter.pair(UNEMBED) if adapter is not None else None
    return [each.detach().double() for each in pair or ()]


@dataclass(frozen=True)
class Bf16Case:
    """bf16 weights with logits as large as those of SmolLM2: up to 30 or 40."""

    hidden: torch.Tensor
    weight: torch.Tensor
    targets: torch.Tensor
    weights: torch.Tensor  # of the loss

    @classmethod
    def new(
        cls, vocab: int, targets_per_token: int, dtype: torch.dtype = torch.bfloat16
    ) -> Bf16Case:
        """dtype: of the hidden states."""
        generator = torch.Generator().manual_seed(0)
        weight = torch.randn(vocab, HIDDEN, generator=generator) * 11 / HIDDEN**0.5
        hidden = torch.randn(TOKENS, HIDDEN, generator=generator)
        shape = (TOKENS, targets_per_token) if targets_per_token else (TOKENS,)
        targets = torch.randint(0, vocab, shape, generator=generator)
        weights = torch.rand(shape, generator=generator) + 0.5
        weights[::5] = 0  # masked tokens
        return cls(hidden.to(dtype), weight.bfloat16(), targets, weights)

    def logits(self, adapter: Adapter | None, hidden: torch.Tensor) -> torch.Tensor:
        """float64, of the same bf16 numbers."""
        return self._logits(hidden, adapter, _pair64(adapter))

    def _logits(
        self, hidden: torch.Tensor, adapter: Adapter | None, pair: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        z = hidden @ self.weight.double().T
        if adapter is not None:
            a, b = pair
            z = z + adapter.spec.scale * (hidden @ a.T) @ b.T
        return z

    def reference(self, adapter: Adapter | None, temperature: float) -> Reference:
        """Of the cross entropy, by autograd."""
        h = self.hidden.double().requires_grad_()
        pair = [each.requires_grad_() for each in _pair64(adapter)]
        columns = self.targets.view(TOKENS, -1)
        logits = self._logits(h, adapter, pair) / temperature
        logprobs = logits.log_softmax(-1).gather(1, columns).view(self.targets.shape)
        (-(self.weights.double() * logprobs).sum()).backward()
        grads = [each.grad for each in (h, *pair) if each.grad is not None]
        return Reference(logprobs.detach(), grads[0], grads[1:])

    def backward(
        self, adapter: Adapter | None, temperature: float, num_exact: int | None, two_steps: bool
    ) -> HeadGradients:
        head = HeadLogprobs(self.weight, chunk=16, num_exact=num_exact)
        loss = replace(LOSSES["cross_entropy"], temperature=temperature)
        loss = replace(loss, elementwise=not two_steps)
        inputs = {"weights": self.weights}
        return head.backward(self.hidden, self.targets, inputs, loss, adapter)


def relative_error(ours: torch.Tensor, exact: torch.Tensor) -> float:
    return ((ours.double() - exact).norm() / exact.norm()).item()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])  # of the hidden states
@pytest.mark.parametrize("two_steps", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("targets_per_token", [0, 3])
@pytest.mark.parametrize("with_adapter", [True, False])
@pytest.mark.parametrize("vocab", [20, 500])  # fewer than 32, and more
def test_bf16_head_against_float64(
    vocab: int,
    with_adapter: bool,
    targets_per_token: int,
    temperature: float,
    two_steps: bool,
    dtype: torch.dtype,
) -> None:
    case = Bf16Case.new(vocab, targets_per_token, dtype)
    adapter = make_adapter(vocab) if with_adapter else None
    expected = case.reference(adapter, temperature)
    exact = case.backward(adapter, temperature, None, two_steps)
    plain = case.backward(adapter, temperature, 0, two_steps)
    assert case.logits(adapter, case.hidden.double()).amax() > 25
    gap, plain_gap = ((out.logprobs - expected.logprobs).abs().max() for out in (exact, plain))
    assert gap < 2e-3 and gap < plain_gap / 20
    assert exact.hidden.dtype == dtype
    # bf16 products of the gradient remain
    error, plain_error = (relative_error(out.hidden, expected.hidden) for out in (exact, plain))
    assert error < 5e-3 and error < plain_error / 1.5, (error, plain_error)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])  # of the hidden states
@pytest.mark.parametrize("two_steps", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("targets_per_token", [0, 3])
@pytest.mark.parametrize("rank", [3, 16])
@pytest.mark.parametrize("vocab", [20, 500])  # fewer than 32, and more
def test_bf16_adapter_gradients_against_float64(
    vocab: int,
    rank: int,
    targets_per_token: int,
    temperature: float,
    two_steps: bool,
    dtype: torch.dtype,
) -> None:
    """dL/dA = scale (dL/dz B)^T h and dL/dB = scale dL/dz^T (h A^T).

    Rounding normal numbers to bf16 has a relative error of 1.7e-3 (root mean square). Either
    gradient is rounded four times: dL/dz, the inner product, its multiple, and the outer product.
    Independent errors add up to sqrt(4) * 1.7e-3 = 3.3e-3. The rest is for the bf16 logits of
    tokens that are neither targets nor likely.
    """
    case = Bf16Case.new(vocab, targets_per_token, dtype)
    adapter = make_adapter(vocab, rank=rank)
    expected = case.reference(adapter, temperature)
    exact = case.backward(adapter, temperature, None, two_steps)
    plain = case.backward(adapter, temperature, 0, two_steps)
    assert exact.loss.item() == pytest.approx(
        -(case.weights * expected.logprobs).sum().item(), abs=0.05
    )
    assert len(expected.pair) == 2
    for letter, gradient in zip("AB", expected.pair):
        name = f"{UNEMBED}.lora_{letter}"
        assert exact.adapter[name].dtype == torch.float32
        error, plain_error = (relative_error(out.adapter[name], gradient) for out in (exact, plain))
        assert error < 5e-3 and error < plain_error / 2, (letter, error, plain_error)


def test_bf16_probabilities_against_float64() -> None:
    """The softmax is what dL/dz is made of, before the bf16 products of dL/dh."""
    case = Bf16Case.new(500, 0)
    logits = HeadLogprobs(case.weight, 64).logits(case.hidden, None, case.targets)
    exact = case.logits(None, case.hidden.double())
    gap = (logits.softmax(-1) - exact.softmax(-1)).abs().max()
    plain = HeadLogprobs(case.weight, 64, num_exact=0).logits(case.hidden, None)
    assert gap < 1e-3 and gap < (plain.softmax(-1) - exact.softmax(-1)).abs().max() / 20


@pytest.mark.parametrize("k", [4, 32, 50])
def test_bf16_top_k_is_ordered_by_exact_logits(k: int) -> None:
    case = Bf16Case.new(500, 0)
    tokens, logprobs = HeadLogprobs(case.weight, 16).top_k(case.hidden, k, None)
    exact = case.logits(None, case.hidden.double()).log_softmax(-1)
    assert (logprobs - exact.gather(1, tokens)).abs().max() < 2e-3
    assert (logprobs[:, 1:] <= logprobs[:, :-1]).all()


def test_a_stack_of_adapters_gives_the_logits_of_each(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Bf16Case.new(500, 0)
    adapters = [make_adapter(500, rank=3), make_adapter(500, rank=9)]  # scales that bf16 rounds
    owners = torch.arange(TOKENS) % 3 - 1
    tokens = case.targets[:, None]
    head = HeadLogprobs(case.weight, 16)
    with torch.no_grad():
        stacked = head.exact_logits(
            case.hidden, tokens, PerTokenAdapters(AdapterStack(adapters), owners)
        )
        alone = [head.exact_logits(case.hidden, tokens, a) for a in (None, *adapters)]
        # in parts of a few tokens: the same bits
        monkeypatch.setattr(head_module, "GATHERED_BYTES", 3 * 4 * HIDDEN)
        assert torch.equal(head.exact_logits(case.hidden, tokens, None), alone[0])
    expected = torch.stack(alone)[owners + 1, torch.arange(TOKENS)]
    assert (stacked - expected).abs().max() < 1e-5


def test_fp32_head_has_nothing_to_recompute() -> None:
    weight = torch.randn(50, 16)
    assert HeadLogprobs(weight, 8, num_exact=32).num_exact == 0


def test_sampler_and_trainer_agree_better(tiny_qwen3: str) -> None:
    """Logprobs of drawn tokens, with both heads on the same bf16 backbone and large logits."""
    config = EngineConfig(device="cpu", dtype="bfloat16", float32_residual=False)
    trainer = AdapterTrainer(BaseModel(tiny_qwen3, config), LoraSpec(rank=4, train_attn=False))
    base, rng = trainer.base, np.random.default_rng(0)
    assert base.head.num_exact == 32
    prompts = [rng.integers(3, VOCAB, 20) for _ in range(8)]
    weight = base.head.weight * (10 / base.head.weight.std() / base.hidden_size**0.5)

    def mean_gap(num_exact: int | None) -> float:
        base.head = HeadLogprobs(weight, 16, num_exact=num_exact)
        asked = [
            SampleRequest(p, 12, seed=i, stop_tokens=frozenset(), sample_top_k=VOCAB)
            for i, p in enumerate(prompts)
        ]
        gaps = []
        for prompt, result in zip(prompts, sample_all(TorchSampler(base, config), asked)):
            drawn = result.sequences[0]
            ours = trainer_logprobs(trainer, prompt, drawn.tokens)
            gaps.append(np.abs(ours - np.array(drawn.logprobs)).mean())
            for token, logprob, top_k in zip(drawn.tokens, drawn.logprobs, drawn.top_k):
                (listed,) = top_k.logprobs[top_k.tokens == token]
                assert listed == pytest.approx(logprob, abs=1e-5)
        return float(np.mean(gaps))

    exact, plain = mean_gap(None), mean_gap(0)
    # both are 0 on processors where the products of all numbers of rows round alike
    assert exact <= plain / 2, (exact, plain)
