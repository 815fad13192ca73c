"""Safetensors files of a model: what they contain, and a writer that needs one tensor at a time."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch
from safetensors import safe_open

from tinker_cookbook.exceptions import WeightsError
from tinker_cookbook.utils.error_text import first_line

INDEX_FILE, SINGLE_FILE = "model.safetensors.index.json", "model.safetensors"

# names of dtypes in the header, https://github.com/huggingface/safetensors
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


class TensorInfo(NamedTuple):
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


Layout = Mapping[str, TensorInfo]


class TensorFiles:
    """The weight files of a model directory. files: file name -> tensors, in the file's order."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        names = _file_names(directory)
        self.files: dict[str, dict[str, TensorInfo]] = {}
        for name in names:
            with self.open(name) as file:
                keys = file.keys()
                self.files[name] = {key: _info(file, key, directory / name) for key in keys}
        self.tensors = {key: info for file in self.files.values() for key, info in file.items()}

    @property
    def is_sharded(self) -> bool:
        return list(self.files) != [SINGLE_FILE]

    @contextmanager
    def open(self, name: str) -> Iterator[Any]:
        """A safetensors handle. WeightsError if the file is damaged or missing."""
        path = self.directory / name
        try:
            file = safe_open(path, framework="pt")
        except Exception as error:  # safetensors raises its own type, OSError or ValueError
            raise WeightsError(f"{path} cannot be read: {first_line(error)}") from error
        with file:
            yield file

    def read(self, key: str) -> torch.Tensor:
        name = next(name for name, tensors in self.files.items() if key in tensors)
        with self.open(name) as file:
            return file.get_tensor(key)


def _file_names(directory: Path) -> list[str]:
    # transformers, too, prefers the single file
    if (directory / SINGLE_FILE).is_file():
        return [SINGLE_FILE]
    index = directory / INDEX_FILE
    if not index.is_file():
        raise WeightsError(
            f"{directory} has neither {SINGLE_FILE} nor {INDEX_FILE}: only safetensors can be"
            " merged; load the model in transformers and save it again"
        )
    try:
        return sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{index} cannot be read: {error!r}") from error


def _info(file: Any, key: str, path: Path) -> TensorInfo:
    part = file.get_slice(key)
    if part.get_dtype() not in _DTYPES:
        raise WeightsError(
            f"{path}: {key!r} has dtype {part.get_dtype()}: quantized weights cannot be merged;"
            " use a copy of the model in bfloat16, or format=peft"
        )
    return TensorInfo(_DTYPES[part.get_dtype()], tuple(part.get_shape()))


def write_tensors(
    path: Path, layout: Layout, content: Iterable[tuple[str, Iterable[torch.Tensor]]]
) -> None:
    """Write a safetensors file in one pass, with the permissions of any new file.

    content: the tensors in the order of `ordered(layout)`, each as consecutive parts.
    """
    names = ordered(layout)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name in names:
        info = layout[name]
        stop = start + info.nbytes
        header[name] = {
            "dtype": _NAMES[info.dtype],
            "shape": list(info.shape),
            "data_offsets": [start, stop],
        }
        start = stop
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data begin at a multiple of 8
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, (given, parts) in zip(names, content, strict=True):
            assert name == given, f"{given} is out of order: {name} is next"
            written = sum(_write(file, part, layout[name].dtype) for part in parts)
            assert written == layout[name].nbytes, f"{name}: {written} bytes"


def _write(file: IO[bytes], tensor: torch.Tensor, dtype: torch.dtype) -> int:
    assert tensor.dtype == dtype
    data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
    return file.write(data.data)


def ordered(layout: Layout) -> list[str]:
    """Names in the order in which safetensors itself writes them: wide dtypes first, so that every
    tensor is aligned, then by name."""
    return sorted(layout, key=lambda name: (-layout[name].dtype.itemsize, name))


def write_index(directory: Path, files: Mapping[str, Layout]) -> None:
    """The index of a model in several files."""
    total = sum(info.nbytes for layout in files.values() for info in layout.values())
    weight_map = {name: file for file, layout in files.items() for name in layout}
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (directory / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n")
