"""W + scale * B A in fp32, one tensor of the base model's files at a time.

The engine names the layers of experts one by one, `<experts>.{e}.gate_proj`. Files store them under
the same names, or stacked:

    gate_up_proj [E, 2I, H], down_proj [E, H, I]    gate, then up
    gate_up_proj [E, H, 2I], down_proj [E, I, H]    gpt-oss: gate and up interleaved
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import torch

from tinker_cookbook.exceptions import WeightsMergeError
from tinker_cookbook.service.adapter_tensors import UNEMBED, AdapterTensors
from tinker_cookbook.weights.tensor_files import TensorFiles, TensorInfo

EMBEDDING, HEAD = "model.embed_tokens.weight", f"{UNEMBED}.weight"
_EXPERT = re.compile(r"(.*\.experts)\.(\d+)\.(gate|up|down)_proj")
_INTERLEAVED = ("gpt_oss",)  # values of model_type
_BLOCK = 2**23  # elements that are merged at once: 32 MiB in float32

Shape = tuple[int, ...]
Part = Callable[[torch.Tensor], torch.Tensor]  # a view [out, in] of one tensor of the base


class Delta(NamedTuple):
    """A layer's product, and the part of a tensor to which it is added (`expert`: of that index
    of the first dimension)."""

    path: str
    part: Part
    expert: int | None = None


class MergePlan(NamedTuple):
    """Which deltas go to which tensor of the base. untied: lm_head.weight is a new tensor, made
    from the input embeddings, because the adapter covers the unembedding of a tied model."""

    deltas: Mapping[str, list[Delta]]
    untied: bool


def plan_merge(
    adapter: AdapterTensors, base: TensorFiles, model_type: str, tied: bool
) -> MergePlan:
    """Find the place of each of the adapter's layers.

    WeightsMergeError if the base model lacks a layer or has it in another shape, or if the adapter
    holds a trained copy of the embeddings.
    """
    untied = tied and UNEMBED in adapter.shapes
    tensors = dict(base.tensors)
    if untied and EMBEDDING in tensors:
        tensors[HEAD] = tensors[EMBEDDING]
    deltas: dict[str, list[Delta]] = {}
    for path, shape in adapter.shapes.items():
        name, delta, expected = _place(path, shape, tensors, model_type in _INTERLEAVED)
        found = tensors.get(name)
        if found is None or found.shape != expected(found):
            reason = "does not have it" if found is None else f"has {list(found.shape)}"
            raise WeightsMergeError(
                f"the adapter has {path!r} [out, in] = {list(shape)}, but the base model"
                f" {adapter.base_model} ({base.directory}) {reason}: it was trained on another"
                " model; set base_model= to that one"
            )
        deltas.setdefault(name, []).append(delta)
    check_copies(adapter, base)
    return MergePlan(deltas, untied)


def merged_parts(
    name: str,
    tensor: torch.Tensor,
    deltas: list[Delta],
    adapter: AdapterTensors,
    dtype: torch.dtype,
) -> Iterator[torch.Tensor]:
    """The tensor of that name with its deltas, computed in fp32 and rounded once, in consecutive
    parts: stacked experts one by one, other tensors in blocks of rows. WeightsMergeError for a
    number that dtype cannot hold."""
    if deltas and deltas[0].expert is not None:
        for index, expert in enumerate(tensor):
            weight = expert.to(torch.float32, copy=True)
            for delta in deltas:
                if delta.expert == index:
                    a, b = adapter.pair(delta.path)
                    delta.part(weight).addmm_(b, a, alpha=adapter.spec.scale)
            yield _rounded(weight, dtype, name)
        return
    pair = adapter.pair(deltas[0].path) if deltas else None
    tensor = tensor.reshape(1) if tensor.ndim == 0 else tensor
    for rows in _blocks(tensor):
        weight = tensor[rows]
        if pair is not None:
            a, b = pair
            weight = weight.to(torch.float32, copy=True)
            weight.addmm_(b[rows], a, alpha=adapter.spec.scale)
        yield _rounded(weight, dtype, name)


def _blocks(tensor: torch.Tensor) -> Iterator[slice]:
    """Slices of the first dimension of about _BLOCK elements, so that a large vocabulary needs no
    float32 copy of the whole embedding."""
    rows = max(_BLOCK * len(tensor) // max(tensor.numel(), 1), 1)
    for start in range(0, len(tensor), rows):
        yield slice(start, start + rows)


def _rounded(tensor: torch.Tensor, dtype: torch.dtype, name: str) -> torch.Tensor:
    if tensor.dtype == dtype and not dtype.is_floating_point:
        return tensor
    out = tensor.to(dtype)
    if not bool(torch.isfinite(out).all()):
        raise WeightsMergeError(
            f"{name!r} is not finite in {str(dtype).removeprefix('torch.')}: use dtype=float32 or"
            " bfloat16; if it persists, the base model or the adapter is not finite"
        )
    return out


def _place(
    path: str, shape: tuple[int, int], tensors: Mapping[str, TensorInfo], interleaved: bool
) -> tuple[str, Delta, Callable[[TensorInfo], Shape]]:
    """The tensor that a layer belongs to, the part of it, and the shape that it must have."""
    name, match = f"{path}.weight", _EXPERT.fullmatch(path)
    if match is None or name in tensors:
        return name, Delta(path, _whole), lambda found: shape
    experts, expert, kind = match[1], int(match[2]), match[3]
    out, into = shape
    rows = out if kind == "down" else 2 * out
    one = (into, rows) if interleaved else (rows, into)

    def expected(found: TensorInfo) -> Shape:
        count = found.shape[0] if found.shape else 0
        return (max(count, expert + 1), *one)

    stacked = f"{experts}.{'down_proj' if kind == 'down' else 'gate_up_proj'}"
    return stacked, Delta(path, _part_of(kind, out, interleaved), expert), expected


def _whole(weight: torch.Tensor) -> torch.Tensor:
    return weight


def _part_of(kind: str, out: int, interleaved: bool) -> Part:
    def part(weight: torch.Tensor) -> torch.Tensor:
        rows = weight.t() if interleaved else weight
        if kind == "down":
            return rows
        if interleaved:
            return rows[0::2] if kind == "gate" else rows[1::2]
        return rows[:out] if kind == "gate" else rows[out:]

    return part


def check_copies(adapter: AdapterTensors, base: TensorFiles) -> None:
    """PEFT saves copies of the embeddings beside an adapter on lm_head; a copy that differs was
    trained or resized."""
    for name, copy in adapter.copies().items():
        key = name if name in base.tensors else EMBEDDING if name == HEAD else name
        if key in base.tensors:
            expected = base.read(key)
            if copy.shape == expected.shape and torch.equal(copy.to(expected.dtype), expected):
                continue
        raise WeightsMergeError(
            f"{adapter.directory}: {name!r} differs from the base model's: it was trained or"
            " resized, but only adapters can be merged; merge it with peft"
        )
