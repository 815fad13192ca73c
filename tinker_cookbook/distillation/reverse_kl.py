"""On-policy distillation: the reverse KL divergence to a teacher as the advantage of each token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from tinker_cookbook.distillation.datasets import dataset_of
from tinker_cookbook.rl.signals import ModelSignal, add_to_trained, kl_advantages
from tinker_cookbook.rl.trajectories import TrainingGroup

if TYPE_CHECKING:
    from tinker_cookbook.service.api import SamplingClient


class ReverseKL(ModelSignal):
    """A_t += -coef * d_t, with d_t = log p_student(x_t) - log p_teacher(x_t) of the sampled tokens.

    With the loss importance_sampling this is the gradient of coef * KL(student || teacher) at each
    token, its prefix given, estimated from the sampled token: E[d_t grad log p_student(x_t)].
    With discount > 0 a token is also credited with later ones: its term becomes the sum over s >= t
    of discount^(s - t) * -coef * d_s.

    Unlike the KL penalty `ReferenceKL` it is not centred: the divergence is the objective here, and
    its mean falls to 0 (Agarwal et al. 2023, arXiv 2306.13649; Lu 2025,
    https://thinkingmachines.ai/blog/on-policy-distillation/).
    """

    def __init__(
        self,
        teachers: Sequence[SamplingClient],
        coef: float = 1.0,
        discount: float = 0.0,
        timeout: float = 1800.0,
        temperature: float = 1.0,
    ) -> None:
        """teachers: one for all groups, or one per data set of a `CompositeDataset`."""
        super().__init__(teachers[0], coef, discount, timeout, temperature)
        self._teachers = list(teachers)
        # The mean of a data set in a chunk would be weighted by the tokens of all data sets.
        self.needs_batch = len(self._teachers) > 1

    def client_for(self, group: TrainingGroup) -> SamplingClient:
        return self._teachers[self._number(group)]

    def _number(self, group: TrainingGroup) -> int:
        return dataset_of(group.builder) if len(self._teachers) > 1 else 0

    def add(self, groups: Sequence[TrainingGroup]) -> dict[str, float]:
        """Add the divergence to the advantages. Metric `teacher_kl`: mean(d), an estimate of
        KL(student || teacher) in nats per token; with several teachers also
        `teacher_kl/dataset_<i>`."""
        differences: list[list[np.ndarray]] = [[] for _ in self._teachers]
        for group, members in zip(groups, self.differences(groups)):
            for i, d in enumerate(members):
                add_to_trained(group, i, kl_advantages(d, self.coef, self.discount))
            differences[self._number(group)] += members
        metrics = _mean([d for each in differences for d in each], "teacher_kl")
        if len(self._teachers) > 1:
            for number, each in enumerate(differences):
                metrics |= _mean(each, f"teacher_kl/dataset_{number}")
        return metrics


def _mean(differences: Sequence[np.ndarray], name: str) -> dict[str, float]:
    """The mean over all tokens; no metric without any."""
    values = np.concatenate([np.zeros(0), *differences])
    return {name: float(values.mean())} if len(values) else {}
