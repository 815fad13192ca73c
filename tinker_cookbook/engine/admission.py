"""Admission: choose the requests of the next pass and allocate memory for their keys and values.

Requests are admitted in order of arrival. One with more samples than there are free slots gets the
free ones and queues up again behind the others for the rest. A prompt longer than a pass is
computed in chunks.

Memory is counted in tokens of keys and values, and whenever a pass runs

    slots * capacity + tokens in pinned nodes <= kv_tokens

where `capacity`, the same for all slots, is at least what any running sample can come to need, its
max_tokens included. So no sample runs out of memory half-way and none is ever preempted. Unpinned
nodes of the prefix cache use the rest, and are evicted when slots or pinned nodes need it.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tinker_cookbook.engine.kv_cache import KVCache, Slice
from tinker_cookbook.engine.memory import SamplingLimits
from tinker_cookbook.engine.packing import MIN_SHARED_TOKENS
from tinker_cookbook.engine.prefix_cache import CachedPrefix, Node, PrefixCache, prefix_length
from tinker_cookbook.engine.sampling_jobs import ActiveSample, SamplingJob

# Samples can read a prompt from shared nodes, at the price of one more attention call per node, or
# from copies in their slots. An extra call pays if it covers about this many samples x tokens;
# below that, reading the copies is as fast.
SHARING_THRESHOLD = 512
# The slots are copied whenever they are resized, so they grow in steps of this many tokens and
# slots.
CAPACITY_STEP = 64
SLOTS_STEP = 16


@dataclass(frozen=True)
class AdmittedChunk:
    """What the next pass does for one job.

    Prompt tokens from the end of `cached` to `stop` pass through the model, and `num_samples` more
    samples of the job start. `node`, if any, receives the keys of the chunk's last tokens: those
    that no node holds yet.
    """

    job: SamplingJob
    cached: CachedPrefix
    stop: int
    num_samples: int
    node: Node | None

    @property
    def tokens(self) -> np.ndarray:
        return self.job.prompt[prefix_length(self.cached) : self.stop]


class Admission:
    """The queue of waiting jobs, and the memory for keys and values."""

    def __init__(self, limits: SamplingLimits, cache: KVCache) -> None:
        self.limits = limits
        self.cache = cache
        self.prefixes = PrefixCache()
        self.waiting: deque[SamplingJob] = deque()
        # Samples that are not finished yet, by prompt: requests with the same prompt share it.
        self._unfinished: Counter[tuple[int, bytes]] = Counter()
        self._max_unpinned = 0 if limits.deterministic else limits.prefix_tokens

    @property
    def tokens(self) -> int:
        """Tokens of keys and values that memory is allocated for."""
        return self.cache.tokens + self.prefixes.tokens

    def add(self, job: SamplingJob) -> None:
        self.waiting.append(job)
        self._unfinished[job.key] += job.request.num_samples

    def remove_waiting(self, job: SamplingJob) -> None:
        """Take a cancelled job out of the queue; its running samples go on."""
        self.waiting.remove(job)

    def finish(self, job: SamplingJob) -> None:
        """Forget a job that has been answered."""
        self.release_prefix(job)
        self._unfinished[job.key] -= job.request.num_samples
        self._unfinished += Counter()  # drops zero counts, whose keys hold whole prompts

    def release_prefix(self, job: SamplingJob) -> None:
        self.prefixes.unpin(job.prefix)
        job.prefix = []

    def reset_after_error(self, failed: Sequence[SamplingJob]) -> None:
        """Forget the failed jobs and all cached keys; the other waiting jobs start anew."""
        # The pass may have filled some nodes for some layers only, and which ones is unknown.
        self.prefixes.clear()
        for job in failed:
            job.prefix = []  # its nodes are gone: nothing to unpin
            self.finish(job)
        self.waiting = deque(job for job in self.waiting if job not in failed)
        for job in self.waiting:
            job.reset_prompt()

    def evict_excess(self) -> None:
        """Evict unpinned nodes beyond `prefix_tokens` and beyond the memory that is free."""
        free = self.limits.kv_tokens - self.cache.tokens - self.prefixes.pinned
        self.prefixes.evict(min(self._max_unpinned, free))

    def cache_sample(self, sample: ActiveSample, slot: int) -> None:
        """Cache the keys of a finished sample, for a request that continues it (the next turn)."""
        job = sample.job
        # The last sampled token never passed through the model, so it has no keys.
        sampled = np.array(sample.output.tokens[:-1], dtype=np.int64)
        tokens = np.concatenate([job.prompt, sampled])
        prefix = self.prefixes.match(job.owner, tokens)
        depth = prefix_length(prefix)
        num_new = len(tokens) - depth
        # The slot holds keys from `num_shared` on; a gap before them cannot be filled from it.
        if depth < sample.num_shared:
            return
        # Pinned, because the eviction below must not take the parent of the new node.
        self.prefixes.pin(prefix)
        if self._may_cache(num_new, self.cache.tokens):
            free = self.limits.kv_tokens - self.cache.tokens - self.prefixes.pinned
            self.prefixes.evict(min(self._max_unpinned, free) - num_new)
            node = self.prefixes.insert(job.owner, tokens[depth:], prefix)
            block = self.cache.read_slot(slot, depth - sample.num_shared, sample.num_in_slot)
            node.keys, node.values = block.keys, block.values
        self.prefixes.unpin(prefix)

    def admit(
        self, active: Sequence[ActiveSample], running: list[SamplingJob]
    ) -> list[AdmittedChunk]:
        """Choose what the next pass computes beside the active samples, and reserve the slots.

        Each job is appended to `running` as soon as it is chosen, so that the caller can answer it
        even if this method fails afterwards.
        """
        chunks: list[AdmittedChunk] = []
        num_slots = len(active)
        capacity = max((sample.job.slot_tokens for sample in active), default=0)
        budget = self.limits.tokens_per_pass
        # Only ever the first in the queue: a job that does not fit is not overtaken by smaller ones
        # that would, or it could wait forever.
        while self.waiting:
            job = self.waiting[0]
            chunk = self._admit_job(job, num_slots, capacity, budget)
            if chunk is None and not chunks and not active:
                # No active sample will free memory by finishing, and the job fits into an empty
                # cache (`check_request`), so prefixes pinned by waiting jobs block it: drop them.
                for waiting in self.waiting:
                    self.release_prefix(waiting)
                    waiting.reset_prompt()
                self.prefixes.evict(0)
                chunk = self._admit_job(job, num_slots, capacity, budget, use_cache=False)
            if chunk is None:
                break
            running.append(job)
            chunks.append(chunk)
            job.num_started += chunk.num_samples
            job.num_running += chunk.num_samples
            num_slots += chunk.num_samples
            budget -= len(chunk.tokens)
            if chunk.num_samples:
                capacity = max(capacity, job.slot_tokens)
            if chunk.stop < len(job.prompt):
                break  # this pass is full; the job stays first in the queue for its next chunk
            self.waiting.popleft()
            if job.num_waiting:
                self.waiting.append(job)  # at the end: many samples do not hold up other requests
        if chunks:
            self._resize_slots(num_slots, capacity, len(active))
        return chunks

    def _admit_job(
        self, job: SamplingJob, num_slots: int, capacity: int, budget: int, use_cache: bool = True
    ) -> AdmittedChunk | None:
        """The job's next chunk, or None if it does not fit.

        `num_slots` slots of at least `capacity` tokens are taken, by active samples and by jobs
        admitted before; `budget` tokens of the pass are left.
        """
        prompt_length, max_tokens = len(job.prompt), job.max_tokens
        if job.last_hidden is not None:  # the prompt is done: only samples are to be started
            num_samples = self._num_fitting_slots(num_slots, capacity, max_tokens)
            num_samples = min(job.num_waiting, num_samples)
            if num_samples <= 0:
                return None
            return AdmittedChunk(job, job.prefix, prompt_length, num_samples, None)
        # Reuse cached tokens, but at least one token must pass through the model, because samples
        # start from the last hidden state. Scoring a prompt needs the hidden states of all tokens.
        cached = job.prefix
        if not cached and use_cache and self._max_unpinned and job.prompt_scores is None:
            cached = self.prefixes.match(job.owner, job.prompt[:-1])
            cached = cached if prefix_length(cached) >= MIN_SHARED_TOKENS else []
        num_cached = prefix_length(cached)
        # A deterministic sampler computes each prompt in passes of its own, so that their size does
        # not depend on other requests. Otherwise only a prompt longer than the rest of this pass
        # waits for the next one.
        needs_whole_pass = self.limits.deterministic or prompt_length - num_cached > budget
        if needs_whole_pass and budget < self.limits.tokens_per_pass:
            return None
        stop = min(prompt_length, num_cached + budget)
        num_wanted = job.num_waiting if stop == prompt_length else 0
        # Includes nodes that earlier jobs of this pass will fill. Pinned now, so that they count as
        # taken in everything below.
        prefix = self.prefixes.match(job.owner, job.prompt[:stop], ready=False)
        self.prefixes.pin(prefix)
        depth = prefix_length(prefix)
        num_new = stop - depth  # tokens that are in no node
        # Scoring alone needs no keys after the pass, unless more chunks follow.
        needs_keys = num_wanted > 0 or stop < prompt_length
        num_samples, slot_tokens = num_wanted, prompt_length + max_tokens
        # Chunks before the last one must go to nodes, because there is no slot yet, and so must a
        # prompt with samples that have to wait for a slot.
        if needs_keys and (self._sharing_pays(job, prefix) or stop < prompt_length):
            shared = True
        else:
            fitting = self._num_fitting_slots(num_slots, capacity, slot_tokens)
            shared = needs_keys and fitting < num_wanted
        if shared:
            slot_tokens = max_tokens if num_wanted else 0
            fitting = self._num_fitting_slots(num_slots, capacity, slot_tokens, num_new)
            num_samples = min(num_wanted, fitting)
            # At least one sample must start; a chunk without samples must only fit itself.
            if fitting < min(num_wanted, 1):
                self.prefixes.unpin(prefix)
                return None
        slots_taken = (num_slots + num_samples) * max(capacity, slot_tokens if num_samples else 0)
        node = None
        # Required if shared; otherwise only for later requests, if there is memory to spare.
        if num_new and (shared or self._may_cache(num_new, slots_taken)):
            node = self.prefixes.insert(job.owner, job.prompt[depth:stop], prefix)
            piece = [Slice(node, 0, num_new, depth)]
            self.prefixes.pin(piece)
            prefix = prefix + piece
        self.release_prefix(job)  # of the chunks before, which the new prefix includes
        job.prefix, job.shared = prefix, shared
        return AdmittedChunk(job, cached, stop, num_samples, node)

    def _sharing_pays(self, job: SamplingJob, prefix: CachedPrefix) -> bool:
        """Whether samples should read the prompt from nodes rather than from a copy each."""
        # The rule below depends on other requests with the same prompt, and the choice changes the
        # last bits of the attention. A deterministic sampler always shares.
        if self.limits.deterministic:
            return True
        num_calls = len(prefix) + 1
        return self._unfinished[job.key] * len(job.prompt) >= SHARING_THRESHOLD * num_calls

    def _num_fitting_slots(
        self, num_slots: int, capacity: int, slot_tokens: int, node_tokens: int = 0
    ) -> int:
        """How many more slots of `slot_tokens` fit beside new nodes of `node_tokens`.

        All slots have the size of the largest, so a longer sample makes every slot longer. Negative
        if not even the `num_slots` taken ones fit then.
        """
        free = self.limits.kv_tokens - self.prefixes.pinned - node_tokens
        return min(self.limits.max_rows, free // max(capacity, slot_tokens, 1)) - num_slots

    def _may_cache(self, num_tokens: int, slots_taken: int) -> bool:
        """Whether so many tokens are worth a node for later requests and fit beside the slots."""
        free = self.limits.kv_tokens - self.prefixes.pinned - slots_taken
        return MIN_SHARED_TOKENS <= num_tokens <= min(self._max_unpinned, free)

    def _resize_slots(self, num_slots: int, capacity: int, num_live: int) -> None:
        """Make room for `num_slots` slots of `capacity` tokens; the first `num_live` are in use."""
        cache, limit = self.cache, self.limits.kv_tokens - self.prefixes.pinned
        # Also when the slots are larger than needed and new pinned nodes take their room.
        if num_slots > cache.slots or capacity > cache.capacity or cache.tokens > limit:
            # Rounded up if that fits, the slots only if it takes nothing from the prefix cache.
            rounded = _round_up(capacity, CAPACITY_STEP)
            if num_slots * rounded > limit:
                rounded = capacity
            slots = min(_round_up(num_slots, SLOTS_STEP), self.limits.max_rows)
            if slots * rounded > limit - self._max_unpinned:
                slots = num_slots
            cache.reserve(slots, rounded, num_live)
        self.evict_excess()


def _round_up(number: int, step: int) -> int:
    return -(-number // step) * step
