"""Overhead of a call of the in-process client, measured with an engine that answers at once.

    ./scripts/bench/run client_overhead
    ./scripts/bench/run client_overhead calls=200 rounds=1      # quick check
    ./scripts/bench/run client_overhead against=main            # alternating with the code of main

Only the sampling itself is replaced; client, conversion of SDK types, engine thread, queue and
futures are those that recipes use. The goal is 5,000 `sample` calls per second. "forward_backward"
is real, on a model of a few thousand parameters. The last rows measure the SDK's own types alone.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import basis
import chz
import harness
from contestant import Contestant

from tinker_cookbook.cli_utils import cli
from tinker_cookbook.exceptions import TrainingError

TINY = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
}


@chz.chz
class Config(harness.AgainstConfig):
    threads: int = chz.field(default=1, doc="OpenMP threads; matrices this small gain nothing")
    calls: int = chz.field(default=5000, doc="calls per measurement")
    in_flight: int = chz.field(default=256, doc="calls in flight at the same time")
    prompt: int = chz.field(default=64, doc="tokens per prompt and per datum")
    tokens: int = chz.field(default=32, doc="tokens per sample")


class Client:
    """The client under test; `measure` returns the seconds that one way of calling it takes."""

    def __init__(self, store: str, prompt: int, tokens: int, in_flight: int) -> None:
        import tinker
        from engine_contestants import connected

        path = Path(store).with_name("tiny")
        basis.make_model(TINY, path, "float32")
        replace_sampler()
        service = connected("float32", "cpu", store)
        self.client = service.create_sampling_client(base_model=str(path)).result()
        self.training = service.create_lora_training_client(str(path), rank=1, seed=0).result()
        self.in_flight = in_flight
        [self.tokens] = basis.random_sequences([prompt], TINY["vocab_size"], seed=0)
        self.answer = tokens
        self.params = tinker.SamplingParams(max_tokens=tokens, temperature=1.0)
        self.ways: dict[str, Callable[[int], None]] = {
            "sample, one at a time": self._one_at_a_time,
            f"sample, {in_flight} in flight": self._in_flight,
            f"await sample_async, {in_flight} tasks": lambda calls: asyncio.run(self._tasks(calls)),
            f"forward_backward, {in_flight} in flight": self._forward_backward,
            "SDK: ModelInput and SamplingParams": self._sdk_request,
            "SDK: SampleResponse": self._sdk_response,
        }
        self.facts = {"ways": list(self.ways)}
        for way in self.ways:
            self.measure(way, 2 * in_flight)

    def measure(self, way: str, calls: int) -> dict[str, Any]:
        started = time.perf_counter()
        self.ways[way](calls)
        return {"seconds": time.perf_counter() - started, "way": way, "calls": calls}

    def _sample(self) -> Any:
        import tinker

        return self.client.sample(tinker.ModelInput.from_ints(self.tokens), 1, self.params)

    def _one_at_a_time(self, calls: int) -> None:
        for _ in range(calls):
            self._check(self._sample().result())

    def _in_flight(self, calls: int) -> None:
        waiting = deque()
        for _ in range(calls):
            waiting.append(self._sample())
            if len(waiting) == self.in_flight:
                self._check(waiting.popleft().result())
        while waiting:
            self._check(waiting.popleft().result())

    async def _tasks(self, calls: int) -> None:
        import tinker

        async def task(count: int) -> None:
            for _ in range(count):
                prompt = tinker.ModelInput.from_ints(self.tokens)
                self._check(await self.client.sample_async(prompt, 1, self.params))

        counts = [len(range(first, calls, self.in_flight)) for first in range(self.in_flight)]
        await asyncio.gather(*map(task, counts))

    def _check(self, response: Any) -> None:
        if len(response.sequences[0].tokens) != self.answer:
            raise TrainingError(f"{len(response.sequences[0].tokens)} tokens, not {self.answer}")

    def _forward_backward(self, calls: int) -> None:
        from engine_contestants import datums

        waiting = deque()
        for _ in range(calls):
            data = datums(basis.Batch([self.tokens]))
            waiting.append(self.training.forward_backward(data, "cross_entropy"))
            if len(waiting) == self.in_flight:
                waiting.popleft().result()
        while waiting:
            waiting.popleft().result()

    def _sdk_request(self, calls: int) -> None:
        import tinker

        for _ in range(calls):
            tinker.ModelInput.from_ints(self.tokens).to_ints()
            tinker.SamplingParams(max_tokens=self.answer, temperature=1.0)

    def _sdk_response(self, calls: int) -> None:
        import numpy as np
        from tinker import types

        tokens = np.arange(self.answer, dtype=np.int32)
        logprobs = np.zeros(self.answer, dtype=np.float32)
        for _ in range(calls):
            types.SampleResponse(
                sequences=[
                    types.SampledSequence(
                        stop_reason="length",
                        sequence_id="0",
                        tokens_np=tokens,
                        logprobs_np=logprobs,
                    )
                ]
            )


def replace_sampler() -> None:
    """Make all new engines answer every sampling request at once, with the same tokens."""
    from tinker_cookbook.engine import samplers
    from tinker_cookbook.engine.requests import Sample, SampledTokens, SampleResult

    class AnswersAtOnce:
        def __init__(self, *_: Any) -> None:
            self.waiting: list[tuple[Sample, Any]] = []

        @property
        def busy(self) -> bool:
            return bool(self.waiting)

        def add(self, request: Sample, on_done: Any, *_: Any) -> None:
            self.waiting.append((request, on_done))

        def load(self, weights: Any) -> None: ...

        def step(self) -> None:
            waiting, self.waiting = self.waiting, []
            for request, on_done in waiting:
                count = request.request.max_tokens
                sequences = [
                    SampledTokens(list(range(count)), [-1.0] * count, "length")
                    for _ in range(request.request.num_samples)
                ]
                on_done(SampleResult(sequences))

        def release(self) -> None: ...

        def close(self) -> None: ...

        def abort(self, error: Exception) -> None:
            for _, on_done in self.waiting:
                on_done(error)

    samplers.SAMPLERS["torch"] = AnswersAtOnce


def main(config: Config) -> dict[str, Any]:
    with harness.run("client_overhead", config) as run:
        words = {"prompt": config.prompt, "tokens": config.tokens, "in_flight": config.in_flight}
        versions = run.start_versions(
            Contestant("client", "client_overhead:Client", {"store": run.store, **words})
        )
        ways = versions[0].facts["ways"]
        # forward_backward computes gradients and takes longer than a prepared sample
        calls = {way: max(config.calls // (5 if "forward" in way else 1), 1) for way in ways}
        run.turns(versions, {way: {"calls": calls[way]} for way in ways})
        return run.finish([version_row(each, way, versions) for way in ways for each in versions])


def version_row(version: Contestant, way: str, versions: Sequence[Contestant]) -> dict[str, Any]:
    per_call = median(
        each["seconds"] / each["calls"] for each in version.measured if each["way"] == way
    )
    out = {"name": way, "calls_per_s": 1 / per_call, "microseconds": per_call * 1e6}
    return harness.label_version(out, version, versions, way)


if __name__ == "__main__":
    cli(main, Config)
