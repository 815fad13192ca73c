"""Environment interfaces and rollout data types for reinforcement learning.

An `Env` is one episode: it returns an observation (tokens), takes an action (tokens) and returns a
reward. An `EnvGroupBuilder` makes the envs of a group, whose rewards are compared with one another,
e.g. several attempts at one problem. An `RLDataset` yields batches of these builders.

Name suffixes denote axes: _P problems (groups) in a batch, _G members of a group, _T tokens,
_D datums.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypedDict, TypeVar

import chz
import tinker

from tinker_cookbook.completers import StopCondition, TokensWithLogprobs
from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.training.fields import CheckedConfig

T = TypeVar("T")

Action = list[int]
Observation = tinker.ModelInput
Logprobs = list[float]
Metrics = dict[str, float | int]
Logs = dict[str, str | int | float]


class StopReason(StrEnum):
    """Why an episode ended."""

    DONE = "done"  # the environment reported episode_done
    MAX_TURNS = "max_turns"
    MAX_TRAJECTORY_TOKENS = "max_trajectory_tokens"
    CONTEXT_OVERFLOW = "context_overflow"  # no room for a reply to the next observation


class ActionExtra(TypedDict, total=False):
    """Optional metadata about an action, passed as `Env.step(action, extra=...)`."""

    stop_reason: str  # "stop" or "length", copied from TokensWithLogprobs.stop_reason
    logprobs: Logprobs | None


@dataclass
class StepResult:
    """The environment's response to an action.

    reward: a finite number. next_observation, next_stop_condition: the prompt for the next action
    and its stop condition; ignored if `episode_done`. metrics: averaged over the batch,
    by name. logs: shown in transcripts, next to anything logged with utils.logtree.
    trainable: whether to train on the action's tokens.
    """

    reward: float
    episode_done: bool
    next_observation: Observation
    next_stop_condition: StopCondition
    metrics: Metrics = field(default_factory=dict)
    logs: Logs = field(default_factory=dict)
    trainable: bool = True


class Env(ABC):
    """One episode; never reused. If a method raises, a RolloutError records the failure.

    All episodes and all sampling share one event loop, so blocking calls (`requests`, `time.sleep`,
    heavy computation) must run in a thread: `await utils.threads.in_thread(function, *args)`. A
    call that blocks the loop stops every other episode, and no timeout can interrupt it.
    """

    @abstractmethod
    async def initial_observation(self) -> tuple[Observation, StopCondition]:
        """Return the first prompt and its stop condition."""

    @abstractmethod
    async def step(self, action: Action, *, extra: ActionExtra | None = None) -> StepResult:
        """Apply an action and return its StepResult.

        action: the sampled tokens, including the stop token or stop string, if any. An env may
        omit `extra` from its signature.
        """


@dataclass
class Transition:
    """One turn: the full prompt as the model saw it, the sampled action, and the step's result."""

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
    """Raised if the first prompt of an episode leaves no room for a reply."""


@dataclass(frozen=True)
class RolloutError:
    """A record of why an episode, or a whole group, failed. Not an exception.

    kind: the category, counted in the metric `rollout_errors/<kind>`: env_error, env_timeout,
    bad_reward, prompt_too_long, group_error. member: index in the group; None if the failure
    concerns the whole group.
    """

    kind: str
    message: str
    member: int | None = None
    traceback: str = ""


@dataclass
class TrajectoryGroup:
    """The completed episodes of a group. `final_rewards_G`, `metrics_G`: from
    `compute_group_rewards`.

    Failed members are left out. `rollout_errors` records their failures, and failed attempts of
    members that later succeeded.
    """

    trajectories_G: list[Trajectory]
    final_rewards_G: list[float]
    metrics_G: list[Metrics]
    rollout_errors: list[RolloutError] = field(default_factory=list)

    def get_total_rewards(self) -> list[float]:
        """Total reward per member: the sum of its step rewards plus its group reward."""
        return [
            sum(transition.reward for transition in trajectory.transitions) + final
            for trajectory, final in zip(self.trajectories_G, self.final_rewards_G, strict=True)
        ]


class EnvGroupBuilder(ABC):
    """Makes the envs of one group. `make_envs` may be called again to retry failed members."""

    @abstractmethod
    async def make_envs(self) -> Sequence[Env]:
        """Return fresh envs, one per member."""

    async def compute_group_rewards(
        self, trajectory_group: list[Trajectory], env_group: Sequence[Env]
    ) -> list[tuple[float, Metrics]]:
        """Return (reward, metrics) per trajectory, e.g. from pairwise comparison; the reward is
        added to the step rewards. `env_group[i]` is the env of trajectory i."""
        return [(0.0, {}) for _ in trajectory_group]

    async def cleanup(self) -> None:  # noqa: B027 (an optional hook)
        """Called once after the group's rollouts finish, even on failure."""

    def logging_tags(self) -> list[str]:
        """Tags to aggregate this group's metrics by, in addition to `all`, e.g. the data set's
        name."""
        return []


class RLDataset(ABC):
    """Batches of group builders by index. `get_batch(i)` must depend on i alone, so that a resumed
    run trains on the same batches as an uninterrupted one."""

    @abstractmethod
    def get_batch(self, index: int) -> Sequence[EnvGroupBuilder]:
        """Return batch `index`, 0 <= index < len(self)."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of batches."""


@chz.chz
class RLDatasetBuilder(CheckedConfig):
    """Config of a data set. Calling it returns (training data, test data or None)."""

    # not abstract, so that `data=RLDatasetBuilder` on a command line fails with this message
    async def __call__(self) -> tuple[RLDataset, RLDataset | None]:
        raise ConfigurationError(
            f"{type(self).__name__} is the abstract base of data set builders: use a subclass"
        )

    def default_max_tokens(self) -> int | None:
        """max_tokens for this data if the user sets none (None: the recipe's
        default)."""
        return None

    def rewards_are_relative(self) -> bool:
        """Whether rewards only compare the members of a group with one another. Their mean is then
        the same for every policy, and the loop does not look for trouble in it."""
        return False

    def needed(self, key: str, value: T | None) -> T:
        """Return `value`; raises ConfigurationError, which names `key`, if it is None."""
        if value is None:
            raise ConfigurationError(f"{type(self).__name__} was called without {key}: set {key}=")
        return value
