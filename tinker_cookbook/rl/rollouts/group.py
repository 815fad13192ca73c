"""Playing episodes: the policy and the environment in turns, groups of episodes at once.

Two kinds of failure are kept apart. What the environment does wrong (it raises, it takes too long,
its reward is not a number) concerns its own episode, is recorded as a `RolloutError`, and a
`RolloutStrategy` decides what becomes of the group. What goes wrong in sampling concerns every
episode and is raised.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from typing import NamedTuple, Protocol, TypeVar, runtime_checkable

from tinker_cookbook.completers import TokenCompleter, derive_seed
from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.rl.rollouts.env_calls import EnvCalls, checked_metrics, checked_number, failure
from tinker_cookbook.rl.rollouts.episode import Episode
from tinker_cookbook.rl.rollouts.limits import RolloutLimits
from tinker_cookbook.rl.rollouts.progress import RolloutProgress
from tinker_cookbook.rl.rollouts.strategy import (
    MinViableGroup,
    RolloutFailedError,
    RolloutStrategy,
)
from tinker_cookbook.rl.types import (
    Env,
    EnvGroupBuilder,
    Metrics,
    RolloutError,
    Trajectory,
    TrajectoryGroup,
)

T = TypeVar("T")
logger = logging.getLogger(__name__)


def set_rollout_executor(executor: Executor | None) -> None:
    """Refuses an executor: the event loop of this process plays all episodes."""
    if executor is not None:
        raise ConfigurationError(
            f"rollout_executor={executor!r} is not supported: episodes are played by the"
            " event loop of this process; leave it out"
        )


async def do_single_rollout(
    policy: TokenCompleter,
    env: Env,
    *,
    limits: RolloutLimits | None = None,
    progress: RolloutProgress | None = None,
) -> Trajectory:
    """One episode, to its end or to a limit.

    Raises RolloutFailedError where the environment failed, and what `policy` raises.
    """
    limits, progress = limits or RolloutLimits(), progress or RolloutProgress()
    return await Episode(policy, env, limits, progress).play()


async def do_group_rollout(
    builder: EnvGroupBuilder,
    policy: TokenCompleter,
    strategy: RolloutStrategy | None = None,
    termination: RolloutLimits | None = None,
    *,
    seed: int | None = None,
    progress: RolloutProgress | None = None,
) -> TrajectoryGroup:
    """All episodes of a group at once, and their group rewards.

    A group that failed comes back without trajectories; `rollout_errors` says why. strategy: None
    for MinViableGroup(). seed: member i samples with seeds that come from (seed, i), where `policy`
    has `seeded`; what a group samples then does not depend on the order in which its members run.
    """
    group = _Group(
        builder,
        policy,
        strategy or MinViableGroup(),
        termination or RolloutLimits(),
        seed,
        progress or RolloutProgress(),
    )
    try:
        return await group.play()
    finally:
        await group.cleanup()


@runtime_checkable
class _Seeded(Protocol):
    """A policy that can give each member its own seed."""

    def seeded(self, seed: int) -> TokenCompleter: ...


class _Played(NamedTuple):
    trajectory: Trajectory
    env: Env


class _Reward(NamedTuple):
    reward: float
    metrics: Metrics


class _GivenUp(Exception):
    """The strategy does not want it done again."""


class _Group:
    """A group being played, and its failures so far."""

    def __init__(
        self,
        builder: EnvGroupBuilder,
        policy: TokenCompleter,
        strategy: RolloutStrategy,
        limits: RolloutLimits,
        seed: int | None,
        progress: RolloutProgress,
    ) -> None:
        self._builder, self._policy, self._strategy = builder, policy, strategy
        self._limits, self._seed, self._progress = limits, seed, progress
        self._name = type(builder).__name__
        self._calls = EnvCalls(limits, self._progress)
        self._errors: list[RolloutError] = []

    async def play(self) -> TrajectoryGroup:
        failed = TrajectoryGroup([], [], [], self._errors)
        try:
            envs = await self._retried(self._make_envs)
            members = await _all_of([self._member(i, env) for i, env in enumerate(envs)])
            played = [member for member in members if member is not None]
            if not played or not self._strategy.accepts(len(played), len(members)):
                return failed
            rewards = await self._retried(lambda: self._group_rewards(played))
        except _GivenUp:
            return failed
        return TrajectoryGroup(
            trajectories_G=[each.trajectory for each in played],
            final_rewards_G=[each.reward for each in rewards],
            metrics_G=[each.metrics for each in rewards],
            rollout_errors=self._errors,
        )

    async def cleanup(self) -> None:
        """Never raises: the group is played, and this error must not hide another."""
        try:
            await self._call(self._builder.cleanup, "cleanup")
        except RolloutFailedError as failed:
            self._errors.append(failed.error)
            logger.warning("%s", failed)
        finally:
            await self._calls.close()

    async def _member(self, index: int, env: Env) -> _Played | None:
        """The episode of member `index`; None if it is given up."""
        attempt = 0

        async def episode() -> _Played:
            nonlocal attempt
            attempt += 1
            mine = env if attempt == 1 else await self._fresh_env(index)
            policy = self._member_policy(index, attempt)
            play = Episode(policy, mine, self._limits, self._progress).play()
            return _Played(await play, mine)

        try:
            return await self._retried(episode, index)
        except _GivenUp:
            return None

    async def _retried(self, operation: Callable[[], Awaitable[T]], member: int | None = None) -> T:
        """`operation` until it succeeds or the strategy gives it up. Failures are recorded."""
        attempt = 0
        while True:
            try:
                return await operation()
            except RolloutFailedError as failed:
                attempt += 1
                error = failed.error
                if member is not None:
                    message = f"{self._name}, member {member}: {error.message}"
                    error = replace(error, message=message, member=member)
                self._errors.append(error)
                named = RolloutFailedError(error)
                named.__cause__ = failed.__cause__
                if not self._strategy.again(named, attempt):
                    raise _GivenUp from failed

    def _member_policy(self, index: int, attempt: int) -> TokenCompleter:
        if self._seed is None or not isinstance(self._policy, _Seeded):
            return self._policy
        # another seed for another attempt, or the reply that the env cannot stand would come again
        parts = (index,) if attempt == 1 else (index, attempt)
        return self._policy.seeded(derive_seed(self._seed, *parts))

    async def _make_envs(self) -> list[Env]:
        async def listed() -> list[Env]:
            return list(await self._builder.make_envs())

        envs = await self._call(listed, "make_envs")
        if not envs:
            raise failure("group_error", f"{self._name}.make_envs gave no env")
        return envs

    async def _fresh_env(self, index: int) -> Env:
        envs = await self._make_envs()
        if index >= len(envs):
            raise failure(
                "group_error", f"{self._name}.make_envs gave fewer envs than the first time"
            )
        return envs[index]

    async def _group_rewards(self, played: Sequence[_Played]) -> list[_Reward]:
        where = f"{self._name}.compute_group_rewards"
        trajectories = [each.trajectory for each in played]
        envs = [each.env for each in played]

        async def pairs() -> list[tuple[float, Metrics]]:
            answer = await self._builder.compute_group_rewards(trajectories, envs)
            return [(reward, metrics) for reward, metrics in answer]

        answer = await self._call(pairs, "compute_group_rewards")
        if len(answer) != len(played):
            message = f"{where} gave {len(answer)} rewards for {len(played)} trajectories"
            raise failure("group_error", message)
        return [
            _Reward(
                checked_number(reward, f"{where}: reward {i}", "bad_reward"),
                checked_metrics(metrics, where),
            )
            for i, (reward, metrics) in enumerate(answer)
        ]

    async def _call(self, call: Callable[[], Awaitable[T]], name: str) -> T:
        return await self._calls(call, f"{self._name}.{name}", "group_error")


async def _all_of(coroutines: Sequence[Coroutine[None, None, T]]) -> list[T]:
    """All results in order. The first error ends the others and is raised as it is."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(coroutine) for coroutine in coroutines]
    except BaseExceptionGroup as errors:
        first = errors.exceptions[0]
        raise first from first.__cause__
    return [task.result() for task in tasks]
