"""The engine thread: operations in the order they were given, training and sampling in turns.

Callers never wait: every operation answers with a future. Operations of one adapter run in the
order of the calls, because there is one queue. While both training operations and samples are
waiting, each side gets about as much time as the other.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

import torch

from tinker_cookbook.engine.base_model import BaseModel
from tinker_cookbook.engine.config import EngineConfig
from tinker_cookbook.engine.lora import Adapter
from tinker_cookbook.engine.rows import SampleRequest, SampleResult
from tinker_cookbook.engine.sampler import Sampler, TorchSampler
from tinker_cookbook.exceptions import OutOfMemoryError, TrainingError

T = TypeVar("T")
CLOSED = "the engine is closed"


class Engine:
    """Base models by path, each loaded once, and the one thread that computes on them.

    Everything that touches a model runs on that thread: through `submit`, or `sample`.
    """

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self._bases: dict[str, BaseModel] = {}
        self._samplers: dict[str, Sampler] = {}
        self._queue: deque[Callable[[], None]] = deque()
        self._wake = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def submit(self, function: Callable[[], T]) -> Future[T]:
        """Run a function on the engine thread, after everything submitted before."""
        future: Future[T] = Future()

        def operation() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                if self._closed:
                    raise TrainingError(CLOSED)
                future.set_result(function())
            except BaseException as error:  # whatever it is, somebody waits for it
                future.set_exception(self._explain(error))

        self._enqueue(operation)
        return future

    def sample(
        self, path: str, build: Callable[[], tuple[Adapter | None, SampleRequest]]
    ) -> Future[SampleResult]:
        """Queue a request; `build` makes it on the engine thread, when its turn has come."""
        future: Future[SampleResult] = Future()

        def done(outcome: SampleResult | BaseException) -> None:
            if future.done():
                return  # cancelled, or already answered
            if isinstance(outcome, BaseException):
                future.set_exception(self._explain(outcome))
            else:
                future.set_result(outcome)

        def operation() -> None:
            try:
                if self._closed:
                    raise TrainingError(CLOSED)
                adapter, request = build()
                self._sampler(path).add(request, adapter, done)
            except BaseException as error:
                done(error)

        self._enqueue(operation)
        return future

    def base_model(self, path: str) -> BaseModel:
        """The base model, loaded on first use. Only on the engine thread."""
        if path not in self._bases:
            self._bases[path] = BaseModel(path, self.config)
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

    def _enqueue(self, operation: Callable[[], None]) -> None:
        with self._wake:
            if self._closed:
                raise TrainingError(CLOSED)
            self._queue.append(operation)
            self._wake.notify()

    def _run(self) -> None:
        try:
            self._work()
        finally:  # also after an error of the engine's own: nobody must wait for ever
            self._closed = True
            for sampler in self._samplers.values():
                sampler.abort(TrainingError(CLOSED))
            while self._queue:
                self._queue.popleft()()  # which fails by itself now

    def _work(self) -> None:
        owed = 0.0  # seconds that sampling may still take before the next operation
        while True:
            busy = [sampler for sampler in self._samplers.values() if sampler.busy]
            with self._wake:
                while not (self._queue or busy or self._closed):
                    self._wake.wait()
                if self._closed:
                    return
                operation = (
                    self._queue.popleft() if self._queue and (owed <= 0 or not busy) else None
                )
            start = time.perf_counter()
            if operation is not None:
                operation()
                owed = time.perf_counter() - start
                continue
            for sampler in busy:
                sampler.step()
            owed -= time.perf_counter() - start

    def _explain(self, error: BaseException) -> BaseException:
        """An out-of-memory error names the keys to lower; anything else stays as it is."""
        text = str(error)
        starved = isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
            isinstance(error, RuntimeError) and "allocate memory" in text
        )
        if not starved:
            return error
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return OutOfMemoryError(
            f"out of memory on {self.config.device}: lower engine.tokens_per_pass"
            f" (now {self.config.tokens_per_pass}) or max_length for training, engine.kv_tokens"
            f" (now {self.config.kv_tokens}) for sampling; {text.splitlines()[0] if text else ''}"
        )
