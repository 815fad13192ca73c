"""Weights to start from: a checkpoint of the store, or a PEFT adapter in a directory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tinker_cookbook import models
from tinker_cookbook.engine import checkpoints, peft_adapters
from tinker_cookbook.engine.base_model import BaseModel
from tinker_cookbook.engine.lora import Adapter, LoraSpec
from tinker_cookbook.engine.trainer import Trainer
from tinker_cookbook.exceptions import CheckpointError, ConfigurationError
from tinker_cookbook.service.checkpoint_dirs import SCHEME, Use, locate, same_model
from tinker_cookbook.service.store import Store


class Files(Protocol):
    """Open files of weights. `read` fills an adapter of `spec`, or of one with another alpha."""

    @property
    def spec(self) -> LoraSpec: ...

    @property
    def num_threads(self) -> int | None:
        """CPU threads that its training state was computed with, where that is known."""
        ...

    def read(self, adapter: Adapter, base: BaseModel) -> None: ...

    def read_optimizer(self, trainer: Trainer) -> None: ...


class Weights(Protocol):
    @property
    def base_model(self) -> str: ...

    def open(self) -> AbstractContextManager[Files]:
        """On the engine's thread; the files stay for as long as it is open."""
        ...


def find(store: Store, path: str, use: Use) -> str | Path:
    """A tinker:// path, or the directory of a PEFT adapter that is not of this store (a directory
    inside the store is the checkpoint that it holds)."""
    located = locate(path, use)
    if located.startswith(SCHEME):
        return located
    return store.path_of(Path(located)) or Path(located)


def weights(store: Store, path: str, use: Use, base_model: str | None) -> Weights:
    """Of a path or directory. CheckpointError: of another base model than the one given."""
    if isinstance(base_model, str):
        base_model = models.published_name(base_model)
    located = find(store, path, use)
    if isinstance(located, Path):
        return PeftWeights(located, base_model)
    return StoredWeights(store, located, base_model)


class StoredWeights:
    def __init__(self, store: Store, path: str, base_model: str | None) -> None:
        self._store, self._path = store, path
        manifest = store.resolve(path).manifest
        self.base_model: str = manifest["base_model"]
        if base_model not in (None, self.base_model):
            raise CheckpointError(
                f"{path} was trained on {self.base_model!r}, not on {base_model!r}"
            )

    @contextmanager
    def open(self) -> Iterator[Files]:
        with self._store.open_checkpoint(self._path) as info:
            yield _OwnFiles(info.directory)


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

    def read_optimizer(self, trainer: Trainer) -> None:
        checkpoints.read_optimizer(trainer, self.directory)


class PeftWeights:
    num_threads: int | None = None

    def __init__(self, directory: Path, base_model: str | None) -> None:
        self._directory = directory
        made_for, self.spec = peft_adapters.describe(directory)
        if base_model is None and not made_for:
            raise ConfigurationError(
                f"{directory} does not say which model it was made for: give base_model"
            )
        if base_model is not None and made_for and not same_model(base_model, made_for):
            raise CheckpointError(
                f"{directory} was made for {made_for!r}, not for {base_model!r}; if that is the"
                f" same model, correct base_model_name_or_path in its {checkpoints.CONFIG_FILE}"
            )
        self.base_model = base_model or made_for

    @contextmanager
    def open(self) -> Iterator[Files]:
        yield self

    def read(self, adapter: Adapter, base: BaseModel) -> None:
        peft_adapters.read(adapter, base, self._directory)

    def read_optimizer(self, trainer: Trainer) -> None:
        checkpoints.read_optimizer(trainer, self._directory)  # says that there is none
