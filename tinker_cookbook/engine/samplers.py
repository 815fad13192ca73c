"""What the engine needs of a sampler, and which samplers there are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from tinker_cookbook.engine.config import EngineConfig
from tinker_cookbook.engine.memory import SamplingLimits
from tinker_cookbook.engine.requests import Cancelled, OnDone, OnToken, Sample, WeightsRef
from tinker_cookbook.engine.sampled_weights import SampledWeights
from tinker_cookbook.engine.torch_sampler import TorchSampler


class Sampler(Protocol):
    """Answers the sampling requests on one base model; all of it on the engine's thread."""

    def load(self, weights: WeightsRef) -> None:
        """Have the weights of a checkpoint, or of the base model alone, ready to sample from."""
        ...

    @property
    def limits(self) -> SamplingLimits: ...

    def add(
        self,
        request: Sample,
        on_done: OnDone,
        cancelled: Cancelled,
        on_token: OnToken | None = None,
    ) -> None:
        """Take a request. `on_done` is called once, from `step`, with the result or the error,
        `on_token` with each token as it is sampled; a request that says it is `cancelled` may be
        answered with less. Raises what can never be answered."""
        ...

    def step(self) -> None:
        """Do a bounded piece of work: at most one prefill pass and one token per sequence."""
        ...

    def abort(self, error: Exception) -> None:
        """Answer every request that is waiting or running with this error."""
        ...

    def release(self) -> None:
        """Give back the memory that is kept for requests to come."""
        ...

    @property
    def busy(self) -> bool:
        """Whether a request is waiting or running."""
        ...

    def close(self) -> None:
        """Give back everything; nothing is asked any more."""
        ...


# name or path of the base model, settings, and the weights that the engine's own process holds
SamplerFactory = Callable[[str, EngineConfig, SampledWeights], Sampler]
SAMPLERS: dict[str, SamplerFactory] = {  # by the value of engine.sampler
    "torch": lambda model, config, weights: TorchSampler(
        weights.base_model(model), config, weights
    ),
}
