"""A base model with an adapter merged into it, as a Hugging Face model directory.

The files are written shard by shard, tensor by tensor: the memory needed is that of a few tensors
and of the shard that is being read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import torch

from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.service.adapter_tensors import AdapterTensors, open_adapter
from tinker_cookbook.utils.json_types import Json
from tinker_cookbook.weights import base_files
from tinker_cookbook.weights.merge_check import MergeCheck, check_merged
from tinker_cookbook.weights.merging import EMBEDDING, HEAD, MergePlan, merged_parts, plan_merge
from tinker_cookbook.weights.output_directory import check_free, check_space, new_directory
from tinker_cookbook.weights.tensor_files import (
    TensorFiles,
    TensorInfo,
    ordered,
    write_index,
    write_tensors,
)

Dtype = Literal["auto", "bfloat16", "float16", "float32"]
MergeStrategy = Literal["auto", "shard", "full"]
LogLine = Callable[[str], None]
Progress = Callable[[int], AbstractContextManager[Callable[[int], None]]]


class MergedModel(NamedTuple):
    """What was written. check: None if it was not asked for, or the model does not fit."""

    directory: Path
    dtype: str
    nbytes: int
    untied: bool
    check: MergeCheck | None


def build_hf_model(
    *,
    base_model: str | None,
    adapter_path: str,
    output_path: str,
    dtype: Dtype = "bfloat16",
    merge_strategy: MergeStrategy = "auto",
    check: bool = True,
) -> str:
    """Merge an adapter into its base model and write a Hugging Face model directory; returns it.

    adapter_path: tinker:// path of the local store, run directory or PEFT adapter directory.
    base_model: hub name, nano or directory (None: what the adapter names). merge_strategy: all
    values mean one shard at a time, with the same result. check: compare logprobs with those of
    base model and adapter, where they fit in memory. Raises subclasses of TinkerCookbookError; then
    nothing is left under output_path.
    """
    if merge_strategy not in get_args(MergeStrategy):
        raise ConfigurationError(
            f"merge_strategy={merge_strategy!r}: use one of {', '.join(get_args(MergeStrategy))}"
        )
    with open_adapter(adapter_path, base_model) as adapter:
        merged = write_merged(adapter, Path(output_path), dtype, check, "output_path")
    return str(merged.directory)


def write_merged(
    adapter: AdapterTensors,
    output: Path,
    dtype: Dtype,
    check: bool,
    key: str,
    log_line: LogLine = lambda text: None,
    progress: Progress | None = None,
    more: Callable[[Path, MergedModel], None] | None = None,
) -> MergedModel:
    """Write the merged model. key: the config key of output, for errors. more: writes additional
    files into the directory before it gets its name."""
    if dtype not in get_args(Dtype):
        raise ConfigurationError(f"dtype={dtype!r}: use one of {', '.join(get_args(Dtype))}")
    check_free(output, key)
    directory = base_files.base_directory(adapter.base_model, weights=True)
    config = base_files.read_config(directory)
    base = TensorFiles(directory)
    tied = base_files.is_tied(directory)
    plan = plan_merge(adapter, base, str(config.get("model_type")), tied)
    layouts = _layouts(base, plan, dtype, config)
    nbytes = sum(info.nbytes for layout in layouts.values() for info in layout.values())
    check_space(output, nbytes, key)
    with new_directory(output, key, log_line) as partial:
        with (progress or _no_progress)(nbytes) as advance:
            for name, layout in layouts.items():
                content = _content(base, name, layout, plan, adapter, advance)
                write_tensors(partial / name, layout, content)
        if base.is_sharded:
            write_index(partial, layouts)
        base_files.copy_small_files(directory, partial)
        named = _written_dtype(layouts, dtype, config)
        _write_config(config, partial, named, untied=plan.untied)
        result = check_merged(adapter, partial, named, log_line) if check else None
        merged = MergedModel(output.expanduser().absolute(), named, nbytes, plan.untied, result)
        if more is not None:
            more(partial, merged)
    return merged


def _layouts(
    base: TensorFiles, plan: MergePlan, dtype: Dtype, config: dict[str, Json]
) -> dict[str, dict[str, TensorInfo]]:
    """The tensors of each output file, in the files of the base model."""
    usual = config.get("dtype") or config.get("torch_dtype")
    layouts: dict[str, dict[str, TensorInfo]] = {}
    for file, tensors in base.files.items():
        layout = layouts[file] = {}
        for name, info in tensors.items():
            if name == HEAD and plan.untied:
                continue  # a file may hold the tied weight twice
            layout[name] = TensorInfo(_dtype_of(info, dtype, usual), info.shape)
            if name == EMBEDDING and plan.untied:
                layout[HEAD] = layout[name]
    return {
        file: {name: layout[name] for name in ordered(layout)} for file, layout in layouts.items()
    }


def _dtype_of(info: TensorInfo, dtype: Dtype, usual: Json) -> torch.dtype:
    if dtype == "auto" or not info.dtype.is_floating_point:
        return info.dtype
    # what a model of lower precision keeps in float32, such as DeepSeek's routing biases, stays so
    if info.dtype == torch.float32 and usual in ("bfloat16", "float16"):
        return info.dtype
    return getattr(torch, dtype)


def _content(
    base: TensorFiles,
    name: str,
    layout: dict[str, TensorInfo],
    plan: MergePlan,
    adapter: AdapterTensors,
    advance: Callable[[int], None],
) -> Iterator[tuple[str, Iterator[torch.Tensor]]]:
    with base.open(name) as file:
        for key, info in layout.items():
            source = EMBEDDING if key == HEAD and plan.untied else key
            tensor = file.get_tensor(source)
            deltas = plan.deltas.get(key, [])
            yield key, merged_parts(key, tensor, deltas, adapter, info.dtype)
            advance(info.nbytes)


def _written_dtype(
    layouts: dict[str, dict[str, TensorInfo]], dtype: Dtype, config: dict[str, Json]
) -> str:
    """The dtype for config.json: with auto, that of most of the weights."""
    if dtype != "auto":
        return dtype
    counts: dict[torch.dtype, int] = {}
    for layout in layouts.values():
        for info in layout.values():
            counts[info.dtype] = counts.get(info.dtype, 0) + info.nbytes
    return str(max(counts, key=counts.__getitem__)).removeprefix("torch.")


def _write_config(config: dict[str, Json], output: Path, dtype: str, untied: bool) -> None:
    content = {key: value for key, value in config.items() if key != "torch_dtype"}
    content["dtype"] = dtype
    if untied:
        content["tie_word_embeddings"] = False
    (output / base_files.CONFIG_FILE).write_text(json.dumps(content, indent=2) + "\n")


@contextmanager
def _no_progress(total: int) -> Iterator[Callable[[int], None]]:
    yield lambda count: None
