"""pass@k: how often at least one of k replies is right, from n >= k replies to each problem."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence

import tinker

from recipes.math_rl.problems import ProblemDataset
from tinker_cookbook.evaluators import SamplingClientEvaluator
from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.rl.rollouts import do_group_rollout
from tinker_cookbook.rl.types import TrajectoryGroup


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """1 - C(n - c, k) / C(n, k): the chance that k of the n replies, drawn without putting back,
    hold one of the c right ones. Unbiased; 1 - (1 - c/n)^k would be too low.

    Chen et al. 2021, Evaluating Large Language Models Trained on Code, section 2.1. ValueError
    unless 1 <= k <= n and 0 <= c <= n.
    """
    if not (1 <= k <= num_samples and 0 <= num_correct <= num_samples):
        raise ValueError(
            f"pass@{k} of {num_samples} replies, {num_correct} of them right: expected "
            "1 <= k <= replies and 0 <= right <= replies"
        )
    wrong = num_samples - num_correct
    return 1.0 - math.comb(wrong, k) / math.comb(num_samples, k)


def ks_up_to(num_samples: int) -> list[int]:
    """1, 2, 4, ... and num_samples itself."""
    powers = [2**i for i in range(num_samples.bit_length()) if 2**i < num_samples]
    return [*powers, num_samples]


class PassAtKEvaluator(SamplingClientEvaluator):
    """Tries each problem of a data set `group_size` times.

    Metrics, means over the problems: `<name>/pass@<k>`; over the replies: `<name>/correct`,
    `<name>/format`, `<name>/ac_tokens` (tokens of a reply). A reply that could not be graded counts
    as wrong; `<name>/failed` is how many there were. With a seed, the same weights give the same
    replies each time.
    """

    def __init__(
        self,
        dataset: ProblemDataset,
        max_tokens: int,
        *,
        ks: Sequence[int] | None = None,
        temperature: float = 1.0,
        top_p: float = 1.0,
        context_window: int | None = None,
        seed: int | None = 0,
    ) -> None:
        """ks: of pass@k, each at most the data set's group size (None: 1, 2, 4, ... up to it)."""
        self.dataset, self.max_tokens = dataset, max_tokens
        self.num_samples = dataset.group_size
        self.ks = list(ks) if ks else ks_up_to(self.num_samples)
        for k in self.ks:
            if not 1 <= k <= self.num_samples:
                raise ConfigurationError(
                    f"k={k}: expected 1 to num_samples={self.num_samples}, the replies to each"
                )
        self.temperature, self.top_p = temperature, top_p
        self.context_window, self.seed = context_window, seed
        self._lines: list[str] = []

    async def __call__(self, client: tinker.SamplingClient, /) -> dict[str, float]:
        from tinker_cookbook.completers import TinkerTokenCompleter

        policy = TinkerTokenCompleter(
            client,
            self.max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            context_window=self.context_window,
        )
        builders = [self.dataset.group(problem) for problem in self.dataset.problems]
        seeds = [None if self.seed is None else self.seed + i for i in range(len(builders))]
        groups = await asyncio.gather(
            *(do_group_rollout(b, policy, seed=s) for b, s in zip(builders, seeds))
        )
        return self._metrics(groups)

    def _metrics(self, groups: Sequence[TrajectoryGroup]) -> dict[str, float]:
        right = [round(sum(_of_replies(group, "correct"))) for group in groups]
        replies = [t.transitions[0] for group in groups for t in group.trajectories_G]
        total = self.num_samples * len(groups)
        name = self.dataset.name
        metrics = {
            f"{name}/pass@{k}": sum(pass_at_k(self.num_samples, c, k) for c in right) / len(right)
            for k in self.ks
        }
        metrics[f"{name}/correct"] = sum(right) / total
        metrics[f"{name}/format"] = sum(x for g in groups for x in _of_replies(g, "format")) / total
        if replies:
            metrics[f"{name}/ac_tokens"] = sum(len(r.ac.tokens) for r in replies) / len(replies)
        metrics[f"{name}/failed"] = float(total - len(replies))
        shares = ", ".join(f"pass@{k} {metrics[f'{name}/pass@{k}']:.3f}" for k in self.ks)
        self._lines = [f"{name}: {len(groups)} problems, {self.num_samples} replies each: {shares}"]
        return metrics

    def lines(self) -> list[str]:
        return self._lines


def _of_replies(group: TrajectoryGroup, metric: str) -> list[float]:
    return [float(t.transitions[0].metrics[metric]) for t in group.trajectories_G]
