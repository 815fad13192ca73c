"""Metrics of what was played, and an evaluator that plays a held-out data set."""

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

GOOD_REWARD = 0.5  # of every member of a group that counts as all good
SHOWN = 3  # replies that a person gets to see
SHOWN_CHARACTERS = 100


def compute_trajectory_metrics(
    trajectory_groups_P: Sequence[TrajectoryGroup], taglist_P: Sequence[Sequence[str]]
) -> dict[str, float]:
    """`env/all/...` over all groups, `env/<tag>/...` over those of a tag that not all have, and
    `rollout_errors/...`. taglist_P: the `logging_tags` of each group.

    ac_tokens_per_turn, ob_tokens_per_turn   sampled tokens, and tokens of prompts, per turn
    turns_per_episode, total_*               and the counts behind them
    reward/total                             mean over episodes of the rewards of all turns and the
                                             group reward
    by_group/frac_all_good, frac_all_bad     groups whose rewards are all equal, and at least 0.5 or
                                             below it; frac_mixed: the other groups
    frac_cut                                 replies that ran out of tokens, of all replies
    stopped/<reason>                         episodes that the environment did not end itself, of
                                             all episodes; only reasons that occurred
    <any metric of an environment>           mean over the turns and episodes that have it
    metrics_not_numbers                      values of such metrics that were left out as they are
                                             no finite numbers; only if there are any

    rollout_errors/<kind> counts failures, also of episodes that were played again afterwards;
    rollout_errors/groups_lost counts groups without an episode. Only those that occurred.
    """
    tagged: dict[str, list[TrajectoryGroup]] = {}
    for group, tags in safezip(trajectory_groups_P, taglist_P):
        for tag in dict.fromkeys(tags):
            tagged.setdefault(tag, []).append(group)
    subsets = {k: v for k, v in tagged.items() if len(v) < len(trajectory_groups_P)}
    metrics = {}
    for name, groups in {**subsets, "all": trajectory_groups_P}.items():
        metrics |= {f"env/{name}/{key}": value for key, value in _of_groups(groups).items()}
    return metrics | _failures(trajectory_groups_P)


def _of_groups(groups: Sequence[TrajectoryGroup]) -> dict[str, float]:
    groups = [group for group in groups if group.trajectories_G]
    trajectories = [each for group in groups for each in group.trajectories_G]
    turns = [each for trajectory in trajectories for each in trajectory.transitions]
    rewards = [reward for group in groups for reward in group.get_total_rewards()]
    ac_tokens = sum(len(turn.ac.tokens) for turn in turns)
    ob_tokens = sum(turn.ob.length for turn in turns)
    metrics: dict[str, float] = _of_envs(
        [turn.metrics for turn in turns] + [each for group in groups for each in group.metrics_G]
    )
    if turns:
        metrics["ac_tokens_per_turn"] = ac_tokens / len(turns)
        metrics["ob_tokens_per_turn"] = ob_tokens / len(turns)
        cut = sum(turn.ac.stop_reason == "length" for turn in turns)
        metrics["frac_cut"] = cut / len(turns)
    if trajectories:
        metrics["turns_per_episode"] = len(turns) / len(trajectories)
    metrics["total_episodes"] = len(trajectories)
    metrics["total_turns"] = len(turns)
    metrics["total_ac_tokens"] = ac_tokens
    metrics["total_ob_tokens"] = ob_tokens
    if trajectories:
        metrics["reward/total"] = sum(rewards) / len(rewards)
        metrics |= _by_group(groups)
        reasons = Counter(each.stop_reason for each in trajectories)
        del reasons[StopReason.DONE]
        metrics |= {f"stopped/{key}": n / len(trajectories) for key, n in reasons.items()}
    return metrics


def _of_envs(metrics: Iterable[Metrics]) -> dict[str, float]:
    """Means of what environments report; one that reports nonsense costs no step."""
    numbers, left_out = [], 0
    for each in metrics:
        kept = {key: float(value) for key, value in each.items() if _is_number(value)}
        left_out += len(each) - len(kept)
        numbers.append(kept)
    means = dict_mean(numbers)
    return means | ({"metrics_not_numbers": left_out} if left_out else {})


def _is_number(value: float) -> bool:
    return isinstance(value, Real) and math.isfinite(value)


