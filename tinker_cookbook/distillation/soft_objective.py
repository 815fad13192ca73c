"""Soft targets as an objective of the supervised loop: cross-entropy against a teacher's top k."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import tinker

from tinker_cookbook.distillation.sdft_loss import forward_kl
from tinker_cookbook.distillation.soft_targets import TopK, score_top_k, to_soft_datum
from tinker_cookbook.distillation.teacher import TeacherConfig, connect_teacher
from tinker_cookbook.sequences import as_numpy, from_datum
from tinker_cookbook.supervised.nll_evaluator import NLLEvaluator, forward_logprobs
from tinker_cookbook.supervised.objective import Objective, Outputs, logprobs_of
from tinker_cookbook.training.evaluators import Evaluator, TrainingClientEvaluator

if TYPE_CHECKING:
    from tinker.lib.public_interfaces.api_future import APIFuture

    from tinker_cookbook.service.api import SamplingClient, ServiceClient, TrainingClient
    from tinker_cookbook.tokenizer_utils import Tokenizer


class TopKTeacher:
    """Scores datums with a teacher, which is loaded when it is first needed."""

    def __init__(self, service: ServiceClient, teacher: TeacherConfig, k: int) -> None:
        self._service, self._teacher, self._k = service, teacher, k
        self._client: SamplingClient | None = None

    async def score(self, data: Sequence[tinker.Datum]) -> list[TopK]:
        """The teacher's top k in place of the target tokens of each datum."""
        if self._client is None:
            self._client = await connect_teacher(self._service, self._teacher)
        sequences = [from_datum(datum).tokens.tolist() for datum in data]
        return await score_top_k(self._client, sequences, self._k)


class SoftTargetObjective(Objective):
    """The weighted sum of -sum_k q_k log s_k over the positions of a batch: s is the student, q the
    teacher's k most probable tokens, renormalized."""

    def __init__(self, teacher: TopKTeacher, tokenizer: Tokenizer) -> None:
        self._teacher, self._tokenizer = teacher, tokenizer
        # the scores of the submitted steps, which finish in the order of their submission
        self._in_flight: deque[list[TopK]] = deque()

    async def submit(
        self, client: TrainingClient, batch: list[tinker.Datum]
    ) -> Sequence[APIFuture[tinker.ForwardBackwardOutput]]:
        best = await self._teacher.score(batch)
        self._in_flight.append(best)
        return [client.forward_backward(soft_datums(batch, best), "cross_entropy")]

    def metrics(self, batch: Sequence[tinker.Datum], outputs: Outputs) -> dict[str, float]:
        """`num_loss_tokens` counts trained tokens, whatever their weight; others: see
        `soft_target_metrics`."""
        weights = [as_numpy(datum.loss_fn_inputs["weights"]) for datum in batch]
        return {
            "num_loss_tokens": sum(int(np.count_nonzero(each)) for each in weights),
            **soft_target_metrics(batch, self._in_flight.popleft(), logprobs_of(outputs)),
        }

    def evaluators(self, test: list[tinker.Datum]) -> list[Evaluator]:
        hard = NLLEvaluator(test, tokenizer=self._tokenizer)
        return [hard, SoftTargetEvaluator(self._teacher, test)]


class SoftTargetEvaluator(TrainingClientEvaluator):
    """`test/...`: the metrics of `soft_target_metrics` on held-out datums. The teacher scores them
    once; the scores stay in memory."""

    def __init__(self, teacher: TopKTeacher, data: list[tinker.Datum]) -> None:
        self._teacher, self._data = teacher, data
        self._best: list[TopK] | None = None

    async def __call__(self, client: TrainingClient, /) -> dict[str, float]:
        if self._best is None:
            self._best = await self._teacher.score(self._data)
        logprobs = await forward_logprobs(client, soft_datums(self._data, self._best))
        metrics = soft_target_metrics(self._data, self._best, logprobs)
        return {f"test/{name}": value for name, value in metrics.items()}


def soft_datums(data: Sequence[tinker.Datum], best: Sequence[TopK]) -> list[tinker.Datum]:
    return [to_soft_datum(datum, each) for datum, each in zip(data, best, strict=True)]


def soft_target_metrics(
    data: Sequence[tinker.Datum], best: Sequence[TopK], logprobs: Sequence[np.ndarray]
) -> dict[str, float]:
    """Means over the positions of all datums, weighted by their weights.

    forward_kl: KL(q || s) in nats. soft_cross_entropy: -sum_k q_k log s_k, in nats: forward_kl plus
    the entropy of q. left_out_mass: the teacher's probability of the tokens outside its top k.

    data: as before `to_soft_datum`. logprobs: log s of the teacher's top k, [N, K] for each datum.
    """
    totals, total_weight = np.zeros(3), 0.0
    for datum, each, log_s in zip(data, best, logprobs, strict=True):
        all_weights = as_numpy(datum.loss_fn_inputs["weights"])
        trained = all_weights != 0
        weights, top = all_weights[trained], each[trained]
        kl = forward_kl(top, log_s[trained])
        entropy = -(top.probabilities * top.log_probabilities).sum(axis=1)
        totals += [weights @ kl, weights @ (kl + entropy), weights @ top.left_out]
        total_weight += weights.sum()
    names = ("forward_kl", "soft_cross_entropy", "left_out_mass")
    return dict(zip(names, (totals / total_weight).tolist()))
