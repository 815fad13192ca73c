"""Logprobs of one text, by a base model with an adapter and without, in an engine of its own."""

from __future__ import annotations

import atexit
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from tinker_cookbook import models
from tinker_cookbook.engine import EngineConfig
from tinker_cookbook.engine.memory import free_bytes
from tinker_cookbook.engine.requests import (
    BaseWeights,
    CheckpointWeights,
    LoadWeights,
    Sample,
    SampleRequest,
    WeightsRef,
)
from tinker_cookbook.engine.scheduler import Engine
from tinker_cookbook.service.adapter_tensors import AdapterTensors

_DIRECTORY_ID, _BASE_ID = "adapter", "base"


class ProbedLogprobs(NamedTuple):
    """Logprobs of tokens[1:], float32 [P - 1], with the adapter and by the base model alone."""

    trained: np.ndarray
    base: np.ndarray


def probe_logprobs(adapter: AdapterTensors, tokens: Sequence[int]) -> ProbedLogprobs:
    """The logprobs of a text in float32 on the CPU. The engine is closed, and its model freed."""
    model = models.load_path(adapter.base_model)
    engine = Engine(EngineConfig(device="cpu", dtype="float32"))
    trained = CheckpointWeights(model, _DIRECTORY_ID, str(adapter.directory), foreign=True)
    try:
        probed = ProbedLogprobs(
            _logprobs(engine, trained, tokens),
            _logprobs(engine, BaseWeights(model, _BASE_ID), tokens),
        )
    except BaseException:
        # After a Ctrl-C, the caller cleans up before a large model is loaded. The interpreter then
        # waits, because it can crash if a thread is inside torch when it ends.
        engine.close(timeout=0)
        atexit.register(engine.close)
        raise
    engine.close()
    return probed


def free_cpu_memory() -> int:
    """Bytes that this process can still allocate."""
    return free_bytes(torch.device("cpu"))


def _logprobs(engine: Engine, weights: WeightsRef, tokens: Sequence[int]) -> np.ndarray:
    request = SampleRequest(np.array(tokens, np.int64), max_tokens=0, prompt_logprobs=True)
    engine.submit(LoadWeights(weights)).result()
    logprobs = engine.submit(Sample(weights, request)).result().prompt_logprobs
    assert logprobs is not None
    return logprobs[1:]
