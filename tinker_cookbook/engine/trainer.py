"""Training of one adapter: forward, forward_backward, optim_step."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from tinker_cookbook.engine import losses, passes
from tinker_cookbook.engine.base_model import BaseModel
from tinker_cookbook.engine.lora import Adapter, LoraSpec
from tinker_cookbook.engine.offload import OffloadedTensors
from tinker_cookbook.engine.passes import Work
from tinker_cookbook.engine.requests import AdamConfig, CustomLoss, TrainResult, TrainSequence
from tinker_cookbook.engine.token_ids import check_tokens
from tinker_cookbook.exceptions import DataValidationError, TrainingError

Tensors = dict[str, torch.Tensor]
MOMENTS = ("exp_avg", "exp_avg_sq")


class AdapterTrainer:
    """One adapter in training: its weights, accumulated gradient and optimizer.

    A call that fails leaves weights and optimizer as they were. A step that fails also drops the
    gradient.
    """

    def __init__(self, base: BaseModel, spec: LoraSpec) -> None:
        self.base = base
        self.spec = spec
        count = spec.count_parameters(base.shapes)
        copies = 0 if base.dtype == torch.float32 else base.dtype.itemsize
        self.size = count * (16 + copies)  # bytes: fp32 weights, gradient, two moments; and copies
        base.offloader.check(spec.rank, self.size)  # before any memory is allocated
        self._adapter = base.new_adapter(spec)
        self.grads: Tensors | None = None  # fp32, since the last optimizer step
        self._optimizer = torch.optim.AdamW(
            [tensor.requires_grad_() for tensor in self._adapter.master.values()],
            lr=0.0,
            fused=True,  # one kernel for all tensors takes half the time on a CPU
        )
        self._offloaded: OffloadedTensors | None = None  # set while offloaded
        self.last_use = base.offloader.tick()
        base.offloader.add(self)

    @property
    def adapter(self) -> Adapter:
        self.restore()
        return self._adapter

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        self.restore()
        return self._optimizer

    @property
    def on_device(self) -> bool:
        """Whether weights, gradient and optimizer are in the device's memory."""
        return self._offloaded is None

    def offload(self) -> None:
        """Move all tensors out of the device's memory, until `restore`."""
        if self.on_device:
            self._offloaded = self.base.offloader.store(self._tensors(), self)
            # empty tensors in their place: the optimizer must keep the same master objects
            self._replace_tensors(
                {name: torch.empty(0, dtype=torch.float32) for name in self._tensors()}
            )
            self._adapter.copies = {}

    def restore(self) -> None:
        """Bring all tensors back into the device's memory, and record the use of the trainer."""
        self.last_use = self.base.offloader.tick()
        if self._offloaded is not None:
            self._replace_tensors(self._offloaded.load())
            # if memory runs out here, the trainer stays offloaded and nothing is lost
            self._adapter.make_copies(self.base.dtype)
            self._offloaded.drop()
            self._offloaded = None

    def _tensors(self) -> Tensors:
        """Weights, gradient and the optimizer's moments by name."""
        tensors = {
            f"master.{name}": tensor.detach() for name, tensor in self._adapter.master.items()
        }
        tensors |= {f"grads.{name}": tensor for name, tensor in (self.grads or {}).items()}
        for name, tensor in self._adapter.master.items():
            state = self._optimizer.state.get(tensor, {})
            # missing before the first step
            tensors |= {f"{m}.{name}": state[m] for m in MOMENTS if m in state}
        return tensors

    def _replace_tensors(self, tensors: Tensors) -> None:
        """Replace the tensors of `_tensors()` by name.

        The optimizer's state is keyed by master objects, so their data is replaced, not the object.
        """
        for name, tensor in tensors.items():
            kind, _, name = name.partition(".")
            master = self._adapter.master[name]
            if kind == "master":
                master.data = tensor.to(master.dtype)
            elif kind == "grads":
                assert self.grads is not None
                self.grads[name] = tensor
            else:
                self._optimizer.state[master][kind] = tensor

    def reset(self) -> None:
        """Drop the gradient and the optimizer's state; the weights stay."""
        self.restore()
        self.grads = None
        self.optimizer.state.clear()

    def prepare_work(
        self,
        sequences: Sequence[TrainSequence],
        loss_fn: str,
        config: Mapping[str, float | str] | None,
    ) -> Work:
        """Check sequences and loss, and return the work that `passes` computes."""
        loss = losses.get_loss(loss_fn, config)
        self._check_sequences(sequences, loss)
        return Work(self, sequences, loss)

    def forward(
        self,
        sequences: Sequence[TrainSequence],
        loss_fn: str,
        config: Mapping[str, float | str] | None,
    ) -> TrainResult:
        """Logprobs of the targets and the loss, without a gradient."""
        return passes.forward([self.prepare_work(sequences, loss_fn, config)])[0]

    def forward_backward(
        self,
        sequences: Sequence[TrainSequence],
        loss_fn: str,
        config: Mapping[str, float | str] | None,
    ) -> TrainResult:
        """As `forward`, and add the gradient of the summed loss to the adapter's."""
        return passes.forward_backward([self.prepare_work(sequences, loss_fn, config)])[0]

    def forward_backward_custom(
        self, sequences: Sequence[TrainSequence], function: CustomLoss
    ) -> TrainResult:
        """As `forward_backward`, with a differentiable function of all sequences' logprobs.

        If the sequences fit into one pass, they go through the model once. Otherwise a forward
        comes first, because the function needs all logprobs before any derivative is known; the
        second pass then trains a linear loss with these derivatives as weights.
        """
        sequences = [dataclasses.replace(sequence, inputs={}) for sequence in sequences]
        custom = _CustomLossAdapter(function)
        loss = losses.Loss("custom", custom, (), elementwise=False, several_targets=True)
        self._check_sequences(sequences, loss)
        work = Work(self, sequences, loss)
        # within the budget there is one pass: shared prefixes only make it smaller
        if work.tokens > self.base.tokens_per_pass:
            linear = losses.LOSSES["cross_entropy"]
            zeros = _with_weights(
                sequences, [np.zeros(sequence.targets.shape, np.float32) for sequence in sequences]
            )
            logprobs = passes.forward([Work(self, zeros, linear)])[0].logprobs
            work = Work(self, _with_weights(sequences, custom.linear_weights(logprobs)), linear)
        (result,) = passes.forward_backward([work])
        return TrainResult(result.logprobs, custom.metrics)

    def accumulate(self, grads: Tensors) -> None:
        """Add gradients (fp32, one for each tensor of the adapter) to those of the current step."""
        if self.grads is None:  # takes the tensors over, without a copy
            self.grads = grads
        else:
            for name, grad in grads.items():
                self.grads[name] += grad

    def optim_step(self, adam: AdamConfig) -> dict[str, float]:
        """Make one AdamW step with the accumulated gradient, and clear it.

        Returns {"grad_norm": global L2 norm before clipping}. Raises TrainingError without a
        gradient, or if the norm is not finite.
        """
        self.restore()
        if self.grads is None:
            raise TrainingError(
                "optim_step without a gradient: call forward_backward before each optim_step"
            )
        # taken now, so that a step that fails drops its gradient
        grads, self.grads = self.grads, None
        params = self.adapter.master
        for name, tensor in params.items():
            tensor.grad = grads[name]
        try:
            # with an infinite limit, clipping only computes the norm
            limit = adam.grad_clip_norm if adam.grad_clip_norm > 0 else math.inf
            norm = torch.nn.utils.clip_grad_norm_(params.values(), limit).item()
            if not math.isfinite(norm):
                raise TrainingError(
                    f"the gradient norm is {norm}: this step was skipped and its gradient dropped;"
                    " lower learning_rate or check the data of this batch"
                )
            self.optimizer.param_groups[0].update(
                lr=adam.learning_rate,
                betas=(adam.beta1, adam.beta2),
                eps=adam.eps,
                weight_decay=adam.weight_decay,
            )
            self.optimizer.step()
        finally:  # or the masters would keep the gradient's memory
            for tensor in params.values():
                tensor.grad = None
        self.adapter.refresh()
        return {"grad_norm": norm}

    def _check_sequences(self, sequences: Sequence[TrainSequence], loss: losses.Loss) -> None:
        losses.check_sequences(sequences, loss)
        for index, sequence in enumerate(sequences):
            try:
                check_tokens(sequence.tokens, self.base.vocab_size, "model_input")
                check_tokens(sequence.targets, self.base.vocab_size, "target_tokens")
            except ValueError as error:
                raise DataValidationError(f"datum {index}: {error}") from error
            if sequence.length > self.base.context_length:
                raise DataValidationError(
                    f"datum {index} has {sequence.length} tokens, but the model's context length is"
                    f" {self.base.context_length}: truncate it (max_length in a recipe)"
                )


