"""A sampling request in progress: its prompt's state and its samples that are being generated."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch

from tinker_cookbook.engine.base_model import BaseModel
from tinker_cookbook.engine.lora import Adapter
from tinker_cookbook.engine.memory import SamplingLimits
from tinker_cookbook.engine.prefix_cache import CachedPrefix
from tinker_cookbook.engine.requests import (
    MIN_TEMPERATURE,
    Cancelled,
    ModelFacts,
    OnDone,
    OnToken,
    SampledTokens,
    SampleRequest,
    SampleResult,
    TopK,
)
from tinker_cookbook.engine.token_ids import check_tokens
from tinker_cookbook.exceptions import ConfigurationError, DataValidationError
from tinker_cookbook.utils.misc_utils import is_whole

NO_TARGET = -1  # in prompt_targets: nothing to score here; the result holds 0


@dataclass(eq=False)
class SamplingJob:
    """One request on its way through the sampler.

    Keys and values of the prompt lie in nodes of the prefix cache, `prefix`, which stay pinned as
    long as the job may need them. If `shared`, its samples attend to those nodes directly;
    otherwise each sample has a copy of the prompt in its slot.
    """

    request: SampleRequest
    max_tokens: int
    stop_tokens: frozenset[int]
    adapter: Adapter | None
    on_done: OnDone
    owner: object  # whose tree of the prefix cache the job reads and extends
    prompt: np.ndarray  # int64 [P]
    cancelled: Cancelled
    on_token: OnToken | None = None
    result: SampleResult = field(default_factory=lambda: SampleResult([]))
    prefix: CachedPrefix = field(default_factory=list)
    last_hidden: torch.Tensor | None = None  # [H], of the last prompt token, once computed
    shared: bool = False
    chunked: bool = False  # the prompt takes several passes
    num_started: int = 0  # samples that were given a slot
    num_running: int = 0  # samples that have a slot now
    answered: bool = False
    prompt_scores: PromptScores | None = None  # None: none requested, or complete

    def __post_init__(self) -> None:
        # Equal for jobs that send the same prompt through the same weights. int32 halves the key.
        self.key = (id(self.owner), self.prompt.astype(np.int32).tobytes())
        self.reset_prompt()

    def cancel_remaining(self) -> None:
        """Start no more samples; those with a slot go on."""
        self.num_started = self.request.num_samples

    def reset_prompt(self) -> None:
        """Forget what was computed of the prompt; samples and complete scores stay."""
        self.prefix, self.last_hidden = [], None
        request, result = self.request, self.result
        requested = request.prompt_logprobs or request.prompt_top_k
        requested = requested or request.prompt_targets is not None
        scores = (result.prompt_logprobs, result.prompt_top_k, result.prompt_target_logprobs)
        if requested and all(score is None for score in scores):
            self.prompt_scores = PromptScores()

    @property
    def num_waiting(self) -> int:
        """Samples that have not been given a slot yet."""
        return self.request.num_samples - self.num_started if self.max_tokens else 0

    @property
    def slot_tokens(self) -> int:
        """The most tokens that one sample can come to hold in its slot."""
        return self.max_tokens + (0 if self.shared else len(self.prompt))


@dataclass
class ActiveSample:
    """One sample being generated. Its position in the sampler's list is the number of its slot."""

    job: SamplingJob
    index: int  # among the samples of its request
    output: SampledTokens
    rng: np.random.Generator
    num_shared: int  # tokens of its context in shared nodes, before those in its slot
    num_in_slot: int
    pending_token: int = 0  # sampled, but not yet passed through the model

    @property
    def position(self) -> int:
        """Position in the sequence of the next token to pass through the model."""
        return self.num_shared + self.num_in_slot


