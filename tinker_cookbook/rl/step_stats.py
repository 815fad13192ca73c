"""What a step of the reinforcement-learning loop leaves behind: its metrics and its transcript."""

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

Weighted = tuple[float, Mapping[str, float]]  # trained tokens, metrics of them


@dataclass
class StepStats:
    """Of one batch, gathered while it is played and trained."""

    played: list[GroupRollout[TrainingGroup]] = field(default_factory=list)
    trained: list[TrainingGroup] = field(default_factory=list)  # in the order of the logprobs
    trained_logprobs_D: list[np.ndarray] = field(default_factory=list)
    gap: SampleTrainGap = field(default_factory=SampleTrainGap)
    same_weights_gap: SampleTrainGap = field(default_factory=SampleTrainGap)
    signals: list[Weighted] = field(default_factory=list)
    outputs: list[Weighted] = field(default_factory=list)  # of forward_backward
    optimizer: list[Mapping[str, float]] = field(default_factory=list)

    def in_order(self) -> list[GroupRollout[TrainingGroup]]:
        """The groups of the batch, as the data set has them."""
        return sorted(self.played, key=lambda each: each.task.index)

    @property
    def groups_P(self) -> list[TrajectoryGroup]:
        return [each.group.group for each in self.in_order()]

    @property
    def tags_P(self) -> list[list[str]]:
        return [each.task.builder.logging_tags() for each in self.in_order()]

    @property
    def errors(self) -> list[RolloutError]:
        return [error for group in self.groups_P for error in group.rollout_errors]

    def metrics(self) -> dict[str, float]:
        """All of them; means over parts of the step are weighted by their trained tokens.

        optim/logprob_gap_*              sampler against trainer on all trained tokens: with older
                                         weights, or after a substep, the policy's own change too
        optim/same_weights_logprob_gap_* where both had the same weights, which max_logprob_gap is
                                         compared with
        sampling_client/step_*           which weights have played the groups
        time/sampling_time_*             seconds that a group took
        """
        sampled = sum(each.group.num_sampled_tokens for each in self.played)
        same = self.same_weights_gap
        return {
            **optimizer_means(self.optimizer),
            **weighted_means(self.outputs),
            **self.gap.metrics(sampled),
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
            **spread("sampling_client/step", [each.task.version for each in self.played]),
            **spread("time/sampling_time", [each.seconds for each in self.played]),
        }


def add_signals(signals: Iterable[Signal], groups: Sequence[TrainingGroup]) -> dict[str, float]:
    """Lets the signals write the advantages of the groups; their metrics. Where two give the same
    name, the later one's gets the name of its class behind it."""
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
    """Per name, over the parts that have it: the sum where it ends in ":sum", else the mean by
    weight."""
    found: dict[str, list[tuple[float, float]]] = {}
    for weight, metrics in parts:
        for name, value in metrics.items():
            found.setdefault(name, []).append((weight, value))
    return {
        name: sum(value for _, value in values)
        if name.endswith(":sum")
        else sum(weight * value for weight, value in values) / sum(weight for weight, _ in values)
        for name, values in found.items()
    }


def optimizer_means(steps: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Means over the optimizer steps, and of several the largest, too: "grad_norm:max"."""
    means = weighted_means([(1.0, metrics) for metrics in steps])
    if len(steps) > 1:
        means |= {f"{name}:max": max(m[name] for m in steps if name in m) for name in means}
    return means


def spread(name: str, values: Sequence[float]) -> dict[str, float]:
    mean = sum(values) / len(values)
    return {f"{name}_min": min(values), f"{name}_max": max(values), f"{name}_mean": mean}
