"""The files of an adapter, written by this engine or by PEFT."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tinker_cookbook.engine import checkpoints, peft_adapters
from tinker_cookbook.engine.base_model import BaseModel
from tinker_cookbook.engine.checkpoints import ComputedWith
from tinker_cookbook.engine.lora import Adapter, LoraSpec
from tinker_cookbook.engine.requests import CheckpointWeights
from tinker_cookbook.engine.trainer import AdapterTrainer


class AdapterFiles(Protocol):
    """The files of one adapter. `read` accepts an adapter of `spec`, whatever its alpha."""

    @property
    def spec(self) -> LoraSpec: ...

    @property
    def computed_with(self) -> ComputedWith:
        """Settings of the run that saved the training state."""
        ...

    def read(self, adapter: Adapter, base: BaseModel) -> None:
        """Load the weights into an adapter."""
        ...

    def read_optimizer(self, trainer: AdapterTrainer) -> None:
        """Load the optimizer state into a trainer; raise if there is none."""
        ...


def open_files(weights: CheckpointWeights) -> AdapterFiles:
    directory = Path(weights.directory)
    return _PeftFiles(directory) if weights.foreign else _EngineFiles(directory)


@dataclass(frozen=True)
class _EngineFiles:
    directory: Path

    @property
    def spec(self) -> LoraSpec:
        return checkpoints.read_spec(self.directory)

    @property
    def computed_with(self) -> ComputedWith:
        return checkpoints.read_computed_with(self.directory)

    def read(self, adapter: Adapter, base: BaseModel) -> None:
        checkpoints.read_adapter(adapter, self.directory)

    def read_optimizer(self, trainer: AdapterTrainer) -> None:
        checkpoints.read_optimizer(trainer, self.directory)


@dataclass(frozen=True)
class _PeftFiles:
    directory: Path

    @property
    def computed_with(self) -> ComputedWith:
        return ComputedWith()  # PEFT saves no training state

    @property
    def spec(self) -> LoraSpec:
        return peft_adapters.load_adapter_info(self.directory).spec

    def read(self, adapter: Adapter, base: BaseModel) -> None:
        peft_adapters.read(adapter, base, self.directory)

    def read_optimizer(self, trainer: AdapterTrainer) -> None:
        # PEFT saves no optimizer state, and the error of this call says so.
        checkpoints.read_optimizer(trainer, self.directory)
