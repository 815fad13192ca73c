"""Sampling with continuous batching: requests join and leave a running batch.

A prompt is computed once for all of its samples, and not at all as far as an earlier request of the
same adapter began with the same tokens. Who goes on when, and where keys and values lie:
`admission.py`. What is drawn and which logprobs come back: `token_sampling.py`.

A deterministic sampler gives a request with a seed the same bits in any company. The row results of
a matrix product change with the number of rows; so decoding goes in batches of one size and one
adapter, a prompt in passes of its own, attention and drawing row by row, and no request takes what
another computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import torch

from tinker_cookbook.engine.admission import Admission, Start
from tinker_cookbook.engine.attention import PackedPlan
from tinker_cookbook.engine.base_model import BaseModel
from tinker_cookbook.engine.config import EngineConfig
from tinker_cookbook.engine.decode_attention import Context, DecodePlan
from tinker_cookbook.engine.kv_cache import KVCache, Sink, Slice, SlotSink
from tinker_cookbook.engine.lora import (
    Adapter,
    AdapterPlan,
    AdapterSpan,
    AdapterStack,
    PerTokenAdapters,
)
from tinker_cookbook.engine.packing import PrefixTrees, token_positions
from tinker_cookbook.engine.prefix_cache import length
from tinker_cookbook.engine.requests import (
    Cancelled,
    OnDone,
    OnToken,
    Sample,
    SampledTokens,
    SampleRequest,
    WeightsRef,
)
from tinker_cookbook.engine.sampled_weights import SampledWeights
from tinker_cookbook.engine.sampling_jobs import Job, Row, check, top_k
from tinker_cookbook.engine.token_sampling import sample_tokens

FIXED_ROWS = 32  # of every decoding batch of a deterministic sampler


class TorchSampler:
    """The engine's own sampler over a BaseModel: rows of any adapters in one batch."""

    def __init__(
        self,
        base: BaseModel,
        config: EngineConfig,
        weights: SampledWeights | None = None,
    ) -> None:
        """weights: what requests name; None: requests come with their adapters, by `take`."""
        self.base = base
        self.weights = weights or SampledWeights(lambda _: base)
        assert base.memory is not None
        self.limits = base.memory.sampling_limits(config, base.device)
        self.cache = KVCache(base.num_layers)
        self.admission = Admission(self.limits, self.cache)
        self.rows: list[Row] = []  # row i lies in slot i of the cache
        self.prompt_tokens_computed = 0
        self.prompt_tokens_reused = 0  # taken from what earlier requests computed
        self._stack = AdapterStack([])

    def load(self, weights: WeightsRef) -> None:
        self.weights.load(weights)

    @property
    def busy(self) -> bool:
        return bool(self.admission.waiting or self.rows)

    def add(
        self,
        request: Sample,
        on_done: OnDone,
        cancelled: Cancelled,
        on_token: OnToken | None = None,
    ) -> None:
        """See `samplers.Sampler`."""
        adapter = self.weights.adapter(request.weights)
        self.take(request.request, adapter, on_done, cancelled, on_token)

    def take(
        self,
        request: SampleRequest,
        adapter: Adapter | None,
        on_done: OnDone,
        cancelled: Cancelled = lambda: False,
        on_token: OnToken | None = None,
    ) -> None:
        """As `add`, with the adapter itself."""
        max_tokens, stop_tokens = check(request, self.base.facts, self.limits)
        job = Job(
            request,
            max_tokens,
            stop_tokens,
            adapter,
            on_done,
            owner=adapter.version if adapter else self.base,
            prompt=np.asarray(request.prompt, dtype=np.int64),
            cancelled=cancelled,
            on_token=on_token,
        )
        if self.limits.deterministic:
            job.owner = job  # what others computed, they computed in other passes
        self.admission.add(job)

    @torch.inference_mode()
    def step(self) -> None:
        running = [row.job for row in self.rows]
        try:
            self._give_up()
            starts = self.admission.choose(self.rows, running)
            if starts:
                self._start(starts)
            if self.rows:
                self._decode()
        except Exception as error:
            # the cache can no longer be trusted: every running request fails, the waiting ones
            # stay; where nothing ran, the first of them is the cause, and would be again
            self._fail(running or list(self.admission.waiting)[:1], error)

    def abort(self, error: Exception) -> None:
        self._fail([*(row.job for row in self.rows), *self.admission.waiting], error)

    def release(self) -> None:
        """Give back the memory that is kept for requests to come."""
        self.admission.prefixes.evict(0)

    def close(self) -> None:
        self.release()

    def _fail(self, jobs: list[Job], error: Exception) -> None:
        failed = [job for job in dict.fromkeys(jobs) if not job.answered]
        self.rows.clear()
        self.cache.clear()
        self.admission.drop(failed)
        for job in failed:
            job.on_done(error)

    def _give_up(self) -> None:
        """Cancelled requests do not go on; their rows leave at the end of the step."""
        for job in [job for job in self.admission.waiting if job.cancelled()]:
            self.admission.forget(job)
            job.give_up()
            if not job.open:
                self._answer(job)

    def _start(self, starts: Sequence[Start]) -> None:
        """Compute what is new of the prompts; draw the first token of samples that got a slot."""
        free = len(self.rows)
        slots = []
        for start in starts:
            slots.append(range(free, free + start.rows))
            free += start.rows
        computing = [(s, own) for s, own in zip(starts, slots) if len(s.tokens)]
        if computing:
            self._prefill(computing)
        fresh = []
        for start in starts:
            job = start.job
            for _ in range(start.rows):
                index = len(job.result.sequences)
                out = SampledTokens([], [], "length")
                job.result.sequences.append(out)
                seed = None if job.request.seed is None else [job.request.seed, index]
                whole = len(job.prompt)
                base, filled = (whole, 0) if job.shared else (0, whole)
                fresh.append(Row(job, index, out, np.random.default_rng(seed), base, filled))
            if job.last is not None and not (job.shared and (job.wanted or job.open)):
                self.admission.release(job)
                if not job.max_tokens:
                    samples = range(job.request.num_samples)
                    job.result.sequences = [SampledTokens([], [], "length") for _ in samples]
                    self._answer(job)
        self.rows += fresh
        for batch in self._batches(fresh):
            rows = [fresh[i] for i in batch]
            last = [row.job.last for row in rows]
            self._append(rows, torch.stack([h for h in last if h is not None]))
        self._retire()

    def _prefill(self, computing: Sequence[tuple[Start, range]]) -> None:
        """One pass. What prompts of the same adapter share at their beginning is computed once."""
        adapters = list(dict.fromkeys(start.job.adapter for start, _ in computing))
        # rows that go on from the same kept tokens, those of an adapter side by side
        keys = [
            (adapters.index(start.job.adapter), *((id(k.block), k.stop) for k in start.kept))
            for start, _ in computing
        ]
        groups = sorted(set(keys), key=lambda key: key[0])
        firsts = [computing[keys.index(group)][0] for group in groups]
        trees = PrefixTrees([s.tokens for s, _ in computing], [groups.index(key) for key in keys])
        kept: list[Slice] = []
        segments, position = list(trees.segments), 0
        for first, (begin, end) in zip(firsts, trees.spans):
            kept += first.kept
            span = (position, position + length(first.kept))
            position = span[1]
            if first.kept:
                for index, each in enumerate(segments):
                    if each.parent is None and begin <= each.start < end:
                        segments[index] = replace(each, cached=span)
        keep: list[tuple[torch.Tensor, Sink]] = []
        for (start, slots), own in zip(computing, trees.token_indices):
            before, job = length(start.kept), start.job
            if start.node is not None:
                fresh = own[len(own) - len(start.node.tokens) :]
                keep.append((self._tensor(fresh), start.node))
            if slots and not job.shared:
                keep.append((self._tensor(own), SlotSink(self.cache, slots, before)))
                self.cache.write(slots, start.kept)
        hidden = self.base.hidden(
            self._tensor(trees.tokens),
            self._tensor(token_positions(segments)),
            PackedPlan(segments, kept, keep),
            _adapter_spans([first.job.adapter for first in firsts], trees.spans),
        )
        self.prompt_tokens_computed += len(trees.tokens)
        for (start, _), own in zip(computing, trees.token_indices):
            job = start.job
            self.prompt_tokens_reused += 0 if job.chunked else length(start.kept)
            if job.scores is not None:
                job.scores.add(self.base, job, hidden[self._tensor(own)], length(start.kept))
            if start.stop == len(job.prompt):
                job.last = hidden[int(own[-1])].clone()
                if job.scores is not None:
                    job.scores.finish(job)
            else:
                job.chunked = True

    def _decode(self) -> None:
        for batch in self._batches(self.rows):
            rows = [self.rows[i] for i in batch]
            plan = self._plan(rows, batch)
            padding = FIXED_ROWS - len(rows) if plan.apart else 0
            tokens = np.array([row.pending for row in rows] + [0] * padding)
            positions = np.array([row.base + row.filled for row in rows] + [0] * padding)
            adapters = self._adapters(rows, len(tokens))
            hidden = self.base.hidden(self._tensor(tokens), self._tensor(positions), plan, adapters)
            for row in rows:
                row.filled += 1
            self._append(rows, hidden)
        self._retire()

    def _batches(self, rows: Sequence[Row]) -> list[list[int]]:
        """Indices of rows that are decoded in one pass."""
        if not self.limits.deterministic:
            return [list(range(len(rows)))] if rows else []
        of: dict[int, list[int]] = {}
        for index, row in enumerate(rows):
            of.setdefault(id(row.job.adapter), []).append(index)
        return [
            own[i : i + FIXED_ROWS] for own in of.values() for i in range(0, len(own), FIXED_ROWS)
        ]

    def _plan(self, rows: Sequence[Row], slots: Sequence[int]) -> DecodePlan:
        groups: dict[tuple[tuple[int, int], ...], list[int]] = {}
        for index, row in enumerate(rows):
            if row.job.shared:
                key = tuple((id(each.block), each.stop) for each in row.job.path)
                groups.setdefault(key, []).append(index)
        members = sorted(groups.values(), key=lambda own: -len(rows[own[0]].job.path))
        stops = np.cumsum([0, *map(len, members)]).tolist()
        return DecodePlan(
            self.cache,
            slots,
            [row.filled for row in rows],
            [row.base for row in rows],
            self.base.device,
            [index for own in members for index in own],
            [
                Context(start, stop, rows[own[0]].job.path)
                for (start, stop), own in zip(pairwise(stops), members)
            ],
            self.limits.deterministic,
        )

    def _adapters(self, rows: Sequence[Row], count: int) -> AdapterPlan:
        """Which row goes through which adapter: one for all of them, or a stack."""
        given = [row.job.adapter for row in rows]
        distinct = list({id(a): a for a in given if a is not None}.values())
        if len(distinct) <= 1 and (None not in given or not distinct):
            return [AdapterSpan(given[0], 0, count)]
        if not {each.version for each in distinct} <= set(self._stack.versions):
            self._stack = AdapterStack(distinct)
        index = {id(adapter): i for i, adapter in enumerate(self._stack.adapters)}
        owners = np.array([-1 if adapter is None else index[id(adapter)] for adapter in given])
        return PerTokenAdapters(self._stack, self._tensor(owners))

    def _append(self, rows: Sequence[Row], hidden: torch.Tensor) -> None:
        """Draw the next token of each row from its last hidden state [n, H]."""
        alone = self.limits.deterministic
        if alone and len(hidden) < FIXED_ROWS:
            hidden = torch.cat(
                [hidden, hidden.new_zeros(FIXED_ROWS - len(hidden), hidden.shape[1])]
            )
        plan = self._adapters(rows, len(hidden))
        one = plan if isinstance(plan, PerTokenAdapters) else plan[0].adapter
        logits = self.base.head.logits(hidden, one)
        uniform = self._tensor(np.array([row.rng.random() for row in rows], dtype=np.float32))
        if not alone:
            self._take(rows, logits, uniform)
            return
        for index, row in enumerate(rows):  # a copy: the same alignment for every row
            own = slice(index, index + 1)
            self._take([row], logits[own].clone(), uniform[own])

    def _take(self, rows: Sequence[Row], logits: torch.Tensor, uniform: torch.Tensor) -> None:
        requests = [row.job.request for row in rows]
        drawn = sample_tokens(logits, requests, uniform)
        for row, token, logprob in zip(rows, drawn.tokens.tolist(), drawn.logprobs.tolist()):
            row.out.tokens.append(token)
            row.out.logprobs.append(logprob)
            row.pending = token
            if row.job.on_token is not None:
                row.job.on_token(row.index, token, logprob)
        for k in {request.sample_top_k for request in requests} - {0}:
            best = drawn.scaled.topk(k, dim=-1)
            logprobs = best.values - drawn.log_sum[:, None]
            for index, row in enumerate(rows):
                if row.job.request.sample_top_k == k:
                    each = slice(index, index + 1)
                    row.out.top_k.append(top_k(best.indices[each], logprobs[each]))

    def _retire(self) -> None:
        """Take finished rows out; the last row moves into the free slot, so slots stay dense."""
        rows = self.rows
        for index in range(len(rows) - 1, -1, -1):
            row = rows[index]
            job = row.job
            if self._stopped(row):
                row.out.stop_reason = "stop"
            elif job.cancelled():
                job.give_up()
            elif len(row.out.tokens) < job.max_tokens:
                continue
            self.admission.remember(row, index)
            last = rows.pop()
            if index < len(rows):
                self.cache.move(len(rows), index, last.filled)
                rows[index] = last
            job.open -= 1
            if job.open == 0 and not job.wanted:
                self._answer(job)
        if not rows:  # training may want the memory
            self.cache.clear()
            self._stack = AdapterStack([])
        self.admission.trim()

    def _answer(self, job: Job) -> None:
        self.admission.leave(job)
        job.answered = True
        job.on_done(job.result)

    def _stopped(self, row: Row) -> bool:
        request = row.job.request
        if row.out.tokens[-1] in row.job.stop_tokens:
            return True
        if not request.stop_strings:
            return False
        # a stop string of b bytes spans at most b tokens; earlier ones would have ended the row
        window = max(len(text.encode()) for text in request.stop_strings)
        tail = self.base.decode(row.out.tokens[-window - 1 :])
        return any(text in tail for text in request.stop_strings)

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).to(self.base.device)


def _adapter_spans(
    adapters: Sequence[Adapter | None], spans: Sequence[tuple[int, int]]
) -> list[AdapterSpan]:
    """Neighbours with the same adapter go through it together."""
    merged: list[AdapterSpan] = []
    for adapter, (start, stop) in zip(adapters, spans, strict=True):
        if merged and merged[-1].adapter is adapter:
            merged[-1] = replace(merged[-1], stop=stop)
        else:
            merged.append(AdapterSpan(adapter, start, stop))
    return merged
