"""Soft targets: a teacher's k most probable tokens at each position, for cross-entropy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import tinker

from tinker_cookbook.exceptions import ConfigurationError, TrainingError
from tinker_cookbook.sequences import as_numpy
from tinker_cookbook.service.api import SamplingClient
from tinker_cookbook.tokenizer_utils import get_tokenizer


@dataclass(frozen=True, eq=False)
class TopK:
    """A teacher's k most probable next tokens at each of N positions.

    tokens: [N, K]. logprobs: float32 [N, K], under its full distribution at temperature 1, in
    descending order.
    """

    tokens: np.ndarray
    logprobs: np.ndarray

    @property
    def left_out(self) -> np.ndarray:
        """The teacher's probability of all other tokens, float64 [N]."""
        return np.maximum(1.0 - np.exp(self.logprobs, dtype=np.float64).sum(axis=1), 0.0)

    @property
    def log_probabilities(self) -> np.ndarray:
        """log q, float64 [N, K], see `probabilities`."""
        logprobs = self.logprobs.astype(np.float64)
        top = logprobs.max(axis=1, keepdims=True)
        return logprobs - top - np.log(np.exp(logprobs - top).sum(axis=1, keepdims=True))

    @property
    def probabilities(self) -> np.ndarray:
        """q: the probabilities of the k tokens, renormalized to sum 1, float64 [N, K].

        Cross-entropy against q instead of the teacher's full p has the gradient s - q instead of
        s - p with respect to the student's logits. They differ by sum |p - q| = 2 * left_out at
        each position, and the loss is lowest where s = q, without the left-out tokens.
        """
        return np.exp(self.log_probabilities)

    def __getitem__(self, positions: slice | np.ndarray) -> TopK:
        return TopK(self.tokens[positions], self.logprobs[positions])


def check_topk(topk: int, model_name: str) -> None:
    """Raise ConfigurationError for more tokens than the vocabulary has."""
    size = len(get_tokenizer(model_name))
    if topk > size:
        raise ConfigurationError(
            f"topk={topk}: {model_name} has {size} tokens; set topk={size} or less"
        )


async def score_top_k(
    client: SamplingClient, sequences: Sequence[Sequence[int]], k: int
) -> list[TopK]:
    """The k most probable tokens in place of all tokens but the first, for sequences of N + 1
    tokens: aligned with the target tokens of their datums.

    Raises TrainingError if the service returns no such probabilities.
    """
    params = tinker.SamplingParams(max_tokens=1, temperature=1.0)
    # all submitted before the first is awaited, so that the engine can pack them together
    futures = [
        client.sample(
            tinker.ModelInput.from_ints(list(tokens)),
            1,
            params,
            include_prompt_logprobs=True,
            topk_prompt_logprobs=k,
        )
        for tokens in sequences
    ]
    return [_top_k_of(await future) for future in futures]


def _top_k_of(response: tinker.SampleResponse) -> TopK:
    best = response.topk_prompt_logprobs_np
    if best is None:
        raise TrainingError("the teacher's service returned no topk_prompt_logprobs")
    # the first token of a sequence has no context, and so no distribution
    return TopK(best.token_ids[1:], best.logprobs[1:])


def to_soft_datum(datum: tinker.Datum, best: TopK) -> tinker.Datum:
    """The datum with the teacher's probabilities in place of its target tokens.

    `target_tokens` and `weights` become [N, K]: weight w_t of a position times its probabilities q.
    """
    position_weights = as_numpy(datum.loss_fn_inputs["weights"])[:, None]  # [N, 1]
    weights = position_weights * best.probabilities
    # Equal targets at untrained positions: the engine computes a shared prompt's logprobs once for
    # each distinct target, and the teacher's ranking of unlikely tokens may depend on the batch.
    tokens = np.where(position_weights != 0, best.tokens, 0)
    return tinker.Datum(
        model_input=datum.model_input,
        loss_fn_inputs={
            "target_tokens": tinker.TensorData.from_numpy(tokens.astype(np.int64)),
            "weights": tinker.TensorData.from_numpy(weights.astype(np.float32)),
        },
    )
