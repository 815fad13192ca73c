"""For tests: anything on the engine's thread, in its turn, and samples from a base model."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TypeVar

from tinker_cookbook.engine.requests import (
    BaseWeights,
    Request,
    Sample,
    SampleRequest,
    SampleResult,
)
from tinker_cookbook.engine.scheduler import Engine

T = TypeVar("T")
_numbers = itertools.count()


@dataclass(frozen=True)
class Call(Request[T]):
    function: Callable[[], T]
    place: str

    @property
    def lane(self) -> str:
        return self.place


def call(engine: Engine, function: Callable[[], T], lane: str | None = None) -> Future[T]:
    """Call a function on the engine's thread; `lane`: after the requests of that one."""
    engine.worker.handlers[Call] = lambda request: request.function()
    return engine.submit(Call(function, lane or f"call {next(_numbers)}"))


def sampled(engine: Engine, path: str, request: SampleRequest) -> Future[SampleResult]:
    """Samples from a base model alone."""
    return engine.submit(Sample(BaseWeights(path, f"base {next(_numbers)}"), request))
