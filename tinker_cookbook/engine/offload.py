"""Offload adapters whose training is idle: from a GPU to CPU memory; on a CPU device, to disk.

Tensors offloaded from a GPU are never moved on to disk. What moves is a trainer's fp32 master
weights, accumulated gradient and optimizer moments; its low-precision copies are dropped and later
recreated from the master weights. An offloaded trainer is restored bit-exactly on its next use.
Sampling adapters are not offloaded: a new one that does not fit is rejected.
"""

from __future__ import annotations

import itertools
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from safetensors.torch import load_file, save_file

from tinker_cookbook.engine.lora import Adapter
from tinker_cookbook.engine.memory import GIB
from tinker_cookbook.exceptions import OutOfMemoryError

Tensors = dict[str, torch.Tensor]


class OffloadedTensors(NamedTuple):
    """A handle to offloaded tensors: `load` returns them, `drop` frees what they occupy."""

    load: Callable[[], Tensors]
    drop: Callable[[], object]


class Offloadable(Protocol):
    """What the offloader needs of an adapter in training."""

    size: int  # bytes: weights, gradient, optimizer state
    last_use: int  # see `AdapterOffloader.tick`

    @property
    def on_device(self) -> bool:
        """Whether its tensors are in the device's memory."""
        ...

    def offload(self) -> None:
        """Move its tensors out of the device's memory until it is used again."""
        ...


class AdapterOffloader:
    """Keeps the adapters of a base model within their memory budget on the device.

    `limit`: bytes for adapters in training (weights, gradients, optimizers). Sampling adapters have
    another `limit` bytes. The sets are weak, because only its owner knows whether a trainer or
    an adapter is still needed.
    """

    def __init__(self, device: torch.device, limit: int) -> None:
        self.device = device
        self.limit = limit
        self._trainers: weakref.WeakSet[Offloadable] = weakref.WeakSet()
        self._sampled: weakref.WeakSet[Adapter] = weakref.WeakSet()
        self._clock = itertools.count()
        # for tensors offloaded from a CPU device; deleted with this object
        self._directory: tempfile.TemporaryDirectory[str] | None = None

    def check(self, rank: int, size: int) -> None:
        """Raise OutOfMemoryError if a trainer of `size` bytes does not fit even alone."""
        if size > self.limit:
            raise OutOfMemoryError(
                f"LoRA rank={rank}: weights, gradient and optimizer need {size / GIB:.3f} GiB,"
                f" but adapters may use {self.limit / GIB:.3f} GiB:"
                " lower the rank or raise engine.adapter_gib"
            )

    def add(self, trainer: Offloadable) -> None:
        self._trainers.add(trainer)

    def tick(self) -> int:
        """Return the next logical timestamp, for least-recently-used order."""
        return next(self._clock)

    def make_room(self) -> None:
        """Offload the least recently used trainers until the others fit.

        Call it only between operations: a forward or backward pass references the weights in use.
        """
        on_device = sorted((t for t in self._trainers if t.on_device), key=lambda t: t.last_use)
        total = sum(trainer.size for trainer in on_device)
        # Keep the most recently used one: `check` ensured that it fits alone.
        for trainer in on_device[:-1]:
            if total <= self.limit:
                return
            trainer.offload()
            total -= trainer.size

    def store(self, tensors: Tensors, owner: Offloadable) -> OffloadedTensors:
        """Offload tensors to CPU memory or, on a CPU device, to disk; freed with `owner`."""
        if self.device.type != "cpu":
            offloaded = {name: tensor.to("cpu") for name, tensor in tensors.items()}
            return OffloadedTensors(
                lambda: {name: tensor.to(self.device) for name, tensor in offloaded.items()},
                lambda: None,
            )
        if self._directory is None:
            self._directory = tempfile.TemporaryDirectory(prefix="adapters-")
        file = Path(self._directory.name) / f"{next(self._clock)}.safetensors"  # never used twice
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)
        # deletes the file when called or when the owner is garbage-collected, whichever is first
        delete_file = weakref.finalize(owner, file.unlink, missing_ok=True)
        return OffloadedTensors(lambda: load_file(file), delete_file)

    def admit(self, adapter: Adapter) -> Adapter:
        """Register a sampling adapter; raises OutOfMemoryError if it does not fit."""
        size = sum(tensor.nbytes for tensor in adapter.copies.values())
        in_use = sum(t.nbytes for sampled in self._sampled for t in sampled.copies.values())
        if in_use + size > self.limit:
            raise OutOfMemoryError(
                f"another sampling adapter needs {size / GIB:.3f} GiB, but the"
                f" {len(self._sampled)} in use take {in_use / GIB:.3f} of {self.limit / GIB:.3f}"
                " GiB: release sampling clients or raise engine.adapter_gib"
            )
        self._sampled.add(adapter)
        return adapter
