"""The engine thread: requests in the order they were given, training and sampling in turns.

Callers never wait: every request is answered with a future. Requests of one run are carried out in
the order of the calls. Training requests of different runs that wait at the same time go through
the base model together ("a clock cycle"), up to the token budget of a pass. While both training
and samples are waiting, each side gets about as much time as the other.
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

# Runs that trained a moment ago are about to send their next batch: a pass waits for them for this
# share of the time that the last one took.
PATIENCE = 0.05
MOMENT = 3.0  # ... and "a moment" is this many times the time of the last pass


@dataclass(eq=False)
class _Operation(Generic[R]):
    """A request in the queue. `coming`: it is not there yet and keeps its place."""

    lane: str
    request: Request[R] | None
    coming: Future[Request[R]] | None = None
    on_token: OnToken | None = None
    future: Future[R] = field(default_factory=Future)
    work: Work | None = None  # of a training request, once it has been checked

    @property
    def ready(self) -> bool:
        return self.coming is None or self.coming.done()

    def arrive(self) -> Request[R]:
        """The request; raises the error of what it was waiting for."""
        if self.request is None:
            assert self.coming is not None
            self.request = self.coming.result(0)
        return self.request

    def start(self) -> bool:
        """Whether the caller still wants it; from now on it cannot be cancelled."""
        return self.future.running() or self.future.set_running_or_notify_cancel()

    def succeed(self, result: R) -> None:
        with suppress(InvalidStateError):  # cancelled while it was waiting
            self.future.set_result(result)

    def fail(self, error: BaseException) -> None:
        with suppress(InvalidStateError):
            self.future.set_exception(error)


class Engine:
    """The one thread that computes, and the queue in front of it."""

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self.worker = Worker(config)
        # What callers have sent; a None only wakes the thread. SimpleQueue, because a destructor
        # may send, too, at any moment and on any thread.
        self._inbox: queue.SimpleQueue[_Operation | None] = queue.SimpleQueue()
        self._queue: deque[_Operation] = deque()  # the engine thread's alone
        self._closed = False
        self._ended: TrainingError | None = None
        self._trained: dict[str, float] = {}  # lane -> when its last pass ended
        self._last_pass = 0.0  # seconds
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def submit(self, request: Request[R], on_token: OnToken | None = None) -> Future[R]:
        """Carry out a request, after everything that was asked before in its lane.

        on_token: of a `Sample`, is called on the engine's thread with every token as it comes.
        """
        return self._send(_Operation(request.lane, request, on_token=on_token))

    def submit_when(
        self, coming: Future[Request[R]], lane: str, on_token: OnToken | None = None
    ) -> Future[R]:
        """As `submit`, for a request that is not known yet; its place in the lane is taken now.

        Its lane alone waits for it. If it does not come, its error is the answer.
        """
        future = self._send(_Operation(lane, None, coming, on_token))
        coming.add_done_callback(lambda _: self._inbox.put(None))
        return future

    def dispose(self, request: DropRun | DropWeights) -> None:
        """As `submit`, without an answer; a destructor may call it, and on a closed engine."""
        if not self._closed:
            self._inbox.put(_Operation(request.lane, request))

    @property
    def tokens_per_pass(self) -> int | None:
        """Of the models that are loaded, the least; before, what the configuration says."""
        return self.worker.tokens_per_pass or self.config.tokens_per_pass

    def close(self, timeout: float = 10.0) -> None:
        """Stop after the request that is running; what is still queued fails."""
        self._closed = True
        self._inbox.put(None)
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout)

    # -- the queue

    def _send(self, operation: _Operation[R]) -> Future[R]:
        if self._closed:
            raise TrainingError(CLOSED)
        self._inbox.put(operation)
        if self._ended is not None:  # between the two lines: nobody will look any more
            self._fail_inbox(self._ended)
        return operation.future

    def _receive(self, timeout: float | None = 0.0) -> None:
        """Take in what has come; wait for something for so many seconds (None: for ever)."""
        with suppress(queue.Empty):
            while True:
                operation = self._inbox.get(timeout != 0.0, timeout)
                timeout = 0.0
                if operation is None:
                    continue
                if isinstance(operation.request, DropRun | DropWeights) and not any(
                    each.lane == operation.lane for each in self._queue
                ):
                    self._do(operation)  # at once: what waits may want the memory
                else:
                    self._queue.append(operation)

    def _first(self) -> _Operation | None:
        """The first operation in the queue that can begin."""
        held: set[str] = set()  # lanes that wait for a request
        for operation in self._queue:
            if operation.lane in held:
                continue
            if operation.ready:
                return operation
            held.add(operation.lane)
        return None

    def _fail_inbox(self, error: TrainingError) -> None:
        """On any thread."""
        with suppress(queue.Empty):
            while True:
                operation = self._inbox.get_nowait()
                if operation is not None:
                    operation.fail(error)

    def _run(self) -> None:
        why = TrainingError(CLOSED)
        try:
            self._loop()
        except BaseException as error:  # of the engine's own: nobody must wait for ever
            why = TrainingError(f"{CLOSED} after an error of its own: {error!r}")
            raise
        finally:
            self._closed, self._ended = True, why
            for operation in self._queue:
                operation.fail(why)
            self._queue.clear()
            self._fail_inbox(why)
            for sampler in self.worker.samplers.values():
                sampler.abort(why)
                sampler.close()

    def _loop(self) -> None:
        owed = 0.0  # seconds that sampling may still take before the next operation
        while True:
            busy = [sampler for sampler in self.worker.samplers.values() if sampler.busy]
            self._receive()
            while (operation := self._first()) is None and not (busy or self._closed):
                self._receive(None)
            if self._closed:
                return
            start = time.perf_counter()
            waiting = operation is not None
            if operation is not None and (owed <= 0 or not busy):
                self._queue.remove(operation)
                self._do(operation)
                operation = None  # its run may be gone before the next one comes
                self.worker.make_room()
                owed = owed + time.perf_counter() - start if busy else 0.0
                continue
            operation = None
            for sampler in busy:
                sampler.step()
            # what sampling takes while nothing waits, it owes to nobody; but for the last step
            owed = (owed if waiting else 0.0) - (time.perf_counter() - start)

    # -- one operation

    def _do(self, operation: _Operation) -> None:
        if operation.future.cancelled():
            operation.start()  # tells those who wait for it
            return
        try:
            request = operation.arrive()
            if isinstance(request, Sample):
                self._sample(operation, request)
            elif operation.start():
                if isinstance(request, Train):
                    operation.work = operation.work or self.worker.work(request)
                    kind = type(request)
                    self._train(self._gather(operation, kind, operation.work), kind)
                else:
                    operation.succeed(self.worker.perform(request))
        except BaseException as error:  # whatever it is, somebody waits for it
            operation.fail(self.worker.explain(error))

    def _sample(self, operation: _Operation[SampleResult], request: Sample) -> None:
        """The sampler answers, and the caller may give the request up until then."""

        def done(outcome: SampleResult | Exception) -> None:
            if isinstance(outcome, SampleResult):
                operation.succeed(outcome)
            else:
                operation.fail(self.worker.explain(outcome))

        def pass_on(index: int, token: int, logprob: float) -> None:
            if operation.on_token is not None and not operation.future.done():
                try:
                    operation.on_token(index, token, logprob)
                except BaseException as error:  # the caller's own: other requests go on
                    operation.fail(error)

        on_token = None if operation.on_token is None else pass_on
        self.worker.sample(request, done, operation.future.done, on_token)

    # -- one pass for several runs

    def _gather(
        self, first: _Operation[TrainResult], kind: type[Train], work: Work
    ) -> list[_Operation[TrainResult]]:
        """This request and those of other runs that can share its passes.

        A request can if it is of the same kind, on the same base model, the first that its run has
        in the queue, and fits into what the passes of `first` leave free of the token budget.
        """
        base = work.trainer.base
        room = -work.tokens % base.tokens_per_pass
        memory = base.offloader.limit - work.trainer.size
        chosen, seen = [first], {first.lane}
        deadline = time.perf_counter() + PATIENCE * self._last_pass
        while room:
            self._receive()
            fresh = [each for each in self._queue if each.lane not in seen]
            if not fresh:
                patience = deadline - time.perf_counter()
                if self._closed or patience <= 0 or not self._expected(seen):
                    break
                self._receive(patience)
                continue
            for each in fresh:
                if each.lane in seen:
                    continue  # behind another one of its run
                seen.add(each.lane)
                other = self._checked(each, kind)
                if (
                    other is not None
                    and other.trainer.base is base
                    and other.tokens <= room
                    and other.trainer.size <= memory
                ):
                    self._queue.remove(each)
                    chosen.append(each)
                    room -= other.tokens
                    memory -= other.trainer.size
        return chosen

    def _checked(self, operation: _Operation, kind: type[Train]) -> Work | None:
        """The work of an operation of this kind that waits; one that fails is answered."""
        if not operation.ready:
            return None
        try:
            request = operation.arrive()
            if type(request) is not kind:
                return None
            if not operation.start():
                self._queue.remove(operation)
                return None
            operation.work = operation.work or self.worker.work(request)
            return operation.work
        except BaseException as error:
            self._queue.remove(operation)
            operation.fail(self.worker.explain(error))
            return None

    def _expected(self, seen: set[str]) -> bool:
        """Whether a run that trained a moment ago has not sent its next request yet."""
        recent = time.perf_counter() - MOMENT * self._last_pass
        return any(lane not in seen and ended > recent for lane, ended in self._trained.items())

    def _train(self, operations: list[_Operation[TrainResult]], kind: type[Train]) -> None:
        start = time.perf_counter()
        works = [operation.work for operation in operations if operation.work]
        results: list[TrainResult] = []
        failure: BaseException | None = None
        try:
            results = self.worker.compute(kind, works)
        except BaseException as error:
            failure = self.worker.explain(error)
            if len(operations) > 1:
                error.__traceback__ = None  # which holds what the pass had computed
        if failure is not None and len(operations) > 1:
            for operation in operations:  # whose fault was it? Each alone, so that only that fails
                self._train([operation], kind)
            return
        end = time.perf_counter()
        self._last_pass = end - start
        horizon = end - MOMENT * self._last_pass
        self._trained = {lane: t for lane, t in self._trained.items() if t > horizon}
        self._trained |= {operation.lane: end for operation in operations}
        if failure is not None:
            operations[0].fail(failure)
        for operation, result in zip(operations, results):
            operation.succeed(result)
