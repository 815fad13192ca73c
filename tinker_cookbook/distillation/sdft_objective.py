"""The objective of self-distillation from demonstrations, for the supervised loop."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import tinker
import torch

from tinker_cookbook.distillation.sdft_batch import (
    SamplingSettings,
    ScoredCompletion,
    read_questions,
    sample_completions,
    score_completions,
)
from tinker_cookbook.distillation.sdft_loss import forward_kl, reverse_kl
from tinker_cookbook.supervised.nll_evaluator import NLLEvaluator
from tinker_cookbook.supervised.objective import Objective, Outputs, logprobs_of
from tinker_cookbook.supervised.passes import split_into_passes

if TYPE_CHECKING:
    from tinker.lib.public_interfaces.api_future import APIFuture

    from tinker_cookbook.distillation.sdft_teacher import SelfTeacher
    from tinker_cookbook.service.api import TrainingClient
    from tinker_cookbook.tokenizer_utils import Tokenizer
    from tinker_cookbook.training.evaluators import Evaluator


@dataclass(frozen=True)
class DistillationSettings:
    """topk: tokens of the teacher at each position. skip_first_tokens: untrained tokens at the
    beginning of a completion. reverse: the reverse KL divergence instead of the forward one."""

    topk: int
    skip_first_tokens: int
    reverse: bool


class SelfDistillation(Objective):
    """The KL divergence to the model's own predictions given a demonstration, on completions that
    the student samples without it: the mean over a completion's trained tokens, summed over the
    completions of a batch.

    Batches are [student example, teacher example, ...], see `read_questions`. Truncated completions
    are trained like all others; completions of at most `skip_first_tokens` tokens have no loss.

    start_step: the step of the first call of `submit`, which is called once for each step in order.
    """

    def __init__(
        self,
        settings: DistillationSettings,
        sampling: SamplingSettings,
        teacher: SelfTeacher,
        tokenizer: Tokenizer,
        *,
        start_step: int = 0,
        tokens_per_pass: int | None = None,
    ) -> None:
        self._settings, self._sampling, self._teacher = settings, sampling, teacher
        self._tokenizer, self._tokens_per_pass = tokenizer, tokens_per_pass
        self._steps = itertools.count(start_step)
        # the loop submits ahead: the steps whose metrics it has not asked for yet, in order
        self._in_flight: deque[list[ScoredCompletion]] = deque()

    async def submit(
        self, client: TrainingClient, batch: list[tinker.Datum]
    ) -> Sequence[APIFuture[tinker.ForwardBackwardOutput]]:
        step, settings = next(self._steps), self._settings
        questions = read_questions(batch)
        # queued behind the optimizer step before this one: exactly on-policy
        student = await client.save_weights_and_get_sampling_client()
        teacher = await self._teacher.at(step, client, student)
        completions = await sample_completions(student, questions, self._sampling, step)
        scored = await score_completions(
            teacher, completions, settings.topk, settings.skip_first_tokens
        )
        self._in_flight.append(scored)
        data = [each.datum for each in scored]
        if not settings.reverse:
            return [client.forward_backward(data, "cross_entropy")]
        start, futures = 0, []
        for part in split_into_passes(data, self._tokens_per_pass):
            loss = partial(_reverse_loss, scored[start : start + len(part)])
            futures.append(client.forward_backward_custom(part, loss))
            start += len(part)
        return futures

    def metrics(self, batch: Sequence[tinker.Datum], outputs: Outputs) -> dict[str, float]:
        """The divergence and the teacher's probability outside its k tokens are means over trained
        tokens, before the update; completion_tokens over completions. num_sequences, num_tokens and
        num_loss_tokens are those of the completions with their prompts."""
        scored = self._in_flight.popleft()
        values, left_out = [], []
        for each, logprobs in zip(scored, logprobs_of(outputs), strict=True):
            values.append(self._divergence(each, logprobs[each.positions]))
            left_out.append(each.teacher.left_out)
        trained = np.concatenate(values)
        completions = [each.completion for each in scored]
        metrics = {
            "num_sequences": len(scored),
            "num_tokens": sum(each.datum.model_input.length for each in scored),
            "num_loss_tokens": len(trained),
            "sdft/completion_tokens": float(np.mean([len(c.tokens) for c in completions])),
            "sdft/truncated": float(np.mean([c.truncated for c in completions])),
        }
        if len(trained):
            name = "reverse_kl" if self._settings.reverse else "forward_kl"
            metrics[f"sdft/{name}"] = float(trained.mean())
            metrics["sdft/left_out_mass"] = float(np.concatenate(left_out).mean())
        return metrics

    def _divergence(self, scored: ScoredCompletion, student: np.ndarray) -> np.ndarray:
        if self._settings.reverse:
            return reverse_kl(scored.teacher, torch.from_numpy(student)).numpy()
        return forward_kl(scored.teacher, student)

    def evaluators(self, test: list[tinker.Datum]) -> list[Evaluator]:
        """The NLL of the demonstrations, given the question alone."""
        read_questions(test)
        return [NLLEvaluator(test[::2], tokenizer=self._tokenizer)]

    def target_replies(self, batch: Sequence[tinker.Datum]) -> Sequence[tinker.Datum]:
        return batch[::2]


def _reverse_loss(
    scored: Sequence[ScoredCompletion], data: list[tinker.Datum], logprobs: list[torch.Tensor]
) -> tuple[torch.Tensor, dict[str, float]]:
    """The sum over completions of the mean over their trained tokens. logprobs: [N, K] each."""
    losses = []
    for each, values in zip(scored, logprobs, strict=True):
        positions = torch.from_numpy(each.positions).to(values.device)
        divergence = reverse_kl(each.teacher, values[positions].double())
        losses.append(divergence.sum() / max(len(positions), 1))
    return torch.stack(losses).sum(), {}
