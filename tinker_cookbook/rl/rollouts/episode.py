"""One episode: the policy and the environment in turns, until it ends or reaches a limit."""

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
    being_cancelled,
    checked_dict,
    checked_metrics,
    checked_number,
    checked_prompt,
    failure,
    found,
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

    async def play(self) -> Trajectory:
        try:
            return await self._turns()
        finally:
            await self._call.close()

    async def _turns(self) -> Trajectory:
        observation, stop = await self._initial_observation()
        transitions: list[Transition] = []
        while True:
            room = self._room(observation)
            if room is not None and room < 1:
                return self._full(
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
                return self._full(transitions, observation, reason, str(error))
            result = await self._step(action)
            transitions.append(self._transition(observation, action, result))
            observation, stop = result.next_observation, result.next_stop_condition
            if result.episode_done:
                if not isinstance(observation, tinker.ModelInput):  # nobody is to answer it
                    observation = tinker.ModelInput.empty()
                return Trajectory(transitions, observation, StopReason.DONE)
            checked_prompt(observation, f"{self._name}.step: next_observation")
            if self._limits.max_turns is not None and len(transitions) >= self._limits.max_turns:
                return Trajectory(transitions, observation, StopReason.MAX_TURNS)

    async def _initial_observation(self) -> tuple[tinker.ModelInput, StopCondition]:
        where = f"{self._name}.initial_observation"
        try:
            answer = await self._call(self._env.initial_observation, where)
        except RolloutFailedError as failed:
            if isinstance(failed.__cause__, InitialObservationOverflow):
                message = f"{self._name}: {failed.__cause__}"
                raise failure("prompt_too_long", message) from failed.__cause__
            raise
        if not isinstance(answer, tuple) or len(answer) != 2:
            raise failure("env_error", f"{where} gave {found(answer)}, expected (prompt, stop)")
        observation, stop = answer
        return checked_prompt(observation, f"{where}: the prompt"), stop

    async def _sample(
        self, observation: tinker.ModelInput, stop: StopCondition, room: int | None
    ) -> TokensWithLogprobs:
        seconds, silence = self._limits.sample_timeout, self._progress.silence()
        # only where there is a bound: a policy of the user's may know no more than its prompt
        bound = {} if room is None else {"max_tokens": room}
        try:
            with self._progress.waiting("sampling"):
                async with bounded(seconds, silence) as scope:
                    reply = await self._policy(observation, stop, **bound)
        except asyncio.CancelledError:
            if being_cancelled():
                raise
            raise TrainingError("sampling was cancelled: the engine is shutting down") from None
        except TimeoutError as error:
            if not scope.expired():
                raise
            raise TrainingError(
                f"limits.sample_timeout={seconds:g}: no reply to a prompt of {observation.length}"
                " tokens, nor to any other rollout within these seconds; raise it, or see what"
                " keeps the engine busy"
            ) from error
        self._progress.engine_answered()
        return reply

    async def _step(self, action: TokensWithLogprobs) -> StepResult:
        extra: dict[Literal["extra"], ActionExtra] = {}
        if takes_extra(type(self._env)):
            about = ActionExtra(stop_reason=action.stop_reason, logprobs=action.maybe_logprobs)
            extra = {"extra": about}
        where = f"{self._name}.step"

        async def step() -> tuple[StepResult, logtree.Scope]:
            with logtree.collecting(where) as logged:
                return await self._env.step(action.tokens, **extra), logged

        result, logged = await self._call(step, where)
        if not isinstance(result, StepResult):
            raise failure("env_error", f"{where} gave {found(result)}, expected a StepResult")
        if logged.children:
            logs = checked_dict(result.logs, f"{where}: logs")
            result = replace(result, logs={**logs, "logtree": logtree.as_text(logged)})
        return result

    def _transition(
        self, observation: tinker.ModelInput, action: TokensWithLogprobs, result: StepResult
    ) -> Transition:
        where = f"{self._name}.step"
        return Transition(
            ob=observation,
            ac=action,
            reward=checked_number(result.reward, f"{where}: reward", "bad_reward"),
            episode_done=bool(result.episode_done),
            metrics=checked_metrics(result.metrics, where),
            logs=checked_dict(result.logs, f"{where}: logs"),
            trainable=bool(result.trainable),
        )

    def _room(self, observation: tinker.ModelInput) -> int | None:
        """Tokens left for a reply; None: no limit of ours."""
        if self._limits.max_trajectory_tokens is None:
            return None
        return self._limits.max_trajectory_tokens - observation.length

    def _full(
        self,
        transitions: list[Transition],
        observation: tinker.ModelInput,
        reason: StopReason,
        message: str,
    ) -> Trajectory:
        """The end of an episode that has no room for a reply. One that never had any has failed."""
        if not transitions:
            raise failure("prompt_too_long", f"{self._name}: {message}")
        return Trajectory(transitions, observation, reason)
