"""Scripted stand-ins for tests: an engine, and a sampler of a real engine.

    engine = ScriptedEngine(reply=scripted_text("nano", lambda asked: "4<|im_end|>"))
    service = scripted_service(engine, tmp_path)
    client = service.create_sampling_client(base_model="nano")

Under the real clients, sessions and stores, so that what a test sees of them is what a user sees.
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
    """One sample that is wanted. time: how many of this prompt came before."""

    prompt: list[int]
    request: SampleRequest
    time: int


Reply = Callable[[Asked], Sequence[int]]  # tokens; what it raises is the request's error


def scripted_text(model_name: str, text: Callable[[Asked], str]) -> Reply:
    """Replies by their text, in the tokens of a model."""
    tokenizer = get_tokenizer(model_name)
    return lambda asked: tokenizer.encode(text(asked), add_special_tokens=False)


@dataclass
class Script:
    """What is answered. logprob_of: of each token, in prompts, replies and targets."""

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
        kept = tokens[: request.max_tokens]
        reason = "stop" if len(kept) == len(tokens) else "length"
        return SampledTokens(kept, [self.logprob_of(token) for token in kept], reason)


class ScriptedEngine(Script):
    """Takes the engine's requests, keeps them in `requests`, and answers at once, on the thread
    that asks; samples after `delay` seconds, where it says so, on another; or, between `hold` and
    `release`, then."""

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
            CreateRun: lambda request: RunFacts(FACTS, request.spec or LoraSpec(), None),
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
        self._carry_out(request, future)
        return future

    def submit_when(
        self, coming: Future[Request[R]], lane: str, on_token: OnToken | None = None
    ) -> Future[R]:
        """Answered when it comes: what is asked meanwhile does not wait for it."""
        future: Future[R] = Future()

        def come(done: Future[Request[R]]) -> None:
            try:
                request = done.result()
            except BaseException as error:  # cancelled, too
                future.set_exception(error)
            else:
                self._carry_out(request, future)

        coming.add_done_callback(come)
        return future

    def dispose(self, request: DropRun | DropWeights) -> None:
        self.requests.append(request)

    @property
    def samples(self) -> list[SampleRequest]:
        """Those that were asked for so far."""
        return [each.request for each in self.requests if isinstance(each, Sample)]

    def hold(self) -> None:
        """Answer nothing from now on."""
        self._held = []

    def release(self) -> None:
        """Answer what was held, in the order in which it was asked."""
        held, self._held = self._held or [], None
        for answer in held:
            answer()

    def _carry_out(self, request: Request[R], future: Future[R]) -> None:
        def answer() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(self.answers[type(request)](request))
            except Exception as error:
                future.set_exception(error)

        with self._lock:
            self.requests.append(request)
            if self._held is not None:
                self._held.append(answer)
                return
        seconds = self.delay(request.request) if isinstance(request, Sample) else 0.0
        if seconds:
            threading.Timer(seconds, answer).start()
        else:
            answer()


class ScriptedSampler(Script):
    """In the place of an engine's sampler (`engine.samplers.SAMPLERS`): answers whatever waits at
    its next step."""

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
        """Whatever they are, the script answers."""

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
        """It keeps nothing."""

    @property
    def busy(self) -> bool:
        return bool(self._waiting)

    def close(self) -> None:
        """It holds nothing."""


def scripted_service(engine: ScriptedEngine, store: Path) -> LocalServiceClient:
    """The clients of this process over a scripted engine; checkpoints go into a real store."""
    return LocalServiceClient(engine, Store(store))
