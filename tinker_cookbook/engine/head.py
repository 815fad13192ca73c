"""The unembedding, chunk by chunk: no tensor of [tokens, vocabulary] ever exists.

With z = h W^T + s (h A^T) B^T and lp_k = z[target_k] - logsumexp(z), a loss whose derivative by
lp_k is g_k has dL/dz = sum_k g_k (onehot(target_k) - softmax(z)). An elementwise loss knows g as
soon as the chunk's lp is there, so the chunk is differentiated while its logits still exist: one pass over
the vocabulary, nothing recomputed, and the gradient of the unembedding's own adapter comes out of
the same pass. Any other loss goes in two steps: `jacobian` keeps d lp / d h, which is all that a
frozen head needs; with an adapter on the head the chunks are computed again.

Shapes: T tokens, K targets per token, H hidden size, V vocabulary, r rank. Targets and logprobs are
[T] or [T, K].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from tinker_cookbook.engine.lora import UNEMBED, Adapter, AdapterRows, add_lora
from tinker_cookbook.engine.losses import LOSSES, Loss


@dataclass(frozen=True)
class HeadGradients:
    loss: torch.Tensor  # fp32 scalar, summed over tokens
    logprobs: torch.Tensor  # fp32 [T] or [T, K]
    hidden: torch.Tensor  # dL/dh [T, H], dtype of h
    adapter: dict[str, torch.Tensor]  # fp32 gradients of the unembedding's A and B, if it has them


class HeadLogprobs:
    """Logprobs of chosen tokens from hidden states, and the gradient of a loss on them."""

    def __init__(self, weight: torch.Tensor, chunk: int) -> None:
        self.weight = weight  # [V, H], frozen
        self.chunk = chunk

    def logits(self, hidden: torch.Tensor, adapter: Adapter | None) -> torch.Tensor:
        """fp32 [T, V]: only for a few rows at a time."""
        plan = (AdapterRows(adapter, 0, hidden.shape[0]),)
        return add_lora(F.linear(hidden, self.weight), hidden, UNEMBED, plan).float()

    @torch.no_grad()
    def logprobs(
        self, hidden: torch.Tensor, targets: torch.Tensor, adapter: Adapter | None
    ) -> torch.Tensor:
        """log p(target) at temperature 1, fp32, shaped like the targets."""
        out = torch.empty(targets.shape, dtype=torch.float32, device=hidden.device)
        for span in self._spans(hidden.shape[0]):
            out[span] = _pick(self.logits(hidden[span], adapter), targets[span])[0]
        return out

    @torch.no_grad()
    def backward(
        self,
        hidden: torch.Tensor,
        targets: torch.Tensor,
        inputs: Mapping[str, torch.Tensor],
        loss: Loss,
        adapter: Adapter | None,
    ) -> HeadGradients:
        """A loss over all tokens, with its gradients."""
        if not loss.elementwise:
            return self._backward_in_two(hidden, targets, inputs, loss, adapter)
        total = hidden.new_zeros((), dtype=torch.float32)
        logprobs = torch.empty(targets.shape, dtype=torch.float32, device=hidden.device)
        d_hidden = torch.zeros_like(hidden)
        pair = adapter.pair(UNEMBED) if adapter is not None else None
        d_pair = [torch.zeros_like(p, dtype=torch.float32) for p in pair] if pair else []
        gate = inputs[loss.gate] if loss.gate is not None else None
        for span in self._spans(hidden.shape[0]):
            z = self.logits(hidden[span], adapter)
            logprobs[span], lse = _pick(z, targets[span])
            value, g = loss.value_and_grad(
                logprobs[span], {key: array[span] for key, array in inputs.items()}
            )
            total += value
            rows = torch.arange(span.start, span.stop, device=hidden.device)
            if gate is not None:
                live = _any_target(gate[span] != 0).nonzero()[:, 0]
                if len(live) == 0:
                    continue
                if len(live) < len(rows):  # masked tokens cost their logprob, no gradient
                    z, lse, g, rows = z[live], lse[live], g[live], rows[live]
            h = hidden[rows]
            dz = _d_logits(z, lse, targets[rows], g).to(hidden.dtype)
            d_rows = dz @ self.weight
            if pair and adapter is not None:
                a, b = pair
                scale = adapter.spec.scale
                d_low = (dz @ b) * scale  # [t, r]
                d_rows += d_low @ a
                d_pair[0] += d_low.t() @ h
                d_pair[1] += dz.t() @ (F.linear(h, a) * scale)
            d_hidden[rows] = d_rows
        names = (f"{UNEMBED}.lora_A", f"{UNEMBED}.lora_B")
        return HeadGradients(total, logprobs, d_hidden, dict(zip(names, d_pair)))

    def _backward_in_two(
        self,
        hidden: torch.Tensor,
        targets: torch.Tensor,
        inputs: Mapping[str, torch.Tensor],
        loss: Loss,
        adapter: Adapter | None,
    ) -> HeadGradients:
        frozen = adapter is None or adapter.pair(UNEMBED) is None
        if frozen and targets.ndim == 1:
            logprobs, jacobian = self.jacobian(hidden, targets, adapter)
            value, g = loss.value_and_grad(logprobs, inputs)
            d_hidden = jacobian.mul_(g[:, None].to(jacobian.dtype))
            return HeadGradients(value, logprobs, d_hidden, {})
        logprobs = self.logprobs(hidden, targets, adapter)
        value, g = loss.value_and_grad(logprobs, inputs)
        linear = self.backward(hidden, targets, {"weights": -g}, LOSSES["cross_entropy"], adapter)
        return HeadGradients(value, logprobs, linear.hidden, linear.adapter)

    @torch.no_grad()
    def jacobian(
        self, hidden: torch.Tensor, targets: torch.Tensor, adapter: Adapter | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logprobs [T] and d lp_t / d h_t [T, H], for a head without an adapter of its own."""
        logprobs = torch.empty(targets.shape, dtype=torch.float32, device=hidden.device)
        out = torch.empty_like(hidden)
        for span in self._spans(hidden.shape[0]):
            z = self.logits(hidden[span], adapter)
            logprobs[span], lse = _pick(z, targets[span])
            dz = _d_logits(z, lse, targets[span], torch.ones_like(lse))
            out[span] = dz.to(hidden.dtype) @ self.weight
        return logprobs, out

    def _spans(self, length: int) -> list[slice]:
        return [slice(i, min(i + self.chunk, length)) for i in range(0, length, self.chunk)]


def _pick(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(log p(target) shaped like the targets, logsumexp [T]), both fp32."""
    lse = torch.logsumexp(logits, dim=-1)
    picked = logits.gather(1, _columns(targets)) - lse[:, None]
    return picked.view(targets.shape), lse


def _d_logits(
    z: torch.Tensor, lse: torch.Tensor, targets: torch.Tensor, g: torch.Tensor
) -> torch.Tensor:
    """dL/dz [T, V], written over the logits."""
    g = _columns(g)
    z.sub_(lse[:, None]).exp_().mul_(-g.sum(dim=1, keepdim=True))
    return z.scatter_add_(1, _columns(targets), g)


def _columns(x: torch.Tensor) -> torch.Tensor:
    return x if x.ndim == 2 else x[:, None]


def _any_target(x: torch.Tensor) -> torch.Tensor:
    return x if x.ndim == 1 else x.any(dim=1)
