"""RL with pairwise rewards: the replies of a group are compared by a preference model.

A group of replies to one prompt is split into contiguous chunks of up to `matchup_group_size`
members, and all pairs of a chunk are compared, in one order or in both. The reward of reply i is

    (wins_i - losses_i) / matchups_i + (format_i - 1)

where a verdict v in [-1, 1] is a win of v for completion B and of -v for completion A, and format
is 0 for a reply that is truncated or malformed, else 1. Such a reply takes part in the matchups
like any other, and so does one that is equal to its opponent: judges need not be consistent.

Judges see the text of a reply, without its reasoning and its tool calls.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial

import chz
import numpy as np
import tinker

from tinker_cookbook.completers import StopCondition
from tinker_cookbook.exceptions import DataFormatError, DataValidationError
from tinker_cookbook.preference.comparison_datasets import (
    ComparisonDatasetBuilder,
    ComparisonSplit,
)
from tinker_cookbook.preference.types import Comparison, PreferenceModel, PreferenceModelBuilder
from tinker_cookbook.renderers import (
    Message,
    Renderer,
    classify_parse_failure,
    get_renderer,
    get_text_content,
)
from tinker_cookbook.rl.problem_env import shorten_for_logs
from tinker_cookbook.rl.rollouts.group import gather_raising_first
from tinker_cookbook.rl.shuffled_dataset import ShuffledRLDataset
from tinker_cookbook.rl.types import (
    Action,
    ActionExtra,
    Env,
    EnvGroupBuilder,
    Metrics,
    RLDataset,
    RLDatasetBuilder,
    StepResult,
    Trajectory,
)
from tinker_cookbook.supervised.types import MAX_NAMED
from tinker_cookbook.tokenizer_utils import get_tokenizer
from tinker_cookbook.training.fields import COUNT, SEED, in_range
from tinker_cookbook.utils.data_files import where
from tinker_cookbook.utils.threads import in_thread

logger = logging.getLogger(__name__)

MATCHUP_GROUP_SIZE = 4
_FORMAT_COEF = 1.0  # as large as the difference between an average reply and the best one
_AT_LEAST_TWO = in_range(lambda value: value >= 2, "2 or more, to compare replies")


class TournamentPattern(StrEnum):
    """The comparisons of a chunk: all pairs in one order, or in both, so that a judge that prefers
    a position decides nothing."""

    ALL_PAIRS_ONE_WAY = "all_pairs_one_way"
    ALL_PAIRS_BOTH_WAYS = "all_pairs_both_ways"


class PreferenceEnv(Env):
    """One prompt and one reply; the reward is format - 1. The group adds the pairwise reward."""

    def __init__(self, convo_prefix: list[Message], policy_renderer: Renderer) -> None:
        self.convo_prefix, self.policy_renderer = convo_prefix, policy_renderer

    async def initial_observation(self) -> tuple[tinker.ModelInput, StopCondition]:
        prompt = self.policy_renderer.build_generation_prompt(self.convo_prefix)
        return prompt, self.policy_renderer.get_stop_sequences()

    async def step(self, action: Action, *, extra: ActionExtra | None = None) -> StepResult:
        message, termination = self.policy_renderer.parse_response(action)
        has_format = classify_parse_failure(message, termination) is None
        return StepResult(
            reward=_FORMAT_COEF * (has_format - 1),
            episode_done=True,
            next_observation=tinker.ModelInput.empty(),
            next_stop_condition=self.policy_renderer.get_stop_sequences(),
            metrics={"format": float(has_format)},
            logs={
                "prompt": shorten_for_logs(get_text_content(self.convo_prefix[-1])),
                "reply": shorten_for_logs(get_text_content(message)),
            },
        )


@dataclass(frozen=True)
class PairwisePreferenceGroupBuilder(EnvGroupBuilder):
    """Replies to one prompt, rewarded by comparison with one another.

    All comparisons of a group are awaited concurrently. Failed members are not compared. A failed
    comparison fails the group. matchup_group_size: see `split_into_chunks`.
    """

    convo_prefix: list[Message]
    policy_renderer: Renderer
    tournament_pattern: TournamentPattern
    preference_model: PreferenceModel
    num_envs: int
    matchup_group_size: int = MATCHUP_GROUP_SIZE

    async def make_envs(self) -> Sequence[Env]:
        return [
            PreferenceEnv(self.convo_prefix, self.policy_renderer) for _ in range(self.num_envs)
        ]

    async def compute_group_rewards(
        self, trajectory_group: list[Trajectory], env_group: Sequence[Env]
    ) -> list[tuple[float, Metrics]]:
        """Return (wins - losses) / matchups per trajectory, also as the metric `win_minus_loss`."""
        replies = [self._parse_reply(trajectory) for trajectory in trajectory_group]
        matchups = list(self._iter_matchups(len(replies)))
        verdicts = await gather_raising_first(
            [self._judge(replies[a], replies[b]) for a, b in matchups]
        )
        scores = compute_win_minus_loss(len(replies), matchups, verdicts)
        return [(score, {"win_minus_loss": score}) for score in scores]

    def _parse_reply(self, trajectory: Trajectory) -> list[Message]:
        tokens = trajectory.transitions[-1].ac.tokens
        text = get_text_content(self.policy_renderer.parse_response(tokens).message)
        return [Message(role="assistant", content=text)]

    def _iter_matchups(self, num_replies: int) -> Iterator[tuple[int, int]]:
        both_ways = self.tournament_pattern is TournamentPattern.ALL_PAIRS_BOTH_WAYS
        pairs = itertools.permutations if both_ways else itertools.combinations
        for chunk in split_into_chunks(num_replies, self.matchup_group_size):
            yield from pairs(chunk, 2)

    async def _judge(self, completion_a: list[Message], completion_b: list[Message]) -> float:
        comparison = Comparison(self.convo_prefix, completion_a, completion_b)
        verdict = await self.preference_model(comparison)
        if not -1 <= verdict <= 1:  # also true of NaN
            raise DataValidationError(
                f"{type(self.preference_model).__name__} returned {verdict}: expected a preference"
                " from -1 (A is better) to 1 (B is better)"
            )
        return verdict


def split_into_chunks(num_members: int, size: int) -> list[range]:
    """Split the members into contiguous chunks of nearly equal length, at most `size`.

    No chunk has a single member, unless there is only one: it would have no opponent. With size 2
    an odd number of members therefore makes one chunk of 3.
    """
    num_chunks = max(1, min(-(-num_members // size), num_members // 2))
    bounds = [num_members * chunk // num_chunks for chunk in range(num_chunks + 1)]
    return [range(start, end) for start, end in itertools.pairwise(bounds)]


def compute_win_minus_loss(
    num_replies: int, matchups: Sequence[tuple[int, int]], verdicts: Sequence[float]
) -> list[float]:
    """(wins - losses) / matchups of each reply; 0 without a matchup.

    matchups: the indices of completions A and B. verdicts: in [-1, 1], positive if B is better.
    """
    totals, counts = np.zeros(num_replies), np.zeros(num_replies)
    for (a, b), verdict in zip(matchups, verdicts, strict=True):
        totals[a] -= verdict
        totals[b] += verdict
        counts[[a, b]] += 1
    return (totals / np.maximum(counts, 1)).tolist()


@chz.chz
class PairwisePreferenceRLDatasetBuilder(RLDatasetBuilder):
    """The prompts of comparisons, with replies that a preference model compares.

    The completions and labels of the comparisons are not used. There is no test set: the pairwise
    rewards of a group sum to 0 for every policy, so that only a comparison with another policy
    measures progress. All rows are read before training; those without a usable prompt are left
    out, with a warning that counts them.
    """

    comparison_builder: ComparisonDatasetBuilder = chz.field(
        doc="comparisons whose prompts are replied to"
    )
    batch_size: int | None = chz.field(
        default=None, doc="prompts per batch (None: from the recipe's keys)", metadata=COUNT
    )
    policy_renderer_name: str | None = chz.field(
        default=None, doc="renderer of the policy (None: from the recipe's keys)"
    )
    policy_model_name: str | None = chz.field(
        default=None, doc="model whose tokenizer is used (None: from the recipe's keys)"
    )
    tournament_pattern: TournamentPattern = chz.field(
        default=TournamentPattern.ALL_PAIRS_BOTH_WAYS,
        doc="compare each pair of replies in one order or in both",
    )
    group_size: int | None = chz.field(
        default=None,
        doc="replies per prompt (None: from the recipe's keys)",
        metadata=_AT_LEAST_TWO,
    )
    preference_model_builder: PreferenceModelBuilder = chz.field(
        doc="preference model that compares the replies"
    )
    matchup_group_size: int = chz.field(
        default=MATCHUP_GROUP_SIZE,
        doc="replies that are compared with one another, all pairs; a larger group is split",
        metadata=_AT_LEAST_TWO,
    )
    seed: int | None = chz.field(
        default=None,
        doc="seed of each epoch's shuffle (None: from the recipe's keys)",
        metadata=SEED,
    )
    num_epochs: int = chz.field(default=1, doc="passes over the prompts", metadata=COUNT)

    def rewards_are_relative(self) -> bool:
        return True  # apart from the format penalty

    async def __call__(self) -> tuple[RLDataset, RLDataset | None]:
        model = self.needed("policy_model_name", self.policy_model_name)
        renderer_name = self.needed("policy_renderer_name", self.policy_renderer_name)
        prompts = ComparisonPrompts(self.comparison_builder.open_splits()[0])
        make_group = partial(
            PairwisePreferenceGroupBuilder,
            policy_renderer=get_renderer(renderer_name, get_tokenizer(model), model_name=model),
            tournament_pattern=self.tournament_pattern,
            # in a thread, since loading a model blocks
            preference_model=await in_thread(self.preference_model_builder),
            num_envs=self.needed("group_size", self.group_size),
            matchup_group_size=self.matchup_group_size,
        )
        dataset = ShuffledRLDataset(
            len(prompts),
            lambda index: make_group(prompts[index]),
            groups_per_batch=self.needed("batch_size", self.batch_size),
            seed=self.needed("seed", self.seed),
            num_epochs=self.num_epochs,
        )
        return dataset, None


class ComparisonPrompts:
    """The prompts of the usable rows of a split, by index; parsed again on each access, so that
    only the numbers of the rows are held."""

    def __init__(self, split: ComparisonSplit) -> None:
        self._split = split
        self._row_numbers: list[int] = []
        problems: list[str] = []
        for number in range(len(split.rows)):
            try:
                self._read(number)
                self._row_numbers.append(number)
            except DataFormatError as error:
                reason = str(error).removeprefix("row: ")
                problems.append(f"{where(split.rows, number)}: {reason}")
        if problems:
            self._report(problems)

    def __len__(self) -> int:
        return len(self._row_numbers)

    def __getitem__(self, index: int) -> list[Message]:
        return self._read(self._row_numbers[index])

    def _read(self, number: int) -> list[Message]:
        parsed = self._split.read(self._split.rows[number], "row")
        if parsed is None:
            raise DataFormatError("left out by the data set")
        prompt = parsed.labeled.comparison.prompt_conversation
        if not prompt:
            raise DataFormatError("the prompt is empty")
        return prompt

    def _report(self, problems: Sequence[str]) -> None:
        named = "; ".join(problems[:MAX_NAMED])
        if len(problems) > MAX_NAMED:
            named += f"; and {len(problems) - MAX_NAMED:,} more"
        total = len(self._split.rows)
        if not self._row_numbers:
            raise DataValidationError(
                f"{self._split.name}: none of the {total:,} rows has a usable prompt: {named}"
            )
        logger.warning(
            "%s: %s of %s rows skipped: %s",
            *(self._split.name, f"{len(problems):,}", f"{total:,}", named),
        )
