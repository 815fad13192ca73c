"""From logits to tokens: softmax, one cumulative sum, one random number per row.

Logprobs are those of the temperature-scaled distribution; top-k and top-p cut what may be drawn and
do not renormalise them. At temperature 0 the most likely token is taken and its logprob is that at
temperature 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from tinker_cookbook.engine.requests import SampleRequest

STRETCH = 256  # the vocabulary is summed in stretches of so many tokens, then one is searched


@dataclass(frozen=True)
class SampledBatch:
    tokens: torch.Tensor  # int64 [n]
    scaled: torch.Tensor  # fp32 logits / temperature [n, V]
    log_sum: torch.Tensor  # fp32 [n], log of the sum of exp(scaled)

    @property
    def logprobs(self) -> torch.Tensor:
        """Of the drawn tokens, fp32 [n]."""
        return self.scaled.gather(1, self.tokens[:, None])[:, 0] - self.log_sum


def sample_tokens(
    logits: torch.Tensor, requests: Sequence[SampleRequest], uniform: torch.Tensor
) -> SampledBatch:
    """One token per row: logits fp32 [n, V], uniform numbers [n] in [0, 1).

    By inversion of the cumulative distribution, stretch by stretch and then within one.
    """
    n, vocab = logits.shape
    if any(r.temperature not in (0, 1) for r in requests):
        scale = torch.tensor([r.temperature or 1.0 for r in requests], device=logits.device)
        logits = logits / scale[:, None]
    largest = logits.amax(dim=1, keepdim=True)
    mass = (logits - largest).exp_()  # unnormalised: at most 1, at least one of them is 1
    log_sum = mass.sum(dim=1).log() + largest[:, 0]
    cut = [i for i, r in enumerate(requests) if r.top_k > 0 or r.top_p < 1]
    if cut:
        mass[cut] = _truncate(mass[cut], [requests[i] for i in cut])
    if vocab % STRETCH:
        mass = F.pad(mass, (0, -vocab % STRETCH))
    stretches = mass.view(n, -1, STRETCH)
    sums = stretches.sum(dim=2).cumsum(dim=1)
    point = uniform[:, None] * sums[:, -1:]
    chosen = torch.searchsorted(sums, point, right=True).clamp_(max=sums.shape[1] - 1)
    before = torch.where(chosen > 0, sums.gather(1, (chosen - 1).clamp_(min=0)), 0.0)
    within = stretches.gather(1, chosen[:, :, None].expand(-1, -1, STRETCH))[:, 0].cumsum(dim=1)
    place = torch.searchsorted(within, point - before, right=True).clamp_(max=STRETCH - 1)
    tokens = (chosen * STRETCH + place)[:, 0]
    # rounding can point behind the last token that has any probability
    drawn = mass.gather(1, tokens[:, None])[:, 0] > 0
    greedy = torch.tensor([r.temperature == 0 for r in requests], device=logits.device)
    likeliest = greedy | ~drawn
    if bool(likeliest.any()):
        tokens = torch.where(likeliest, mass.argmax(dim=1), tokens)
    return SampledBatch(tokens, logits, log_sum)


def _truncate(mass: torch.Tensor, requests: Sequence[SampleRequest]) -> torch.Tensor:
    """Zero what top-k and top-p exclude. The most likely token always stays."""
    ordered, order = mass.sort(dim=-1, descending=True)
    vocab = mass.shape[1]
    top_k = torch.tensor([r.top_k if r.top_k > 0 else vocab for r in requests], device=mass.device)
    top_p = torch.tensor([r.top_p for r in requests], device=mass.device)[:, None]
    rank = torch.arange(vocab, device=mass.device)
    probs = ordered / ordered.sum(dim=1, keepdim=True)
    before = F.pad(probs.cumsum(dim=-1)[:, :-1], (1, 0))  # probability of everything more likely
    keep = (rank[None, :] < top_k[:, None]) & ((before < top_p) | (top_p >= 1))
    keep[:, 0] = True
    return torch.zeros_like(mass).scatter(1, order, ordered * keep)
