"""Rows of one or several runs through the model: forward, and forward with gradients.

Each run brings its own adapter, loss and rows; they share passes over the base model, nothing else.
A call happens whole or leaves every run as it was; one whose loss is not finite does not happen.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from tinker_cookbook.engine import finite
from tinker_cookbook.engine.attention import PackedPlan
from tinker_cookbook.engine.base_model import BaseModel
from tinker_cookbook.engine.lora import Adapter, AdapterRows
from tinker_cookbook.engine.losses import Loss
from tinker_cookbook.engine.packing import PackedBatch, Pass, pack
from tinker_cookbook.engine.requests import TrainResult, TrainSequence


class InTraining(Protocol):
    """A run, as far as a pass over its rows goes."""

    @property
    def base(self) -> BaseModel: ...

    @property
    def adapter(self) -> Adapter: ...

    @property
    def size(self) -> int:
        """Bytes of its weights, gradient and optimizer."""
        ...

    def accumulate(self, grads: dict[str, torch.Tensor]) -> None:
        """Add gradients to those of the step."""
        ...


@dataclass(frozen=True)
class Work:
    """Checked rows of one trainer and the loss on them; made by `AdapterTrainer.work`."""

    trainer: InTraining
    rows: Sequence[TrainSequence]
    loss: Loss

    @property
    def tokens(self) -> int:
        return sum(row.length for row in self.rows)


def forward(works: Sequence[Work]) -> list[TrainResult]:
    """Logprobs and loss of each work. All trainers stand on the same base model."""
    head = works[0].trainer.base.head
    results = [_Collector(work) for work in works]
    with torch.no_grad():
        for each in _passes(works):
            for part, hidden in zip(each.parts, _hidden(works, each)):
                work = works[part.request]
                logprobs = head.logprobs(
                    hidden, part.targets, work.trainer.adapter, work.loss.temperature
                )
                if part.uses is not None:
                    logprobs = logprobs[part.uses]
                value = work.loss.value(logprobs, part.inputs)
                results[part.request].add(part, logprobs, value, value)
    return [result.finish() for result in results]


def forward_backward(works: Sequence[Work]) -> list[TrainResult]:
    """As forward, and adds the gradient of each work's summed loss to its trainer's.

    No trainer may appear twice.
    """
    results = [_Collector(work) for work in works]
    grads = [_Gradients(work.trainer.adapter) for work in works]
    try:
        for each in _passes(works):
            hidden, slopes = _hidden(works, each), []
            for part, own in zip(each.parts, hidden):
                work = works[part.request]
                head = work.trainer.base.head.backward(
                    own.detach(),
                    part.targets,
                    part.inputs,
                    work.loss,
                    work.trainer.adapter,
                    part.uses,
                )
                results[part.request].add(part, head.logprobs, head.loss, head.slope)
                grads[part.request].head = head.adapter
                slopes.append(head.hidden)
            if any(own.requires_grad for own in hidden):  # not if only unembeddings are trained
                torch.autograd.backward(hidden, slopes)
            for part in each.parts:
                grads[part.request].collect()
    finally:
        for work in works:
            for copy in work.trainer.adapter.copy.values():
                copy.grad = None
    outcome = [result.finish() for result in results]
    for work, own in zip(works, grads):
        work.trainer.accumulate(own.sums)
    return outcome


def _passes(works: Sequence[Work]) -> Iterator[Pass]:
    base = works[0].trainer.base
    return pack([work.rows for work in works], base.tokens_per_pass, base.device)


def _hidden(works: Sequence[Work], each: Pass) -> list[torch.Tensor]:
    """The hidden states that the head reads, for each part of the pass."""
    rows = [
        AdapterRows(works[part.request].trainer.adapter, span.start, span.stop)
        for part, span in zip(each.parts, each.spans)
    ]
    base = works[0].trainer.base
    hidden = base.hidden(each.tokens, each.positions, PackedPlan(each.segments), rows)
    parts = hidden.split([len(part.tokens) for part in each.parts])
    return [
        own if part.head_tokens is None else own[part.head_tokens]
        for part, own in zip(each.parts, parts)
    ]


class _Gradients:
    """Sums the gradients of an adapter over the passes of a call, in fp32."""

    def __init__(self, adapter: Adapter) -> None:
        self.adapter = adapter
        self.sums: dict[str, torch.Tensor] = {}
        self.head: dict[str, torch.Tensor] = {}  # what the head found in the current pass

    def collect(self) -> None:
        """Take up the gradients of one pass and clear the copies'."""
        for name, copy in self.adapter.copy.items():
            grad = self.head.get(name, copy.grad)
            copy.grad = None
            if grad is None:
                grad = torch.zeros_like(copy)
            if name in self.sums:
                self.sums[name] += grad
            else:
                self.sums[name] = grad.float()


class _Collector:
    """Puts the passes' results back into the order of the request."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.logprobs: list[np.ndarray] = [np.empty(0, np.float32)] * len(work.rows)
        self.loss = 0.0

    def add(
        self, batch: PackedBatch, logprobs: torch.Tensor, loss: torch.Tensor, slope: torch.Tensor
    ) -> None:
        """Refuses what is not finite. `slope`: a scalar that is not if any derivative is not: a
        clipped ratio may overflow to a finite loss whose gradient is NaN."""
        values = logprobs.cpu().numpy()
        value, steepness = torch.stack([loss, slope]).tolist()
        if not math.isfinite(value + steepness + float(values.sum())):
            raise finite.refusal(self.work.loss, logprobs, batch.inputs)
        for index, part in zip(batch.rows, batch.split(values, self.work.rows)):
            self.logprobs[index] = part
        self.loss += value

    def finish(self) -> TrainResult:
        return TrainResult(self.logprobs, {"loss:sum": self.loss})
