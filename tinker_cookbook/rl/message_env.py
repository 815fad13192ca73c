"""Environments that exchange messages, and the adapter that runs them on tokens.

Sampled tokens are never re-tokenised. If the chat format preserves the history, the next prompt is
the last prompt, the sampled tokens, and the tokens of the new messages. The turns of an episode
then form one sequence to train on, and the model sees its own tokens exactly as it sampled them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

import tinker

from tinker_cookbook.completers import StopCondition
from tinker_cookbook.exceptions import RendererError
from tinker_cookbook.renderers import Message, Renderer, TrainOnWhat
from tinker_cookbook.rl.types import (
    Action,
    ActionExtra,
    Env,
    InitialObservationOverflow,
    Logs,
    Metrics,
    StepResult,
)
from tinker_cookbook.sequences import model_input_tokens


@dataclass
class MessageStepResult:
    """The environment's response to a message.

    next_messages: the FULL conversation for the next prompt, including the last reply; an env may
    shorten or rewrite it. next_stop_condition: None for the renderer's. Other fields: see
    StepResult.
    """

    reward: float
    episode_done: bool
    next_messages: list[Message]
    metrics: Metrics = field(default_factory=dict)
    logs: Logs = field(default_factory=dict)
    next_stop_condition: StopCondition | None = None


class MessageEnv(ABC):
    """One episode on the level of messages."""

    @abstractmethod
    async def initial_observation(self) -> list[Message]:
        """Return the conversation of the first prompt."""

    @abstractmethod
    async def step(self, message: Message) -> MessageStepResult:
        """Apply the model's reply, parsed; it may contain unparsed tool calls."""


