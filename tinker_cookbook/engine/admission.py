"""Which waiting requests go on now, and where their keys and values will lie.

Requests go on in their order; one that has more samples than there are slots gets what there is and
waits for more behind the others. A prompt longer than a pass is computed in several. Memory is
counted in tokens of keys and values: `(slots, each as long as the longest needs) + pinned nodes <=
kv_tokens`; unused nodes of the prefix cache go when that room is needed.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tinker_cookbook.engine.kv_cache import KVCache, Slice
from tinker_cookbook.engine.memory import SamplingLimits
from tinker_cookbook.engine.packing import MIN_SHARED_TOKENS
from tinker_cookbook.engine.prefix_cache import CachedPrefix, Node, PrefixCache, length
from tinker_cookbook.engine.sampling_jobs import Job, Row

# A call over a shared block pays from about this many (rows x tokens) on; below, a copy of the
# prompt in each slot is read as fast.
WORTH_SHARING = 512
CAPACITY_STEP = 64  # slots grow in steps of this many tokens and rows, so they are seldom copied
SLOTS_STEP = 16


@dataclass(frozen=True)
class Start:
    """Prompt tokens [length(kept), stop) of a job pass through the model, after the kept ones, and
    `rows` more of its samples begin. The keys of tokens [position of node, stop) go to `node`."""

    job: Job
    kept: CachedPrefix
    stop: int
    rows: int
    node: Node | None

    @property
    def tokens(self) -> np.ndarray:
        return self.job.prompt[length(self.kept) : self.stop]


class Admission:
    """The waiting requests, and the memory that those on their way use."""

    def __init__(self, limits: SamplingLimits, cache: KVCache) -> None:
        self.limits = limits
        self.cache = cache
        self.prefixes = PrefixCache()
        self.waiting: deque[Job] = deque()
        self._samples: Counter[tuple[int, bytes]] = Counter()  # of each prompt, not yet finished
        self._keeps = 0 if limits.deterministic else limits.prefix_tokens

    @property
    def tokens(self) -> int:
        """Tokens of keys and values held."""
        return self.cache.tokens + self.prefixes.tokens

    def add(self, job: Job) -> None:
        self.waiting.append(job)
        self._samples[job.key] += job.request.num_samples

    def leave(self, job: Job) -> None:
        """A job is answered: it needs nothing any more."""
        self.release(job)
        self._samples[job.key] -= job.request.num_samples
        self._samples += Counter()  # forgets the zeros

    def release(self, job: Job) -> None:
        self.prefixes.unpin(job.path)
        job.path = []

    def forget(self, job: Job) -> None:
        """A waiting job does not go on."""
        self.waiting.remove(job)

    def drop(self, failed: Sequence[Job]) -> None:
        """After an error in a pass: these jobs are answered, and nothing kept is trusted."""
        self.prefixes.clear()
        for job in failed:
            job.path = []
            self.leave(job)
        self.waiting = deque(job for job in self.waiting if job not in failed)
        for job in self.waiting:
            job.restart()

    def trim(self) -> None:
        """Let go of what is kept beyond its share, and beyond the room there is."""
        free = self.limits.kv_tokens - self.cache.tokens - self.prefixes.pinned
        self.prefixes.evict(min(self._keeps, free))

    def remember(self, row: Row, slot: int) -> None:
        """Keep what a finished row sampled in its slot, for a request that goes on from there."""
        job = row.job
        sampled = np.array(row.out.tokens[:-1], dtype=np.int64)  # the last was never read
        tokens = np.concatenate([job.prompt, sampled])
        path = self.prefixes.match(job.owner, tokens)
        depth = length(path)
        rest = len(tokens) - depth
        if depth < row.base:
            return
        self.prefixes.pin(path)
        if self._spare(rest, self.cache.tokens):
            free = self.limits.kv_tokens - self.cache.tokens - self.prefixes.pinned
            self.prefixes.evict(min(self._keeps, free) - rest)
            node = self.prefixes.insert(job.owner, tokens[depth:], path)
            block = self.cache.read(slot, depth - row.base, row.filled)
            node.keys, node.values = block.keys, block.values
        self.prefixes.unpin(path)

    def choose(self, rows: Sequence[Row], running: list[Job]) -> list[Start]:
        """What goes on beside these rows; slots are ready for all of them together.

        `running` gets each job as soon as it is taken: whatever fails then, it is answered.
        """
        starts: list[Start] = []
        count, need = len(rows), max((row.job.slot_tokens for row in rows), default=0)
        left = self.limits.tokens_per_pass
        while self.waiting:
            job = self.waiting[0]
            start = self._start(job, count, need, left)
            if start is None and not starts and not rows:  # nothing will leave: make room
                for each in self.waiting:
                    self.release(each)
                    each.restart()
                self.prefixes.evict(0)
                start = self._start(job, count, need, left, fresh=True)
            if start is None:
                break
            running.append(job)
            starts.append(start)
            job.started += start.rows
            job.open += start.rows
            count += start.rows
            left -= len(start.tokens)
            if start.rows:
                need = max(need, job.slot_tokens)
            if start.stop < len(job.prompt):
                break  # the rest in the next pass
            self.waiting.popleft()
            if job.wanted:
                self.waiting.append(job)
        if starts:
            self._reserve(count, need, len(rows))
        return starts

    def _start(
        self, job: Job, count: int, need: int, left: int, fresh: bool = False
    ) -> Start | None:
        """The job's next stretch beside `count` rows that need `need` tokens each, or None."""
        size, tokens = len(job.prompt), job.max_tokens
        if job.last is not None:
            rows = min(job.wanted, self._room(count, need, tokens))
            return Start(job, job.path, size, rows, None) if rows > 0 else None
        kept = job.path
        if not kept and not fresh and self._keeps and job.scores is None:
            kept = self.prefixes.match(job.owner, job.prompt[:-1])
            kept = kept if length(kept) >= MIN_SHARED_TOKENS else []
        alone = self.limits.deterministic or size - length(kept) > left
        if alone and left < self.limits.tokens_per_pass:
            return None
        stop = min(size, length(kept) + left)
        wanted = job.wanted if stop == size else 0
        path = self.prefixes.match(job.owner, job.prompt[:stop], ready=False)
        self.prefixes.pin(path)
        rest = stop - length(path)  # tokens that are in no node
        required, rows, own = wanted > 0 or stop < size, wanted, size + tokens
        if required and (self._worth_sharing(job, path) or stop < size):
            shared = True
        else:
            shared = required and self._room(count, need, own) < wanted
        if shared:
            own = tokens if wanted else 0
            room = self._room(count, need, own, rest)
            rows = min(wanted, room)
            if room < min(wanted, 1):
                self.prefixes.unpin(path)
                return None
        used = (count + rows) * max(need, own if rows else 0)
        node = None
        if rest and (shared or self._spare(rest, used)):
            node = self.prefixes.insert(job.owner, job.prompt[length(path) : stop], path)
            piece = [Slice(node, 0, rest, length(path))]
            self.prefixes.pin(piece)
            path = path + piece
        self.release(job)
        job.path, job.shared = path, shared
        return Start(job, kept, stop, rows, node)

    def _worth_sharing(self, job: Job, path: CachedPrefix) -> bool:
        if self.limits.deterministic:  # attention over the prompt is the same call in any company
            return True
        return self._samples[job.key] * len(job.prompt) >= WORTH_SHARING * (len(path) + 1)

    def _room(self, count: int, need: int, own: int, nodes: int = 0) -> int:
        """More rows of `own` tokens that fit beside the others and new nodes of so many tokens;
        negative where even the others do not."""
        free = self.limits.kv_tokens - self.prefixes.pinned - nodes
        return min(self.limits.max_rows, free // max(need, own, 1)) - count

    def _spare(self, tokens: int, used: int) -> bool:
        """Whether so many tokens may be kept for later requests."""
        free = self.limits.kv_tokens - self.prefixes.pinned - used
        return MIN_SHARED_TOKENS <= tokens <= min(self._keeps, free)

    def _reserve(self, count: int, need: int, live: int) -> None:
        cache, limit = self.cache, self.limits.kv_tokens - self.prefixes.pinned
        if count > cache.slots or need > cache.capacity or cache.tokens > limit:
            capacity = _up(need, CAPACITY_STEP)
            if count * capacity > limit:
                capacity = need
            slots = min(_up(count, SLOTS_STEP), self.limits.max_rows)
            if slots * capacity > limit - self._keeps:
                slots = count
            cache.reserve(slots, capacity, live)
        self.trim()


def _up(number: int, step: int) -> int:
    return -(-number // step) * step
