"""pass@k: the probability that at least one of k replies is correct, estimated from n >= k replies
per problem."""

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

# a reply that cannot be graded counts as wrong, without affecting the other replies to its problem
STRATEGY = MinViableGroup(min_size=1)


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """1 - C(n - c, k) / C(n, k): the probability that k of the n replies, drawn without
    replacement, include one of the c correct ones. Unbiased; 1 - (1 - c/n)^k is biased low.

    Chen et al. 2021, Evaluating Large Language Models Trained on Code, section 2.1. Raises
    ValueError unless 1 <= k <= n and 0 <= c <= n.
    """
    if not (1 <= k <= num_samples and 0 <= num_correct <= num_samples):
        raise ValueError(
            f"pass@{k} of {num_samples} replies, {num_correct} of them correct: expected "
            "1 <= k <= replies and 0 <= correct <= replies"
        )
    wrong = num_samples - num_correct
    return 1.0 - math.comb(wrong, k) / math.comb(num_samples, k)


def ks_up_to(num_samples: int) -> list[int]:
    """Return 1, 2, 4, ... and num_samples itself."""
    powers = [2**i for i in range(num_samples.bit_length()) if 2**i < num_samples]
    return [*powers, num_samples]


def resolve_ks(ks: Sequence[int] | None, num_samples: int) -> list[int]:
    """Return the given ks, or `ks_up_to` if there are none; raises ConfigurationError if a k
    exceeds the number of replies."""
    for k in ks or ():
        if not 1 <= k <= num_samples:
            raise ConfigurationError(
                f"k={k}: expected 1 to num_samples={num_samples}, the replies per problem"
            )
    return list(ks) if ks else ks_up_to(num_samples)


class StepSummary(TypedDict):
    """The fields used from a step of a record of rl/transcripts."""

    metrics: Metrics
    stop_reason: str
    ac_len: int


@dataclass(frozen=True)
class Outcome:
    """Counts over the replies to one problem: how many were graded, and of these, how many are
    correct, have the requested format, were truncated at max_tokens; and their total tokens."""

    num_samples: int
    graded: int
    correct: int
    well_formatted: int
    truncated: int
    tokens: int

    @classmethod
    def from_group(cls, group: TrajectoryGroup, num_samples: int) -> Outcome:
        replies = [trajectory.transitions[0] for trajectory in group.trajectories_G]
        facts = ((r.metrics, r.ac.stop_reason, len(r.ac.tokens)) for r in replies)
        return cls._from_replies(facts, num_samples)

    @classmethod
    def from_steps(cls, steps: Iterable[StepSummary], num_samples: int) -> Outcome:
        """From the first step of each of a group's records, see rl/transcripts."""
        facts = ((step["metrics"], step["stop_reason"], step["ac_len"]) for step in steps)
        return cls._from_replies(facts, num_samples)

    @classmethod
    def _from_replies(
        cls, replies: Iterable[tuple[Mapping[str, float], str, int]], num_samples: int
    ) -> Outcome:
        graded = list(replies)
        return cls(
            num_samples,
            graded=len(graded),
            correct=round(sum(metrics["correct"] for metrics, _, _ in graded)),
            well_formatted=round(sum(metrics["format"] for metrics, _, _ in graded)),
            truncated=sum(stop == "length" for _, stop, _ in graded),
            tokens=sum(length for _, _, length in graded),
        )


def pass_at_k_metrics(
    name: str, outcomes: Sequence[Outcome], ks: Sequence[int]
) -> dict[str, float]:
    """Aggregate outcomes into metrics.

    Means over the problems: `<name>/pass@<k>` and its standard error `<name>/pass@<k>_stderr`, the
    sample std (ddof 1) over problems / sqrt(number of problems); omitted for a single problem.
    Means over the replies: `<name>/correct` and `format`, over all; `truncated` (at max_tokens) and
    `ac_tokens` (length), over the graded ones. `<name>/failed`: number of replies that could not be
    graded.
    """
    metrics: dict[str, float] = {}
    for k in ks:
        values = [pass_at_k(outcome.num_samples, outcome.correct, k) for outcome in outcomes]
        metrics[f"{name}/pass@{k}"] = statistics.fmean(values)
        if len(values) > 1:
            error = statistics.stdev(values) / math.sqrt(len(values))
            metrics[f"{name}/pass@{k}_stderr"] = error
    total = sum(outcome.num_samples for outcome in outcomes)
    graded = sum(outcome.graded for outcome in outcomes)
    metrics[f"{name}/correct"] = sum(outcome.correct for outcome in outcomes) / total
    metrics[f"{name}/format"] = sum(outcome.well_formatted for outcome in outcomes) / total
    if graded:
        metrics[f"{name}/truncated"] = sum(outcome.truncated for outcome in outcomes) / graded
        metrics[f"{name}/ac_tokens"] = sum(outcome.tokens for outcome in outcomes) / graded
    metrics[f"{name}/failed"] = float(total - graded)
    return metrics


def summary(
    name: str, outcomes: Sequence[Outcome], ks: Sequence[int], metrics: Mapping[str, float]
) -> str:
    """Return the results as one line of text."""
    shares = []
    for k in ks:
        error = metrics.get(f"{name}/pass@{k}_stderr")
        uncertain = "" if error is None else f" ± {error:.3f}"
        shares.append(f"pass@{k} {metrics[f'{name}/pass@{k}']:.3f}{uncertain}")
    problems = "1 problem" if len(outcomes) == 1 else f"{len(outcomes)} problems"
    line = f"{name}: {problems}, {outcomes[0].num_samples} replies each: {', '.join(shares)}"
    if truncated := metrics.get(f"{name}/truncated"):
        line += f"; {truncated:.0%} of the replies were truncated"
    if failed := metrics[f"{name}/failed"]:
        line += f"; {failed:.0f} could not be graded and count as wrong"
    return line


class PassAtKEvaluator(SamplingClientEvaluator):
    """Samples `group_size` replies to each problem of a data set; metrics: `pass_at_k_metrics`.
    With a seed, the same weights give the same replies every time."""

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
        """ks: the k of pass@k, each at most the data set's group size (None: 1, 2, 4, ... up to
        it)."""
        self.dataset, self.max_tokens = dataset, max_tokens
        self.num_samples = dataset.group_size
        self.ks = resolve_ks(ks, self.num_samples)
        self.temperature, self.top_p = temperature, top_p
        self.context_window, self.seed = context_window, seed
        self._lines: list[str] = []

    async def __call__(self, client: SamplingClient, /) -> dict[str, float]:
        numbers = range(len(self.dataset.problems))
        groups = await asyncio.gather(
            *(self.collect_rollouts(client, number) for number in numbers)
        )
        outcomes = [Outcome.from_group(group, self.num_samples) for group in groups]
        metrics = pass_at_k_metrics(self.dataset.name, outcomes, self.ks)
        self._lines = [summary(self.dataset.name, outcomes, self.ks, metrics)]
        return metrics

    async def collect_rollouts(self, client: SamplingClient, number: int) -> TrajectoryGroup:
        """Sample the replies to one problem, independently of all other problems."""
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
