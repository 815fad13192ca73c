"""Weights to start from: a checkpoint of the store, or a PEFT adapter in a directory."""

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
    """Weights on disk that were found to fit."""

    @property
    def base_model(self) -> str: ...

    def open(self, id: str) -> AbstractContextManager[CheckpointWeights]:
        """The engine's reference of them, under an id; the files stay for as long as it is open."""
        ...


def find(store: Store, path: str, use: Use) -> str | Path:
    """A tinker:// path, or the directory of a PEFT adapter that is not of this store (a directory
    inside the store is the checkpoint that it holds)."""
    located = locate(path, use)
    if located.startswith(SCHEME):
        return located
    return store.path_of(Path(located)) or Path(located)


def weights_files(store: Store, path: str, use: Use, base_model: str | None) -> WeightsFiles:
    """Of a path or directory. CheckpointError: of another base model than the one given."""
    if isinstance(base_model, str):
        base_model = models.published_name(base_model)
    located = find(store, path, use)
    if isinstance(located, Path):
        return _PeftDirectory(located, base_model)
    return _StoredCheckpoint(store, located, base_model)


class _StoredCheckpoint:
    def __init__(self, store: Store, path: str, base_model: str | None) -> None:
        self._store, self._path = store, path
        manifest = store.find(path).manifest
        self.base_model: str = manifest["base_model"]
        if base_model not in (None, self.base_model):
            raise CheckpointError(
                f"{path} was trained on {self.base_model!r}, not on {base_model!r}"
            )

    @contextmanager
    def open(self, id: str) -> Iterator[CheckpointWeights]:
        with self._store.open_checkpoint(self._path) as info:
            yield CheckpointWeights(models.load_path(self.base_model), id, str(info.directory))


class _PeftDirectory:
    def __init__(self, directory: Path, base_model: str | None) -> None:
        self._directory = directory
        made_for = peft_adapters.load_adapter_info(directory).base_model
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
    def open(self, id: str) -> Iterator[CheckpointWeights]:
        model = models.load_path(self.base_model)
        yield CheckpointWeights(model, id, str(self._directory), foreign=True)
