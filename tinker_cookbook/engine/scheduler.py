"""The engine thread: operations in the order they were given, training and sampling in turns.

Callers never wait: every operation answers with a future. Operations of one run happen in the order
of the calls. Training requests of different runs that wait at the same time go through the base
model together ("a clock cycle"), up to the token budget of a pass. While both training operations
and samples are waiting, each side gets about as much time as the other.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import torch

from tinker_cookbook.engine import passes
from tinker_cookbook.engine.base_model import BaseModel
from tinker_cookbook.engine.config import EngineConfig
from tinker_cookbook.engine.lora import Adapter
from tinker_cookbook.engine.passes import Work
from tinker_cookbook.engine.rows import SampleRequest, SampleResult, TrainResult
from tinker_cookbook.engine.sampler import Sampler, TorchSampler
from tinker_cookbook.exceptions import OutOfMemoryError, TrainingError
from tinker_cookbook.utils.cpu_threads import ThreadCount

T = TypeVar("T")
logger = logging.getLogger(__name__)
Kind = Literal["forward", "forward_backward"]
COMPUTE: dict[Kind, Callable[[Sequence[Work]], list[TrainResult]]] = {
    "forward": passes.forward,
    "forward_backward": passes.forward_backward,
}
CLOSED = "the engine is closed"

# Runs that trained a moment ago are about to send their next batch: a pass waits for them for this
# share of the time that the last one took.
PATIENCE = 0.05
MOMENT = 3.0  # ... and "a moment" is this many times the time of the last pass


@dataclass(eq=False)
class _Operation:
    """A function to call on the engine thread. Those of one `run` keep their order.

    It is not called before `after` is done, and answered with its error if it fails.
    """

    run: str | None
    function: Callable[[], Any]
    future: Future[Any] = field(default_factory=Future)
    after: Future[Any] | None = None

    def start(self) -> bool:
        """Whether the caller still wants it; from now on it cannot be cancelled."""
        return self.future.running() or self.future.set_running_or_notify_cancel()

    def answer(self, outcome: Any) -> None:
        """Give the caller a result, or an error."""
        _answer(self.future, outcome)


@dataclass(eq=False)
class _Training(_Operation):
    """A forward or forward_backward; `function` makes the work, when its turn has come."""

    kind: Kind = "forward"
    work: Work | None = None


def _answer(future: Future[Any], outcome: Any) -> None:
    with suppress(InvalidStateError):  # cancelled while it was waiting
        if isinstance(outcome, BaseException):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)


class Engine:
    """Base models by path, each loaded once, and the one thread that computes on them.

    Everything that touches a model runs on that thread: through `submit`, `train` or `sample`.
    """

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self.thread_count = ThreadCount(config.num_threads, fixed=config.deterministic)
        self._bases: dict[str, BaseModel] = {}
        self._samplers: dict[str, Sampler] = {}
        self._queue: deque[_Operation] = deque()
        self._wake = threading.Condition()
        self._closed = False
        self._trained: dict[str | None, float] = {}  # run -> when its last pass ended
        self._last_pass = 0.0  # seconds
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def submit(
        self,
        function: Callable[[], T],
        run: str | None = None,
        after: Future[Any] | None = None,
    ) -> Future[T]:
        """Run a function on the engine thread, after everything this run submitted before.

        Without a run: after everything that was submitted before. What waits for something outside
        the engine (`after`) holds up its own run alone.
        """
        return self._enqueue(_Operation(run, function, after=after))

    def train(self, run: str, kind: Kind, build: Callable[[], Work]) -> Future[TrainResult]:
        """Queue a training request; `build` makes it on the engine thread, when its turn has come.

        It goes through the model together with requests of other runs that wait for the same.
        """
        return self._enqueue(_Training(run, build, kind=kind))

    def sample(
        self,
        path: str,
        build: Callable[[], tuple[Adapter | None, SampleRequest]],
        after: Future[Any] | None = None,
    ) -> Future[SampleResult]:
        """Queue a request; `build` makes it on the engine thread, when its turn has come."""
        answer: Future[SampleResult] = Future()

        def done(outcome: SampleResult | BaseException) -> None:
            failed = isinstance(outcome, BaseException)
            _answer(answer, self._explain(outcome) if failed else outcome)

        def add() -> None:
            if answer.cancelled():
                return
            adapter, request = build()
            self._sampler(path).add(request, adapter, done, answer.cancelled)

        def added(future: Future[None]) -> None:
            if error := future.exception():
                done(error)

        self._enqueue(_Operation(None, add, after=after)).add_done_callback(added)
        return answer

    def base_model(self, path: str) -> BaseModel:
        """The base model, loaded on first use. Only on the engine thread."""
        if path not in self._bases:
            base = self._bases[path] = BaseModel(path, self.config)
            if base.device.type == "cpu":
                self.thread_count.settle(base.num_parameters)
        return self._bases[path]

    def close(self, timeout: float = 10.0) -> None:
        """Stop after the operation that is running; what is still queued fails."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout)

    def _sampler(self, path: str) -> Sampler:
        if path not in self._samplers:
            self._samplers[path] = TorchSampler(self.base_model(path), self.config)
        return self._samplers[path]

    def _enqueue(self, operation: _Operation) -> Future[Any]:
        with self._wake:
            if self._closed:
                raise TrainingError(CLOSED)
            self._queue.append(operation)
            self._wake.notify()
        if operation.after is not None and not operation.after.done():
            operation.after.add_done_callback(self._look_again)
        return operation.future

    def _look_again(self, _: Future[Any]) -> None:
        with self._wake:
            self._wake.notify()

    def _first(self) -> _Operation | None:
        """The first operation in the queue that can begin."""
        held: set[str] = set()  # runs that wait for something outside
        for operation in self._queue:
            if operation.run in held:
                continue
            if operation.after is None or operation.after.done():
                return operation
            if operation.run is not None:
                held.add(operation.run)
        return None

    def _run(self) -> None:
        why = TrainingError(CLOSED)
        try:
            self._loop()
        except BaseException as error:  # of the engine's own: nobody must wait for ever
            why = TrainingError(f"{CLOSED} after an error of its own: {error!r}")
            raise
        finally:
            with self._wake:  # from here on nothing is added
                self._closed = True
            for operation in self._queue:
                operation.answer(why)
            for sampler in self._samplers.values():
                sampler.abort(why)

    def _loop(self) -> None:
        owed = 0.0  # seconds that sampling may still take before the next operation
        while True:
            busy = [sampler for sampler in self._samplers.values() if sampler.busy]
            with self._wake:
                while (operation := self._first()) is None and not (busy or self._closed):
                    self._wake.wait()
                if self._closed:
                    return
                waiting = operation is not None
                if operation is not None and (owed <= 0 or not busy):
                    self._queue.remove(operation)
                else:
                    operation = None
            start = time.perf_counter()
            if operation is not None:
                self._do(operation)
                operation = None  # its trainer may be gone before the next one comes
                self._make_room()
                owed = owed + time.perf_counter() - start if busy else 0.0
                continue
            for sampler in busy:
                sampler.step()
            # what sampling takes while nothing waits, it owes to nobody; but for the last step
            owed = (owed if waiting else 0.0) - (time.perf_counter() - start)

    def _make_room(self) -> None:
        for base in self._bases.values():
            try:
                base.residency.make_room()
            except Exception as error:  # a full disk, say: they stay where they are
                logger.warning("idle adapters cannot be parked: %s", error)

    def _do(self, operation: _Operation) -> None:
        if not operation.start():
            return
        if isinstance(operation, _Training):
            if self._build(operation):
                self._train(self._gather(operation))
            return
        try:
            if operation.after is not None:
                operation.after.result(0)
            operation.answer(operation.function())
        except BaseException as error:  # whatever it is, somebody waits for it
            operation.answer(self._explain(error))

    def _build(self, request: _Training) -> bool:
        """Make the work of a request; if that fails, the request is answered with the error."""
        try:
            request.work = request.work or request.function()
            return True
        except BaseException as error:
            request.answer(self._explain(error))
            return False

    # -- one pass for several runs

    def _gather(self, first: _Training) -> list[_Training]:
        """This request and those of other runs that can share its passes.

        A request can if it is of the same kind, on the same base model, the first that its run has
        in the queue, and fits into what the passes of `first` leave free of the token budget.
        """
        assert first.work is not None
        base = first.work.trainer.base
        room = -first.work.tokens % base.tokens_per_pass
        memory = base.residency.limit - first.work.trainer.size
        chosen, seen = [first], {first.run, None}
        deadline = time.perf_counter() + PATIENCE * self._last_pass
        while room:
            with self._wake:
                fresh = [each for each in self._queue if each.run not in seen]
                if not fresh:
                    patience = deadline - time.perf_counter()
                    if self._closed or patience <= 0 or not self._expected(seen):
                        break
                    self._wake.wait(patience)
                    continue
            for each in fresh:
                if each.run in seen:
                    continue  # behind another one of its run
                seen.add(each.run)
                if not isinstance(each, _Training) or each.kind != first.kind:
                    continue
                if not (each.start() and self._build(each)):
                    self._remove(each)
                elif (
                    each.work
                    and each.work.trainer.base is base
                    and each.work.tokens <= room
                    and each.work.trainer.size <= memory
                ):
                    self._remove(each)
                    chosen.append(each)
                    room -= each.work.tokens
                    memory -= each.work.trainer.size
        return chosen

    def _remove(self, operation: _Operation) -> None:
        with self._wake:
            self._queue.remove(operation)

    def _expected(self, seen: set[str | None]) -> bool:
        """Whether a run that trained a moment ago has not sent its next request yet."""
        recent = time.perf_counter() - MOMENT * self._last_pass
        return any(run not in seen and ended > recent for run, ended in self._trained.items())

    def _train(self, requests: list[_Training]) -> None:
        start = time.perf_counter()
        works = [request.work for request in requests if request.work]
        outcome: list[Any]
        try:
            outcome = list(COMPUTE[requests[0].kind](works))
        except BaseException as error:
            outcome = [self._explain(error)]
            error.__traceback__ = None if len(requests) > 1 else error.__traceback__
        if len(outcome) < len(requests):  # whose fault was it? Each alone, so that only that fails
            for request in requests:
                self._train([request])
            return
        end = time.perf_counter()
        self._last_pass = end - start
        horizon = end - MOMENT * self._last_pass
        self._trained = {run: t for run, t in self._trained.items() if t > horizon}
        self._trained |= {request.run: end for request in requests}
        for request, each in zip(requests, outcome):
            request.answer(each)

    def _explain(self, error: BaseException) -> BaseException:
        """An out-of-memory error names the keys to lower; anything else stays as it is."""
        text = str(error)
        starved = isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
            isinstance(error, RuntimeError) and "allocate memory" in text
        )
        if not starved or isinstance(error, OutOfMemoryError):
            return error
        for sampler in self._samplers.values():
            sampler.release()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        detail = text.splitlines()[0] if text else ""
        bases = list(self._bases.values())
        limits = [base.limits for base in bases]
        if not limits:
            return OutOfMemoryError(
                f"out of memory while the model was loaded on {self.config.device}: take a smaller"
                f" one or engine.dtype=bfloat16; {detail}"
            )
        tokens = min(each.tokens_per_pass for each in limits)
        keys = min(each.kv_tokens for each in limits)
        return OutOfMemoryError(
            f"out of memory on {bases[0].device}: set engine.tokens_per_pass={tokens // 2} (now"
            f" {tokens}) or train on shorter rows, engine.kv_tokens={keys // 2} (now"
            f" {keys}) for sampling; {detail}"
        )
