"""Sampling with continuous batching: requests join and leave a running batch.

A prompt is computed once for all of its samples that find a slot at once. Logprobs are those of
the temperature-scaled distribution; top-k and top-p cut what may be drawn and do not renormalise
them. At temperature 0 the most likely token is taken and its logprob is that at temperature 1.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from tinker_cookbook.engine.attention import DecodePlan, KVCache, PackedPlan
from tinker_cookbook.engine.base_model import BaseModel
from tinker_cookbook.engine.config import EngineConfig
from tinker_cookbook.engine.lora import (
    Adapter,
    AdapterPlan,
    AdapterRows,
    AdapterStack,
    StackedRows,
)
from tinker_cookbook.engine.packing import Forest, positions_of
from tinker_cookbook.engine.rows import (
    SampledTokens,
    SampleRequest,
    SampleResult,
    TopK,
    check_tokens,
)
from tinker_cookbook.exceptions import ConfigurationError, DataValidationError

Done = Callable[[SampleResult | Exception], None]
CAPACITY_STEP = 64  # the cache grows in steps of this many tokens, so it is seldom copied


class Sampler(Protocol):
    """What the scheduler needs of a sampler."""

    def add(self, request: SampleRequest, adapter: Adapter | None, done: Done) -> None:
        """Take a request. `done` is called once, from `step`, with the result or the error."""
        ...

    def step(self) -> None:
        """Do a bounded piece of work: at most one prefill pass and one token per sequence."""
        ...

    def abort(self, error: Exception) -> None:
        """Answer every request that is waiting or running with this error."""
        ...

    @property
    def busy(self) -> bool:
        """Whether a request is waiting or running."""
        ...


@dataclass
class _Job:
    """One request on its way."""

    request: SampleRequest
    adapter: Adapter | None
    done: Done
    result: SampleResult
    started: int = 0  # samples that were given a slot
    open: int = 0  # samples that are running
    scored: bool = False  # the prompt's logprobs are there

    @property
    def need(self) -> int:
        """Tokens of cache that one sample may come to hold."""
        return len(self.request.prompt) + self.request.max_tokens


@dataclass
class _Row:
    """One sample being generated, in the slot of its index."""

    job: _Job
    out: SampledTokens
    rng: np.random.Generator
    length: int  # tokens in the cache
    pending: int = 0  # sampled, not yet in the cache


class TorchSampler:
    """The engine's own sampler over a BaseModel: rows of any adapters in one batch."""

    def __init__(self, base: BaseModel, config: EngineConfig) -> None:
        self.base = base
        self.config = config
        self.cache = KVCache(base.num_layers)
        self.waiting: deque[_Job] = deque()
        self.rows: list[_Row] = []  # row i lies in slot i of the cache
        self._stack = AdapterStack([])

    @property
    def busy(self) -> bool:
        return bool(self.waiting or self.rows)

    def add(self, request: SampleRequest, adapter: Adapter | None, done: Done) -> None:
        self._check(request)
        self.waiting.append(_Job(request, adapter, done, SampleResult([])))

    @torch.inference_mode()
    def step(self) -> None:
        running = [row.job for row in self.rows]
        try:
            self._admit(running)
            if self.rows:
                self._decode()
        except Exception as error:
            # the cache can no longer be trusted: every running request fails, the waiting ones stay
            self._fail(running, error)

    def abort(self, error: Exception) -> None:
        self._fail([*(row.job for row in self.rows), *self.waiting], error)

    def _fail(self, jobs: list[_Job], error: Exception) -> None:
        failed = {id(job): job for job in jobs}
        self.rows.clear()
        self.cache.clear()
        self.waiting = deque(job for job in self.waiting if id(job) not in failed)
        for job in failed.values():
            job.done(error)

    def _check(self, request: SampleRequest) -> None:
        try:
            check_tokens(request.prompt, self.base.vocab_size, "prompt")
            if request.prompt_targets is not None:
                check_tokens(request.prompt_targets, self.base.vocab_size, "target_prompt_logprobs")
                if len(request.prompt_targets) != len(request.prompt) - 1:
                    raise ValueError(
                        f"target_prompt_logprobs has {len(request.prompt_targets)} rows, the prompt"
                        f" of {len(request.prompt)} tokens needs {len(request.prompt) - 1}"
                    )
        except ValueError as error:
            raise DataValidationError(str(error)) from error
        need = len(request.prompt) + request.max_tokens
        if need > self.base.context_length:
            raise DataValidationError(
                f"prompt of {len(request.prompt)} tokens + max_tokens={request.max_tokens} exceed"
                f" the model's context of {self.base.context_length}; lower max_tokens"
            )
        if request.max_tokens and need > self.config.kv_tokens:
            raise ConfigurationError(
                f"prompt of {len(request.prompt)} tokens + max_tokens={request.max_tokens} need"
                f" more than engine.kv_tokens={self.config.kv_tokens}; raise it or lower max_tokens"
            )
        problems = {
            "num_samples": request.num_samples < 1,
            "max_tokens": request.max_tokens < 0,
            "temperature": not (np.isfinite(request.temperature) and request.temperature >= 0),
            "top_k": request.top_k < -1,
            "top_p": not 0 < request.top_p <= 1,
            "seed": request.seed is not None and request.seed < 0,
            "prompt_top_k": not 0 <= request.prompt_top_k <= self.base.vocab_size,
            "sample_top_k": not 0 <= request.sample_top_k <= self.base.vocab_size,
        }
        for key, wrong in problems.items():
            if wrong:
                raise DataValidationError(
                    f"sampling parameter {key}={getattr(request, key)} is out of range"
                )

    def _admit(self, running: list[_Job]) -> None:
        """Prefill waiting requests in their order, as far as slots and the pass allow.

        `running` gets each of them as soon as it is chosen: whatever fails then, it is answered.
        """
        chosen: list[tuple[_Job, int]] = []
        slots, capacity, tokens = len(self.rows), self.cache.capacity, 0
        while self.waiting:
            job = self.waiting[0]
            size = len(job.request.prompt)
            if chosen and tokens + size > (
                self.config.tokens_per_pass or self.base.tokens_per_pass
            ):
                break
            wanted = job.request.num_samples - job.started if job.request.max_tokens else 0
            capacity_then = max(capacity, -(-job.need // CAPACITY_STEP) * CAPACITY_STEP)
            capacity_then = min(capacity_then, self.config.kv_tokens)
            room = min(self.config.max_rows, self.config.kv_tokens // capacity_then) - slots
            take = min(wanted, room)
            if wanted and take < 1:
                break
            running.append(job)
            chosen.append((job, take))
            slots, tokens = slots + take, tokens + size
            capacity = capacity_then if take else capacity
            job.started += take
            job.open += take
            if job.started == job.request.num_samples or not wanted:
                self.waiting.popleft()
            else:
                break  # its other samples follow when slots are free
        if chosen:
            self.cache.reserve(slots, capacity)
            self._prefill(chosen)

    def _prefill(self, chosen: list[tuple[_Job, int]]) -> None:
        """Compute prompts and draw the first token of the samples that were given a slot.

        What prompts of the same adapter share at their beginning is computed once.
        """
        prompts = [np.asarray(job.request.prompt, dtype=np.int64) for job, _ in chosen]
        adapters = list({id(job.adapter): job.adapter for job, _ in chosen}.values())
        order = {id(adapter): i for i, adapter in enumerate(adapters)}
        forest = Forest(prompts, [order[id(job.adapter)] for job, _ in chosen])
        cells = [self._tensor(each) for each in forest.cells]
        stops = np.cumsum([take for _, take in chosen]) + len(self.rows)
        slots = [range(stop - take, stop) for stop, (_, take) in zip(stops.tolist(), chosen)]
        hidden = self.base.hidden(
            self._tensor(forest.tokens),
            self._tensor(positions_of(forest.segments)),
            PackedPlan(forest.segments, self.cache, list(zip(cells, slots))),
            [AdapterRows(a, *span) for a, span in zip(adapters, forest.spans)],
        )
        ends = []
        for (job, take), own, prompt in zip(chosen, forest.cells, prompts):
            if not job.scored:
                self._score(job, hidden[self._tensor(own)], prompt)
                job.scored = True
            if not job.request.max_tokens:
                job.done(job.result)
            for _ in range(take):
                index = len(job.result.sequences)
                out = SampledTokens([], [], "length")
                job.result.sequences.append(out)
                seed = None if job.request.seed is None else [job.request.seed, index]
                row = _Row(job, out, np.random.default_rng(seed), len(prompt))
                self.rows.append(row)
                ends.append(int(own[-1]))
        if ends:
            fresh = self.rows[-len(ends) :]
            self._append(fresh, hidden[self._tensor(np.array(ends))], self._adapters(fresh))
            self._retire()

    def _score(self, job: _Job, hidden: torch.Tensor, prompt: np.ndarray) -> None:
        """What the request wants to know of its prompt, from its hidden states [P, H]."""
        request, result, adapter = job.request, job.result, job.adapter
        if request.prompt_logprobs:
            result.prompt_logprobs = np.full(len(prompt), np.nan, dtype=np.float32)
            scores = self.base.head.logprobs(hidden[:-1], self._tensor(prompt[1:]), adapter)
            result.prompt_logprobs[1:] = scores.cpu().numpy()
        if request.prompt_top_k and len(prompt) > 1:
            result.prompt_top_k = _top_k(
                *self.base.head.top_k(hidden[:-1], request.prompt_top_k, adapter)
            )
        if request.prompt_targets is not None:
            wanted = self._tensor(request.prompt_targets)
            scores = self.base.head.logprobs(hidden[:-1], wanted, adapter)
            result.prompt_target_logprobs = scores.cpu().numpy()

    def _decode(self) -> None:
        rows = self.rows
        lengths = np.array([row.length for row in rows])
        positions, adapters = self._tensor(lengths), self._adapters(rows)
        hidden = self.base.hidden(
            self._tensor(np.array([row.pending for row in rows])),
            positions,
            DecodePlan(self.cache, positions, int(lengths.max()) + 1),
            adapters,
        )
        for row in rows:
            row.length += 1
        self._append(rows, hidden, adapters)
        self._retire()

    def _adapters(self, rows: list[_Row]) -> AdapterPlan:
        """Which row goes through which adapter: one for all of them, or a stack."""
        given = [row.job.adapter for row in rows]
        distinct = list({id(a): a for a in given if a is not None}.values())
        if len(distinct) <= 1 and (None not in given or not distinct):
            return [AdapterRows(given[0], 0, len(rows))]
        if {*map(id, distinct)} - {*map(id, self._stack.adapters)}:
            self._stack = AdapterStack(distinct)
        index = {id(adapter): i for i, adapter in enumerate(self._stack.adapters)}
        owners = np.array([-1 if adapter is None else index[id(adapter)] for adapter in given])
        return StackedRows(self._stack, self._tensor(owners))

    def _append(self, rows: list[_Row], hidden: torch.Tensor, plan: AdapterPlan) -> None:
        """Draw the next token of each row from its last hidden state [n, H]."""
        one = plan if isinstance(plan, StackedRows) else plan[0].adapter
        logits = self.base.head.logits(hidden, one)
        requests = [row.job.request for row in rows]
        uniform = np.array([row.rng.random() for row in rows], dtype=np.float32)
        tokens, logp = draw(logits, requests, self._tensor(uniform))
        logprobs = logp.gather(1, tokens[:, None])[:, 0]
        for row, token, logprob in zip(rows, tokens.tolist(), logprobs.tolist()):
            row.out.tokens.append(token)
            row.out.logprobs.append(logprob)
            row.pending = token
        for k in {request.sample_top_k for request in requests} - {0}:
            best = logp.topk(k, dim=-1)
            for index, row in enumerate(rows):
                if row.job.request.sample_top_k == k:
                    each = slice(index, index + 1)
                    row.out.top_k.append(_top_k(best.indices[each], best.values[each]))

    def _retire(self) -> None:
        """Take finished rows out; the last row moves into the free slot, so slots stay dense."""
        rows = self.rows
        for index in range(len(rows) - 1, -1, -1):
            row = rows[index]
            request = row.job.request
            if self._stopped(row):
                row.out.stop_reason = "stop"
            elif len(row.out.tokens) < request.max_tokens:
                continue
            last = rows.pop()
            if index < len(rows):
                self.cache.move(len(rows), index, last.length)
                rows[index] = last
            row.job.open -= 1
            if row.job.open == 0 and row.job.started == request.num_samples:
                row.job.done(row.job.result)
        if not rows:  # training may want the memory
            self.cache.clear()
            self._stack = AdapterStack([])

    def _stopped(self, row: _Row) -> bool:
        request = row.job.request
        if row.out.tokens[-1] in request.stop_tokens:
            return True
        if not request.stop_strings:
            return False
        # a stop string of b bytes spans at most b tokens; earlier ones would have ended the row
        window = max(len(text.encode()) for text in request.stop_strings)
        tail = self.base.decode(row.out.tokens[-window - 1 :])
        return any(text in tail for text in request.stop_strings)

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).to(self.base.device)


def draw(
    logits: torch.Tensor, requests: list[SampleRequest], uniform: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """One token per row: logits fp32 [n, V], uniform numbers [n] in [0, 1) -> tokens [n] and the
    logprobs of the temperature-scaled distribution [n, V].

    By inversion of the cumulative distribution: one random number per row.
    """
    greedy = torch.tensor([r.temperature == 0 for r in requests], device=logits.device)
    scale = torch.tensor([r.temperature or 1.0 for r in requests], device=logits.device)
    logp = torch.log_softmax(logits / scale[:, None], dim=-1)
    probs = logp.exp()
    cut = [i for i, r in enumerate(requests) if r.top_k > 0 or r.top_p < 1]
    if cut:
        probs[cut] = _truncate(probs[cut], [requests[i] for i in cut])
    cumulative = probs.cumsum(dim=-1)
    point = uniform * cumulative[:, -1]
    tokens = torch.searchsorted(cumulative, point[:, None], right=True)[:, 0]
    tokens = tokens.clamp_(max=logits.shape[1] - 1)
    # rounding can point behind the last token that has any probability
    drawn = probs.gather(1, tokens[:, None])[:, 0] > 0
    tokens = torch.where(drawn & ~greedy, tokens, probs.argmax(dim=-1))
    return tokens, logp


def _top_k(tokens: torch.Tensor, logprobs: torch.Tensor) -> TopK:
    return TopK(tokens.cpu().numpy().astype(np.int32), logprobs.float().cpu().numpy())


def _truncate(probs: torch.Tensor, requests: list[SampleRequest]) -> torch.Tensor:
    """Zero what top-k and top-p exclude. The most likely token always stays."""
    ordered, order = probs.sort(dim=-1, descending=True)
    vocab = probs.shape[1]
    top_k = torch.tensor([r.top_k if r.top_k > 0 else vocab for r in requests], device=probs.device)
    top_p = torch.tensor([r.top_p for r in requests], device=probs.device)
    rank = torch.arange(vocab, device=probs.device)
    before = ordered.cumsum(dim=-1) - ordered  # probability of everything more likely
    keep = (rank[None, :] < top_k[:, None]) & ((before < top_p[:, None]) | (top_p[:, None] >= 1))
    keep[:, 0] = True
    return torch.zeros_like(probs).scatter(1, order, ordered * keep)
