"""Sampling with continuous batching: requests join and leave a running batch.

A prompt is computed once for all of its samples, and a prefix that an earlier request to the same
weights had in common is not computed again. `admission.py` decides which requests run when
and where their keys and values go, `token_sampling.py` how tokens are drawn and which logprobs are
returned.

A deterministic sampler returns the same bits for a request with a seed whatever else is running
(batch invariance). That takes care, because the result of one row of a matrix product depends on
the number of rows in its last bits. So decoding runs in batches of a fixed size with a single
adapter, each prompt in passes of its own, attention and drawing sample by sample, and requests
reuse nothing from one another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import torch

from tinker_cookbook.engine.admission import Admission, AdmittedChunk
from tinker_cookbook.engine.attention import PackedPlan
from tinker_cookbook.engine.base_model import BaseModel
from tinker_cookbook.engine.config import EngineConfig
from tinker_cookbook.engine.decode_attention import DecodePlan, SharedPrefix
from tinker_cookbook.engine.kv_cache import KVCache, Sink, Slice, SlotSink
from tinker_cookbook.engine.lora import (
    Adapter,
    AdapterPlan,
    AdapterSpan,
    AdapterStack,
    PerTokenAdapters,
)
from tinker_cookbook.engine.packing import PrefixTrees, token_positions
from tinker_cookbook.engine.prefix_cache import prefix_length
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
from tinker_cookbook.engine.sampling_jobs import (
    ActiveSample,
    SamplingJob,
    check_request,
    to_top_k,
)
from tinker_cookbook.engine.token_sampling import sample_tokens

DETERMINISTIC_BATCH = 32  # sequences in every decoding batch of a deterministic sampler


class TorchSampler:
    """The engine's own sampler over a BaseModel, with any mix of adapters in one batch."""

    def __init__(
        self,
        base: BaseModel,
        config: EngineConfig,
        weights: SampledWeights | None = None,
    ) -> None:
        """weights: looks up the weights that requests name; None: adapters come through `take`."""
        self.base = base
        self.weights = weights or SampledWeights(lambda _: base)
        assert base.memory is not None
        self.limits = base.memory.sampling_limits(config, base.device)
        self.cache = KVCache(base.num_layers)
        self.admission = Admission(self.limits, self.cache)
        self.active: list[ActiveSample] = []  # active[i] occupies slot i of the cache
        self.prompt_tokens_computed = 0
        self.prompt_tokens_reused = 0  # found in the prefix cache
        self._stack = AdapterStack([])

    def load(self, weights: WeightsRef) -> None:
        self.weights.load(weights)

    @property
    def busy(self) -> bool:
        return bool(self.admission.waiting or self.active)

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
        """As `add`, with the adapter itself in place of a reference to it."""
        max_tokens, stop_tokens = check_request(request, self.base.facts, self.limits)
        job = SamplingJob(
            request,
            max_tokens,
            stop_tokens,
            adapter,
            on_done,
            # Not the adapter: an optimizer step replaces its `version` and so its tree.
            owner=adapter.version if adapter else self.base,
            prompt=np.asarray(request.prompt, dtype=np.int64),
            cancelled=cancelled,
            on_token=on_token,
        )
        if self.limits.deterministic:
            # A tree of its own: keys computed by another request come from passes of another shape
            # and may differ in the last bits.
            job.owner = job
        self.admission.add(job)

    @torch.inference_mode()
    def step(self) -> None:
        running = [sample.job for sample in self.active]
        try:
            self._drop_cancelled()
            chunks = self.admission.admit(self.active, running)
            if chunks:
                self._run_chunks(chunks)
            if self.active:
                self._decode()
        except Exception as error:
            # The cache can no longer be trusted, so every running request fails; the waiting ones
            # stay. If nothing was running, the first waiting request is the cause and would fail
            # again and again.
            self._fail(running or list(self.admission.waiting)[:1], error)

    def abort(self, error: Exception) -> None:
        self._fail([*(sample.job for sample in self.active), *self.admission.waiting], error)

    def release(self) -> None:
        self.admission.prefixes.evict(0)

    def close(self) -> None:
        self.release()

    def _fail(self, jobs: list[SamplingJob], error: Exception) -> None:
        # A job may be listed once per sample, and may have been answered earlier in the same step.
        failed = [job for job in dict.fromkeys(jobs) if not job.answered]
        self.active.clear()
        self.cache.clear()
        self.admission.reset_after_error(failed)
        for job in failed:
            job.on_done(error)

    def _drop_cancelled(self) -> None:
        """Start no more samples of cancelled requests; the active ones leave in `_retire`."""
        for job in [job for job in self.admission.waiting if job.cancelled()]:
            self.admission.remove_waiting(job)
            job.cancel_remaining()
            if not job.num_running:
                self._answer(job)

    def _run_chunks(self, chunks: Sequence[AdmittedChunk]) -> None:
        """Prefill the chunks, and draw the first token of the samples that got a slot."""
        num_slots = len(self.active)
        slots = []
        for chunk in chunks:
            slots.append(range(num_slots, num_slots + chunk.num_samples))
            num_slots += chunk.num_samples
        # A chunk without tokens only starts more samples of a prompt that was computed before.
        prefills = [(chunk, span) for chunk, span in zip(chunks, slots) if len(chunk.tokens)]
        if prefills:
            self._prefill(prefills)
        started = []
        for chunk in chunks:
            job = chunk.job
            for _ in range(chunk.num_samples):
                index = len(job.result.sequences)
                output = SampledTokens([], [], "length")
                job.result.sequences.append(output)
                # By the sample's index, so that samples differ and do not depend on one another.
                seed = None if job.request.seed is None else [job.request.seed, index]
                rng = np.random.default_rng(seed)
                length = len(job.prompt)
                num_shared, num_in_slot = (length, 0) if job.shared else (0, length)
                started.append(ActiveSample(job, index, output, rng, num_shared, num_in_slot))
            # The prompt's nodes are needed by samples that read them and by samples yet to start.
            if job.last_hidden is not None and not (
                job.shared and (job.num_waiting or job.num_running)
            ):
                self.admission.release_prefix(job)
                if not job.max_tokens:  # only the prompt was to be scored
                    samples = range(job.request.num_samples)
                    job.result.sequences = [SampledTokens([], [], "length") for _ in samples]
                    self._answer(job)
        self.active += started
        for batch in self._decode_batches(started):
            samples = [started[i] for i in batch]
            last = [sample.job.last_hidden for sample in samples]
            self._draw_next_tokens(samples, torch.stack([h for h in last if h is not None]))
        self._retire()

    def _prefill(self, prefills: Sequence[tuple[AdmittedChunk, range]]) -> None:
        """Compute chunks, each with its slots, in one pass.

        Tokens that prompts of the same adapter share at their beginning are computed once.
        """
        adapters = list(dict.fromkeys(chunk.job.adapter for chunk, _ in prefills))
        # Chunks that continue the same cached tokens form a group. Groups of an adapter stand side
        # by side, so that each adapter covers one span of the pass.
        keys = [
            (adapters.index(chunk.job.adapter), *((id(k.block), k.stop) for k in chunk.cached))
            for chunk, _ in prefills
        ]
        groups = sorted(set(keys), key=lambda key: key[0])
        firsts = [prefills[keys.index(group)][0] for group in groups]
        trees = PrefixTrees([c.tokens for c, _ in prefills], [groups.index(key) for key in keys])
        # The cached keys of all groups, concatenated; the root segments of each group continue
        # the group's span of them.
        cached: list[Slice] = []
        segments, position = list(trees.segments), 0
        for first, (begin, end) in zip(firsts, trees.spans):
            cached += first.cached
            span = (position, position + prefix_length(first.cached))
            position = span[1]
            if first.cached:
                for index, segment in enumerate(segments):
                    if segment.parent is None and begin <= segment.start < end:
                        segments[index] = replace(segment, cached=span)
        # Which keys each sink takes; `cells` are positions in the pass.
        sinks: list[tuple[torch.Tensor, Sink]] = []
        for (chunk, slots), cells in zip(prefills, trees.token_indices):
            num_cached, job = prefix_length(chunk.cached), chunk.job
            if chunk.node is not None:
                new_cells = cells[len(cells) - len(chunk.node.tokens) :]
                sinks.append((self._to_device(new_cells), chunk.node))
            if slots and not job.shared:
                sinks.append((self._to_device(cells), SlotSink(self.cache, slots, num_cached)))
                self.cache.write_prefix(slots, chunk.cached)
        hidden = self.base.hidden(
            self._to_device(trees.tokens),
            self._to_device(token_positions(segments)),
            PackedPlan(segments, cached, sinks),
            _adapter_spans([first.job.adapter for first in firsts], trees.spans),
        )
        self.prompt_tokens_computed += len(trees.tokens)
        for (chunk, _), cells in zip(prefills, trees.token_indices):
            job, num_cached = chunk.job, prefix_length(chunk.cached)
            # What a later chunk finds in nodes was computed by the chunks before it.
            self.prompt_tokens_reused += 0 if job.chunked else num_cached
            if job.prompt_scores is not None:
                chunk_hidden = hidden[self._to_device(cells)]
                job.prompt_scores.add(self.base, job, chunk_hidden, num_cached)
            if chunk.stop == len(job.prompt):
                # A clone, because a view would keep the hidden states of the whole pass alive.
                job.last_hidden = hidden[int(cells[-1])].clone()
                if job.prompt_scores is not None:
                    job.prompt_scores.finish(job)
            else:
                job.chunked = True

    def _decode(self) -> None:
        """Pass every active sample's pending token through the model and draw the next one."""
        for batch in self._decode_batches(self.active):
            samples = [self.active[i] for i in batch]
            plan = self._decode_plan(samples, batch)
            padding = DETERMINISTIC_BATCH - len(samples) if plan.batch_invariant else 0
            tokens = np.array([sample.pending_token for sample in samples] + [0] * padding)
            positions = np.array([sample.position for sample in samples] + [0] * padding)
            adapters = self._adapter_plan(samples, len(tokens))
            hidden = self.base.hidden(
                self._to_device(tokens), self._to_device(positions), plan, adapters
            )
            for sample in samples:
                sample.num_in_slot += 1
            self._draw_next_tokens(samples, hidden)
        self._retire()

    def _decode_batches(self, samples: Sequence[ActiveSample]) -> list[list[int]]:
        """Group the samples' indices into the passes in which they are decoded."""
        if not self.limits.deterministic:
            return [list(range(len(samples)))] if samples else []
        # One adapter per batch: a stack of several is a product of another shape.
        by_adapter: dict[int, list[int]] = {}
        for index, sample in enumerate(samples):
            by_adapter.setdefault(id(sample.job.adapter), []).append(index)
        size = DETERMINISTIC_BATCH
        groups = by_adapter.values()
        return [group[i : i + size] for group in groups for i in range(0, len(group), size)]

    def _decode_plan(self, samples: Sequence[ActiveSample], slots: Sequence[int]) -> DecodePlan:
        """Group the samples by shared prefix."""
        by_prefix: dict[tuple[tuple[int, int], ...], list[int]] = {}
        for index, sample in enumerate(samples):
            if sample.job.shared:
                key = tuple((id(piece.block), piece.stop) for piece in sample.job.prefix)
                by_prefix.setdefault(key, []).append(index)
        # Longest prefixes first: `decode_attention` relies on this order.
        groups = sorted(by_prefix.values(), key=lambda group: -len(samples[group[0]].job.prefix))
        stops = np.cumsum([0, *map(len, groups)]).tolist()
        return DecodePlan(
            self.cache,
            slots,
            [sample.num_in_slot for sample in samples],
            [sample.num_shared for sample in samples],
            self.base.device,
            [index for group in groups for index in group],
            [
                SharedPrefix(start, stop, samples[group[0]].job.prefix)
                for (start, stop), group in zip(pairwise(stops), groups)
            ],
            self.limits.deterministic,
        )

    def _adapter_plan(self, samples: Sequence[ActiveSample], count: int) -> AdapterPlan:
        """Which sample uses which adapter: one for all `count` rows of the pass, or a stack."""
        adapters = [sample.job.adapter for sample in samples]
        distinct = list({id(a): a for a in adapters if a is not None}.values())
        if len(distinct) <= 1 and (None not in adapters or not distinct):
            return [AdapterSpan(adapters[0], 0, count)]
        # Stacking copies all the weights, so the stack is kept until a new adapter joins.
        if not {adapter.version for adapter in distinct} <= set(self._stack.versions):
            self._stack = AdapterStack(distinct)
        index = {id(adapter): i for i, adapter in enumerate(self._stack.adapters)}
        owners = np.array([-1 if adapter is None else index[id(adapter)] for adapter in adapters])
        return PerTokenAdapters(self._stack, self._to_device(owners))

    def _draw_next_tokens(self, samples: Sequence[ActiveSample], hidden: torch.Tensor) -> None:
        """Draw the next token of each sample from its last hidden state [n, H]."""
        deterministic = self.limits.deterministic
        if deterministic and len(hidden) < DETERMINISTIC_BATCH:
            padding = DETERMINISTIC_BATCH - len(hidden)
            hidden = torch.cat([hidden, hidden.new_zeros(padding, hidden.shape[1])])
        plan = self._adapter_plan(samples, len(hidden))
        adapter = plan if isinstance(plan, PerTokenAdapters) else plan[0].adapter
        logits = self.base.head.logits(hidden, adapter)
        # Each sample has a generator of its own, so its draws do not depend on the others.
        numbers = np.array([sample.rng.random() for sample in samples], dtype=np.float32)
        uniform = self._to_device(numbers)
        if not deterministic:
            self._draw(samples, logits, uniform, hidden, adapter)
            return
        for index, sample in enumerate(samples):
            # Cloned: each sample's logits then have the same alignment in memory, on which the last
            # bits of vectorized sums depend.
            only = slice(index, index + 1)
            self._draw([sample], logits[only].clone(), uniform[only], hidden[only], adapter)

    def _draw(
        self,
        samples: Sequence[ActiveSample],
        logits: torch.Tensor,
        uniform: torch.Tensor,
        hidden: torch.Tensor,
        adapter: Adapter | PerTokenAdapters | None,
    ) -> None:
        head, requests = self.base.head, [sample.job.request for sample in samples]

        def exact_logits(tokens: torch.Tensor) -> torch.Tensor:
            return head.exact_logits(hidden, tokens[:, None], adapter)[:, 0]

        exact = exact_logits if head.num_exact else None
        drawn = sample_tokens(logits, requests, uniform, exact)
        for sample, token, logprob in zip(samples, drawn.tokens.tolist(), drawn.logprobs.tolist()):
            sample.output.tokens.append(token)
            sample.output.logprobs.append(logprob)
            sample.pending_token = token
            if sample.job.on_token is not None:
                sample.job.on_token(sample.index, token, logprob)
        for k in {request.sample_top_k for request in requests} - {0}:
            temperature = drawn.temperature[:, None]
            best, values = head.most_likely(drawn.scaled, k, hidden, adapter, temperature)
            logprobs = values - drawn.log_sum[:, None]
            for index, sample in enumerate(samples):
                if sample.job.request.sample_top_k == k:
                    only = slice(index, index + 1)
                    sample.output.top_k.append(to_top_k(best[only], logprobs[only]))

    def _retire(self) -> None:
        """Take finished and cancelled samples out of the batch, and answer complete requests.

        The last sample moves into a slot that becomes free, so that slots stay dense.
        """
        active = self.active
        # From the end: whatever moves into slot `index` has been looked at already.
        for index in range(len(active) - 1, -1, -1):
            sample = active[index]
            job = sample.job
            if self._hit_stop(sample):
                sample.output.stop_reason = "stop"
            elif job.cancelled():
                job.cancel_remaining()
            elif len(sample.output.tokens) < job.max_tokens:
                continue
            # Before the slot is overwritten.
            self.admission.cache_sample(sample, index)
            last = active.pop()
            if index < len(active):
                self.cache.copy_slot(len(active), index, last.num_in_slot)
                active[index] = last
            job.num_running -= 1
            if job.num_running == 0 and not job.num_waiting:
                self._answer(job)
        if not active:  # training may want the memory
            self.cache.clear()
            self._stack = AdapterStack([])
        self.admission.evict_excess()

    def _answer(self, job: SamplingJob) -> None:
        self.admission.finish(job)
        job.answered = True
        job.on_done(job.result)

    def _hit_stop(self, sample: ActiveSample) -> bool:
        request, tokens = sample.job.request, sample.output.tokens
        if tokens[-1] in sample.job.stop_tokens:
            return True
        if not request.stop_strings:
            return False
        # A stop string of b bytes spans at most b tokens, and one that ended earlier would have
        # ended the sample, so this tail is enough.
        window = max(len(text.encode()) for text in request.stop_strings)
        tail = self.base.decode(tokens[-window - 1 :])
        return any(text in tail for text in request.stop_strings)

    def _to_device(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).to(self.base.device)


def _adapter_spans(
    adapters: Sequence[Adapter | None], spans: Sequence[tuple[int, int]]
) -> list[AdapterSpan]:
    """Merge neighbouring spans of the pass that use the same adapter."""
    merged: list[AdapterSpan] = []
    for adapter, (start, stop) in zip(adapters, spans, strict=True):
        if merged and merged[-1].adapter is adapter:
            merged[-1] = replace(merged[-1], stop=stop)
        else:
            merged.append(AdapterSpan(adapter, start, stop))
    return merged
