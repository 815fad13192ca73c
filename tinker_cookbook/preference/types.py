"""Comparisons of two completions of a prompt, and the interface of models that judge them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import chz

from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.renderers import Message
from tinker_cookbook.training.fields import CheckedConfig

Label = Literal["A", "B", "Tie"]

_SWAPPED: dict[Label, Label] = {"A": "B", "B": "A", "Tie": "Tie"}


@dataclass(frozen=True)
class Comparison:
    """A prompt and two completions of it, each a list of messages."""

    prompt_conversation: list[Message]
    completion_A: list[Message]
    completion_B: list[Message]

    def swap(self) -> Comparison:
        """The comparison with A and B exchanged."""
        return Comparison(self.prompt_conversation, self.completion_B, self.completion_A)


@dataclass(frozen=True)
class LabeledComparison:
    """A comparison and the completion that is preferred."""

    comparison: Comparison
    label: Label

    def swap(self) -> LabeledComparison:
        """The same preference with A and B exchanged."""
        return LabeledComparison(self.comparison.swap(), _SWAPPED[self.label])

    @property
    def chosen(self) -> list[Message] | None:
        """The preferred completion; None for a tie."""
        return self._completion(self.label)

    @property
    def rejected(self) -> list[Message] | None:
        """The other completion; None for a tie."""
        return self._completion(_SWAPPED[self.label])

    def _completion(self, label: Label) -> list[Message] | None:
        comparison = self.comparison
        return {"A": comparison.completion_A, "B": comparison.completion_B}.get(label)


class PreferenceModel(ABC):
    """A judge of two completions."""

    @abstractmethod
    async def __call__(self, comparison: Comparison) -> float:
        """The preference in [-1, 1]: -1 if A is better, 1 if B is, 0 if neither."""


@chz.chz
class PreferenceModelBuilder(CheckedConfig):
    """Config that builds a preference model."""

    # Not an abstract method, so that a command line without a class ends in one clear line.
    def __call__(self) -> PreferenceModel:
        raise ConfigurationError(
            f"{type(self).__name__} is an abstract base class; choose a preference model"
        )
