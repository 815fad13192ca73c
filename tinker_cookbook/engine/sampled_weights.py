"""Adapters that are held in memory to sample from."""

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
    """Adapters to sample from, by the id of their reference. Used on the engine's thread only."""

    def __init__(self, base_model: Callable[[str], BaseModel]) -> None:
        """base_model: returns the model with a name or path, loading it on first use."""
        self.base_model = base_model
        self._adapters: dict[str, Adapter] = {}

    def load(self, weights: WeightsRef) -> None:
        """Load the weights of a checkpoint or of a base model."""
        base = self.base_model(weights.model)
        if isinstance(weights, CheckpointWeights):
            files = adapter_files.open_files(weights)
            adapter = base.new_adapter(files.spec)
            files.read(adapter, base)
            # A snapshot has no fp32 masters, which sampling does not need.
            self._adapters[weights.id] = base.offloader.admit(adapter.snapshot())

    def add_snapshot(self, weights: SnapshotWeights, adapter: Adapter) -> None:
        """Copy the current weights of an adapter in training."""
        base = self.base_model(weights.model)
        self._adapters[weights.id] = base.offloader.admit(adapter.snapshot())

    def adapter(self, weights: WeightsRef) -> Adapter | None:
        """Return the adapter, or None for the base model alone.

        Raises TrainingError if the weights were never loaded or have been dropped.
        """
        if isinstance(weights, BaseWeights):
            return None
        if weights.id not in self._adapters:
            raise TrainingError(f"the weights {weights.id} are not loaded for sampling")
        return self._adapters[weights.id]

    def drop(self, id: str) -> None:
        """Forget an adapter; running requests keep a reference to it until they are done."""
        self._adapters.pop(id, None)
