"""The unembedding, chunk by chunk: no tensor of [tokens, vocabulary] ever exists.

With z = h W^T + s (h A^T) B^T and lp_k = z[target_k] - logsumexp(z), a loss whose derivative by
lp_k is g_k has dL/dz = sum_k g_k (onehot(target_k) - softmax(z)). An elementwise loss knows g as
soon as the chunk's lp is there, so the chunk is differentiated while its logits still exist: one
pass over the vocabulary, nothing recomputed, and the gradient of the unembedding's own adapter
comes out of the same pass. Any other loss goes in two steps: `jacobian` keeps d lp / d h, which is
all that a frozen head needs; with an adapter on the head the chunks are computed again.

At a temperature, z / temperature stands wherever z does: logprobs are those of the distribution
that a sampler draws from at that temperature, and derivatives by z get the factor 1 / temperature.

Shapes: T tokens, K targets per token, H hidden size, V vocabulary, r rank. Targets and logprobs are
[T] or [T, K].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from tinker_cookbook.engine.frozen_linear import FrozenLinear
from tinker_cookbook.engine.lora import (
    UNEMBED,
    Adapter,
    AdapterPlan,
    AdapterSpan,
    PerTokenAdapters,
    add_lora,
)
from tinker_cookbook.engine.losses import LOSSES, Loss


@dataclass(frozen=True)
class HeadGradients:
    loss: torch.Tensor  # fp32 scalar, summed over tokens
    logprobs: torch.Tensor  # fp32 [T] or [T, K]
    hidden: torch.Tensor  # dL/dh [T, H], dtype of h
    adapter: dict[str, torch.Tensor]  # fp32 gradients of the unembedding's A and B, if it has them
    slope: torch.Tensor  # fp32 scalar, dL/dlp summed: finite only if all of them are


class HeadLogprobs:
    """Logprobs of chosen tokens from hidden states, and the gradient of a loss on them."""

    def __init__(self, weight: torch.Tensor, chunk: int, prepack: bool = False) -> None:
        self.weight = weight  # [V, H], frozen
        self.product = FrozenLinear(weight, prepack=prepack)
        self.chunk = chunk

    def logits(
        self, hidden: torch.Tensor, adapter: Adapter | PerTokenAdapters | None
    ) -> torch.Tensor:
        """fp32 [T, V]: only for a few rows at a time. One adapter for all rows, or a stack."""
        plan: AdapterPlan = (
            adapter
            if isinstance(adapter, PerTokenAdapters)
            else [AdapterSpan(adapter, 0, hidden.shape[0])]
        )
        return add_lora(self.product(hidden), hidden, UNEMBED, plan).float()

    def _scaled(
        self, hidden: torch.Tensor, adapter: Adapter | None, temperature: float
    ) -> torch.Tensor:
        """fp32 logits / temperature [T, V]."""
        z = self.logits(hidden, adapter)
        return z if temperature == 1 else z.div_(temperature)

    @torch.no_grad()
    def logprobs(
        self,
        hidden: torch.Tensor,
        targets: torch.Tensor,
        adapter: Adapter | None,
        temperature: float = 1.0,
    ) -> torch.Tensor:
        """log p(target), fp32, shaped like the targets."""
        out = torch.empty(targets.shape, dtype=torch.float32, device=hidden.device)
        for span in self._spans(hidden.shape[0]):
            out[span] = _pick(self._scaled(hidden[span], adapter, temperature), targets[span])[0]
        return out

    @torch.no_grad()
    def top_k(
        self, hidden: torch.Tensor, k: int, adapter: Adapter | None, temperature: float = 1.0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The k most likely tokens and their logprobs, [T, k]."""
        tokens, logprobs = [], []
        for span in self._spans(hidden.shape[0]):
            z = self._scaled(hidden[span], adapter, temperature)
            best = z.topk(k, dim=-1)
            tokens.append(best.indices)
            logprobs.append(best.values - torch.logsumexp(z, dim=-1, keepdim=True))
        return torch.cat(tokens), torch.cat(logprobs)

    @torch.no_grad()
    def backward(
        self,
        hidden: torch.Tensor,
        targets: torch.Tensor,
        inputs: Mapping[str, torch.Tensor],
        loss: Loss,
        adapter: Adapter | None,
        uses: torch.Tensor | None = None,
    ) -> HeadGradients:
        """A loss over N uses of the T rows, with its gradients.

        `uses` [N], ascending: which row each loss token reads (None: every row once). `inputs` and
        the logprobs that come back belong to the uses, at the loss's temperature.
        """
        if not loss.elementwise:
            return self._backward_in_two(hidden, targets, inputs, loss, adapter, uses)
        if uses is None:
            uses = torch.arange(hidden.shape[0], device=hidden.device)
        total = hidden.new_zeros((), dtype=torch.float32)
        steepness = torch.zeros_like(total)
        logprobs = torch.empty(
            len(uses), *targets.shape[1:], dtype=torch.float32, device=hidden.device
        )
        d_hidden = torch.zeros_like(hidden)
        pair = adapter.pair(UNEMBED) if adapter is not None else None
        d_pair = [torch.zeros_like(p, dtype=torch.float32) for p in pair] if pair else []
        for span, used in self._spans_with_uses(uses, hidden.shape[0]):
            z = self._scaled(hidden[span], adapter, loss.temperature)
            lp, lse = _pick(z, targets[span])
            local = uses[used] - span.start
            logprobs[used] = lp[local]
            value, slope = loss.value_and_grad(
                logprobs[used], {key: array[used] for key, array in inputs.items()}
            )
            total += value
            steepness += slope.sum()
            g = torch.zeros_like(lp).index_add_(0, local, slope)
            live = (g if g.ndim == 1 else g.abs().sum(dim=1)).nonzero()[:, 0]
            if len(live) == 0:
                continue
            rows = live + span.start
            if len(live) < len(g):  # masked tokens cost their logprob, no gradient
                z, lse, g = z[live], lse[live], g[live]
            h = hidden[rows]
            dz = _d_logits(z, lse, targets[rows], g / loss.temperature).to(hidden.dtype)
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
        return HeadGradients(total, logprobs, d_hidden, dict(zip(names, d_pair)), steepness)

    def _backward_in_two(
        self,
        hidden: torch.Tensor,
        targets: torch.Tensor,
        inputs: Mapping[str, torch.Tensor],
        loss: Loss,
        adapter: Adapter | None,
        uses: torch.Tensor | None,
    ) -> HeadGradients:
        frozen = adapter is None or adapter.pair(UNEMBED) is None
        jacobian = None
        if frozen and targets.ndim == 1:
            logprobs, jacobian = self.jacobian(hidden, targets, adapter, loss.temperature)
        else:
            logprobs = self.logprobs(hidden, targets, adapter, loss.temperature)
        used = logprobs if uses is None else logprobs[uses]
        value, slope = loss.value_and_grad(used, inputs)
        steepness = slope.sum()
        if uses is not None:
            slope = torch.zeros_like(logprobs).index_add_(0, uses, slope)
        if jacobian is not None:
            d_hidden = jacobian.mul_(slope[:, None].to(jacobian.dtype))
            return HeadGradients(value, used, d_hidden, {}, steepness)
        known = replace(LOSSES["cross_entropy"], temperature=loss.temperature)
        linear = self.backward(hidden, targets, {"weights": -slope}, known, adapter)
        return HeadGradients(value, used, linear.hidden, linear.adapter, steepness)

    @torch.no_grad()
    def jacobian(
        self,
        hidden: torch.Tensor,
        targets: torch.Tensor,
        adapter: Adapter | None,
        temperature: float = 1.0,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logprobs [T] and d lp_t / d h_t [T, H], for a head without an adapter of its own."""
        logprobs = torch.empty(targets.shape, dtype=torch.float32, device=hidden.device)
        out = torch.empty_like(hidden)
        for span in self._spans(hidden.shape[0]):
            z = self._scaled(hidden[span], adapter, temperature)
            logprobs[span], lse = _pick(z, targets[span])
            dz = _d_logits(z, lse, targets[span], torch.full_like(lse, 1 / temperature))
            out[span] = dz.to(hidden.dtype) @ self.weight
        return logprobs, out

    def _spans_with_uses(self, uses: torch.Tensor, length: int) -> list[tuple[slice, slice]]:
        """Chunks of the rows, each with the uses that read it."""
        spans = self._spans(length)
        starts = torch.tensor([s.start for s in spans] + [length], device=uses.device)
        cuts = torch.searchsorted(uses, starts).tolist()
        return [(span, slice(a, b)) for span, a, b in zip(spans, cuts, cuts[1:])]

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
