"""pass@k: how often at least one of k replies is right, from n >= k replies to each problem."""

from __future__ import annotations

import asyncio
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict

from recipes.math_rl.problems import ProblemDataset
from tinker_cookbook.completers import TinkerTokenCompleter, derive_seed
from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.rl.rollouts import do_group_rollout
from tinker_cookbook.rl.rollouts.strategy import MinViableGroup
from tinker_cookbook.rl.types import Metrics, TrajectoryGroup
from tinker_cookbook.training.evaluators import SamplingClientEvaluator

if TYPE_CHECKING:
    from tinker_cookbook.service.api import SamplingClient

# a reply that cannot be graded counts as wrong, and the others of its problem still count
STRATEGY = MinViableGroup(min_size=1)


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


def checked_ks(ks: Sequence[int] | None, num_samples: int) -> list[int]:
    """The k asked for, or `ks_up_to`; ConfigurationError for one beyond the number of replies."""
    for k in ks or ():
        if not 1 <= k <= num_samples:
            raise ConfigurationError(
                f"k={k}: expected 1 to num_samples={num_samples}, the replies to each"
            )
    return list(ks) if ks else ks_up_to(num_samples)


class StepFacts(TypedDict):
    """What is read of a step of the records that rl/transcripts writes."""

    metrics: Metrics
    stop_reason: str
    ac_len: int


@dataclass(frozen=True)
class Outcome:
    """What became of the replies to one problem; of those that could be graded, how many are right,
    in the asked form, and cut off by max_tokens, and their tokens together."""

    num_samples: int
    graded: int
    correct: int
    in_form: int
    truncated: int
    tokens: int

    @classmethod
    def of_group(cls, group: TrajectoryGroup, num_samples: int) -> Outcome:
        replies = [trajectory.transitions[0] for trajectory in group.trajectories_G]
        given = ((r.metrics, r.ac.stop_reason, len(r.ac.tokens)) for r in replies)
        return cls._of(given, num_samples)

    @classmethod
    def of_steps(cls, steps: Iterable[StepFacts], num_samples: int) -> Outcome:
        """From the first step of each reply in the lines that rl/transcripts writes of a group."""
        given = ((step["metrics"], step["stop_reason"], step["ac_len"]) for step in steps)
        return cls._of(given, num_samples)

    @classmethod
    def _of(
        cls, replies: Iterable[tuple[Mapping[str, float], str, int]], num_samples: int
    ) -> Outcome:
        graded = list(replies)
        return cls(
            num_samples,
            graded=len(graded),
            correct=round(sum(metrics["correct"] for metrics, _, _ in graded)),
            in_form=round(sum(metrics["format"] for metrics, _, _ in graded)),
            truncated=sum(stop == "length" for _, stop, _ in graded),
            tokens=sum(length for _, _, length in graded),
        )


def pass_at_k_metrics(
    name: str, outcomes: Sequence[Outcome], ks: Sequence[int]
) -> dict[str, float]:
    """Means over the problems: `<name>/pass@<k>`, and `<name>/pass@<k>_stderr`, the standard error
    of a sample of problems: std (ddof 1) of the problems' values / sqrt(problems), left out for a
    single one. Means over the replies: `<name>/correct`, `format`, `truncated` (out of tokens),
    `ac_tokens` (tokens of a reply). `<name>/failed`: replies that could not be graded.
    """
    metrics: dict[str, float] = {}
    for k in ks:
        values = [pass_at_k(each.num_samples, each.correct, k) for each in outcomes]
        metrics[f"{name}/pass@{k}"] = statistics.fmean(values)
        if len(values) > 1:
            error = statistics.stdev(values) / math.sqrt(len(values))
            metrics[f"{name}/pass@{k}_stderr"] = error
    total = sum(each.num_samples for each in outcomes)
    graded = sum(each.graded for each in outcomes)
    metrics[f"{name}/correct"] = sum(each.correct for each in outcomes) / total
    metrics[f"{name}/format"] = sum(each.in_form for each in outcomes) / total
    if graded:
        metrics[f"{name}/truncated"] = sum(each.truncated for each in outcomes) / graded
        metrics[f"{name}/ac_tokens"] = sum(each.tokens for each in outcomes) / graded
    metrics[f"{name}/failed"] = float(total - graded)
    return metrics


def summary(
    name: str, outcomes: Sequence[Outcome], ks: Sequence[int], metrics: Mapping[str, float]
) -> str:
    """One line for people."""
    shares = []
    for k in ks:
        error = metrics.get(f"{name}/pass@{k}_stderr")
        uncertain = "" if error is None else f" ± {error:.3f}"
        shares.append(f"pass@{k} {metrics[f'{name}/pass@{k}']:.3f}{uncertain}")
    problems = "1 problem" if len(outcomes) == 1 else f"{len(outcomes)} problems"
    line = f"{name}: {problems}, {outcomes[0].num_samples} replies each: {', '.join(shares)}"
    if truncated := metrics.get(f"{name}/truncated"):
        line += f"; {truncated:.0%} of the replies ran out of tokens"
    if failed := metrics[f"{name}/failed"]:
        line += f"; {failed:.0f} could not be graded and count as wrong"
    return line


class PassAtKEvaluator(SamplingClientEvaluator):
    """Tries each problem of a data set `group_size` times; metrics: `pass_at_k_metrics`. With a
    seed, the same weights give the same replies each time."""

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
        self.ks = checked_ks(ks, self.num_samples)
        self.temperature, self.top_p = temperature, top_p
        self.context_window, self.seed = context_window, seed
        self._lines: list[str] = []

    async def __call__(self, client: SamplingClient, /) -> dict[str, float]:
        numbers = range(len(self.dataset.problems))
        groups = await asyncio.gather(*(self.play(client, number) for number in numbers))
        outcomes = [Outcome.of_group(group, self.num_samples) for group in groups]
        metrics = pass_at_k_metrics(self.dataset.name, outcomes, self.ks)
        self._lines = [summary(self.dataset.name, outcomes, self.ks, metrics)]
        return metrics

    async def play(self, client: SamplingClient, number: int) -> TrajectoryGroup:
        """The replies to one problem. They depend on no other."""
        policy = TinkerTokenCompleter(
            client,
            self.max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            context_window=self.context_window,
        )
        seed = None if self.seed is None else derive_seed(self.seed, number)
        builder = self.dataset.group(self.dataset.problems[number])
        return await do_group_rollout(builder, policy, STRATEGY, seed=seed)

    def lines(self) -> list[str]:
        return self._lines
