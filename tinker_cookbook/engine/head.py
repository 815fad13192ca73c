"""Unembedding and log-softmax, fused chunk by chunk: no [tokens, vocabulary] tensor ever exists.

Logits z = h W^T + s (h A^T) B^T, logprobs lp_k = z[target_k] - logsumexp(z). With g_k = dL/dlp_k:

    dL/dz = sum_k g_k (onehot(target_k) - softmax(z))
    dL/dh = dL/dz W + s (dL/dz B) A

An elementwise loss gives g as soon as the chunk's lp is known, so the chunk is differentiated while
its logits still exist: one pass over the vocabulary, nothing recomputed, and the gradient of the
unembedding's own adapter comes out of the same pass. For any other loss, g depends on logprobs of
other chunks, so it takes two steps: `jacobian` saves dlp/dh [T, H], which is all that a frozen head
needs; if the head has an adapter, the chunks are computed a second time.

At a temperature, z / temperature replaces z everywhere: logprobs are those of the distribution that
a sampler draws from, and derivatives with respect to z get the factor 1 / temperature.

Above 16, bf16 logits are 0.125 or more apart: with a bf16 base, the logits of the targets and of
the most likely tokens (as ranked in bf16) are computed again in fp32, from the same weights. The
rest of the log-sum-exp stays in bf16; values, gradients and draws all use the result. Hidden states
may be fp32 (`residual.py`): the recomputed logits use them as they are, all other products a bf16
copy.

Shapes: T tokens, K targets per token, H hidden size, V vocabulary, r rank, N loss tokens. Targets
and logprobs are [T] or [T, K]. If several loss tokens read the same hidden state (sequences with a
shared prefix), `index` [N], ascending, gives the one that each of them reads, and loss inputs are
[N] or [N, K].
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

EXACT_LOGITS = 32  # most likely tokens per position that get an fp32 logit with a bf16 base
GATHERED_BYTES = 64 * 2**20  # of the fp32 rows of W that are gathered at once


@dataclass(frozen=True)
class HeadGradients:
    """A loss and its gradients up to the hidden states."""

    loss: torch.Tensor  # fp32 scalar, summed over tokens
    logprobs: torch.Tensor  # fp32 [N] or [N, K]
    hidden: torch.Tensor  # dL/dh [T, H], dtype of h
    adapter: dict[str, torch.Tensor]  # fp32 gradients of the unembedding's A and B, if it has them
    grad_sum: torch.Tensor  # fp32 scalar, sum of dL/dlp: finite only if all derivatives are


class HeadLogprobs:
    """Logprobs of chosen tokens from hidden states, and the gradient of a loss on them.

    num_exact: how many of the most likely tokens get an fp32 logit. None: EXACT_LOGITS; 0: none,
    the targets neither. An fp32 weight needs none.
    """

    def __init__(
        self,
        weight: torch.Tensor,
        chunk: int,
        prepack: bool = False,
        num_exact: int | None = None,
    ) -> None:
        self.weight = weight  # [V, H], frozen
        self.product = FrozenLinear(weight, prepack=prepack)
        self.chunk = chunk
        self.num_exact = EXACT_LOGITS if num_exact is None else num_exact
        if weight.dtype == torch.float32:
            self.num_exact = 0

    @property
    def chunk_bytes(self) -> int:
        """Bytes in use while the logprobs of a chunk and their derivatives are computed: the fp32
        logits, one fp32 or two bf16 copies of them, and gathered rows.
        """
        gathered = GATHERED_BYTES + GATHERED_BYTES // 2 if self.num_exact else 0
        return 8 * self.chunk * self.weight.shape[0] + gathered

    def logits(
        self,
        hidden: torch.Tensor,
        adapter: Adapter | PerTokenAdapters | None,
        targets: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """fp32 [T, V], for a few tokens at a time. One adapter for all tokens, or a stack.

        With a bf16 base, those of the targets and the most likely tokens are computed in fp32.
        """
        plan: AdapterPlan = (
            adapter
            if isinstance(adapter, PerTokenAdapters)
            else [AdapterSpan(adapter, 0, hidden.shape[0])]
        )
        rounded = hidden.to(self.weight.dtype)
        z = add_lora(self.product(rounded), rounded, UNEMBED, plan).float()
        if not self.num_exact:
            return z
        tokens = z.topk(min(self.num_exact, z.shape[1]), dim=-1).indices
        if targets is not None:
            tokens = torch.cat([tokens, _as_columns(targets)], dim=1)
        # a target among the most likely tokens is written twice, with the same value
        return z.scatter_(1, tokens, self.exact_logits(hidden, tokens, adapter))

    def exact_logits(
        self,
        hidden: torch.Tensor,
        tokens: torch.Tensor,
        adapter: Adapter | PerTokenAdapters | None,
    ) -> torch.Tensor:
        """Logits of the tokens [T, n], from the same weights with fp32 products and sums."""
        h = hidden.float()
        z = _row_products(self.weight, tokens, h)
        if isinstance(adapter, PerTokenAdapters):
            stacked = adapter.stack.pair(UNEMBED)
            if stacked is None:
                return z
            # `stacked.scales` are rounded to bf16
            scales = torch.tensor(
                [a.spec.scale for a in adapter.stack.adapters], dtype=torch.float32, device=h.device
            )
            own = adapter.owners[:, None] == stacked.owners[None, :]  # [T, R]
            low = F.linear(h, stacked.down.float()) * (own * scales[stacked.owners])
            return z.add_(_row_products(stacked.up, tokens, low))
        pair = adapter.pair(UNEMBED) if adapter is not None else None
        if pair is None or adapter is None:
            return z
        a, b = pair
        low = F.linear(h, a.float()) * adapter.spec.scale
        return z.add_(_row_products(b, tokens, low))

    def _scaled_logits(
        self,
        hidden: torch.Tensor,
        adapter: Adapter | None,
        temperature: float,
        targets: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """fp32 logits / temperature [T, V]."""
        z = self.logits(hidden, adapter, targets)
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
        for span in self._chunks(hidden.shape[0]):
            z = self._scaled_logits(hidden[span], adapter, temperature, targets[span])
            out[span] = _target_logprobs(z, targets[span])[0]
        return out

    @torch.no_grad()
    def top_k(
        self, hidden: torch.Tensor, k: int, adapter: Adapter | None, temperature: float = 1.0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The k most likely tokens and their logprobs, [T, k]."""
        tokens, logprobs = [], []
        for span in self._chunks(hidden.shape[0]):
            h = hidden[span]
            z = self._scaled_logits(h, adapter, temperature)
            likely, values = self.most_likely(z, k, h, adapter, temperature)
            tokens.append(likely)
            logprobs.append(values - torch.logsumexp(z, dim=-1, keepdim=True))
        return torch.cat(tokens), torch.cat(logprobs)

    def most_likely(
        self,
        scaled: torch.Tensor,
        k: int,
        hidden: torch.Tensor,
        adapter: Adapter | PerTokenAdapters | None,
        temperature: float | torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The k most likely tokens and their logits / temperature, [T, k], in descending order.

        scaled: all logits / temperature [T, V]. temperature: a number, or [T, 1].
        """
        best = scaled.topk(k, dim=-1)
        if not self.num_exact:
            return best.indices, best.values
        # k may exceed num_exact, and the last ones may be others, which bf16 rounded up
        exact = self.exact_logits(hidden, best.indices, adapter) / temperature
        values, order = exact.sort(dim=-1, descending=True)
        return best.indices.gather(1, order), values

    @torch.no_grad()
    def backward(
        self,
        hidden: torch.Tensor,
        targets: torch.Tensor,
        inputs: Mapping[str, torch.Tensor],
        loss: Loss,
        adapter: Adapter | None,
        index: torch.Tensor | None = None,
    ) -> HeadGradients:
        """A loss over N tokens that read the T hidden states, with its gradients.

        Logprobs are at the loss's temperature. index None: each hidden state is read once.
        """
        if not loss.elementwise:
            return self._backward_two_steps(hidden, targets, inputs, loss, adapter, index)
        if index is None:
            index = torch.arange(hidden.shape[0], device=hidden.device)
        total = hidden.new_zeros((), dtype=torch.float32)
        grad_sum = torch.zeros_like(total)
        logprobs = torch.empty(
            len(index), *targets.shape[1:], dtype=torch.float32, device=hidden.device
        )
        d_hidden = torch.zeros_like(hidden)
        pair = adapter.pair(UNEMBED) if adapter is not None else None
        # fp32, because every chunk adds to it
        d_pair = [torch.zeros_like(p, dtype=torch.float32) for p in pair] if pair else []
        for span, readers in self._chunks_with_readers(index, hidden.shape[0]):
            z = self._scaled_logits(hidden[span], adapter, loss.temperature, targets[span])
            lp, lse = _target_logprobs(z, targets[span])
            local = index[readers] - span.start
            logprobs[readers] = lp[local]
            value, d_logprobs = loss.value_and_grad(
                logprobs[readers], {key: array[readers] for key, array in inputs.items()}
            )
            total += value
            grad_sum += d_logprobs.sum()
            # tokens that read the same hidden state and target add their derivatives
            g = torch.zeros_like(lp).index_add_(0, local, d_logprobs)
            # masked tokens have g = 0: they need a logprob, but none of the products below
            live = (g if g.ndim == 1 else g.abs().sum(dim=1)).nonzero()[:, 0]
            if len(live) == 0:
                continue
            tokens = live + span.start
            if len(live) < len(g):
                z, lse, g = z[live], lse[live], g[live]
            h = hidden[tokens].to(self.weight.dtype)
            # overwrites z, so nothing may read the logits from here on
            dz = _logits_grad(z, lse, targets[tokens], g / loss.temperature).to(h.dtype)
            d_h = dz @ self.weight
            if pair and adapter is not None:
                a, b = pair
                scale = adapter.spec.scale
                d_low = (dz @ b) * scale  # [t, r]
                d_h += d_low @ a
                d_pair[0] += d_low.t() @ h
                d_pair[1] += dz.t() @ (F.linear(h, a) * scale)
            d_hidden[tokens] = d_h.to(d_hidden.dtype)
        names = (f"{UNEMBED}.lora_A", f"{UNEMBED}.lora_B")
        return HeadGradients(total, logprobs, d_hidden, dict(zip(names, d_pair)), grad_sum)

    def _backward_two_steps(
        self,
        hidden: torch.Tensor,
        targets: torch.Tensor,
        inputs: Mapping[str, torch.Tensor],
        loss: Loss,
        adapter: Adapter | None,
        index: torch.Tensor | None,
    ) -> HeadGradients:
        """First all logprobs, then the loss on all of them, then the hidden states' gradients."""
        frozen = adapter is None or adapter.pair(UNEMBED) is None
        jacobian = None
        # with K targets per token, the Jacobian would be [T, K, H]
        if frozen and targets.ndim == 1:
            logprobs, jacobian = self.jacobian(hidden, targets, adapter, loss.temperature)
        else:
            logprobs = self.logprobs(hidden, targets, adapter, loss.temperature)
        loss_logprobs = logprobs if index is None else logprobs[index]
        value, d_logprobs = loss.value_and_grad(loss_logprobs, inputs)
        grad_sum = d_logprobs.sum()
        if index is not None:
            d_logprobs = torch.zeros_like(logprobs).index_add_(0, index, d_logprobs)
        if jacobian is not None:
            d_hidden = jacobian.mul_(d_logprobs[:, None].to(jacobian.dtype))
            return HeadGradients(value, loss_logprobs, d_hidden, {}, grad_sum)
        # cross_entropy with weights -dL/dlp is linear in lp and has exactly this loss's gradient
        linear_loss = replace(LOSSES["cross_entropy"], temperature=loss.temperature)
        linear = self.backward(hidden, targets, {"weights": -d_logprobs}, linear_loss, adapter)
        return HeadGradients(value, loss_logprobs, linear.hidden, linear.adapter, grad_sum)

    @torch.no_grad()
    def jacobian(
        self,
        hidden: torch.Tensor,
        targets: torch.Tensor,
        adapter: Adapter | None,
        temperature: float = 1.0,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logprobs [T] and dlp_t/dh_t [T, H], for a head without an adapter of its own."""
        logprobs = torch.empty(targets.shape, dtype=torch.float32, device=hidden.device)
        out = torch.empty_like(hidden)
        for span in self._chunks(hidden.shape[0]):
            z = self._scaled_logits(hidden[span], adapter, temperature, targets[span])
            logprobs[span], lse = _target_logprobs(z, targets[span])
            dz = _logits_grad(z, lse, targets[span], torch.full_like(lse, 1 / temperature))
            out[span] = dz.to(self.weight.dtype) @ self.weight
        return logprobs, out

    def _chunks_with_readers(self, index: torch.Tensor, length: int) -> list[tuple[slice, slice]]:
        """Chunks of the T hidden states, each with the slice of the N tokens that read them.

        It is one slice because `index` is ascending.
        """
        spans = self._chunks(length)
        starts = torch.tensor([s.start for s in spans] + [length], device=index.device)
        cuts = torch.searchsorted(index, starts).tolist()  # one device sync for all chunks
        return [(span, slice(a, b)) for span, a, b in zip(spans, cuts, cuts[1:])]

    def _chunks(self, length: int) -> list[slice]:
        return [slice(i, min(i + self.chunk, length)) for i in range(0, length, self.chunk)]


def _target_logprobs(
    logits: torch.Tensor, targets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(log p(target) shaped like the targets, logsumexp [T]), both fp32."""
    lse = torch.logsumexp(logits, dim=-1)
    picked = logits.gather(1, _as_columns(targets)) - lse[:, None]
    return picked.view(targets.shape), lse


def _row_products(weight: torch.Tensor, rows: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """x_t . weight[rows[t, j]] for rows [T, n] and fp32 x [T, in]: fp32 [T, n].

    Elementwise products and a sum over each row, not a batched GEMM: on a CPU it is faster, and its
    bits do not depend on the other tokens.
    """
    out = torch.empty(rows.shape, dtype=torch.float32, device=x.device)
    step = max(GATHERED_BYTES // (4 * rows.shape[1] * x.shape[1]), 1)
    for part in (slice(i, i + step) for i in range(0, len(rows), step)):
        gathered = F.embedding(rows[part], weight).float()
        out[part] = gathered.mul_(x[part, None]).sum(dim=-1)
    return out


def _logits_grad(
    z: torch.Tensor, lse: torch.Tensor, targets: torch.Tensor, g: torch.Tensor
) -> torch.Tensor:
    """dL/dz [T, V] = sum_k g_k (onehot(target_k) - softmax(z)), written over the logits."""
    g = _as_columns(g)
    # in place: at [T, V], every temporary costs as much as the logits themselves
    z.sub_(lse[:, None]).exp_().mul_(-g.sum(dim=1, keepdim=True))
    return z.scatter_add_(1, _as_columns(targets), g)


def _as_columns(x: torch.Tensor) -> torch.Tensor:
    return x if x.ndim == 2 else x[:, None]
