"""Run the episodes of a group concurrently.

There are two kinds of failure. A failure of the environment (it raises, takes too long, or returns
a reward that is not a number) concerns one episode: it is recorded as a `RolloutError`, and a
`RolloutStrategy` decides whether to retry and whether to keep the group. A failure of sampling
concerns every episode and is raised.
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
from tinker_cookbook.rl.rollouts.env_calls import (
    EnvCalls,
    require_metrics,
    require_number,
    rollout_failure,
)
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
    """Raise ConfigurationError unless `executor` is None: rollouts run in this process's event
    loop."""
    if executor is not None:
        raise ConfigurationError(
            f"rollout_executor={executor!r} is not supported: rollouts run in the event loop of"
            " this process; leave it out"
        )


async def do_single_rollout(
    policy: TokenCompleter,
    env: Env,
    *,
    limits: RolloutLimits | None = None,
    progress: RolloutProgress | None = None,
) -> Trajectory:
    """Run one episode until it ends or reaches a limit.

    Raises RolloutFailedError if the environment fails, and whatever `policy` raises.
    """
    limits, progress = limits or RolloutLimits(), progress or RolloutProgress()
    return await Episode(policy, env, limits, progress).run()


async def do_group_rollout(
    builder: EnvGroupBuilder,
    policy: TokenCompleter,
    strategy: RolloutStrategy | None = None,
    termination: RolloutLimits | None = None,
    *,
    seed: int | None = None,
    progress: RolloutProgress | None = None,
) -> TrajectoryGroup:
    """Run all episodes of a group concurrently and compute their group rewards.

    A failed group is returned without trajectories; `rollout_errors` gives the reasons. strategy:
    None for MinViableGroup(). seed: if `policy` has a method `seeded`, member i samples with seeds
    derived from (seed, i), so that samples do not depend on the order in which members run.
    """
    group = _GroupRun(
        builder,
        policy,
        strategy or MinViableGroup(),
        termination or RolloutLimits(),
        seed,
        progress or RolloutProgress(),
    )
    try:
        return await group.run()
    finally:
        await group.cleanup()


@runtime_checkable
class _Seeded(Protocol):
    """A policy that can be copied with a seed of its own, one per member."""

    def seeded(self, seed: int) -> TokenCompleter: ...


class _MemberRollout(NamedTuple):
    trajectory: Trajectory
    env: Env


class _MemberReward(NamedTuple):
    reward: float
    metrics: Metrics


class _RetriesExhausted(Exception):
    """The strategy decided against another attempt."""


class _GroupRun:
    """One run of a group's episodes, with its failures so far."""

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

    async def run(self) -> TrajectoryGroup:
        # holds the same list as self._errors, so failures recorded later are in it, too
        failed = TrajectoryGroup([], [], [], self._errors)
        try:
            envs = await self._with_retries(self._make_envs)
            members = await gather_raising_first(
                [self._run_member(i, env) for i, env in enumerate(envs)]
            )
            rollouts = [member for member in members if member is not None]
            if not rollouts or not self._strategy.accepts(len(rollouts), len(members)):
                return failed
            rewards = await self._with_retries(lambda: self._compute_group_rewards(rollouts))
        except _RetriesExhausted:
            return failed
        return TrajectoryGroup(
            trajectories_G=[rollout.trajectory for rollout in rollouts],
            final_rewards_G=[reward.reward for reward in rewards],
            metrics_G=[reward.metrics for reward in rewards],
            rollout_errors=self._errors,
        )

    async def cleanup(self) -> None:
        """Run the builder's cleanup. A failure is recorded and logged, never raised: it must not
        discard finished rollouts or hide an earlier exception."""
        try:
            await self._call(self._builder.cleanup, "cleanup")
        except RolloutFailedError as failed:
            self._errors.append(failed.error)
            logger.warning("%s", failed)
        finally:
            await self._calls.close()

    async def _run_member(self, index: int, env: Env) -> _MemberRollout | None:
        """Run the episode of member `index`; None if it failed for good."""
        attempt = 0

        async def episode() -> _MemberRollout:
            nonlocal attempt
            attempt += 1
            # an env is one episode, and a failed one may be in any state
            member_env = env if attempt == 1 else await self._fresh_env(index)
            policy = self._member_policy(index, attempt)
            trajectory = Episode(policy, member_env, self._limits, self._progress).run()
            return _MemberRollout(await trajectory, member_env)

        try:
            return await self._with_retries(episode, index)
        except _RetriesExhausted:
            return None

    async def _with_retries(
        self, operation: Callable[[], Awaitable[T]], member: int | None = None
    ) -> T:
        """Await `operation` until it succeeds or the strategy stops retrying; record failures.

        Only RolloutFailedError is retried: sampling errors and cancellation pass through.
        """
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
                failure = RolloutFailedError(error)
                failure.__cause__ = failed.__cause__
                # A strategy may raise this failure itself (FailFast), so it has to name the member
                # and keep the original cause.
                if not self._strategy.should_retry(failure, attempt):
                    raise _RetriesExhausted from failed

    def _member_policy(self, index: int, attempt: int) -> TokenCompleter:
        if self._seed is None or not isinstance(self._policy, _Seeded):
            return self._policy
        # The first attempt's seed depends on the index alone, so a member that never fails samples
        # the same with any strategy. A retry needs another seed: with the same one, the policy
        # would sample the very tokens on which the env failed.
        parts = (index,) if attempt == 1 else (index, attempt)
        return self._policy.seeded(derive_seed(self._seed, *parts))

    async def _make_envs(self) -> list[Env]:
        # list() runs inside the guarded call: the builder may return a lazy iterable that raises
        async def make_env_list() -> list[Env]:
            return list(await self._builder.make_envs())

        envs = await self._call(make_env_list, "make_envs")
        if not envs:
            raise rollout_failure("group_error", f"{self._name}.make_envs returned no env")
        return envs

    async def _fresh_env(self, index: int) -> Env:
        envs = await self._make_envs()
        if index >= len(envs):
            raise rollout_failure(
                "group_error", f"{self._name}.make_envs returned fewer envs than the first time"
            )
        return envs[index]

    async def _compute_group_rewards(
        self, rollouts: Sequence[_MemberRollout]
    ) -> list[_MemberReward]:
        where = f"{self._name}.compute_group_rewards"
        trajectories = [rollout.trajectory for rollout in rollouts]
        envs = [rollout.env for rollout in rollouts]

        # unpacked inside the guarded call, so that an item of another shape fails only the group
        async def reward_pairs() -> list[tuple[float, Metrics]]:
            rewards = await self._builder.compute_group_rewards(trajectories, envs)
            return [(reward, metrics) for reward, metrics in rewards]

        rewards = await self._call(reward_pairs, "compute_group_rewards")
        if len(rewards) != len(rollouts):
            message = f"{where} returned {len(rewards)} rewards for {len(rollouts)} trajectories"
            raise rollout_failure("group_error", message)
        return [
            _MemberReward(
                require_number(reward, f"{where}: reward {i}", "bad_reward"),
                require_metrics(metrics, where),
            )
            for i, (reward, metrics) in enumerate(rewards)
        ]

    async def _call(self, call: Callable[[], Awaitable[T]], name: str) -> T:
        return await self._calls(call, f"{self._name}.{name}", "group_error")


async def gather_raising_first(coroutines: Sequence[Coroutine[None, None, T]]) -> list[T]:
    """Await all coroutines and return their results in order.

    The first error cancels the others and is raised alone, without its ExceptionGroup.
    """
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(coroutine) for coroutine in coroutines]
    except BaseExceptionGroup as errors:
        # Callers catch errors by type, which an ExceptionGroup would hide. Without `from`, Python
        # would print the group as the context of this error.
        first = errors.exceptions[0]
        raise first from first.__cause__
    return [task.result() for task in tasks]
