"""A sampling request on its way: what is known of its prompt, and which samples of it run."""

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

NOTHING = -1  # in prompt_targets: a cell that asks for nothing; it is answered with 0


@dataclass(eq=False)
class Job:
    """One request. Its prompt's keys lie in nodes of the prefix cache, `path`, pinned while the
    job may need them; `shared` rows read them there, others have a copy in their slot."""

    request: SampleRequest
    max_tokens: int
    stop_tokens: frozenset[int]
    adapter: Adapter | None
    on_done: OnDone
    owner: object  # whose tree of the prefix cache it reads and fills
    prompt: np.ndarray  # int64 [P]
    cancelled: Cancelled
    on_token: OnToken | None = None
    result: SampleResult = field(default_factory=lambda: SampleResult([]))
    path: CachedPrefix = field(default_factory=list)
    last: torch.Tensor | None = None  # [H], hidden state of the last prompt token, once computed
    shared: bool = False
    chunked: bool = False  # the prompt takes several passes
    started: int = 0  # samples that were given a slot
    open: int = 0  # samples that are running
    answered: bool = False
    scores: PromptScores | None = None  # as long as they are wanted and not complete

    def __post_init__(self) -> None:
        # equal where the same prompt goes through the same weights
        self.key = (id(self.owner), self.prompt.astype(np.int32).tobytes())
        self.restart()

    def give_up(self) -> None:
        """Begin no more samples."""
        self.started = self.request.num_samples

    def restart(self) -> None:
        """As if nothing of the prompt had been computed; samples and finished scores stay."""
        self.path, self.last = [], None
        request, result = self.request, self.result
        asked = request.prompt_logprobs or request.prompt_top_k
        given = (result.prompt_logprobs, result.prompt_top_k, result.prompt_target_logprobs)
        if (asked or request.prompt_targets is not None) and all(each is None for each in given):
            self.scores = PromptScores()

    @property
    def wanted(self) -> int:
        """Samples that have no slot yet."""
        return self.request.num_samples - self.started if self.max_tokens else 0

    @property
    def slot_tokens(self) -> int:
        """What a row may come to hold in its slot."""
        return self.max_tokens + (0 if self.shared else len(self.prompt))


@dataclass
class Row:
    """One sample being generated, in the slot of its index."""

    job: Job
    index: int  # of the sample
    out: SampledTokens
    rng: np.random.Generator
    base: int  # tokens of its context that lie elsewhere
    filled: int  # tokens in the slot
    pending: int = 0  # sampled, not yet in the slot


