"""What a reinforcement-learning environment is, and what a rollout leaves behind.

An `Env` is one episode: it gives an observation (tokens), takes an action (tokens), pays a reward.
An `EnvGroupBuilder` makes the envs whose rewards are compared with one another, e.g. several
attempts at one problem. An `RLDataset` is batches of these builders.

Axes, as in names that end with them: P problems (groups) of a batch, G members of a group,
T tokens, D datums.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypedDict

import chz
import tinker

from tinker_cookbook.completers import StopCondition, TokensWithLogprobs
from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.training.fields import CheckedConfig

Action = list[int]
Observation = tinker.ModelInput
Logprobs = list[float]
Metrics = dict[str, float | int]
Logs = dict[str, str | int | float]


class StopReason(StrEnum):
    """Why an episode ended."""

    DONE = "done"  # the environment said so
    MAX_TURNS = "max_turns"
    MAX_TRAJECTORY_TOKENS = "max_trajectory_tokens"
    CONTEXT_OVERFLOW = "context_overflow"  # no room for a reply to the next observation


class ActionExtra(TypedDict, total=False):
    """What is known of an action besides its tokens: `Env.step(action, extra=...)`."""

    stop_reason: str  # "stop" or "length", of TokensWithLogprobs
    logprobs: Logprobs | None


@dataclass
class StepResult:
    """What an action led to.

    reward: a finite number. next_observation, next_stop_condition: what the next action answers to;
    not read when `episode_done`. metrics: numbers, averaged over the batch under their names.
    logs: shown in transcripts, beside what was logged by utils.logtree. trainable: whether the
    action's tokens are trained at all.
    """

    reward: float
    episode_done: bool
    next_observation: Observation
    next_stop_condition: StopCondition
    metrics: Metrics = field(default_factory=dict)
    logs: Logs = field(default_factory=dict)
    trainable: bool = True


class Env(ABC):
    """One episode; used once. Whatever it raises ends the episode as a failure (RolloutError).

    All episodes and sampling share one event loop, so what blocks (`requests`, `time.sleep`, heavy
    computation) belongs into a thread: `await utils.threads.in_thread(function, *args)`. Blocking
    in here stops everything, and no timeout can end it.
    """

    @abstractmethod
    async def initial_observation(self) -> tuple[Observation, StopCondition]:
        """The first prompt, and what ends a reply to it."""

    @abstractmethod
    async def step(self, action: Action, *, extra: ActionExtra | None = None) -> StepResult:
        """`action`: the sampled tokens, with the stop token or string if one ended them. An env may
        leave `extra` out of its signature."""


@dataclass
class Transition:
    """One turn: the whole prompt as the model saw it, the reply, and what it led to."""

    ob: Observation
    ac: TokensWithLogprobs
    reward: float
    episode_done: bool
    metrics: Metrics = field(default_factory=dict)
    logs: Logs = field(default_factory=dict)
    trainable: bool = True


@dataclass(frozen=True)
class Trajectory:
    """An episode. `final_ob`: the prompt after the last action."""

    transitions: list[Transition]
    final_ob: Observation
    stop_reason: StopReason = StopReason.DONE


class InitialObservationOverflow(Exception):
    """The first prompt of an episode leaves no room for a reply."""


@dataclass(frozen=True)
class RolloutError:
    """Why an episode, or a whole group, has no trajectory.

    kind: one of a few words, counted in metrics as `rollout_errors/<kind>`: env_error, env_timeout,
    bad_reward, prompt_too_long, group_error. member: which of the group; None: all of it.
    """

    kind: str
    message: str
    member: int | None = None
    traceback: str = ""


@dataclass
class TrajectoryGroup:
    """The episodes of a group. `final_rewards_G`, `metrics_G`: from `compute_group_rewards`.

    Members that failed are left out; `rollout_errors` tells of them, and of members that were
    played again.
    """

    trajectories_G: list[Trajectory]
    final_rewards_G: list[float]
    metrics_G: list[Metrics]
    rollout_errors: list[RolloutError] = field(default_factory=list)

    def get_total_rewards(self) -> list[float]:
        """Of each member: the rewards of its turns and its group reward."""
        return [
            sum(transition.reward for transition in trajectory.transitions) + final
            for trajectory, final in zip(self.trajectories_G, self.final_rewards_G, strict=True)
        ]


class EnvGroupBuilder(ABC):
    """Makes the envs of one group. The same builder may be used again after a failure."""

    @abstractmethod
    async def make_envs(self) -> Sequence[Env]:
        """Fresh envs, one for each member."""

    async def compute_group_rewards(
        self, trajectory_group: list[Trajectory], env_group: Sequence[Env]
    ) -> list[tuple[float, Metrics]]:
        """A reward on top of those of the turns, for each trajectory, e.g. from comparing them, and
        metrics. `env_group[i]` is the env of trajectory i."""
        return [(0.0, {}) for _ in trajectory_group]

    async def cleanup(self) -> None:  # noqa: B027 (most have nothing to give back)
        """Called once after the group was played, also if it failed."""

    def logging_tags(self) -> list[str]:
        """Names under which metrics of this group are shown besides `all`, e.g. a data set's."""
        return []


class RLDataset(ABC):
    """Batches of group builders by index. `get_batch(i)` depends on i alone, so that a resumed run
    sees the batches that an uninterrupted one sees."""

    @abstractmethod
    def get_batch(self, index: int) -> Sequence[EnvGroupBuilder]:
        """Batch `index`, 0 <= index < len(self)."""

    @abstractmethod
    def __len__(self) -> int:
        """Batches."""


@chz.chz
class RLDatasetBuilder(CheckedConfig):
    """Configuration that builds (training data, test data or None)."""

    async def __call__(self) -> tuple[RLDataset, RLDataset | None]:
        raise ConfigurationError(
            f"{type(self).__name__} is only the base of data sets: name one that makes batches"
        )

    def default_max_tokens(self) -> int | None:
        """Tokens that a reply to this data takes, where a recipe's max_tokens is None (None: what
        suits the method)."""
        return None
