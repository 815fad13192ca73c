"""Adapters in training that are idle make room: from a GPU to the CPU's memory, from there to disk.

What is offloaded comes back by itself when its run goes on. Nothing about the numbers changes.
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
    """Tensors that were moved out of the way: how to get them, and how to forget them."""

    load: Callable[[], Tensors]
    drop: Callable[[], object]


class Offloadable(Protocol):
    """An adapter in training, as far as memory goes."""

    size: int  # bytes: weights, gradient, optimizer
    last_use: int

    @property
    def on_device(self) -> bool:
        """Whether all of it is in the device's memory."""
        ...

    def offload(self) -> None:
        """Move all of it elsewhere, until it is used again."""
        ...


class AdapterOffloader:
    """Which trainers and which adapters to sample from a device's memory holds, for a base model.

    `limit` bytes are for the trainers (weights, gradients, optimizers), as many for the others.
    """

    def __init__(self, device: torch.device, limit: int) -> None:
        self.device = device
        self.limit = limit
        self._trainers: weakref.WeakSet[Offloadable] = weakref.WeakSet()
        self._sampled: weakref.WeakSet[Adapter] = weakref.WeakSet()
        self._clock = itertools.count()
        self._directory: tempfile.TemporaryDirectory[str] | None = None

    def check(self, rank: int, size: int) -> None:
        """Refuse a trainer of `size` bytes that would not fit even alone."""
        if size > self.limit:
            raise OutOfMemoryError(
                f"LoRA rank={rank}: weights, gradient and optimizer need {size / GIB:.3f} GiB,"
                f" adapters may take {self.limit / GIB:.3f} GiB:"
                " lower the rank or raise engine.adapter_gib"
            )

    def add(self, trainer: Offloadable) -> None:
        self._trainers.add(trainer)

    def tick(self) -> int:
        """A number for each use of a trainer; the lowest was used longest ago."""
        return next(self._clock)

    def make_room(self) -> None:
        """Park those idle for longest until the others fit. Between two operations only."""
        on_device = sorted((t for t in self._trainers if t.on_device), key=lambda t: t.last_use)
        total = sum(trainer.size for trainer in on_device)
        for trainer in on_device[:-1]:  # the last one was used just now
            if total <= self.limit:
                return
            trainer.offload()
            total -= trainer.size

    def store(self, tensors: Tensors, owner: Offloadable) -> OffloadedTensors:
        """Move tensors out of the way."""
        if self.device.type != "cpu":
            offloaded = {name: tensor.to("cpu") for name, tensor in tensors.items()}
            return OffloadedTensors(
                lambda: {name: tensor.to(self.device) for name, tensor in offloaded.items()},
                lambda: None,
            )
        if self._directory is None:
            self._directory = tempfile.TemporaryDirectory(prefix="adapters-")
        file = Path(self._directory.name) / f"{next(self._clock)}.safetensors"
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)
        forget = weakref.finalize(owner, file.unlink, missing_ok=True)
        return OffloadedTensors(lambda: load_file(file), forget)

    def admit(self, adapter: Adapter) -> Adapter:
        """Take in an adapter to sample from; refused if those in use no longer fit."""
        size = sum(tensor.nbytes for tensor in adapter.copy.values())
        held = sum(t.nbytes for each in self._sampled for t in each.copy.values())
        if held + size > self.limit:
            raise OutOfMemoryError(
                f"one more adapter to sample from needs {size / GIB:.3f} GiB, the"
                f" {len(self._sampled)} in use hold {held / GIB:.3f} GiB and may hold"
                f" {self.limit / GIB:.3f} GiB: let go of sampling clients or raise"
                " engine.adapter_gib"
            )
        self._sampled.add(adapter)
        return adapter
