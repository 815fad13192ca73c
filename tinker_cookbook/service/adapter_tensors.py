"""The tensors of a saved adapter, for programs that convert or merge it: read one pair at a time.

Shapes of a layer's pair: A [rank, in], B [out, rank]; W + scale * B A is the trained weight.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open

from tinker_cookbook.engine import peft_adapters
from tinker_cookbook.engine.checkpoints import ADAPTER_FILE, CONFIG_FILE, PREFIX
from tinker_cookbook.engine.lora import UNEMBED, LoraSpec
from tinker_cookbook.exceptions import CheckpointError
from tinker_cookbook.service.checkpoint_dirs import is_copy
from tinker_cookbook.service.connect import default_store_dir
from tinker_cookbook.service.loading import find_weights, weights_files
from tinker_cookbook.service.store import Store, parse_path
from tinker_cookbook.utils.json_types import Json

__all__ = ["ADAPTER_FILE", "CONFIG_FILE", "PREFIX", "UNEMBED", "AdapterTensors", "open_adapter"]

_ENDS = (".lora_A.weight", ".lora_B.weight")


class Origin(NamedTuple):
    """Where an adapter comes from, as far as it is known.

    run_directory: of the run that trained it, if it has links to its checkpoints.
    user_metadata: of that run in the store, e.g. the renderer's name.
    """

    path: str
    run_directory: Path | None = None
    user_metadata: Mapping[str, str] | None = None


@dataclass(frozen=True)
class AdapterTensors:
    """An open adapter. config: its adapter_config.json. shapes: path -> (out, in) of each layer."""

    directory: Path
    base_model: str
    spec: LoraSpec
    config: dict[str, Json]
    origin: Origin
    shapes: dict[str, tuple[int, int]]
    _file: Any

    def pair(self, path: str) -> tuple[torch.Tensor, torch.Tensor]:
        """A and B of a layer in fp32, on the CPU."""
        a, b = (self._file.get_tensor(f"{PREFIX}{path}{end}").float() for end in _ENDS)
        return a, b

    def copies(self) -> dict[str, torch.Tensor]:
        """Tensors that are not LoRA's, by name: PEFT saves copies of the embeddings beside an
        adapter on lm_head."""
        keys = self._file.keys()
        names = [name for name in keys if not name.endswith(_ENDS)]
        return {
            name.removeprefix(PREFIX).replace(".base_layer.", "."): self._file.get_tensor(name)
            for name in names
        }


@contextmanager
def open_adapter(path: str, base_model: str | None = None) -> Iterator[AdapterTensors]:
    """Open the adapter of a tinker:// path of the local store, a run directory (its last sampler
    weights) or a PEFT adapter directory. While it is open, its files are not removed.

    base_model: another name of the base model, e.g. a local copy. CheckpointError for a missing,
    expired or damaged checkpoint, for one of another base model, and for features of PEFT that the
    engine does not support.
    """
    store = Store(default_store_dir())
    located = find_weights(store, path, "sampler_weights")
    if isinstance(located, Path):
        trained_on, origin = peft_adapters.load_adapter_info(located).base_model, Origin(path)
    else:
        trained_on = store.find(located).manifest["base_model"]
        origin = _origin(store, located)
    if base_model is not None and trained_on and not is_copy(base_model, trained_on):
        raise CheckpointError(
            f"{path} was trained on {trained_on!r}: base_model={base_model} does not fit; leave the"
            " key out, or set it to a copy of that model in a directory named after it"
        )
    missing = base_model if not trained_on else None  # the name must come from somewhere
    files = weights_files(store, str(located), "sampler_weights", missing)
    with files.open("adapter") as weights:
        directory = Path(weights.directory)
        spec = peft_adapters.load_adapter_info(directory).spec
        config = json.loads((directory / CONFIG_FILE).read_bytes())
        # an error here would have been one of `load_adapter_info`, which reads the file's header
        with safe_open(directory / ADAPTER_FILE, framework="pt") as file:
            shapes = _layer_shapes(file, directory / ADAPTER_FILE, spec.rank)
            name = base_model or files.base_model
            yield AdapterTensors(directory, name, spec, config, origin, shapes, file)


def _origin(store: Store, path: str) -> Origin:
    info = store.find(path)
    links = [Path(link) for link in info.manifest.get("links", [])]
    runs = [link.parent.parent for link in links if (link.parent.parent / "config.json").is_file()]
    metadata = store.get_run(parse_path(path).run_id).user_metadata
    return Origin(path, runs[0] if runs else None, metadata)


def _layer_shapes(file: Any, name: Path, rank: int) -> dict[str, tuple[int, int]]:
    found: dict[str, dict[str, list[int]]] = {}
    keys = file.keys()
    for key in keys:
        for end in _ENDS:
            if key.endswith(end):
                path = key.removeprefix(PREFIX).removesuffix(end)
                found.setdefault(path, {})[end] = file.get_slice(key).get_shape()
    shapes = {}
    for path, pair in found.items():
        a, b = (pair.get(end) for end in _ENDS)
        if a is None or b is None:
            raise CheckpointError(f"{name}: {path} has only one of lora_A and lora_B")
        if a[0] != rank or b[1] != rank:
            raise CheckpointError(f"{name}: {path} has rank {a[0]}, not r={rank}")
        shapes[path] = (b[0], a[1])
    return shapes
