"""The adapters that are being sampled from, by their references."""

from __future__ import annotations

from collections.abc import Callable

from tinker_cookbook.engine import adapter_files
from tinker_cookbook.engine.base_model import BaseModel
from tinker_cookbook.engine.lora import Adapter
from tinker_cookbook.engine.requests import (
    BaseWeights,
    CheckpointWeights,
    SnapshotWeights,
    WeightsRef,
)
from tinker_cookbook.exceptions import TrainingError


class SampledWeights:
    """Only on the engine's thread."""

    def __init__(self, base_model: Callable[[str], BaseModel]) -> None:
        self.base_model = base_model
        self._adapters: dict[str, Adapter] = {}

    def load(self, weights: WeightsRef) -> None:
        """Have the weights of a checkpoint or of a base model ready."""
        base = self.base_model(weights.model)
        if isinstance(weights, CheckpointWeights):
            files = adapter_files.open_files(weights)
            adapter = base.new_adapter(files.spec)
            files.read(adapter, base)
            self._adapters[weights.id] = base.offloader.admit(adapter.snapshot())

    def keep(self, weights: SnapshotWeights, adapter: Adapter) -> None:
        """Keep what an adapter in training is at this moment."""
        base = self.base_model(weights.model)
        self._adapters[weights.id] = base.offloader.admit(adapter.snapshot())

    def adapter(self, weights: WeightsRef) -> Adapter | None:
        """None: the base model alone. TrainingError: they were never loaded, or dropped."""
        if isinstance(weights, BaseWeights):
            return None
        if weights.id not in self._adapters:
            raise TrainingError(f"the weights {weights.id} are not there to sample from")
        return self._adapters[weights.id]

    def drop(self, id: str) -> None:
        """Requests that are running keep them until they are done."""
        self._adapters.pop(id, None)
