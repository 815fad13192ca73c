"""Offload idle adapters in training: from a GPU to CPU memory, from a CPU to disk.

It is one move, never both: what a GPU offloads stays in CPU memory. Three kinds of tensors of a
trainer move: fp32 masters, the accumulated gradient, and the optimizer's moments. The compute
copies are dropped and made again from the masters. An offloaded trainer is restored when it is next
used, bit for bit the same. Adapters to sample from are not offloaded: if they do not fit, a new one
is refused.
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
    """Keeps the adapters of a base model within the device's memory.

    `limit` bytes are for adapters in training (weights, gradients, optimizers), and as many again
    for adapters to sample from. Whether a trainer or an adapter is still needed is known to its
    owner alone, so the sets are weak.
    """

    def __init__(self, device: torch.device, limit: int) -> None:
        self.device = device
        self.limit = limit
        self._trainers: weakref.WeakSet[Offloadable] = weakref.WeakSet()
        self._sampled: weakref.WeakSet[Adapter] = weakref.WeakSet()
        self._clock = itertools.count()
        # of offloaded tensors on a CPU device; deleted with this object
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
        """A logical timestamp of a use, for least-recently-used order."""
        return next(self._clock)

    def make_room(self) -> None:
        """Offload the least recently used trainers until the others fit.

        Call it only between two operations: a pass holds references to the copies it uses.
        """
        on_device = sorted((t for t in self._trainers if t.on_device), key=lambda t: t.last_use)
        total = sum(trainer.size for trainer in on_device)
        # the last one was used just now; `check` made sure that it fits alone
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
        # deletes the file once: when it is called, or when the owner is gone (a dropped run)
        delete_file = weakref.finalize(owner, file.unlink, missing_ok=True)
        return OffloadedTensors(lambda: load_file(file), delete_file)

    def admit(self, adapter: Adapter) -> Adapter:
        """Register an adapter to sample from; raises OutOfMemoryError if it does not fit."""
        size = sum(tensor.nbytes for tensor in adapter.copies.values())
        in_use = sum(t.nbytes for sampled in self._sampled for t in sampled.copies.values())
        if in_use + size > self.limit:
            raise OutOfMemoryError(
                f"another adapter to sample from needs {size / GIB:.3f} GiB, but the"
                f" {len(self._sampled)} in use take {in_use / GIB:.3f} of {self.limit / GIB:.3f}"
                " GiB: release sampling clients or raise engine.adapter_gib"
            )
        self._sampled.add(adapter)
        return adapter
