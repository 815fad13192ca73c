"""Statistics of one step of the reinforcement-learning loop, for its metrics and transcript."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from tinker_cookbook.rl.metric_util import compute_trajectory_metrics
from tinker_cookbook.rl.metrics import SampleTrainGap
from tinker_cookbook.rl.rollouts.rollout_queue import GroupRollout
from tinker_cookbook.rl.signals import Signal
from tinker_cookbook.rl.trajectories import TrainingGroup
from tinker_cookbook.rl.types import RolloutError, TrajectoryGroup

Weighted = tuple[float, Mapping[str, float]]  # number of trained tokens, their metrics


@dataclass
class StepStats:
    """Collects the results of one batch while its groups are trained."""

    rollouts: list[GroupRollout[TrainingGroup]] = field(default_factory=list)
    trained_groups: list[TrainingGroup] = field(
        default_factory=list
    )  # in the order of the logprobs
    trained_logprobs_D: list[np.ndarray] = field(default_factory=list)
    gap: SampleTrainGap = field(default_factory=SampleTrainGap)
    same_weights_gap: SampleTrainGap = field(default_factory=SampleTrainGap)
    signals: list[Weighted] = field(default_factory=list)
    outputs: list[Weighted] = field(default_factory=list)  # metrics of each forward_backward
    optimizer: list[Mapping[str, float]] = field(default_factory=list)

    def rollouts_in_order(self) -> list[GroupRollout[TrainingGroup]]:
        """The groups in the data set's order; `rollouts` is in the order of training."""
        return sorted(self.rollouts, key=lambda rollout: rollout.task.index)

    @property
    def groups_P(self) -> list[TrajectoryGroup]:
        return [rollout.group.group for rollout in self.rollouts_in_order()]

    @property
    def tags_P(self) -> list[list[str]]:
        return [rollout.task.builder.logging_tags() for rollout in self.rollouts_in_order()]

    @property
    def errors(self) -> list[RolloutError]:
        return [error for group in self.groups_P for error in group.rollout_errors]

    def metrics(self) -> dict[str, float]:
        """All metrics of the step. Means over its chunks are weighted by trained tokens, so that
        num_minibatches does not change them.

        optim/logprob_gap_*              |sampler - trainer| logprob over all trained tokens;
                                         off-policy (max_lag > 0, later substeps) this includes the
                                         policy's own change
        optim/same_weights_logprob_gap_* the same over tokens that both scored with the same
                                         weights: numerical mismatch only, bounded by
                                         max_logprob_gap
        sampling_client/step_*           version of the weights that sampled the groups
        time/sampling_time_*             seconds to collect a group
        """
        num_sampled = sum(rollout.group.num_sampled_tokens for rollout in self.rollouts)
        same = self.same_weights_gap
        return {
            **optimizer_means(self.optimizer),
            **weighted_means(self.outputs),
            **self.gap.metrics(num_sampled),
            **(
                {
                    "optim/same_weights_logprob_gap_mean": same.mean,
                    "optim/same_weights_logprob_gap_max": same.max,
                }
                if same.num_tokens
                else {}
            ),
            **weighted_means(self.signals),
            **compute_trajectory_metrics(self.groups_P, self.tags_P),
            **spread("sampling_client/step", [rollout.task.version for rollout in self.rollouts]),
            **spread("time/sampling_time", [rollout.seconds for rollout in self.rollouts]),
        }


def add_signals(signals: Iterable[Signal], groups: Sequence[TrainingGroup]) -> dict[str, float]:
    """Let the signals write the advantages of the groups; return their metrics. If two signals use
    the same metric name, the later one's gets its class name appended."""
    metrics: dict[str, float] = {}
    for signal in signals:
        for name, value in signal.add(groups).items():
            metrics[f"{name}/{type(signal).__name__}" if name in metrics else name] = value
    return metrics


def num_trained_tokens(groups: Iterable[TrainingGroup]) -> int:
    return sum(
        sequence.num_loss_tokens
        for group in groups
        for member in group.sequences_G
        for sequence in member
    )


def weighted_means(parts: Sequence[Weighted]) -> dict[str, float]:
    """Combine metrics by name over the parts that have the name: the sum if it ends in ":sum" (the
    Tinker API's mark for summed metrics), else the weighted mean."""
    values_by_name: dict[str, list[tuple[float, float]]] = {}
    for weight, metrics in parts:
        for name, value in metrics.items():
            values_by_name.setdefault(name, []).append((weight, value))
    return {
        name: sum(value for _, value in values)
        if name.endswith(":sum")
        else sum(weight * value for weight, value in values) / sum(weight for weight, _ in values)
        for name, values in values_by_name.items()
    }


def optimizer_means(steps: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Means over the optimizer steps; with several, also the maxima, as e.g. "grad_norm:max"."""
    means = weighted_means([(1.0, metrics) for metrics in steps])
    if len(steps) > 1:
        means |= {f"{name}:max": max(m[name] for m in steps if name in m) for name in means}
    return means


def spread(name: str, values: Sequence[float]) -> dict[str, float]:
    """Minimum, maximum and mean as metrics."""
    mean = sum(values) / len(values)
    return {f"{name}_min": min(values), f"{name}_max": max(values), f"{name}_mean": mean}
