"""A checkpoint as a PEFT adapter directory, for peft and vLLM."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import torch

from tinker_cookbook import models
from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.service.adapter_tensors import (
    ADAPTER_FILE,
    CONFIG_FILE,
    PREFIX,
    AdapterTensors,
    open_adapter,
)
from tinker_cookbook.weights import base_files
from tinker_cookbook.weights.merging import check_copies
from tinker_cookbook.weights.output_directory import check_free, check_space, new_directory
from tinker_cookbook.weights.tensor_files import TensorFiles, TensorInfo, ordered, write_tensors

AdapterDtype = Literal["auto", "bfloat16", "float16", "float32"]


class ExportedAdapter(NamedTuple):
    directory: Path
    base_model: str
    nbytes: int


def build_lora_adapter(*, base_model: str | None, adapter_path: str, output_path: str) -> str:
    """Write a checkpoint as a PEFT adapter directory, in float32; returns it.

    adapter_path: tinker:// path of the local store, run directory or PEFT adapter directory.
    base_model: hub name, nano or directory (None: what the adapter names). Raises subclasses of
    TinkerCookbookError; then nothing is left under output_path.
    """
    with open_adapter(adapter_path, base_model) as adapter:
        written = write_adapter(adapter, Path(output_path), "auto", "output_path")
    return str(written.directory)


def write_adapter(
    adapter: AdapterTensors,
    output: Path,
    dtype: AdapterDtype,
    key: str,
    log_line: Callable[[str], None] = lambda text: None,
    more: Callable[[Path, ExportedAdapter], None] | None = None,
) -> ExportedAdapter:
    """Write the adapter. key: the config key of output, for errors. more: writes additional files
    into the directory before it gets its name."""
    if dtype not in get_args(AdapterDtype):
        raise ConfigurationError(f"dtype={dtype!r}: use one of {', '.join(get_args(AdapterDtype))}")
    check_free(output, key)
    directory = base_files.base_directory(adapter.base_model, weights=False)
    if adapter.copies():
        with_weights = base_files.base_directory(adapter.base_model, weights=True)
        check_copies(adapter, TensorFiles(with_weights))
    layout = _layout(adapter, torch.float32 if dtype == "auto" else getattr(torch, dtype))
    nbytes = sum(info.nbytes for info in layout.values())
    check_space(output, nbytes, key)
    name = models.load_path(adapter.base_model)
    if models.is_local_path(name):
        name = str(Path(name).absolute())
    written = ExportedAdapter(output.expanduser().absolute(), name, nbytes)
    with new_directory(output, key, log_line) as partial:
        write_tensors(partial / ADAPTER_FILE, layout, _content(adapter, layout))
        config = {**adapter.config, "base_model_name_or_path": name, "inference_mode": True}
        (partial / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n")
        base_files.copy_tokenizer(directory, partial)
        if more is not None:
            more(partial, written)
    return written


def _layout(adapter: AdapterTensors, dtype: torch.dtype) -> dict[str, TensorInfo]:
    rank, layout = adapter.spec.rank, {}
    for path, (out, into) in adapter.shapes.items():
        layout[f"{PREFIX}{path}.lora_A.weight"] = TensorInfo(dtype, (rank, into))
        layout[f"{PREFIX}{path}.lora_B.weight"] = TensorInfo(dtype, (out, rank))
    return {name: layout[name] for name in ordered(layout)}


def _content(
    adapter: AdapterTensors, layout: dict[str, TensorInfo]
) -> Iterator[tuple[str, list[torch.Tensor]]]:
    for name, info in layout.items():
        path, _, part = name.removeprefix(PREFIX).removesuffix(".weight").rpartition(".")
        tensor = adapter.pair(path)[0 if part == "lora_A" else 1]
        yield name, [tensor.to(info.dtype)]
