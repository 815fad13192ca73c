"""Sampling as a function: tokens from a prompt (`TokenCompleter`), or a message from messages.

Environments, opponents, judges and teachers are written against these two, so that a person, a
scripted player or a model of any service can stand behind them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

StopCondition = list[str] | list[int]
"""What ends a reply: strings, or token ids."""


@dataclass(frozen=True)
class TokensWithLogprobs:
    """A sampled reply of T tokens. `maybe_logprobs` [T]: nats, of the distribution that was
    sampled from (after temperature, top-k and top-p); None where whoever chose the tokens has none.
    `stop_reason`: "stop" if a stop condition ended it, "length" if it ran out of tokens."""

    tokens: list[int]
    maybe_logprobs: list[float] | None
    stop_reason: Literal["stop", "length"] = "stop"

    @property
    def logprobs(self) -> list[float]:
        """Raises ValueError where there are none."""
        if self.maybe_logprobs is None:
            raise ValueError("these tokens were not sampled from a model: they have no logprobs")
        return self.maybe_logprobs