class PromptScores:
    """What a request asks of its prompt, from hidden states that come in stretches."""

    def __init__(self) -> None:
        self.logprobs: list[np.ndarray] = []
        self.top_k: list[TopK] = []
        self.targets: list[np.ndarray] = []

    def add(self, base: BaseModel, job: Job, hidden: torch.Tensor, start: int) -> None:
        """Hidden states [n, H] of the prompt's tokens from `start` on."""
        request, adapter, prompt = job.request, job.adapter, job.prompt
        head, temperature = base.head, request.prompt_temperature
        stop = min(start + len(hidden), len(prompt) - 1)  # nothing follows the last token
        hidden = hidden[: stop - start]
        if stop <= start:
            return

        def tensor(array: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(np.ascontiguousarray(array)).to(hidden.device)

        if request.prompt_logprobs:
            following = tensor(prompt[start + 1 : stop + 1])
            scores = head.logprobs(hidden, following, adapter, temperature)
            self.logprobs.append(scores.cpu().numpy())
        if request.prompt_top_k:
            best = head.top_k(hidden, request.prompt_top_k, adapter, temperature)
            self.top_k.append(top_k(*best))
        if request.prompt_targets is not None:
            asked = np.asarray(request.prompt_targets)[start:stop]
            chosen = tensor(np.maximum(asked, 0))
            scores = head.logprobs(hidden, chosen, adapter, temperature).cpu().numpy()
            self.targets.append(np.where(asked == NOTHING, np.float32(0), scores))

    def finish(self, job: Job) -> None:
        request, result = job.request, job.result
        if request.prompt_logprobs:
            none = np.full(1, np.nan, dtype=np.float32)  # nothing comes before the first token
            result.prompt_logprobs = np.concatenate([none, *self.logprobs])
        if self.top_k:
            result.prompt_top_k = TopK(
                np.concatenate([each.tokens for each in self.top_k]),
                np.concatenate([each.logprobs for each in self.top_k]),
            )
        if request.prompt_targets is not None:
            empty = np.empty((0, *np.shape(request.prompt_targets)[1:]), dtype=np.float32)
            result.prompt_target_logprobs = np.concatenate([empty, *self.targets])
        job.scores = None


def top_k(tokens: torch.Tensor, logprobs: torch.Tensor) -> TopK:
    return TopK(tokens.cpu().numpy().astype(np.int32), logprobs.float().cpu().numpy())


class Ends(NamedTuple):
    """Where a request's samples end, what it left to the model and to the memory filled in."""

    max_tokens: int
    stop_tokens: frozenset[int]


def check(request: SampleRequest, facts: ModelFacts, limits: SamplingLimits) -> Ends:
    """Raise DataValidationError or ConfigurationError for what can never be answered."""
    _check_parameters(request, facts.vocab_size)
    stop_tokens = facts.eos_tokens if request.stop_tokens is None else request.stop_tokens
    _check_stop_tokens(stop_tokens, facts.vocab_size)
    _check_prompt(request, facts.vocab_size)
    length, max_tokens = len(request.prompt), request.max_tokens
    if max_tokens is None:
        max_tokens = max(min(facts.context_length, limits.kv_tokens) - length, 1)
    _check_room(length, max_tokens, facts.context_length, limits)
    return Ends(max_tokens, stop_tokens)


def _check_prompt(request: SampleRequest, vocab_size: int) -> None:
    try:
        check_tokens(request.prompt, vocab_size, "prompt")
        if request.prompt_targets is not None:
            asked = np.asarray(request.prompt_targets)
            checked = np.where(asked == NOTHING, 0, asked)
            check_tokens(checked, vocab_size, "target_prompt_logprobs")
            if len(request.prompt_targets) != len(request.prompt) - 1:
                raise ValueError(
                    f"target_prompt_logprobs has {len(request.prompt_targets)} rows, the prompt"
                    f" of {len(request.prompt)} tokens needs {len(request.prompt) - 1}"
                )
    except ValueError as error:
        raise DataValidationError(str(error)) from error


def _check_room(length: int, max_tokens: int, context_length: int, limits: SamplingLimits) -> None:
    need = length + max_tokens
    what = f"prompt of {length} tokens"
    if max_tokens:
        what += f" + max_tokens={max_tokens}"

    def fix(room: int) -> str:
        return "lower max_tokens" if length < room else "shorten the prompt"

    if need > context_length:
        raise DataValidationError(
            f"{what}: more than the model's context of {context_length}; {fix(context_length)}"
        )
    keeps = max_tokens or length > limits.tokens_per_pass
    if keeps and need > limits.kv_tokens:
        raise ConfigurationError(
            f"{what}: more than engine.kv_tokens={limits.kv_tokens}; raise it or"
            f" {fix(limits.kv_tokens)}"
        )


def _is_temperature(value: object) -> bool:
    return isinstance(value, (int, float)) and MIN_TEMPERATURE <= value < np.inf


def _check_stop_tokens(tokens: frozenset[int], vocab_size: int) -> None:
    for token in sorted(tokens):
        if not 0 <= token < vocab_size:
            raise DataValidationError(
                f"stop holds token id {token}, which cannot be sampled: this model's ids are 0 to"
                f" {vocab_size - 1}; take the stop tokens of this model's own tokenizer or renderer"
            )


def _check_parameters(request: SampleRequest, vocab_size: int) -> None:
    """Types too: SDK and server check only some of them, and a float would run into the sampler."""
    whole = {
        "num_samples": (1, None),
        "top_k": (-1, None),
        "prompt_top_k": (0, vocab_size),
        "sample_top_k": (0, vocab_size),
    }
    if request.max_tokens is not None:
        whole["max_tokens"] = (0, None)
    if request.seed is not None:
        whole["seed"] = (0, None)
    for key, (low, high) in whole.items():
        value = getattr(request, key)
        if not is_whole(value) or value < low or (high is not None and value > high):
            up = f"of at least {low}" if high is None else f"from {low} to {high}"
            raise DataValidationError(
                f"sampling parameter {key}={value!r}: expected a whole number {up}"
            )
    if request.temperature != 0 and not _is_temperature(request.temperature):
        raise DataValidationError(
            f"sampling parameter temperature={request.temperature!r}: expected 0 (takes the"
            f" likeliest token) or a number of at least {MIN_TEMPERATURE:g}"
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
