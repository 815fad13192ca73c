"""Scripted fakes for tests: an engine, and a sampler inside a real engine.

    engine = ScriptedEngine(reply=scripted_text("nano", lambda asked: "4<|im_end|>"))
    service = scripted_service(engine, tmp_path)
    client = service.create_sampling_client(base_model="nano")

Only the engine is fake: clients, session and store are the real ones, so tests exercise the code
that users run.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np

from tinker_cookbook.engine.lora import LoraSpec
from tinker_cookbook.engine.memory import SamplingLimits
from tinker_cookbook.engine.requests import (
    Cancelled,
    CreateRun,
    DropRun,
    DropWeights,
    Forward,
    ForwardBackward,
    Load,
    LoadWeights,
    ModelFacts,
    OnDone,
    OnToken,
    OptimStep,
    Request,
    RunFacts,
    Sample,
    SampledTokens,
    SampleRequest,
    SampleResult,
    Save,
    Snapshot,
    Train,
    TrainResult,
    WeightsRef,
)
from tinker_cookbook.service.local import LocalServiceClient
from tinker_cookbook.service.store import Store
from tinker_cookbook.tokenizer_utils import get_tokenizer

R = TypeVar("R")
FACTS = ModelFacts("scripted", 2048, 2048, num_layers=1, eos_tokens=frozenset(), tied=False)


@dataclass(frozen=True)
class Asked:
    """One requested sample. time: the number of earlier samples with the same prompt."""

    prompt: list[int]
    request: SampleRequest
    time: int


Reply = Callable[[Asked], Sequence[int]]  # returns tokens; an exception fails the request


def scripted_text(model_name: str, text: Callable[[Asked], str]) -> Reply:
    """A Reply from a function that returns text, encoded with a model's tokenizer."""
    tokenizer = get_tokenizer(model_name)
    return lambda asked: tokenizer.encode(text(asked), add_special_tokens=False)


@dataclass
class Script:
    """Scripted results. logprob_of: the logprob of a token in prompts, completions and targets."""

    reply: Reply = lambda asked: []
    logprob_of: Callable[[int], float] = lambda token: -0.5
    _times: Counter[bytes] = field(default_factory=Counter)

    def sample(self, request: SampleRequest) -> SampleResult:
        prompt = [int(token) for token in request.prompt]
        result = SampleResult([self._sequence(prompt, request) for _ in range(request.num_samples)])
        if request.prompt_logprobs:
            scores = [np.nan, *map(self.logprob_of, prompt[1:])]
            result.prompt_logprobs = np.array(scores, np.float32)
        return result

    def train(self, request: Train) -> TrainResult:
        logprobs = [
            np.vectorize(self.logprob_of, otypes=[np.float32])(seq.targets)
            for seq in request.sequences
        ]
        weights = [
            sequence.inputs.get("weights", np.ones(sequence.targets.shape))
            for sequence in request.sequences
        ]
        loss = -sum(float((w * lp).sum()) for w, lp in zip(weights, logprobs))
        return TrainResult(logprobs, {"loss:sum": loss})

    def _sequence(self, prompt: list[int], request: SampleRequest) -> SampledTokens:
        if request.max_tokens == 0:
            return SampledTokens([], [], "length")
        key = np.array(prompt).tobytes()
        self._times[key] += 1
        tokens = list(self.reply(Asked(prompt, request, self._times[key] - 1)))
        truncated = tokens[: request.max_tokens]
        reason = "stop" if len(truncated) == len(tokens) else "length"
        return SampledTokens(truncated, [self.logprob_of(token) for token in truncated], reason)


