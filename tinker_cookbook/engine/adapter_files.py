"""The files of an adapter, whoever wrote them: this engine or PEFT."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tinker_cookbook.engine import checkpoints, peft_adapters
from tinker_cookbook.engine.base_model import BaseModel
from tinker_cookbook.engine.lora import Adapter, LoraSpec
from tinker_cookbook.engine.requests import CheckpointWeights
from tinker_cookbook.engine.trainer import AdapterTrainer


class AdapterFiles(Protocol):
    """`read` fills an adapter of `spec`, or of one with another alpha."""

    @property
    def spec(self) -> LoraSpec: ...

    @property
    def num_threads(self) -> int | None:
        """CPU threads that its training state was computed with, where that is known."""
        ...

    def read(self, adapter: Adapter, base: BaseModel) -> None: ...

    def read_optimizer(self, trainer: AdapterTrainer) -> None: ...


def open_files(weights: CheckpointWeights) -> AdapterFiles:
    directory = Path(weights.directory)
    return _PeftFiles(directory) if weights.foreign else _OwnFiles(directory)


@dataclass(frozen=True)
class _OwnFiles:
    directory: Path

    @property
    def spec(self) -> LoraSpec:
        return checkpoints.read_spec(self.directory)

    @property
    def num_threads(self) -> int | None:
        return checkpoints.read_num_threads(self.directory)

    def read(self, adapter: Adapter, base: BaseModel) -> None:
        checkpoints.read_adapter(adapter, self.directory)

    def read_optimizer(self, trainer: AdapterTrainer) -> None:
        checkpoints.read_optimizer(trainer, self.directory)


@dataclass(frozen=True)
class _PeftFiles:
    directory: Path
    num_threads: int | None = None

    @property
    def spec(self) -> LoraSpec:
        return peft_adapters.load_adapter_info(self.directory).spec

    def read(self, adapter: Adapter, base: BaseModel) -> None:
        peft_adapters.read(adapter, base, self.directory)

    def read_optimizer(self, trainer: AdapterTrainer) -> None:
        checkpoints.read_optimizer(trainer, self.directory)  # says that there is none
