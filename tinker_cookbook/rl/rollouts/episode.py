"""Run one episode: policy and environment alternate until the episode ends or hits a limit."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Literal

import tinker

from tinker_cookbook.completers import (
    ContextOverflow,
    StopCondition,
    TokenCompleter,
    TokensWithLogprobs,
)
from tinker_cookbook.exceptions import TrainingError
from tinker_cookbook.rl.rollouts.env_calls import (
    EnvCalls,
    describe_value,
    is_being_cancelled,
    require_dict,
    require_metrics,
    require_number,
    require_prompt,
    rollout_failure,
    takes_extra,
)
from tinker_cookbook.rl.rollouts.limits import RolloutLimits
from tinker_cookbook.rl.rollouts.progress import RolloutProgress
from tinker_cookbook.rl.rollouts.strategy import RolloutFailedError
from tinker_cookbook.rl.types import (
    ActionExtra,
    Env,
    InitialObservationOverflow,
    StepResult,
    StopReason,
    Trajectory,
    Transition,
)
from tinker_cookbook.utils import logtree
from tinker_cookbook.utils.loop_clock import bounded


class Episode:
    def __init__(
        self,
        policy: TokenCompleter,
        env: Env,
        limits: RolloutLimits,
        progress: RolloutProgress,
    ) -> None:
        self._policy, self._env = policy, env
        self._limits, self._progress = limits, progress
        self._name = type(env).__name__
        self._call = EnvCalls(limits, progress)

    async def run(self) -> Trajectory:
        """Raises RolloutFailedError if the environment fails, and whatever the policy raises."""
        try:
            return await self._run_turns()
        finally:
            await self._call.close()

    async def _run_turns(self) -> Trajectory:
        observation, stop = await self._initial_observation()
        transitions: list[Transition] = []
        while True:
            room = self._room(observation)
            if room is not None and room < 1:
                return self._end_without_room(
                    transitions,
                    observation,
                    StopReason.MAX_TRAJECTORY_TOKENS,
                    f"max_trajectory_tokens={self._limits.max_trajectory_tokens} leaves no room"
                    f" for a reply to a prompt of {observation.length} tokens",
                )
            try:
                action = await self._sample(observation, stop, room)
            except ContextOverflow as error:
                reason = StopReason.CONTEXT_OVERFLOW
                return self._end_without_room(transitions, observation, reason, str(error))
            result = await self._step(action)
            transitions.append(self._transition(observation, action, result))
            observation, stop = result.next_observation, result.next_stop_condition
            if result.episode_done:
                # no action follows, so an env may leave the next prompt out
                if not isinstance(observation, tinker.ModelInput):
                    observation = tinker.ModelInput.empty()
                return Trajectory(transitions, observation, StopReason.DONE)
            require_prompt(observation, f"{self._name}.step: next_observation")
            if self._limits.max_turns is not None and len(transitions) >= self._limits.max_turns:
                return Trajectory(transitions, observation, StopReason.MAX_TURNS)

    async def _initial_observation(self) -> tuple[tinker.ModelInput, StopCondition]:
        where = f"{self._name}.initial_observation"
        try:
            result = await self._call(self._env.initial_observation, where)
        except RolloutFailedError as failed:
            # a kind of its own: the data is at fault, not the environment's code
            if isinstance(failed.__cause__, InitialObservationOverflow):
                message = f"{self._name}: {failed.__cause__}"
                raise rollout_failure("prompt_too_long", message) from failed.__cause__
            raise
        if not isinstance(result, tuple) or len(result) != 2:
            raise rollout_failure(
                "env_error", f"{where} returned {describe_value(result)}, expected (prompt, stop)"
            )
        observation, stop = result
        return require_prompt(observation, f"{where}: the prompt"), stop

    async def _sample(
        self, observation: tinker.ModelInput, stop: StopCondition, room: int | None
    ) -> TokensWithLogprobs:
        # The time limit counts from the engine's last answer to any rollout. A limit per request
        # would fail requests that only wait behind others in a busy engine.
        seconds, silence = self._limits.sample_timeout, self._progress.silence_timer()
        # passed only if there is a limit: a user's policy need not accept `max_tokens`
        limit = {} if room is None else {"max_tokens": room}
        try:
            with self._progress.waiting("sampling"):
                async with bounded(seconds, silence) as scope:
                    action = await self._policy(observation, stop, **limit)
        except asyncio.CancelledError:
            if is_being_cancelled():
                raise
            # Nothing cancelled this task, so the engine cancelled the request. Left as it is, the
            # CancelledError would end this task silently, as if the run had been stopped.
            raise TrainingError("sampling was cancelled: the engine is shutting down") from None
        except TimeoutError as error:
            if not scope.expired():
                raise
            raise TrainingError(
                f"limits.sample_timeout={seconds:g}: no rollout received a sample within this many"
                f" seconds, including one with a prompt of {observation.length} tokens; raise it,"
                " or find out what keeps the engine busy"
            ) from error
        self._progress.engine_answered()
        return action

    async def _step(self, action: TokensWithLogprobs) -> StepResult:
        extra: dict[Literal["extra"], ActionExtra] = {}
        if takes_extra(type(self._env)):
            action_extra = ActionExtra(
                stop_reason=action.stop_reason, logprobs=action.maybe_logprobs
            )
            extra = {"extra": action_extra}
        where = f"{self._name}.step"

        # `collecting` sets a context variable, so it has to run inside the worker task of EnvCalls
        # rather than around the call.
        async def step() -> tuple[StepResult, logtree.Scope]:
            with logtree.collecting(where) as logged:
                return await self._env.step(action.tokens, **extra), logged

        result, logged = await self._call(step, where)
        if not isinstance(result, StepResult):
            raise rollout_failure(
                "env_error", f"{where} returned {describe_value(result)}, expected a StepResult"
            )
        if logged.children:
            logs = require_dict(result.logs, f"{where}: logs")
            result = replace(result, logs={**logs, "logtree": logtree.as_text(logged)})
        return result

    def _transition(
        self, observation: tinker.ModelInput, action: TokensWithLogprobs, result: StepResult
    ) -> Transition:
        where = f"{self._name}.step"
        return Transition(
            ob=observation,
            ac=action,
            reward=require_number(result.reward, f"{where}: reward", "bad_reward"),
            episode_done=bool(result.episode_done),
            metrics=require_metrics(result.metrics, where),
            logs=require_dict(result.logs, f"{where}: logs"),
            trainable=bool(result.trainable),
        )

    def _room(self, observation: tinker.ModelInput) -> int | None:
        """Tokens left for a reply under max_trajectory_tokens; None without that limit."""
        if self._limits.max_trajectory_tokens is None:
            return None
        return self._limits.max_trajectory_tokens - observation.length

    def _end_without_room(
        self,
        transitions: list[Transition],
        observation: tinker.ModelInput,
        reason: StopReason,
        message: str,
    ) -> Trajectory:
        """End an episode that has no room for another reply; without a first one, it failed."""
        if not transitions:
            raise rollout_failure("prompt_too_long", f"{self._name}: {message}")
        return Trajectory(transitions, observation, reason)