class PromptScores:
    """Collects the requested scores of a prompt, whose hidden states arrive chunk by chunk."""

    def __init__(self) -> None:
        self.logprobs: list[np.ndarray] = []
        self.top_k: list[TopK] = []
        self.targets: list[np.ndarray] = []

    def add(self, base: BaseModel, job: SamplingJob, hidden: torch.Tensor, start: int) -> None:
        """Score hidden states [n, H] of the prompt's tokens from `start` on."""
        request, adapter, prompt = job.request, job.adapter, job.prompt
        head, temperature = base.head, request.prompt_temperature
        # The last prompt token predicts the first sampled one, which is not part of the prompt.
        stop = min(start + len(hidden), len(prompt) - 1)
        hidden = hidden[: stop - start]
        if stop <= start:
            return

        def to_device(array: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(np.ascontiguousarray(array)).to(hidden.device)

        if request.prompt_logprobs:
            next_tokens = to_device(prompt[start + 1 : stop + 1])
            logprobs = head.logprobs(hidden, next_tokens, adapter, temperature)
            self.logprobs.append(logprobs.cpu().numpy())
        if request.prompt_top_k:
            best = head.top_k(hidden, request.prompt_top_k, adapter, temperature)
            self.top_k.append(to_top_k(*best))
        if request.prompt_targets is not None:
            targets = np.asarray(request.prompt_targets)[start:stop]
            # NO_TARGET is no token id: look up token 0 instead and overwrite the result.
            token_ids = to_device(np.maximum(targets, 0))
            logprobs = head.logprobs(hidden, token_ids, adapter, temperature).cpu().numpy()
            self.targets.append(np.where(targets == NO_TARGET, np.float32(0), logprobs))

    def finish(self, job: SamplingJob) -> None:
        """Write the collected scores into the job's result."""
        request, result = job.request, job.result
        if request.prompt_logprobs:
            first = np.full(1, np.nan, dtype=np.float32)  # nothing predicts the first token
            result.prompt_logprobs = np.concatenate([first, *self.logprobs])
        if self.top_k:
            result.prompt_top_k = TopK(
                np.concatenate([chunk.tokens for chunk in self.top_k]),
                np.concatenate([chunk.logprobs for chunk in self.top_k]),
            )
        if request.prompt_targets is not None:
            # A prompt of one token has no chunk; the empty array gives the result its shape.
            empty = np.empty((0, *np.shape(request.prompt_targets)[1:]), dtype=np.float32)
            result.prompt_target_logprobs = np.concatenate([empty, *self.targets])
        job.prompt_scores = None


def to_top_k(tokens: torch.Tensor, logprobs: torch.Tensor) -> TopK:
    return TopK(tokens.cpu().numpy().astype(np.int32), logprobs.float().cpu().numpy())


class StopConditions(NamedTuple):
    """When a request's samples end, with defaults of the model and the memory filled in."""

    max_tokens: int
    stop_tokens: frozenset[int]


def check_request(
    request: SampleRequest, facts: ModelFacts, limits: SamplingLimits
) -> StopConditions:
    """Raise DataValidationError or ConfigurationError if the request can never be answered."""
    _check_parameters(request, facts.vocab_size)
    stop_tokens = facts.eos_tokens if request.stop_tokens is None else request.stop_tokens
    _check_stop_tokens(stop_tokens, facts.vocab_size)
    _check_prompt(request, facts.vocab_size)
    prompt_length, max_tokens = len(request.prompt), request.max_tokens
    if max_tokens is None:
        max_tokens = max(min(facts.context_length, limits.kv_tokens) - prompt_length, 1)
    _check_length(prompt_length, max_tokens, facts.context_length, limits)
    return StopConditions(max_tokens, stop_tokens)


def _check_prompt(request: SampleRequest, vocab_size: int) -> None:
    try:
        check_tokens(request.prompt, vocab_size, "prompt")
        if request.prompt_targets is not None:
            targets = np.asarray(request.prompt_targets)
            token_ids = np.where(targets == NO_TARGET, 0, targets)
            check_tokens(token_ids, vocab_size, "target_prompt_logprobs")
            if len(request.prompt_targets) != len(request.prompt) - 1:
                raise ValueError(
                    f"target_prompt_logprobs has {len(request.prompt_targets)} positions, the"
                    f" prompt of {len(request.prompt)} tokens needs {len(request.prompt) - 1}"
                )
    except ValueError as error:
        raise DataValidationError(str(error)) from error


def _check_length(
    prompt_length: int, max_tokens: int, context_length: int, limits: SamplingLimits
) -> None:
    total = prompt_length + max_tokens
    description = f"prompt of {prompt_length} tokens"
    if max_tokens:
        description += f" + max_tokens={max_tokens}"

    def fix(limit: int) -> str:
        return "lower max_tokens" if prompt_length < limit else "shorten the prompt"

    if total > context_length:
        raise DataValidationError(
            f"{description}: exceeds the model's context of {context_length}; {fix(context_length)}"
        )
    # Scoring a prompt in a single pass stores no keys, so the limit on them does not apply.
    stores_keys = max_tokens or prompt_length > limits.tokens_per_pass
    if stores_keys and total > limits.kv_tokens:
        raise ConfigurationError(
            f"{description}: exceeds engine.kv_tokens={limits.kv_tokens}; raise it or"
            f" {fix(limits.kv_tokens)}"
        )


def _is_temperature(value: object) -> bool:
    return isinstance(value, (int, float)) and MIN_TEMPERATURE <= value < np.inf


def _check_stop_tokens(tokens: frozenset[int], vocab_size: int) -> None:
    for token in sorted(tokens):
        if not 0 <= token < vocab_size:
            raise DataValidationError(
                f"stop holds token id {token}, which cannot be sampled: this model's ids are 0"
                f" to {vocab_size - 1}; use the stop tokens of this model's tokenizer or renderer"
            )


def _check_parameters(request: SampleRequest, vocab_size: int) -> None:
    # Types as well: SDK and server check only some of them, and a float would reach the sampler.
    ranges = {
        "num_samples": (1, None),
        "top_k": (-1, None),
        "prompt_top_k": (0, vocab_size),
        "sample_top_k": (0, vocab_size),
    }
    if request.max_tokens is not None:
        ranges["max_tokens"] = (0, None)
    if request.seed is not None:
        ranges["seed"] = (0, None)
    for key, (low, high) in ranges.items():
        value = getattr(request, key)
        if not is_whole(value) or value < low or (high is not None and value > high):
            bounds = f"of at least {low}" if high is None else f"from {low} to {high}"
            raise DataValidationError(
                f"sampling parameter {key}={value!r}: expected a whole number {bounds}"
            )
    if request.temperature != 0 and not _is_temperature(request.temperature):
        raise DataValidationError(
            f"sampling parameter temperature={request.temperature!r}: expected 0 (greedy decoding)"
            f" or a number of at least {MIN_TEMPERATURE:g}"
        )
    if not _is_temperature(request.prompt_temperature):
        raise DataValidationError(
            f"temperature={request.prompt_temperature!r} of prompt logprobs: expected a number of"
            f" at least {MIN_TEMPERATURE:g}"
        )
    if not (isinstance(request.top_p, (int, float)) and 0 < request.top_p <= 1):
        raise DataValidationError(
            f"sampling parameter top_p={request.top_p!r}: expected a number above 0 and at most 1"
        )
