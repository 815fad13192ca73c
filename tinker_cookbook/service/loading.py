"""Locate weights to load: a checkpoint in the store, or a PEFT adapter in a directory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

from tinker_cookbook import models
from tinker_cookbook.engine import checkpoints, peft_adapters
from tinker_cookbook.engine.requests import CheckpointWeights
from tinker_cookbook.exceptions import CheckpointError, ConfigurationError
from tinker_cookbook.service.checkpoint_dirs import SCHEME, Use, locate, same_model
from tinker_cookbook.service.store import Store


class WeightsFiles(Protocol):
    """Weights on disk, whose base model was checked."""

    @property
    def base_model(self) -> str: ...

    def open(self, id: str) -> AbstractContextManager[CheckpointWeights]:
        """The engine's reference to the weights, with the given id.

        While the context is open, deleting the checkpoint does not remove its files.
        """
        ...


def find_weights(store: Store, path: str, use: Use) -> str | Path:
    """Resolve a path to a tinker:// path, or to the directory of a PEFT adapter.

    A directory inside this store resolves to the tinker:// path of its checkpoint.
    """
    located = locate(path, use)
    if located.startswith(SCHEME):
        return located
    return store.path_of(Path(located)) or Path(located)


def weights_files(store: Store, path: str, use: Use, base_model: str | None) -> WeightsFiles:
    """The weights at a path or directory. CheckpointError if they are for another base model."""
    if isinstance(base_model, str):
        base_model = models.absolute_name(models.published_name(base_model))
    located = find_weights(store, path, use)
    if isinstance(located, Path):
        return _PeftDirectory(located, base_model)
    return _StoredCheckpoint(store, located, base_model)


class _StoredCheckpoint:
    def __init__(self, store: Store, path: str, base_model: str | None) -> None:
        self._store, self._path = store, path
        manifest = store.find(path).manifest
        self.base_model: str = models.absolute_name(manifest["base_model"])
        if base_model not in (None, self.base_model):
            raise CheckpointError(
                f"{path} was trained on {self.base_model!r}, not on {base_model!r}: set model_name="
                " to that"
            )

    @contextmanager
    def open(self, id: str) -> Iterator[CheckpointWeights]:
        with self._store.open_checkpoint(self._path) as info:
            yield CheckpointWeights(models.load_path(self.base_model), id, str(info.directory))


class _PeftDirectory:
    def __init__(self, directory: Path, base_model: str | None) -> None:
        self._directory = directory
        adapter_model = peft_adapters.load_adapter_info(directory).base_model
        if base_model is None and not adapter_model:
            raise ConfigurationError(f"{directory} does not name its base model: set base_model")
        if base_model is not None and adapter_model and not same_model(base_model, adapter_model):
            raise CheckpointError(
                f"{directory} is an adapter for {adapter_model!r}, not for {base_model!r}; if they"
                f" are the same model, correct base_model_name_or_path in {checkpoints.CONFIG_FILE}"
            )
        self.base_model = base_model or adapter_model

    @contextmanager
    def open(self, id: str) -> Iterator[CheckpointWeights]:
        model = models.load_path(self.base_model)
        yield CheckpointWeights(model, id, str(self._directory), foreign=True)
