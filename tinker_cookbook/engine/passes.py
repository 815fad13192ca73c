"""Forward and backward passes of one or several runs together.

Each run has its own adapter, loss and sequences; runs share passes over the base model and nothing
else. A call is atomic: gradients reach the trainers only after the last pass, so a call that fails
(out of memory, or a loss that is not finite) leaves every run as it was.
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
from tinker_cookbook.engine.lora import Adapter, AdapterSpan
from tinker_cookbook.engine.losses import Loss
from tinker_cookbook.engine.packing import PackedBatch, Pass, pack
from tinker_cookbook.engine.requests import TrainResult, TrainSequence


class Trainable(Protocol):
    """What a pass needs of a run's trainer."""

    @property
    def base(self) -> BaseModel: ...

    @property
    def adapter(self) -> Adapter: ...

    @property
    def size(self) -> int:
        """Bytes of its weights, gradient and optimizer state."""
        ...

    def accumulate(self, grads: dict[str, torch.Tensor]) -> None:
        """Add gradients to those of the current step."""
        ...


@dataclass(frozen=True)
class Work:
    """Checked sequences of one trainer and their loss; made by `AdapterTrainer.prepare_work`."""

    trainer: Trainable
    sequences: Sequence[TrainSequence]
    loss: Loss

    @property
    def tokens(self) -> int:
        return sum(sequence.length for sequence in self.sequences)


def forward(works: Sequence[Work]) -> list[TrainResult]:
    """Compute the logprobs and loss of each work, on one base model, without gradients."""
    head = works[0].trainer.base.head
    results = [_ResultCollector(work) for work in works]
    with torch.no_grad():
        for packed in _pack_passes(works):
            for part, hidden in zip(packed.parts, _hidden_states(works, packed)):
                work = works[part.request]
                logprobs = head.logprobs(
                    hidden, part.targets, work.trainer.adapter, work.loss.temperature
                )
                if part.head_index is not None:
                    logprobs = logprobs[part.head_index]
                value = work.loss.value(logprobs, part.inputs)
                results[part.request].add(part, logprobs, value, value)
    return [result.finish() for result in results]


def forward_backward(works: Sequence[Work]) -> list[TrainResult]:
    """As `forward`, and add the gradient of each work's summed loss to its trainer's.

    No trainer may appear twice.
    """
    results = [_ResultCollector(work) for work in works]
    # kept here until all passes are done, so that a failure leaves the trainers' gradients alone
    grads = [_GradientSum(work.trainer.adapter) for work in works]
    try:
        for packed in _pack_passes(works):
            hidden, d_hidden = _hidden_states(works, packed), []
            for part, part_hidden in zip(packed.parts, hidden):
                work = works[part.request]
                # The head differentiates itself, down to the hidden states: its logits must not
                # outlive a chunk. Autograd takes over from there.
                head = work.trainer.base.head.backward(
                    part_hidden.detach(),
                    part.targets,
                    part.inputs,
                    work.loss,
                    work.trainer.adapter,
                    part.head_index,
                )
                results[part.request].add(part, head.logprobs, head.loss, head.grad_sum)
                grads[part.request].head = head.adapter
                d_hidden.append(head.hidden)
            # no hidden state requires a gradient if only unembeddings are trained
            if any(part_hidden.requires_grad for part_hidden in hidden):
                torch.autograd.backward(hidden, d_hidden)
            for part in packed.parts:
                grads[part.request].collect()
    finally:  # a pass that failed halfway must not leak gradients into the next call
        for work in works:
            for copy in work.trainer.adapter.copies.values():
                copy.grad = None
    outcome = [result.finish() for result in results]
    for work, gradients in zip(works, grads):
        work.trainer.accumulate(gradients.sums)
    return outcome


def _pack_passes(works: Sequence[Work]) -> Iterator[Pass]:
    base = works[0].trainer.base
    return pack([work.sequences for work in works], base.tokens_per_pass, base.device)


def _hidden_states(works: Sequence[Work], packed: Pass) -> list[torch.Tensor]:
    """The hidden states [D, H] that the head reads, for each part of the pass."""
    adapters = [
        AdapterSpan(works[part.request].trainer.adapter, span.start, span.stop)
        for part, span in zip(packed.parts, packed.spans)
    ]
    base = works[0].trainer.base
    hidden = base.hidden(packed.tokens, packed.positions, PackedPlan(packed.segments), adapters)
    parts = hidden.split([len(part.tokens) for part in packed.parts])
    return [
        part_hidden if part.head_tokens is None else part_hidden[part.head_tokens]
        for part, part_hidden in zip(packed.parts, parts)
    ]


class _GradientSum:
    """Sums an adapter's gradients over the passes of a call, in fp32.

    Autograd accumulates into `.grad` in the copies' dtype, in which many small terms would be lost.
    """

    def __init__(self, adapter: Adapter) -> None:
        self.adapter = adapter
        self.sums: dict[str, torch.Tensor] = {}
        self.head: dict[str, torch.Tensor] = {}  # gradients from the head's current pass

    def collect(self) -> None:
        """Add the gradients of one pass, and clear those of the copies."""
        for name, copy in self.adapter.copies.items():
            grad = self.head.get(name, copy.grad)
            copy.grad = None
            if grad is None:  # e.g. an expert that no token chose
                grad = torch.zeros_like(copy)
            if name in self.sums:
                self.sums[name] += grad
            else:
                self.sums[name] = grad.float()


class _ResultCollector:
    """Puts the results of the passes back into the order of the request."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.logprobs: list[np.ndarray] = [np.empty(0, np.float32)] * len(work.sequences)
        self.loss = 0.0

    def add(
        self, batch: PackedBatch, logprobs: torch.Tensor, loss: torch.Tensor, grad_sum: torch.Tensor
    ) -> None:
        """Add the results of a batch. Raises if anything is not finite.

        `grad_sum` is the sum of all derivatives. It is checked as well as the loss, because a
        ratio that overflows may be clipped to a finite loss whose gradient is NaN.
        """
        values = logprobs.cpu().numpy()
        # one transfer for both scalars
        loss_value, grad_value = torch.stack([loss, grad_sum]).tolist()
        # a sum is not finite if any of its terms is not
        if not math.isfinite(loss_value + grad_value + float(values.sum())):
            raise finite.refusal(self.work.loss, logprobs, batch.inputs)
        for index, part in zip(batch.sequence_indices, batch.split(values, self.work.sequences)):
            self.logprobs[index] = part
        self.loss += loss_value

    def finish(self) -> TrainResult:
        return TrainResult(self.logprobs, {"loss:sum": self.loss})
