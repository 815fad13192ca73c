"""Draw tokens from logits: softmax, one cumulative sum and one uniform random number per sequence.

Logprobs are those of the temperature-scaled distribution; top-k and top-p restrict which tokens can
be drawn and do not renormalize them. At temperature 0 decoding is greedy and the logprob is that at
temperature 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from tinker_cookbook.engine.requests import SampleRequest

# The cumulative sum runs over chunks of the vocabulary, then within the one that was hit.
CHUNK = 256  # tokens


@dataclass(frozen=True)
class SampledBatch:
    tokens: torch.Tensor  # int64 [n]
    scaled: torch.Tensor  # fp32 logits / temperature [n, V]
    log_sum: torch.Tensor  # fp32 [n], log of the sum of exp(scaled)
    temperature: torch.Tensor  # fp32 [n], 1 where decoding is greedy

    @property
    def logprobs(self) -> torch.Tensor:
        """Logprobs of the drawn tokens, fp32 [n]."""
        return self.scaled.gather(1, self.tokens[:, None])[:, 0] - self.log_sum


def sample_tokens(
    logits: torch.Tensor,
    requests: Sequence[SampleRequest],
    uniform: torch.Tensor,
    exact_logits: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> SampledBatch:
    """Draw one token per sequence: logits fp32 [n, V], uniform random numbers [n] in [0, 1).

    exact_logits: maps the drawn tokens [n] to their fp32 logits [n], which then replace those in
    `logits`, as the trainer does for its targets.

    Inverts the cumulative distribution at `uniform`. The usual alternative, Gumbel noise and an
    argmax, needs V random numbers per token instead of one.
    """
    n, vocab = logits.shape
    temperature = torch.tensor(
        [r.temperature or 1.0 for r in requests], dtype=torch.float32, device=logits.device
    )
    if any(r.temperature not in (0, 1) for r in requests):
        logits = logits / temperature[:, None]
    largest = logits.amax(dim=1, keepdim=True)
    # Unnormalized probabilities, at most 1 and at least one of them 1, so the sum cannot overflow.
    mass = (logits - largest).exp_()
    # Before truncation: logprobs are those of the full distribution.
    log_sum = mass.sum(dim=1).log() + largest[:, 0]
    truncated = [i for i, r in enumerate(requests) if r.top_k > 0 or r.top_p < 1]
    if truncated:
        mass[truncated] = _truncate(mass[truncated], [requests[i] for i in truncated])
    if vocab % CHUNK:
        mass = F.pad(mass, (0, -vocab % CHUNK))
    chunks = mass.view(n, -1, CHUNK)
    sums = chunks.sum(dim=2).cumsum(dim=1)
    point = uniform[:, None] * sums[:, -1:]
    chunk = torch.searchsorted(sums, point, right=True).clamp_(max=sums.shape[1] - 1)
    before = torch.where(chunk > 0, sums.gather(1, (chunk - 1).clamp_(min=0)), 0.0)
    within = chunks.gather(1, chunk[:, :, None].expand(-1, -1, CHUNK))[:, 0].cumsum(dim=1)
    offset = torch.searchsorted(within, point - before, right=True).clamp_(max=CHUNK - 1)
    tokens = (chunk * CHUNK + offset)[:, 0]
    # Rounding can put the point past the last token with a nonzero probability; take the most
    # likely token then.
    possible = mass.gather(1, tokens[:, None])[:, 0] > 0
    greedy = torch.tensor([r.temperature == 0 for r in requests], device=logits.device)
    use_argmax = greedy | ~possible
    if bool(use_argmax.any()):
        tokens = torch.where(use_argmax, mass.argmax(dim=1), tokens)
    if exact_logits is not None:
        _replace_drawn(logits, log_sum, tokens, exact_logits(tokens) / temperature)
    return SampledBatch(tokens, logits, log_sum, temperature)


def _replace_drawn(
    scaled: torch.Tensor, log_sum: torch.Tensor, tokens: torch.Tensor, exact: torch.Tensor
) -> None:
    """Exchange one scaled logit per sequence, and its term in the sum, in place."""
    index = tokens[:, None]
    before = scaled.gather(1, index)[:, 0]
    share = (before - log_sum).exp()
    # log(sum - exp(before) + exp(exact)), without the cancellation
    log_sum += (share * (exact - before).expm1()).log1p()
    scaled.scatter_(1, index, exact[:, None])


def _truncate(mass: torch.Tensor, requests: Sequence[SampleRequest]) -> torch.Tensor:
    """Zero the tokens that top-k and top-p exclude; the most likely token always stays."""
    ordered, order = mass.sort(dim=-1, descending=True)
    vocab = mass.shape[1]
    top_k = torch.tensor([r.top_k if r.top_k > 0 else vocab for r in requests], device=mass.device)
    top_p = torch.tensor([r.top_p for r in requests], dtype=torch.float32, device=mass.device)
    top_p = top_p[:, None]
    rank = torch.arange(vocab, device=mass.device)
    probs = ordered / ordered.sum(dim=1, keepdim=True)
    # Probability of all more likely tokens: the token that crosses top_p is still included.
    before = F.pad(probs.cumsum(dim=-1)[:, :-1], (1, 0))
    # Rounding can bring the sum to 1 early, which must not exclude tokens if top_p is off.
    keep = (rank[None, :] < top_k[:, None]) & ((before < top_p) | (top_p >= 1))
    keep[:, 0] = True
    return torch.zeros_like(mass).scatter(1, order, ordered * keep)
