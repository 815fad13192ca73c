"""The sampler interface, and the table of sampler back ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from tinker_cookbook.engine.config import EngineConfig
from tinker_cookbook.engine.memory import SamplingLimits
from tinker_cookbook.engine.requests import Cancelled, OnDone, OnToken, Sample, WeightsRef
from tinker_cookbook.engine.sampled_weights import SampledWeights
from tinker_cookbook.engine.torch_sampler import TorchSampler


class Sampler(Protocol):
    """Answers the sampling requests to one base model. Used on the engine's thread only."""

    def load(self, weights: WeightsRef) -> None:
        """Load the weights of a checkpoint, or of the base model alone, to sample from."""
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
        """Queue a request; raise if it can never be answered.

        `step` calls `on_done` once, with the result or the error, and `on_token` for each token as
        it is sampled. Once `cancelled` returns True, the result may be incomplete.
        """
        ...

    def step(self) -> None:
        """Do a bounded amount of work: at most one prefill pass and one token per sequence."""
        ...

    def abort(self, error: Exception) -> None:
        """Answer every waiting or running request with this error."""
        ...

    def release(self) -> None:
        """Free the memory that is only kept for later requests."""
        ...

    @property
    def busy(self) -> bool:
        """Whether a request is waiting or running."""
        ...

    def close(self) -> None:
        """Free everything; the sampler is not used afterwards."""
        ...


# arguments: name or path of the base model, settings, the weights held by the engine's own process
SamplerFactory = Callable[[str, EngineConfig, SampledWeights], Sampler]
SAMPLERS: dict[str, SamplerFactory] = {  # by the value of engine.sampler
    "torch": lambda model, config, weights: TorchSampler(
        weights.base_model(model), config, weights
    ),
}
