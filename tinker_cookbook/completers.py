"""Completions as functions: prompt to tokens (`TokenCompleter`), or messages to a message.

Environments, opponents, judges and teachers depend only on these two interfaces, so a person, a
scripted player or a model behind any service can implement them.
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
"""Stop sequences that end a completion: strings, or token ids."""


@dataclass(frozen=True)
class TokensWithLogprobs:
    """A sampled completion of T tokens.

    maybe_logprobs [T]: in nats, under softmax(logits / temperature), not renormalised by top-k or
    top-p; at temperature 0 (greedy), those of temperature 1. None if the tokens do not come from a
    model. stop_reason: "stop" at a stop sequence, "length" at the token limit.
    """

    tokens: list[int]
    maybe_logprobs: list[float] | None
    stop_reason: Literal["stop", "length"] = "stop"

    @property
    def logprobs(self) -> list[float]:
        """The logprobs; ValueError if there are none."""
        if self.maybe_logprobs is None:
            raise ValueError("these tokens were not sampled from a model and have no logprobs")
        return self.maybe_logprobs


class TokenCompleter(ABC):
    """Completes a prompt with tokens, until `stop` or `max_tokens`.

    The completer's own token limit always applies; max_tokens=None means that limit alone.
    """

    @abstractmethod
    async def __call__(
        self, model_input: tinker.ModelInput, stop: StopCondition, *, max_tokens: int | None = None
    ) -> TokensWithLogprobs: ...


class MessageCompleter(ABC):
    """Replies to a conversation with a message."""

    @abstractmethod
    async def __call__(self, messages: list[Message]) -> Message: ...


class ContextOverflow(DataValidationError):
    """Raised if a prompt leaves no room for a completion in the model's context."""


def derive_seed(*parts: int) -> int:
    """Hash integers, e.g. a run's seed and a step, into a seed below 2**63.

    A cryptographic hash, so that neighbouring parts give unrelated seeds. It depends only on the
    numbers: unlike `hash()`, it is the same in every process and on every machine.
    """
    text = ",".join(str(int(part)) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) >> 1


@dataclass
class TinkerTokenCompleter(TokenCompleter):
    """Samples completions from a model.

    max_tokens: maximum tokens per completion. context_window: the model's context in tokens;
    completions are shortened to fit into it, and a prompt that fills it raises ContextOverflow.
    None: left to the service. seed: the n-th call samples with a seed derived from (seed, n).
    None: random.
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
        """A copy with its own seed and call counter, so that its samples do not depend on how many
        calls others make in between."""
        return replace(self, seed=seed)

    async def __call__(
        self, model_input: tinker.ModelInput, stop: StopCondition, *, max_tokens: int | None = None
    ) -> TokensWithLogprobs:
        limit = self.max_tokens if max_tokens is None else min(max_tokens, self.max_tokens)
        if self.context_window is not None:
            limit = min(limit, self.context_window - model_input.length)
            if limit < 1:
                raise ContextOverflow(
                    f"a prompt of {model_input.length} tokens leaves no room for a completion in a"
                    f" context of {self.context_window} tokens"
                )
        params = tinker.SamplingParams(
            max_tokens=limit,
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
    """Samples a model's reply to a conversation.

    stop_condition: None for the renderer's stop sequences. Other fields: see TinkerTokenCompleter.
    A reply that was truncated, or does not follow the model's format, is parsed as far as possible.
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
        """A copy with its own seed, see `TinkerTokenCompleter.seeded`."""
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
    """Load a model as a MessageCompleter, e.g. an opponent, judge, grader or teacher.

    model_path: a checkpoint (a tinker:// path, a run directory or a PEFT adapter directory); None:
    the base model. renderer_name: None for the renderer that the checkpoint was trained with, else
    the model's default. base_url, engine: where the model runs, see `service.connect`. Its
    `sampling_client` and `renderer` are available for other uses, e.g. logprobs.
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
