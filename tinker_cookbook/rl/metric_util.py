"""Metrics of rollouts, and an evaluator that collects rollouts on a held-out data set."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from numbers import Real
from typing import TYPE_CHECKING

from tinker_cookbook.completers import TinkerTokenCompleter, derive_seed
from tinker_cookbook.exceptions import AllTrajectoriesFailedError
from tinker_cookbook.rl.data_processing import is_constant
from tinker_cookbook.rl.rollouts import RolloutLimits, RolloutProgress, do_group_rollout
from tinker_cookbook.rl.rollouts.strategy import MinViableGroup, RolloutStrategy
from tinker_cookbook.rl.types import (
    EnvGroupBuilder,
    Metrics,
    RLDataset,
    StopReason,
    Trajectory,
    TrajectoryGroup,
)
from tinker_cookbook.sequences import model_input_tokens
from tinker_cookbook.training.evaluators import SamplingClientEvaluator
from tinker_cookbook.utils.misc_utils import dict_mean, safezip

if TYPE_CHECKING:
    from tinker_cookbook.service.api import SamplingClient
    from tinker_cookbook.tokenizer_utils import Tokenizer

GOOD_REWARD = 0.5  # a constant group with at least this reward counts as all good
NUM_EXAMPLES = 3  # replies printed after an evaluation
EXAMPLE_CHARACTERS = 100


def compute_trajectory_metrics(
    trajectory_groups_P: Sequence[TrajectoryGroup], taglist_P: Sequence[Sequence[str]]
) -> dict[str, float]:
    """Aggregate rollouts: `env/all/...` over all groups, `env/<tag>/...` over the groups with a tag
    (unless all have it), and `rollout_errors/...`. taglist_P: the `logging_tags` of each group.

    ac_tokens_per_turn, ob_tokens_per_turn   mean sampled tokens and prompt tokens per turn
    turns_per_episode                        mean turns per episode
    total_episodes, total_turns,             the underlying counts
    total_ac_tokens, total_ob_tokens
    reward/total                             mean total reward of an episode: step rewards plus
                                             group reward
    by_group/frac_all_good, frac_all_bad     fraction of groups with equal rewards that are >= 0.5,
                                             or below
    by_group/frac_mixed                      fraction of groups with differing rewards
    frac_cut                                 fraction of replies truncated at the token limit
    stopped/<reason>                         fraction of episodes ended by a limit instead of the
                                             environment; only reasons that occurred
    <any metric of an environment>           mean over the turns and episodes that report it
    metrics_not_numbers                      number of environment metrics dropped as not finite;
                                             only if there are any

    rollout_errors/<kind>: number of failures, including those of episodes that succeeded in a
    retry. rollout_errors/groups_lost: number of groups without any trajectory. Only kinds that
    occurred.
    """
    tagged: dict[str, list[TrajectoryGroup]] = {}
    for group, tags in safezip(trajectory_groups_P, taglist_P):
        for tag in dict.fromkeys(tags):
            tagged.setdefault(tag, []).append(group)
    # a tag that every group has would only repeat `all`
    subsets = {k: v for k, v in tagged.items() if len(v) < len(trajectory_groups_P)}
    metrics = {}
    for name, groups in {**subsets, "all": trajectory_groups_P}.items():
        metrics |= {f"env/{name}/{key}": value for key, value in _aggregate_groups(groups).items()}
    return metrics | _count_failures(trajectory_groups_P)


def _aggregate_groups(groups: Sequence[TrajectoryGroup]) -> dict[str, float]:
    groups = [group for group in groups if group.trajectories_G]
    trajectories = [trajectory for group in groups for trajectory in group.trajectories_G]
    turns = [turn for trajectory in trajectories for turn in trajectory.transitions]
    rewards = [reward for group in groups for reward in group.get_total_rewards()]
    ac_tokens = sum(len(turn.ac.tokens) for turn in turns)
    ob_tokens = sum(turn.ob.length for turn in turns)
    metrics: dict[str, float] = _mean_env_metrics(
        [turn.metrics for turn in turns]
        + [metrics for group in groups for metrics in group.metrics_G]
    )
    if turns:
        metrics["ac_tokens_per_turn"] = ac_tokens / len(turns)
        metrics["ob_tokens_per_turn"] = ob_tokens / len(turns)
        num_truncated = sum(turn.ac.stop_reason == "length" for turn in turns)
        metrics["frac_cut"] = num_truncated / len(turns)
    if trajectories:
        metrics["turns_per_episode"] = len(turns) / len(trajectories)
    metrics["total_episodes"] = len(trajectories)
    metrics["total_turns"] = len(turns)
    metrics["total_ac_tokens"] = ac_tokens
    metrics["total_ob_tokens"] = ob_tokens
    if trajectories:
        metrics["reward/total"] = sum(rewards) / len(rewards)
        # group-centred training learns from mixed groups only
        metrics |= _reward_contrast(groups)
        reasons = Counter(trajectory.stop_reason for trajectory in trajectories)
        del reasons[StopReason.DONE]  # no KeyError: a Counter allows deleting a missing key
        metrics |= {f"stopped/{key}": n / len(trajectories) for key, n in reasons.items()}
    return metrics


def _mean_env_metrics(metrics: Iterable[Metrics]) -> dict[str, float]:
    """Means of environments' metrics. A value that is not a finite number is dropped and counted,
    since a bad metric is no reason to lose the training step."""
    numbers, num_dropped = [], 0
    for reported in metrics:
        numeric = {key: float(value) for key, value in reported.items() if _is_number(value)}
        num_dropped += len(reported) - len(numeric)
        numbers.append(numeric)
    means = dict_mean(numbers)
    return means | ({"metrics_not_numbers": num_dropped} if num_dropped else {})


def _is_number(value: float) -> bool:
    return isinstance(value, Real) and math.isfinite(value)


def _reward_contrast(groups: Sequence[TrajectoryGroup]) -> dict[str, float]:
    constant = [group.get_total_rewards()[0] for group in groups if is_constant(group)]
    good = sum(reward >= GOOD_REWARD for reward in constant)
    return {
        "by_group/frac_mixed": (len(groups) - len(constant)) / len(groups),
        "by_group/frac_all_good": good / len(groups),
        "by_group/frac_all_bad": (len(constant) - good) / len(groups),
    }


def _count_failures(groups: Sequence[TrajectoryGroup]) -> dict[str, float]:
    kinds = Counter(error.kind for group in groups for error in group.rollout_errors)
    num_lost = sum(not group.trajectories_G for group in groups)
    counts = {**kinds, **({"groups_lost": num_lost} if num_lost else {})}
    return {f"rollout_errors/{kind}": count for kind, count in counts.items()}


def dataset_to_env_group_builders(dataset: RLDataset) -> list[EnvGroupBuilder]:
    """Return the builders of all batches, in order."""
    return [builder for index in range(len(dataset)) for builder in dataset.get_batch(index)]


class RLTestSetEvaluator(SamplingClientEvaluator):
    """Collects rollouts of every group once; the metrics of `compute_trajectory_metrics`, prefixed
    with `<name>/`.

    With k attempts per group, 1 - by_group/frac_all_bad is pass@k. `groups_P` and `taglist_P` hold
    the rollouts and tags of the last evaluation.
    """

    def __init__(
        self,
        dataset: RLDataset,
        max_tokens: int,
        name: str = "test",
        *,
        temperature: float = 1.0,
        context_window: int | None = None,
        limits: RolloutLimits | None = None,
        strategy: RolloutStrategy | None = None,
        seed: int | None = 0,
        groups_at_a_time: int | None = None,
        progress: RolloutProgress | None = None,
    ) -> None:
        """strategy: None keeps every episode that did not fail. seed: sampling seed, the same in
        every evaluation, so that only the weights differ. groups_at_a_time: groups that run
        concurrently (None: all)."""
        self.builders = dataset_to_env_group_builders(dataset)
        self.max_tokens, self.name, self.temperature = max_tokens, name, temperature
        self.context_window, self.limits = context_window, limits
        self.strategy = strategy or MinViableGroup(min_size=1)
        self.seed, self.progress = seed, progress
        self.groups_at_a_time = groups_at_a_time or max(len(self.builders), 1)
        self.groups_P: list[TrajectoryGroup] = []
        self.taglist_P = [builder.logging_tags() for builder in self.builders]
        self._lines: list[str] = []

    async def __call__(self, client: SamplingClient, /) -> dict[str, float]:
        policy = TinkerTokenCompleter(
            client,
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            context_window=self.context_window,
        )
        slots = asyncio.Semaphore(self.groups_at_a_time)

        async def run_group(number: int, builder: EnvGroupBuilder) -> TrajectoryGroup:
            async with slots:
                return await do_group_rollout(
                    builder,
                    policy,
                    self.strategy,
                    self.limits,
                    seed=None if self.seed is None else derive_seed(self.seed, number),
                    progress=self.progress,
                )

        tasks = [
            asyncio.ensure_future(run_group(*numbered)) for numbered in enumerate(self.builders)
        ]
        try:
            self.groups_P = await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            # cancelled groups still run their builders' cleanup
            await asyncio.gather(*tasks, return_exceptions=True)
        metrics = compute_trajectory_metrics(self.groups_P, self.taglist_P)
        self._lines = self._example_lines(client.get_tokenizer())
        return {f"{self.name}/{key}": value for key, value in metrics.items()}

    def lines(self) -> list[str]:
        return self._lines

    def check_not_empty(self) -> None:
        """Raise AllTrajectoriesFailedError if every group failed in the last evaluation."""
        if self.groups_P and not any(group.trajectories_G for group in self.groups_P):
            raise AllTrajectoriesFailedError(
                f"evaluation {self.name}: all {len(self.groups_P)} groups failed"
                f" ({self._describe_failures()})"
            )

    def _describe_failures(self) -> str:
        errors = [error for group in self.groups_P for error in group.rollout_errors]
        if not errors:
            return ""
        count = "1 failure" if len(errors) == 1 else f"{len(errors)} failures"
        return f"{count}, the first: {errors[0].kind}: {errors[0].message}"

    def _example_lines(self, tokenizer: Tokenizer) -> list[str]:
        """The first turns of a few groups, spread over the data set."""
        completed = [group for group in self.groups_P if group.trajectories_G]
        chosen = completed[:: max(1, len(completed) // NUM_EXAMPLES)][:NUM_EXAMPLES]
        lines = [_example_line(group.trajectories_G[0], group, tokenizer) for group in chosen]
        head = f"{self.name}: {len(completed)} of {len(self.groups_P)} groups completed"
        failures = self._describe_failures()
        return [f"{head}, {failures}" if failures else f"{head}, e.g.", *lines]


def _example_line(trajectory: Trajectory, group: TrajectoryGroup, tokenizer: Tokenizer) -> str:
    reward = group.get_total_rewards()[0]
    if not trajectory.transitions:
        return f"  no turn (reward {reward:g})"
    first = trajectory.transitions[0]
    prompt = str(tokenizer.decode(model_input_tokens(first.ob)))
    reply = str(tokenizer.decode(first.ac.tokens))
    if len(prompt) > EXAMPLE_CHARACTERS:
        prompt = "..." + prompt[-EXAMPLE_CHARACTERS:]
    if len(reply) > EXAMPLE_CHARACTERS:
        reply = reply[:EXAMPLE_CHARACTERS] + "..."
    return f"  {prompt!r} -> {reply!r} (reward {reward:g})"
