"""The engine thread: runs requests in order per lane, and alternates training with sampling.

Callers never block: every request returns a future. A lane is a run or a set of sampling weights;
requests of one lane are executed in the order of the calls. Training requests of different runs
that are waiting at the same time go through the base model together (a "clock cycle"), up to the
token budget of a pass. While both training and sampling are waiting, each gets about half of the
time.

Threads: callers touch only the inbox, `_closed`, `_end_error` and `tokens_per_pass`. Everything
else (the queue, the worker with its models, runs and samplers) belongs to the engine thread and
needs no locks.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from tinker_cookbook.engine.config import EngineConfig
from tinker_cookbook.engine.passes import Work
from tinker_cookbook.engine.requests import (
    DropRun,
    DropWeights,
    OnToken,
    Request,
    Sample,
    SampleResult,
    Train,
    TrainResult,
)
from tinker_cookbook.engine.worker import Worker
from tinker_cookbook.exceptions import TrainingError

R = TypeVar("R")
CLOSED = "the engine is closed"

# Runs that trained recently are about to send their next batch. A pass waits for them for this
# share of the time that the last pass took, so that they can share it.
MERGE_PATIENCE = 0.05
# "Recently" means within this many times the duration of the last pass.
RECENT_PASSES = 3.0


@dataclass(eq=False)
class _Operation(Generic[R]):
    """A request in the queue; `pending` keeps the place of one that is not known yet."""

    lane: str
    request: Request[R] | None
    pending: Future[Request[R]] | None = None
    on_token: OnToken | None = None
    future: Future[R] = field(default_factory=Future)
    work: Work | None = None  # of a training request, once it has been checked

    @property
    def ready(self) -> bool:
        return self.pending is None or self.pending.done()

    def get_request(self) -> Request[R]:
        """Return the request of a ready operation; raise the error that came in its place."""
        if self.request is None:
            assert self.pending is not None
            self.request = self.pending.result(0)
        return self.request

    def start(self) -> bool:
        """Mark the operation as running; False if the caller has cancelled it.

        A running operation can no longer be cancelled. May be called again.
        """
        return self.future.running() or self.future.set_running_or_notify_cancel()

    # The caller may have cancelled a queued operation, or a sample at any time: its future is never
    # marked as running.

    def succeed(self, result: R) -> None:
        with suppress(InvalidStateError):
            self.future.set_result(result)

    def fail(self, error: BaseException) -> None:
        with suppress(InvalidStateError):
            self.future.set_exception(error)


class Engine:
    """The thread that computes, and the queue in front of it."""

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self.worker = Worker(config)
        # From callers to the engine thread; a None only wakes it. SimpleQueue, because `dispose` is
        # called by destructors, which the garbage collector may run inside another `put` on the
        # same thread: queue.Queue would deadlock on its lock, SimpleQueue.put is reentrant.
        self._inbox: queue.SimpleQueue[_Operation | None] = queue.SimpleQueue()
        # Received operations in order of arrival. Apart from the inbox, because merging takes
        # operations out of the middle.
        self._queue: deque[_Operation] = deque()
        self._closed = False
        self._end_error: TrainingError | None = None  # set once the thread has ended
        self._last_trained: dict[str, float] = {}  # lane -> end of its last pass, perf_counter
        self._pass_seconds = 0.0  # of the last training pass
        # A daemon: a program that forgets to close the engine still exits.
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def submit(self, request: Request[R], on_token: OnToken | None = None) -> Future[R]:
        """Execute a request, after all earlier ones of its lane.

        on_token: for a `Sample`; called on the engine thread with every token as it is drawn.
        """
        return self._send(_Operation(request.lane, request, on_token=on_token))

    def submit_when(
        self, coming: Future[Request[R]], lane: str, on_token: OnToken | None = None
    ) -> Future[R]:
        """As `submit`, for a request that is not known yet; its place in the lane is taken now.

        Only its lane waits for it. If `coming` fails, its error is the answer.
        """
        future = self._send(_Operation(lane, None, coming, on_token))
        coming.add_done_callback(lambda _: self._inbox.put(None))
        return future

    def dispose(self, request: DropRun | DropWeights) -> None:
        """As `submit`, without an answer; safe in destructors and on a closed engine."""
        if not self._closed:
            self._inbox.put(_Operation(request.lane, request))

    @property
    def tokens_per_pass(self) -> int | None:
        """The smallest pass budget of the loaded models; without any, the configured one."""
        return self.worker.tokens_per_pass or self.config.tokens_per_pass

    def close(self, timeout: float = 10.0) -> None:
        """Stop after the running request; requests that are still queued fail."""
        self._closed = True
        self._inbox.put(None)
        # A callback of a future may close the engine, and a thread cannot join itself.
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout)

    # -- the queue

    def _send(self, operation: _Operation[R]) -> Future[R]:
        if self._closed:
            raise TrainingError(CLOSED)
        self._inbox.put(operation)
        # If the engine ended between the two lines above, its own sweep of the inbox may have come
        # too early. `_run` sets `_end_error` before that sweep, so one of the two sees the
        # operation.
        if self._end_error is not None:
            self._fail_inbox(self._end_error)
        return operation.future

    def _receive(self, timeout: float | None = 0.0) -> None:
        """Move the inbox to the queue; if it is empty, wait up to `timeout` s (None: forever)."""
        with suppress(queue.Empty):
            while True:
                operation = self._inbox.get(timeout != 0.0, timeout)
                timeout = 0.0
                if operation is None:
                    continue
                # Out of turn if nothing of its lane is queued: the operations in front may need the
                # memory that it frees.
                if isinstance(operation.request, DropRun | DropWeights) and not any(
                    queued.lane == operation.lane for queued in self._queue
                ):
                    self._execute(operation)
                else:
                    self._queue.append(operation)

    def _next_ready(self) -> _Operation | None:
        """The first operation in the queue that can start."""
        blocked: set[str] = set()  # lanes whose first operation is still pending
        for operation in self._queue:
            if operation.lane in blocked:
                continue
            if operation.ready:
                return operation
            blocked.add(operation.lane)
        return None

    def _fail_inbox(self, error: TrainingError) -> None:
        """Fail everything in the inbox. Called on any thread."""
        with suppress(queue.Empty):
            while True:
                operation = self._inbox.get_nowait()
                if operation is not None:
                    operation.fail(error)

    def _run(self) -> None:
        end_error = TrainingError(CLOSED)
        try:
            self._loop()
        except BaseException as error:
            # Errors of requests never get here, so this is a bug in the engine. Raised again for
            # threading's excepthook; those who wait get it as well, or they would wait forever.
            end_error = TrainingError(f"{CLOSED} after an internal error: {error!r}")
            raise
        finally:
            # First, so that no operation slips in behind the sweep: see `_send`.
            self._closed, self._end_error = True, end_error
            for operation in self._queue:
                operation.fail(end_error)
            self._queue.clear()
            self._fail_inbox(end_error)
            for sampler in self.worker.samplers.values():
                sampler.abort(end_error)
                sampler.close()

    def _loop(self) -> None:
        # Seconds of sampling that are due before the next operation: operations executed while
        # samples are in flight add their time, sampling steps subtract theirs.
        sampling_due = 0.0
        while True:
            busy = [sampler for sampler in self.worker.samplers.values() if sampler.busy]
            self._receive()
            while (operation := self._next_ready()) is None and not (busy or self._closed):
                self._receive(None)
            if self._closed:
                return
            start = time.perf_counter()
            waiting = operation is not None
            if operation is not None and (sampling_due <= 0 or not busy):
                self._queue.remove(operation)
                self._execute(operation)
                # Not kept while the loop waits above: it would keep a dropped run's memory alive.
                operation = None
                self.worker.offload_idle_runs()
                elapsed = time.perf_counter() - start
                sampling_due = sampling_due + elapsed if busy else 0.0
                continue
            operation = None
            for sampler in busy:
                sampler.step()
            # Sampling while nothing else is waiting is free: only its last step counts, during
            # which an operation may have arrived.
            sampling_due = (sampling_due if waiting else 0.0) - (time.perf_counter() - start)

    # -- one operation

    def _execute(self, operation: _Operation) -> None:
        if operation.future.cancelled():
            operation.start()  # wakes threads in `concurrent.futures.wait`
            return
        try:
            request = operation.get_request()
            if isinstance(request, Sample):
                self._sample(operation, request)
            elif operation.start():
                if isinstance(request, Train):
                    operation.work = operation.work or self.worker.prepare(request)
                    kind = type(request)
                    self._train(self._collect_batch(operation, kind, operation.work), kind)
                else:
                    operation.succeed(self.worker.perform(request))
        except BaseException as error:  # also SystemExit of a library: a caller waits for an answer
            operation.fail(self.worker.explain_out_of_memory(error))

    def _sample(self, operation: _Operation[SampleResult], request: Sample) -> None:
        """Hand a request to the sampler, which answers later; until then it can be cancelled."""

        def on_done(outcome: SampleResult | Exception) -> None:
            if isinstance(outcome, SampleResult):
                operation.succeed(outcome)
            else:
                operation.fail(self.worker.explain_out_of_memory(outcome))

        def on_token(index: int, token: int, logprob: float) -> None:
            if operation.on_token is not None and not operation.future.done():
                try:
                    operation.on_token(index, token, logprob)
                except BaseException as error:
                    # Only this request's: inside the sampler, the error would fail the whole batch.
                    operation.fail(error)

        # A future that is done is cancelled or has failed: the sampler may drop the request.
        cancelled = operation.future.done
        pass_on = None if operation.on_token is None else on_token
        self.worker.sample(request, on_done, cancelled, pass_on)

    # -- one pass for several runs

    def _collect_batch(
        self, first: _Operation[TrainResult], kind: type[Train], work: Work
    ) -> list[_Operation[TrainResult]]:
        """Return this request and those of other runs that can share its passes.

        A request can if it is of the same kind, on the same base model, the first of its run in the
        queue, and fits into the token budget that `first` leaves free in its last pass.
        """
        base = work.trainer.base
        free_tokens = -work.tokens % base.tokens_per_pass
        # All runs of a pass have to be in the device's memory at once.
        free_memory = base.offloader.limit - work.trainer.size
        chosen, seen = [first], {first.lane}
        deadline = time.perf_counter() + MERGE_PATIENCE * self._pass_seconds
        while free_tokens:
            self._receive()
            candidates = [queued for queued in self._queue if queued.lane not in seen]
            if not candidates:
                patience = deadline - time.perf_counter()
                if self._closed or patience <= 0 or not self._expects_more(seen):
                    break
                self._receive(patience)
                continue
            for candidate in candidates:
                # Only the first of each lane, whether it is taken or not: a later one must not
                # overtake it.
                if candidate.lane in seen:
                    continue
                seen.add(candidate.lane)
                other = self._prepare_candidate(candidate, kind)
                if (
                    other is not None
                    and other.trainer.base is base
                    and other.tokens <= free_tokens
                    and other.trainer.size <= free_memory
                ):
                    self._queue.remove(candidate)
                    chosen.append(candidate)
                    free_tokens -= other.tokens
                    free_memory -= other.trainer.size
        return chosen

    def _prepare_candidate(self, operation: _Operation, kind: type[Train]) -> Work | None:
        """The work of a queued operation if it is of this kind.

        One that is cancelled or whose check fails is answered here and leaves the queue.
        """
        if not operation.ready:
            return None
        try:
            request = operation.get_request()
            if type(request) is not kind:
                return None
            if not operation.start():
                self._queue.remove(operation)
                return None
            # Stored: one that does not fit stays in the queue and need not be checked again.
            operation.work = operation.work or self.worker.prepare(request)
            return operation.work
        except BaseException as error:
            self._queue.remove(operation)
            operation.fail(self.worker.explain_out_of_memory(error))
            return None

    def _expects_more(self, seen: set[str]) -> bool:
        """Whether a run that trained recently has not sent its next request yet."""
        horizon = time.perf_counter() - RECENT_PASSES * self._pass_seconds
        return any(
            lane not in seen and ended > horizon for lane, ended in self._last_trained.items()
        )

    def _train(self, operations: list[_Operation[TrainResult]], kind: type[Train]) -> None:
        start = time.perf_counter()
        works = [operation.work for operation in operations if operation.work]
        results: list[TrainResult] = []
        failure: BaseException | None = None
        try:
            results = self.worker.compute(kind, works)
        except BaseException as error:
            failure = self.worker.explain_out_of_memory(error)
            if len(operations) > 1:
                # The frames of the traceback hold the activations, which the retries need room for.
                error.__traceback__ = None
        if failure is not None and len(operations) > 1:
            # A failed call leaves every run as it was (see `passes`), so each can be retried alone
            # and only the one at fault fails.
            for operation in operations:
                self._train([operation], kind)
            return
        end = time.perf_counter()
        self._pass_seconds = end - start
        horizon = end - RECENT_PASSES * self._pass_seconds
        self._last_trained = {lane: t for lane, t in self._last_trained.items() if t > horizon}
        self._last_trained |= {operation.lane: end for operation in operations}
        if failure is not None:
            operations[0].fail(failure)
        for operation, result in zip(operations, results):
            operation.succeed(result)
