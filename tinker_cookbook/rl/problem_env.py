"""`ProblemEnv`: one question, one reply, graded for correctness and format.

class Sum(ProblemEnv):
    def get_question(self): return "What is 3 + 4?"
    def check_answer(self, sample_str): return sample_str.strip().endswith("7")
    def check_format(self, sample_str): return True
    def get_reference_answer(self): return "7"
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import tinker

from tinker_cookbook.completers import StopCondition
from tinker_cookbook.renderers import Message, Renderer, get_text_content
from tinker_cookbook.rl.types import Action, ActionExtra, Env, EnvGroupBuilder, StepResult
from tinker_cookbook.utils.threads import in_thread

_MAX_LOGGED = 1000  # characters per text in the logs; the transcript has all tokens


class _Grade(NamedTuple):
    correct: bool
    format: bool


class ProblemEnv(Env):
    """reward = format_coef * (format - 1) + correct, where both are 0 or 1.

    `check_answer` and `check_format` receive the reply's text without its reasoning. They run in a
    thread, so they may block, for up to `RolloutLimits.env_timeout`.
    """

    def __init__(
        self,
        renderer: Renderer,
        convo_prefix: list[Message] | None = None,
        format_coef: float = 0.1,
        require_stop_sequence_for_format: bool = True,
    ) -> None:
        """convo_prefix: messages before the question, e.g. few-shot examples.

        require_stop_sequence_for_format: whether the format counts only if the reply ends with a
        stop sequence; if False, an end-of-text token is enough. A truncated reply never counts.
        """
        self.renderer = renderer
        self.convo_prefix = convo_prefix or []
        self.format_coef = format_coef
        self.require_stop_sequence_for_format = require_stop_sequence_for_format

    @abstractmethod
    def get_question(self) -> str: ...

    @abstractmethod
    def check_answer(self, sample_str: str) -> bool: ...

    @abstractmethod
    def check_format(self, sample_str: str) -> bool: ...

    @abstractmethod
    def get_reference_answer(self) -> str:
        """Return the reference answer to show in the logs."""

    async def initial_observation(self) -> tuple[tinker.ModelInput, StopCondition]:
        messages = [*self.convo_prefix, Message(role="user", content=self.get_question())]
        prompt = self.renderer.build_generation_prompt(messages)
        return prompt, self.renderer.get_stop_sequences()

    async def step(self, action: Action, *, extra: ActionExtra | None = None) -> StepResult:
        message, termination = self.renderer.parse_response(action)
        reply = get_text_content(message)
        grade = await in_thread(self._grade, reply)
        stopped, ended = termination.is_stop_sequence, termination.is_clean
        has_format = grade.format and (stopped if self.require_stop_sequence_for_format else ended)
        return StepResult(
            reward=self.format_coef * (has_format - 1) + grade.correct,
            episode_done=True,
            next_observation=tinker.ModelInput.empty(),
            next_stop_condition=self.renderer.get_stop_sequences(),
            metrics={"format": float(has_format), "correct": float(grade.correct)},
            logs={
                "question": shorten_for_logs(self.get_question()),
                "reply": shorten_for_logs(reply),
                "reference": shorten_for_logs(self.get_reference_answer()),
            },
        )

    def _grade(self, reply: str) -> _Grade:
        return _Grade(bool(self.check_answer(reply)), bool(self.check_format(reply)))


@dataclass(frozen=True)
class ProblemGroupBuilder(EnvGroupBuilder):
    """Several attempts at one problem. `env_thunk` makes a fresh env per call."""

    env_thunk: Callable[[], Env]
    num_envs: int
    dataset_name: str = "problems"

    async def make_envs(self) -> Sequence[Env]:
        return [self.env_thunk() for _ in range(self.num_envs)]

    def logging_tags(self) -> list[str]:
        return [self.dataset_name]


def shorten_for_logs(text: str) -> str:
    """A text for the logs of a step, truncated on the right."""
    return text if len(text) <= _MAX_LOGGED else text[:_MAX_LOGGED] + "…"