class ScriptedEngine(Script):
    """Fake engine that records `requests` and completes them on the caller's thread.

    Samples with a `delay` above 0 complete after so many seconds on another thread. Requests
    submitted after `hold()` complete on `release()`.
    """

    def __init__(
        self,
        reply: Reply = lambda asked: [],
        logprob_of: Callable[[int], float] = lambda token: -0.5,
        delay: Callable[[SampleRequest], float] = lambda request: 0.0,
    ) -> None:
        super().__init__(reply, logprob_of)
        self.delay = delay
        self.requests: list[Request[object]] = []
        self.tokens_per_pass: int | None = 1024
        self._held: list[Callable[[], None]] | None = None
        self._lock = threading.RLock()
        self.answers: dict[type[Request[object]], Callable] = {
            CreateRun: lambda request: RunFacts(FACTS, request.spec or LoraSpec(), []),
            DropRun: lambda request: None,
            Forward: self.train,
            ForwardBackward: self.train,
            OptimStep: lambda request: {"grad_norm": 1.0},
            Save: lambda request: Path(request.directory, "adapter.bin").write_bytes(b"scripted"),
            Load: lambda request: None,
            Snapshot: lambda request: None,
            LoadWeights: lambda request: None,
            DropWeights: lambda request: None,
            Sample: lambda request: self.sample(request.request),
        }

    def submit(self, request: Request[R], on_token: OnToken | None = None) -> Future[R]:
        future: Future[R] = Future()
        self._execute(request, future)
        return future

    def submit_when(
        self, coming: Future[Request[R]], lane: str, on_token: OnToken | None = None
    ) -> Future[R]:
        """Execute the request once it is there. Unlike in the real engine, later requests of the
        lane do not wait for it."""
        future: Future[R] = Future()

        def execute_when_done(done: Future[Request[R]]) -> None:
            try:
                request = done.result()
            except BaseException as error:  # includes CancelledError
                future.set_exception(error)
            else:
                self._execute(request, future)

        coming.add_done_callback(execute_when_done)
        return future

    def dispose(self, request: DropRun | DropWeights) -> None:
        self.requests.append(request)

    @property
    def samples(self) -> list[SampleRequest]:
        """The sampling requests so far."""
        return [each.request for each in self.requests if isinstance(each, Sample)]

    def hold(self) -> None:
        """Complete no request from now on."""
        self._held = []

    def release(self) -> None:
        """Complete the requests since `hold`, in the order of their submission."""
        held, self._held = self._held or [], None
        for complete in held:
            complete()

    def _execute(self, request: Request[R], future: Future[R]) -> None:
        def complete() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(self.answers[type(request)](request))
            except Exception as error:
                future.set_exception(error)

        with self._lock:
            self.requests.append(request)
            if self._held is not None:
                self._held.append(complete)
                return
        seconds = self.delay(request.request) if isinstance(request, Sample) else 0.0
        if seconds:
            threading.Timer(seconds, complete).start()
        else:
            complete()


class ScriptedSampler(Script):
    """Fake sampler for `engine.samplers.SAMPLERS`: completes all waiting requests in each step."""

    limits = SamplingLimits(2048, 65536, 0, 256, deterministic=False)

    def __init__(
        self,
        reply: Reply = lambda asked: [],
        logprob_of: Callable[[int], float] = lambda token: -0.5,
    ) -> None:
        super().__init__(reply, logprob_of)
        self._waiting: list[tuple[Sample, OnDone, Cancelled, OnToken | None]] = []

    def add(
        self,
        request: Sample,
        on_done: OnDone,
        cancelled: Cancelled,
        on_token: OnToken | None = None,
    ) -> None:
        self._waiting.append((request, on_done, cancelled, on_token))

    def load(self, weights: WeightsRef) -> None:
        """Ignored: the script does not depend on the weights."""

    def step(self) -> None:
        waiting, self._waiting = self._waiting, []
        for request, on_done, cancelled, on_token in waiting:
            if cancelled():
                continue
            try:
                result = self.sample(request.request)
            except Exception as error:
                on_done(error)
                continue
            if on_token is not None:
                for index, sequence in enumerate(result.sequences):
                    for token, logprob in zip(sequence.tokens, sequence.logprobs):
                        on_token(index, token, logprob)
            on_done(result)

    def abort(self, error: Exception) -> None:
        for _, on_done, *_ in self._waiting:
            on_done(error)

    def release(self) -> None:
        """There is nothing to release."""

    @property
    def busy(self) -> bool:
        return bool(self._waiting)

    def close(self) -> None:
        """There is nothing to close."""


def scripted_service(engine: ScriptedEngine, store: Path) -> LocalServiceClient:
    """In-process clients over a scripted engine, with a real store in the directory `store`."""
    return LocalServiceClient(engine, Store(store))
