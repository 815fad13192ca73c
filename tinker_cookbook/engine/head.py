"""The unembedding, chunk by chunk: no tensor of [tokens, vocabulary] ever exists.

With z = h W^T + s (h A^T) B^T and lp = z[target] - logsumexp(z), a loss whose derivative by lp is g
has dL/dz = g (onehot(target) - softmax(z)). An elementwise loss knows g as soon as the chunk's lp
is there, so the chunk is differentiated while its logits still exist: one pass over the vocabulary,
nothing recomputed, and the gradient of the unembedding's own adapter comes out of the same pass.

Shapes: T tokens, H hidden size, V vocabulary, r rank.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from tinker_cookbook.engine.lora import UNEMBED, Adapter, AdapterRows, add_lora
from tinker_cookbook.engine.losses import Loss


@dataclass(frozen=True)
class HeadGradients:
    loss: torch.Tensor  # fp32 scalar, summed over tokens
    logprobs: torch.Tensor  # fp32 [T]
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
        """log p(target) at temperature 1, fp32 [T]."""
        out = torch.empty(hidden.shape[0], dtype=torch.float32, device=hidden.device)
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
        """An elementwise loss over all tokens, with its gradients."""
        total = hidden.new_zeros((), dtype=torch.float32)
        logprobs = torch.empty(hidden.shape[0], dtype=torch.float32, device=hidden.device)
        d_hidden = torch.empty_like(hidden)
        pair = adapter.pair(UNEMBED) if adapter is not None else None
        d_pair = [torch.zeros_like(p, dtype=torch.float32) for p in pair] if pair else []
        for span in self._spans(hidden.shape[0]):
            h, target = hidden[span], targets[span]
            z = self.logits(h, adapter)
            logprobs[span], lse = _pick(z, target)
            value, g = loss.value_and_grad(
                logprobs[span], {key: array[span] for key, array in inputs.items()}
            )
            total += value
            # dL/dz, written over the logits
            z.sub_(lse[:, None]).exp_().neg_()
            z.scatter_add_(1, target[:, None], torch.ones_like(lse)[:, None])
            dz = z.mul_(g[:, None]).to(hidden.dtype)
            d_hidden[span] = dz @ self.weight
            if pair and adapter is not None:
                a, b = pair
                scale = adapter.spec.scale
                d_low = (dz @ b) * scale  # [t, r]
                d_hidden[span] += d_low @ a
                d_pair[0] += d_low.t() @ h
                d_pair[1] += dz.t() @ (F.linear(h, a) * scale)
        names = (f"{UNEMBED}.lora_A", f"{UNEMBED}.lora_B")
        return HeadGradients(total, logprobs, d_hidden, dict(zip(names, d_pair)))

    def _spans(self, length: int) -> list[slice]:
        return [slice(i, min(i + self.chunk, length)) for i in range(0, length, self.chunk)]


def _pick(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(log p(target), logsumexp), both fp32 [T]."""
    lse = torch.logsumexp(logits, dim=-1)
    return logits.gather(1, targets[:, None])[:, 0] - lse, lse
