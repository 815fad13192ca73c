"""Collect group rollouts batch by batch, at most `max_lag` optimizer steps off-policy.

Step i trains on batch i. A group of batch j is started only once weights of version j - max_lag
are published, so by construction it is at most max_lag versions old when it is trained. The
producers are throttled up front, where other designs discard rollouts that turn out too old: no
sampled token is wasted. max_lag=0 is synchronous training.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Generic, TypeVar

from tinker_cookbook.exceptions import TrainingError
from tinker_cookbook.rl.types import EnvGroupBuilder

if TYPE_CHECKING:
    from tinker_cookbook.service.api import SamplingClient

G = TypeVar("G")

CLOSE_SECONDS = 30  # time for environments to clean up when a run ends early


@dataclass(frozen=True)
class RolloutTask:
    """One group to roll out, and the weights to sample with."""

    batch: int
    index: int  # in its batch
    builder: EnvGroupBuilder
    sampling_client: SamplingClient
    version: int  # number of the step that these weights precede


@dataclass(frozen=True)
class GroupRollout(Generic[G]):
    """`group`: the result of `run_group(task)`, which took `seconds`."""

    task: RolloutTask
    group: G
    seconds: float


class RolloutQueue(Generic[G]):
    """Runs groups concurrently and yields them batch by batch. An async context manager:

        async with RolloutQueue(get_batch, run_group, steps=range(start, total), ...) as queue:
            for step in range(start, total):
                queue.publish(sampling_client, step)
                async for rollout in queue.arrivals(step):
                    ...

    workers: groups that run concurrently (None: the size of the first batch). An exception of
    `run_group` is raised by `arrivals`, whichever batch it belongs to. on_wait(missing, seconds) is
    called every `remind_seconds` without an arrival.
    """

    def __init__(
        self,
        get_batch: Callable[[int], Sequence[EnvGroupBuilder]],
        run_group: Callable[[RolloutTask], Awaitable[G]],
        *,
        steps: range,
        max_lag: int = 0,
        workers: int | None = None,
        on_wait: Callable[[int, float], None] = lambda missing, seconds: None,
        remind_seconds: float = 60.0,
    ) -> None:
        if workers is not None and workers < 1:
            raise ValueError(f"workers={workers}: expected 1 or more")
        self._get_batch, self._run_group, self._steps = get_batch, run_group, steps
        self._max_lag, self._num_workers = max_lag, workers
        self._on_wait, self._remind_seconds = on_wait, remind_seconds
        self._published: tuple[SamplingClient, int] | None = None
        self._next_batch = steps.start  # the first batch whose groups are not in _pending yet
        self._pending: list[tuple[int, int, EnvGroupBuilder]] = []
        self._sizes: dict[int, int] = {}
        self._finished: dict[int, list[GroupRollout[G]]] = defaultdict(list)
        self._failure: BaseException | None = None
        self._changed = asyncio.Condition()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> RolloutQueue[G]:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # After an error or a stop, groups of this and later batches are in flight, and nothing will
        # train on them. The wait lets their envs clean up; it is bounded, as they may hang.
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=CLOSE_SECONDS)

    def publish(self, sampling_client: SamplingClient, version: int) -> None:
        """Make weights of `version` available and release the batches up to version + max_lag.

        Groups in flight keep the weights they started with, so all turns of a multi-turn episode
        are sampled by the same policy.
        """
        self._published = (sampling_client, version)
        # Back-pressure: what is not in _pending, no worker can start. A batch further ahead would
        # be more than max_lag versions old by the time it is trained.
        while self._next_batch < self._steps.stop and self._next_batch <= version + self._max_lag:
            builders = self._get_batch(self._next_batch)
            self._sizes[self._next_batch] = len(builders)
            self._pending += [(self._next_batch, i, builder) for i, builder in enumerate(builders)]
            self._next_batch += 1
        if self._num_workers is None:
            self._num_workers = max(self._sizes.get(self._steps.start, 1), 1)
        # Workers end when _pending runs empty, so each publish restores their number. They all
        # work on the oldest batch first: the next step waits for it.
        working = sum(not task.done() for task in self._tasks)
        for _ in range(min(self._num_workers - working, len(self._pending))):
            self._start_worker()

    def size(self, batch: int) -> int:
        """Number of groups in a released batch."""
        return self._sizes[batch]

    async def arrivals(self, batch: int) -> AsyncIterator[GroupRollout[G]]:
        """Yield the rollouts of a batch in the order in which they finish."""
        size = self._sizes[batch]
        last = time.monotonic()
        for num_yielded in range(size):
            while not await self._wait_for_arrival(batch, num_yielded):
                self._on_wait(size - num_yielded, time.monotonic() - last)
            last = time.monotonic()
            yield self._finished[batch][num_yielded]
        del self._finished[batch], self._sizes[batch]

    async def _wait_for_arrival(self, batch: int, num_yielded: int) -> bool:
        """Wait for one more rollout of the batch; False after `remind_seconds` without one."""

        def has_news() -> bool:
            return self._failure is not None or len(self._finished[batch]) > num_yielded

        try:
            async with self._changed, asyncio.timeout(self._remind_seconds):
                await self._changed.wait_for(has_news)
        except TimeoutError:
            return False
        # also a failure in a later batch: the run cannot succeed, so it ends now
        if self._failure is not None:
            raise self._failure
        return True

    def _start_worker(self) -> None:
        task = asyncio.create_task(self._run_pending())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run_pending(self) -> None:
        """Worker: run pending groups in order, each with the newest weights at its start."""
        try:
            while self._pending and self._failure is None:
                batch, index, builder = self._pending.pop(0)
                assert self._published is not None
                task = RolloutTask(batch, index, builder, *self._published)
                started = time.perf_counter()
                group = await self._run_group(task)
                rollout = GroupRollout(task, group, time.perf_counter() - started)
                async with self._changed:
                    self._finished[batch].append(rollout)
                    self._changed.notify_all()
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            # The worker itself was not cancelled, but something it awaited was, e.g. by a service
            # that shuts down. A CancelledError would end the worker silently, and `arrivals` would
            # wait for its group without end.
            await self._fail(TrainingError(f"a rollout was cancelled from inside: {error}"))
        except Exception as error:
            await self._fail(error)

    async def _fail(self, error: BaseException) -> None:
        async with self._changed:
            self._failure = self._failure or error
            self._changed.notify_all()