class EnvFromMessageEnv(Env):
    """Adapts a MessageEnv to the Env interface.

    A reply without a proper end of turn is a parse error: its reward is `failed_parse_reward`, and
    the message env never sees it. The episode then ends or, with terminate_on_parse_error=False,
    the reply is discarded and the same prompt is sampled again. Metric `parse_error`: 0 or 1 per
    turn.

    max_trajectory_tokens: if the next prompt and a reply of max_generation_tokens exceed it, the
    episode ends and context_overflow_reward is added to the turn's reward; metric
    `context_overflow`. If the first prompt does, InitialObservationOverflow is raised.
    train_on_parse_errors: whether to train on replies with a parse error.
    """

    def __init__(
        self,
        renderer: Renderer,
        message_env: MessageEnv,
        failed_parse_reward: float = -1.0,
        terminate_on_parse_error: bool = True,
        max_trajectory_tokens: int | None = None,
        max_generation_tokens: int | None = None,
        context_overflow_reward: float = 0.0,
        train_on_parse_errors: bool = True,
    ) -> None:
        self.renderer = renderer
        self.message_env = message_env
        self.failed_parse_reward = failed_parse_reward
        self.terminate_on_parse_error = terminate_on_parse_error
        self.max_trajectory_tokens = max_trajectory_tokens
        self.max_generation_tokens = max_generation_tokens
        self.context_overflow_reward = context_overflow_reward
        self.train_on_parse_errors = train_on_parse_errors
        self._messages: list[Message] = []  # the conversation in self._prompt
        self._prompt: list[int] = []
        self._stop: StopCondition | None = None  # None: the renderer's

    async def initial_observation(self) -> tuple[tinker.ModelInput, StopCondition]:
        messages = await self.message_env.initial_observation()
        self._prompt = self._render(messages)
        self._messages = _copy_messages(messages)
        if self._overflows():
            raise InitialObservationOverflow(
                f"the first prompt has {len(self._prompt)} tokens; with a reply of"
                f" {self.max_generation_tokens or 1} tokens it exceeds"
                f" max_trajectory_tokens={self.max_trajectory_tokens}"
            )
        return self._observation(), self._stop_condition()

    async def step(self, action: Action, *, extra: ActionExtra | None = None) -> StepResult:
        message, termination = self.renderer.parse_response(action)
        # With the env's own stop condition, a reply ends properly without the renderer's end of
        # turn, which is all that `termination` knows about.
        hit_custom_stop = self._stop is not None and (extra or {}).get("stop_reason") == "stop"
        if not termination.is_clean and not hit_custom_stop:
            return self._parse_error_result()
        result = await self.message_env.step(message)
        metrics: Metrics = {"parse_error": 0.0, **result.metrics}
        reward, done = result.reward, result.episode_done
        if not done:
            self._prompt = self._next_prompt(action, message, result.next_messages)
            self._messages = _copy_messages(result.next_messages)
            self._stop = result.next_stop_condition
            if self._overflows():
                reward, done = reward + self.context_overflow_reward, True
                metrics["context_overflow"] = 1.0
        if self.max_trajectory_tokens is not None:
            metrics.setdefault("context_overflow", 0.0)
        return StepResult(
            reward=reward,
            episode_done=done,
            next_observation=self._observation(),
            next_stop_condition=self._stop_condition(),
            metrics=metrics,
            logs=result.logs,
        )

    def _parse_error_result(self) -> StepResult:
        return StepResult(
            reward=self.failed_parse_reward,
            episode_done=self.terminate_on_parse_error,
            next_observation=self._observation(),
            next_stop_condition=self._stop_condition(),
            metrics={"parse_error": 1.0},
            trainable=self.train_on_parse_errors,
        )

    def _next_prompt(
        self, action: Action, reply: Message, messages: Sequence[Message]
    ) -> list[int]:
        rendered = self._render(messages)
        if not self._ends_with_stop(action):
            return rendered
        # Render the old conversation plus the reply up to the point where the model stopped: the
        # end of the turn or, for a stop string, the part of the next message's header that belongs
        # to it. If the rendering of the next prompt starts with exactly these tokens, its remainder
        # is new and can be appended to the sampled tokens. It does not if the env has rewritten the
        # history, or if the format does, e.g. by dropping reasoning from earlier turns.
        try:
            example = self.renderer.build_supervised_example(
                [*self._messages, reply], TrainOnWhat.ALL_TOKENS
            )
        except RendererError:  # the format does not allow this reply as the last message
            return rendered
        rendered_so_far = model_input_tokens(example.model_input)
        if rendered[: len(rendered_so_far)] != rendered_so_far:
            return rendered
        return [*self._prompt, *action, *rendered[len(rendered_so_far) :]]

    def _ends_with_stop(self, action: Action) -> bool:
        """Whether the action ends exactly with a stop sequence. Not always so for stop strings: the
        last token may extend beyond the string that it completes."""
        stops = self.renderer.get_stop_sequences()
        tokens = [stop for stop in stops if isinstance(stop, int)]
        strings = tuple(stop for stop in stops if isinstance(stop, str))
        if action[-1] in tokens:
            return True
        text = self.renderer.tokenizer.decode(
            action, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return text.endswith(strings)

    def _render(self, messages: Sequence[Message]) -> list[int]:
        return model_input_tokens(self.renderer.build_generation_prompt(messages))

    def _overflows(self) -> bool:
        if self.max_trajectory_tokens is None:
            return False
        return len(self._prompt) + (self.max_generation_tokens or 1) > self.max_trajectory_tokens

    def _observation(self) -> tinker.ModelInput:
        return tinker.ModelInput.from_ints(self._prompt)

    def _stop_condition(self) -> StopCondition:
        return self.renderer.get_stop_sequences() if self._stop is None else self._stop


def _copy_messages(messages: Sequence[Message]) -> list[Message]:
    """Copy messages: if an env edits its history in place, our copy must keep the old one, or
    `_next_prompt` could not notice the change. Drops `trainable`, which only supervised training
    reads."""
    copies = [Message(**message) for message in messages]
    for copy in copies:
        copy.pop("trainable", None)
    return copies