def _by_group(groups: Sequence[TrajectoryGroup]) -> dict[str, float]:
    constant = [group.get_total_rewards()[0] for group in groups if is_constant(group)]
    good = sum(reward >= GOOD_REWARD for reward in constant)
    return {
        "by_group/frac_mixed": (len(groups) - len(constant)) / len(groups),
        "by_group/frac_all_good": good / len(groups),
        "by_group/frac_all_bad": (len(constant) - good) / len(groups),
    }


def _failures(groups: Sequence[TrajectoryGroup]) -> dict[str, float]:
    kinds = Counter(error.kind for group in groups for error in group.rollout_errors)
    lost = sum(not group.trajectories_G for group in groups)
    counts = {**kinds, **({"groups_lost": lost} if lost else {})}
    return {f"rollout_errors/{kind}": count for kind, count in counts.items()}


def dataset_to_env_group_builders(dataset: RLDataset) -> list[EnvGroupBuilder]:
    """The builders of every batch, in order."""
    return [builder for index in range(len(dataset)) for builder in dataset.get_batch(index)]


class RLTestSetEvaluator(SamplingClientEvaluator):
    """`<name>/` and the metrics of `compute_trajectory_metrics`: plays every group once.

    In groups of k attempts, 1 - by_group/frac_all_bad is pass@k. `groups_P` and `taglist_P` are
    what was played last.
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
        """strategy: None to keep whatever episodes of a group could be played. seed: of sampling,
        the same in every evaluation. groups_at_a_time: None for all at once."""
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
        room = asyncio.Semaphore(self.groups_at_a_time)

        async def play(number: int, builder: EnvGroupBuilder) -> TrajectoryGroup:
            async with room:
                return await do_group_rollout(
                    builder,
                    policy,
                    self.strategy,
                    self.limits,
                    seed=None if self.seed is None else derive_seed(self.seed, number),
                    progress=self.progress,
                )

        tasks = [asyncio.ensure_future(play(*each)) for each in enumerate(self.builders)]
        try:
            self.groups_P = await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)  # environments are given back
        metrics = compute_trajectory_metrics(self.groups_P, self.taglist_P)
        self._lines = self._some_replies(client.get_tokenizer())
        return {f"{self.name}/{key}": value for key, value in metrics.items()}

    def lines(self) -> list[str]:
        return self._lines

    def check_not_empty(self) -> None:
        """Raises AllTrajectoriesFailedError if nothing could be played in the last evaluation."""
        if self.groups_P and not any(group.trajectories_G for group in self.groups_P):
            raise AllTrajectoriesFailedError(
                f"evaluation {self.name}: none of {len(self.groups_P)} groups could be played"
                f" ({self._failures()})"
            )

    def _failures(self) -> str:
        errors = [error for group in self.groups_P for error in group.rollout_errors]
        if not errors:
            return ""
        number = "1 failure" if len(errors) == 1 else f"{len(errors)} failures"
        return f"{number}, the first: {errors[0].kind}: {errors[0].message}"

    def _some_replies(self, tokenizer: Tokenizer) -> list[str]:
        """First turns of a few groups, spread over the data set."""
        played = [group for group in self.groups_P if group.trajectories_G]
        chosen = played[:: max(1, len(played) // SHOWN)][:SHOWN]
        lines = [_line(group.trajectories_G[0], group, tokenizer) for group in chosen]
        head = f"{self.name}: {len(played)} of {len(self.groups_P)} groups played"
        failures = self._failures()
        return [f"{head}, {failures}" if failures else f"{head}, e.g.", *lines]


def _line(trajectory: Trajectory, group: TrajectoryGroup, tokenizer: Tokenizer) -> str:
    reward = group.get_total_rewards()[0]
    if not trajectory.transitions:
        return f"  no turn (reward {reward:g})"
    first = trajectory.transitions[0]
    prompt = str(tokenizer.decode(model_input_tokens(first.ob)))
    reply = str(tokenizer.decode(first.ac.tokens))
    if len(prompt) > SHOWN_CHARACTERS:
        prompt = "..." + prompt[-SHOWN_CHARACTERS:]
    if len(reply) > SHOWN_CHARACTERS:
        reply = reply[:SHOWN_CHARACTERS] + "..."
    return f"  {prompt!r} -> {reply!r} (reward {reward:g})"
