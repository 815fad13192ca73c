"""Sampling as a function: tokens from a prompt (`TokenCompleter`), or a message from messages.

Environments, opponents, judges and teachers are written against these two, so that a person, a
scripted player or a model of any service can stand behind them.
"""

from __future__ import annotations

import hashlib
import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import tinker

from tinker_cookbook.exceptions import ConfigurationError, DataValidationError

if TYPE_CHECKING:
    from tinker_cookbook.renderers import Message, Renderer
    from tinker_cookbook.service import EngineConfig
    from tinker_cookbook.service.api import SamplingClient

StopCondition = list[str] | list[int]
"""What ends a reply: strings, or token ids."""


@dataclass(frozen=True)
class TokensWithLogprobs:
    """A sampled reply of T tokens. `maybe_logprobs` [T]: nats, of the distribution that was
    sampled from (of softmax(logits / temperature); top-k and top-p do not renormalise it, and at
    temperature 0 it is that of 1); None where whoever chose the tokens has none.
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


class TokenCompleter(ABC):
    """A reply to a prompt, in tokens; ended by `stop`, or after `max_tokens` (None: by the
    completer's own bound, which holds in any case)."""

    @abstractmethod
    async def __call__(
        self, model_input: tinker.ModelInput, stop: StopCondition, *, max_tokens: int | None = None
    ) -> TokensWithLogprobs: ...


class MessageCompleter(ABC):
    """A reply to a conversation."""

    @abstractmethod
    async def __call__(self, messages: list[Message]) -> Message: ...


class ContextOverflow(DataValidationError):
    """A prompt that leaves no room for a reply in the model's context."""


def derive_seed(*parts: int) -> int:
    """A seed for a part of something that has a seed: below 2**63, different for different parts.

    It depends on nothing but the numbers, so it is the same in every process and on every machine.
    """
    text = ",".join(str(int(part)) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) >> 1


@dataclass
class TinkerTokenCompleter(TokenCompleter):
    """Samples from a model.

    max_tokens: of a reply, at most. context_window: of the model, in tokens: replies get no longer
    than fits, and a prompt that fills it raises ContextOverflow; None: the service's affair. seed:
    the n-th call samples with a seed that comes from (seed, n); None: at random.
    """

    sampling_client: SamplingClient
    max_tokens: int
    temperature: float = 1.0
    context_window: int | None = None
    seed: int | None = None
    top_p: float = 1.0
    top_k: int = -1
    _calls: Iterator[int] = field(
        default_factory=itertools.count, init=False, repr=False, compare=False
    )

    def seeded(self, seed: int) -> TinkerTokenCompleter:
        """A copy with a seed and a count of calls of its own: what it samples does not depend on
        what else is sampled in between."""
        return replace(self, seed=seed)

    async def __call__(
        self, model_input: tinker.ModelInput, stop: StopCondition, *, max_tokens: int | None = None
    ) -> TokensWithLogprobs:
        most = self.max_tokens if max_tokens is None else min(max_tokens, self.max_tokens)
        if self.context_window is not None:
            most = min(most, self.context_window - model_input.length)
            if most < 1:
                raise ContextOverflow(
                    f"a prompt of {model_input.length} tokens leaves no room for a reply in a"
                    f" context of {self.context_window}"
                )
        params = tinker.SamplingParams(
            max_tokens=most,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            stop=stop,
            seed=None if self.seed is None else derive_seed(self.seed, next(self._calls)),
        )
        response = await self.sampling_client.sample(model_input, 1, params)
        sampled = response.sequences[0]
        return TokensWithLogprobs(
            tokens=list(sampled.tokens),
            maybe_logprobs=None if sampled.logprobs is None else list(sampled.logprobs),
            stop_reason=sampled.stop_reason,
        )


@dataclass
class TinkerMessageCompleter(MessageCompleter):
    """Samples a model's reply to a conversation. stop_condition: None for the renderer's; the other
    fields: see TinkerTokenCompleter.

    A reply that was cut off, or is not in the model's format, comes back as far as it can be read.
    """

    sampling_client: SamplingClient
    renderer: Renderer
    max_tokens: int
    stop_condition: StopCondition | None = None
    temperature: float = 1.0
    context_window: int | None = None
    seed: int | None = None
    tokens: TinkerTokenCompleter = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self.tokens = TinkerTokenCompleter(
            self.sampling_client,
            self.max_tokens,
            self.temperature,
            context_window=self.context_window,
            seed=self.seed,
        )

    def seeded(self, seed: int) -> TinkerMessageCompleter:
        """As `TinkerTokenCompleter.seeded`."""
        return replace(self, seed=seed)

    async def __call__(self, messages: list[Message]) -> Message:
        stop = self.stop_condition
        if stop is None:
            stop = self.renderer.get_stop_sequences()
        reply = await self.tokens(self.renderer.build_generation_prompt(messages), stop)
        return self.renderer.parse_response(reply.tokens).message


async def completer_from(
    model_name: str,
    model_path: str | None = None,
    *,
    max_tokens: int = 512,
    temperature: float = 1.0,
    renderer_name: str | None = None,
    base_url: str | None = None,
    engine: EngineConfig | None = None,
    seed: int | None = None,
) -> TinkerMessageCompleter:
    """A model to talk to: an opponent, a judge, a grader, a teacher.

    model_path: a checkpoint of it (tinker://..., or the directory of a run or of a PEFT adapter);
    None: the base model. renderer_name: None for the
    one that the checkpoint was trained with, else the model's own. base_url, engine: where it runs,
    as in `service.connect`. Its `sampling_client` and `renderer` serve other uses, e.g. logprobs.
    """
    from tinker_cookbook import models
    from tinker_cookbook.checkpoint_utils import (
        resolve_renderer_name_from_checkpoint_or_default_async,
    )
    from tinker_cookbook.renderers import get_renderer
    from tinker_cookbook.service import connect, locate_checkpoint
    from tinker_cookbook.tokenizer_utils import get_tokenizer

    if max_tokens < 1:
        raise ConfigurationError(f"max_tokens={max_tokens}: expected 1 or more")
    if model_path is not None:
        model_path = locate_checkpoint(model_path, "sampler_weights", "model_path", base_url)
    renderer_name = await resolve_renderer_name_from_checkpoint_or_default_async(
        model_name=model_name,
        explicit_renderer_name=renderer_name,
        load_checkpoint_path=model_path,
        base_url=base_url,
    )
    renderer = get_renderer(renderer_name, get_tokenizer(model_name), model_name=model_name)
    service = connect(base_url, engine)
    client = await service.create_sampling_client(model_path=model_path, base_model=model_name)
    return TinkerMessageCompleter(
        client,
        renderer,
        max_tokens,
        temperature=temperature,
        context_window=models.context_length(model_name),
        seed=seed,
    )
