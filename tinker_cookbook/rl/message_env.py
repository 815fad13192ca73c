"""Environments that speak in messages, and the adapter that plays them in tokens.

What was sampled is never tokenised again: where the chat format keeps what was said, the next
prompt is the last prompt, the sampled tokens, and the tokens of the messages that are new. Then the
turns of an episode are one sequence to train on, and the model sees what it wrote as it wrote it.
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
    """What a message led to.

    next_messages: the WHOLE conversation that the next reply answers, the last reply included; an
    env may also shorten or rewrite it. next_stop_condition: None for the renderer's. The others: as
    in StepResult.
    """

    reward: float
    episode_done: bool
    next_messages: list[Message]
    metrics: Metrics = field(default_factory=dict)
    logs: Logs = field(default_factory=dict)
    next_stop_condition: StopCondition | None = None


class MessageEnv(ABC):
    """One episode, in messages."""

    @abstractmethod
    async def initial_observation(self) -> list[Message]:
        """The conversation that the first reply answers."""

    @abstractmethod
    async def step(self, message: Message) -> MessageStepResult:
        """`message`: the model's reply, parsed; it may hold tool calls that could not be read."""


class EnvFromMessageEnv(Env):
    """A MessageEnv as an Env.

    A reply that does not end as a turn does is unreadable: it pays `failed_parse_reward`, and the
    message env never sees it. Then the episode is over, or (terminate_on_parse_error=False) the
    reply is dropped and the same prompt is asked again. Metric `parse_error`: 0 or 1 for each turn.

    max_trajectory_tokens: where the next prompt and a reply of max_generation_tokens do not fit
    into it, the episode ends with context_overflow_reward on top of the turn's own; metric
    `context_overflow`. A first prompt that does not fit raises InitialObservationOverflow.
    train_on_parse_errors=False: unreadable replies are not trained.
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
        self._messages: list[Message] = []  # what the present prompt says
        self._prompt: list[int] = []
        self._stop: StopCondition | None = None  # None: the renderer's

    async def initial_observation(self) -> tuple[tinker.ModelInput, StopCondition]:
        messages = await self.message_env.initial_observation()
        self._prompt = self._rendered(messages)
        self._messages = _copied(messages)
        if self._overflows():
            raise InitialObservationOverflow(
                f"the first prompt has {len(self._prompt)} tokens, and with a reply of"
                f" {self.max_generation_tokens or 1} it does not fit into"
                f" max_trajectory_tokens={self.max_trajectory_tokens}"
            )
        return self._observation(), self._stop_condition()

    async def step(self, action: Action, *, extra: ActionExtra | None = None) -> StepResult:
        message, termination = self.renderer.parse_response(action)
        as_asked = self._stop is not None and (extra or {}).get("stop_reason") == "stop"
        if not termination.is_clean and not as_asked:
            return self._unreadable()
        result = await self.message_env.step(message)
        metrics: Metrics = {"parse_error": 0.0, **result.metrics}
        reward, done = result.reward, result.episode_done
        if not done:
            self._prompt = self._next_prompt(action, message, result.next_messages)
            self._messages = _copied(result.next_messages)
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

    def _unreadable(self) -> StepResult:
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
        whole = self._rendered(messages)
        if not self._ends_with_its_stop(action):
            return whole
        # The conversation as it was, and the reply, rendered up to where the model stopped: to the
        # end of the turn or, for a stop string, behind that part of the next message's header which
        # belongs to it. Where this is how the next prompt begins, the rest of that is what is new.
        # It is not where the env has rewritten the past, or the format does, by dropping reasoning.
        try:
            written = self.renderer.build_supervised_example(
                [*self._messages, reply], TrainOnWhat.ALL_TOKENS
            )
        except RendererError:  # a reply that the format would not have in its last place
            return whole
        so_far = model_input_tokens(written.model_input)
        if whole[: len(so_far)] != so_far:
            return whole
        return [*self._prompt, *action, *whole[len(so_far) :]]

    def _ends_with_its_stop(self, action: Action) -> bool:
        """A token may reach beyond the stop string that it completes."""
        stops = self.renderer.get_stop_sequences()
        tokens = [stop for stop in stops if isinstance(stop, int)]
        strings = tuple(stop for stop in stops if isinstance(stop, str))
        if action[-1] in tokens:
            return True
        text = self.renderer.tokenizer.decode(
            action, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return text.endswith(strings)

    def _rendered(self, messages: Sequence[Message]) -> list[int]:
        return model_input_tokens(self.renderer.build_generation_prompt(messages))

    def _overflows(self) -> bool:
        if self.max_trajectory_tokens is None:
            return False
        return len(self._prompt) + (self.max_generation_tokens or 1) > self.max_trajectory_tokens

    def _observation(self) -> tinker.ModelInput:
        return tinker.ModelInput.from_ints(self._prompt)

    def _stop_condition(self) -> StopCondition:
        return self.renderer.get_stop_sequences() if self._stop is None else self._stop


def _copied(messages: Sequence[Message]) -> list[Message]:
    """So that an env which edits its own history is found out by comparing. Marks for supervised
    training have no meaning here."""
    copies = [Message(**message) for message in messages]
    for copy in copies:
        copy.pop("trainable", None)
    return copies
