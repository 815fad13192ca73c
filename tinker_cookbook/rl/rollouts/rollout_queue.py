"""Groups of episodes, batch by batch, played as far ahead of training as `max_lag` allows.

Batch i is trained in step i, on groups that weights of version i - max_lag or later have played:
a group of batch j is begun only when version j - max_lag is published, so none gets too old and
nothing that was sampled is thrown away. max_lag=0 is synchronous training.
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

CLOSE_SECONDS = 30  # for environments to give back what they hold when a run ends early


@dataclass(frozen=True)
class RolloutTask:
    """A group to be played: which one, with which weights."""

    batch: int
    index: int  # in its batch
    builder: EnvGroupBuilder
    sampling_client: SamplingClient
    version: int  # optimizer steps that the weights had seen, as step numbers count


@dataclass(frozen=True)
class GroupRollout(Generic[G]):
    """`group` is what `play` made of the task, in `seconds`."""

    task: RolloutTask
    group: G
    seconds: float


class RolloutQueue(Generic[G]):
    """An asynchronous source of played groups, as an async context manager.

        async with RolloutQueue(dataset.get_batch, play, steps=range(start, total), ...) as source:
            for step in range(start, total):
                source.publish(sampling_client, step)
                async for played in source.arrivals(step):
                    ...

    workers: groups that are played at a time (None: as many as the first batch has). What `play`
    raises is raised by `arrivals`, whatever batch it belongs to. waiting(missing, seconds) is
    called every `remind_seconds` in which nothing arrived.
    """

    def __init__(
        self,
        get_batch: Callable[[int], Sequence[EnvGroupBuilder]],
        play: Callable[[RolloutTask], Awaitable[G]],
        *,
        steps: range,
        max_lag: int = 0,
        workers: int | None = None,
        waiting: Callable[[int, float], None] = lambda missing, seconds: None,
        remind_seconds: float = 60.0,
    ) -> None:
        if workers is not None and workers < 1:
            raise ValueError(f"workers={workers}: expected 1 or more")
        self._get_batch, self._play, self._steps = get_batch, play, steps
        self._max_lag, self._workers = max_lag, workers
        self._waiting, self._remind_seconds = waiting, remind_seconds
        self._published: tuple[SamplingClient, int] | None = None
        self._begun = steps.start  # batches before it are in _to_play or beyond
        self._to_play: list[tuple[int, int, EnvGroupBuilder]] = []
        self._sizes: dict[int, int] = {}
        self._played: dict[int, list[GroupRollout[G]]] = defaultdict(list)
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
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=CLOSE_SECONDS)

    def publish(self, sampling_client: SamplingClient, version: int) -> None:
        """Weights of `version` are there: batches up to version + max_lag may be begun with them.

        Groups that are being played go on with the weights they began with.
        """
        self._published = (sampling_client, version)
        while self._begun < self._steps.stop and self._begun <= version + self._max_lag:
            builders = self._get_batch(self._begun)
            self._sizes[self._begun] = len(builders)
            self._to_play += [(self._begun, i, builder) for i, builder in enumerate(builders)]
            self._begun += 1
        if self._workers is None:
            self._workers = max(self._sizes.get(self._steps.start, 1), 1)
        working = sum(not task.done() for task in self._tasks)
        for _ in range(min(self._workers - working, len(self._to_play))):
            self._start_worker()

    def size(self, batch: int) -> int:
        """Groups of a batch that has been begun."""
        return self._sizes[batch]

    async def arrivals(self, batch: int) -> AsyncIterator[GroupRollout[G]]:
        """The groups of a batch, each as soon as it was played."""
        size = self._sizes[batch]
        last = time.monotonic()
        for taken in range(size):
            while not await self._arrived(batch, taken):
                self._waiting(size - taken, time.monotonic() - last)
            last = time.monotonic()
            yield self._played[batch][taken]
        del self._played[batch], self._sizes[batch]

    async def _arrived(self, batch: int, taken: int) -> bool:
        """Waits for one more group of the batch; False when it took too long to keep silent."""

        def something() -> bool:
            return self._failure is not None or len(self._played[batch]) > taken

        try:
            async with self._changed, asyncio.timeout(self._remind_seconds):
                await self._changed.wait_for(something)
        except TimeoutError:
            return False
        if self._failure is not None:
            raise self._failure
        return True

    def _start_worker(self) -> None:
        task = asyncio.create_task(self._work())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _work(self) -> None:
        """Plays groups in order until none may be begun; each with the newest weights there are."""
        try:
            while self._to_play and self._failure is None:
                batch, index, builder = self._to_play.pop(0)
                assert self._published is not None
                task = RolloutTask(batch, index, builder, *self._published)
                started = time.perf_counter()
                group = await self._play(task)
                played = GroupRollout(task, group, time.perf_counter() - started)
                async with self._changed:
                    self._played[batch].append(played)
                    self._changed.notify_all()
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            # nobody cancelled the worker: something that it awaited was, e.g. by a closing service
            await self._fail(TrainingError(f"playing a group was cancelled from inside: {error}"))
        except Exception as error:
            await self._fail(error)

    async def _fail(self, error: BaseException) -> None:
        async with self._changed:
            self._failure = self._failure or error
            self._changed.notify_all()