def _with_weights(
    sequences: Sequence[TrainSequence], weights: list[np.ndarray]
) -> list[TrainSequence]:
    return [
        dataclasses.replace(sequence, inputs={"weights": array})
        for sequence, array in zip(sequences, weights)
    ]


def _describe_value(value: object) -> str:
    if not isinstance(value, torch.Tensor):
        return type(value).__name__
    graph = "" if value.requires_grad else " without a gradient"
    return f"a tensor of shape {list(value.shape)}{graph}"


class _CustomLossAdapter:
    """Wraps a user's loss as a loss of the engine: splits the logprobs by sequence."""

    def __init__(self, function: CustomLoss) -> None:
        self.function = function
        self.metrics: dict[str, float] = {}

    def __call__(
        self, logprobs: torch.Tensor, inputs: losses.Inputs, config: losses.Config
    ) -> torch.Tensor:
        # tokens of sequences that share a prefix are interleaved; a stable sort separates the
        # sequences and keeps their tokens in order
        order = torch.argsort(inputs[losses.SEQUENCE_INDEX], stable=True)
        counts = torch.bincount(inputs[losses.SEQUENCE_INDEX])
        return self.value(list(logprobs[order].split(counts.tolist())))

    def linear_weights(self, logprobs: list[np.ndarray]) -> list[np.ndarray]:
        """Weights with which cross_entropy, which is linear, has this loss's gradient.

        The gradient is taken at `logprobs`. Sequences that the loss ignores get weights of 0.
        """
        leaves = [torch.from_numpy(array).requires_grad_() for array in logprobs]
        # allow_unused: a loss may ignore sequences
        grads = torch.autograd.grad(self.value(leaves), leaves, allow_unused=True)
        for index, grad in enumerate(grads):
            if grad is not None and not grad.isfinite().all():
                raise DataValidationError(
                    f"the derivative of the custom loss with respect to the logprobs of datum"
                    f" {index} is not finite"
                )
        return [
            np.zeros_like(array) if grad is None else -grad.numpy()
            for grad, array in zip(grads, logprobs)
        ]

    def value(self, logprobs: list[torch.Tensor]) -> torch.Tensor:
        returned = self.function(logprobs)
        if not (isinstance(returned, tuple) and len(returned) == 2):
            raise DataValidationError(
                f"the custom loss returned {type(returned).__name__}; it must return"
                " (loss, metrics)"
            )
        loss, self.metrics = returned
        if not isinstance(loss, torch.Tensor) or loss.numel() != 1 or not loss.requires_grad:
            raise DataValidationError(
                f"the custom loss returned {_describe_value(loss)}; it must be a scalar tensor"
                " that depends on the logprobs"
            )
        if not torch.isfinite(loss):
            raise DataValidationError(f"the custom loss is {loss.item()}")
        return loss.reshape(())
