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
    """One adapter in training: its weights, its gradient so far, its optimizer.

    Every call either happens whole or leaves weights and optimizer as they were; a step that is
    refused drops the gradient.
    """

    def __init__(self, base: BaseModel, spec: LoraSpec) -> None:
        self.base = base
        self.spec = spec
        count = spec.parameters(base.shapes)
        copies = 0 if base.dtype == torch.float32 else base.dtype.itemsize
        self.size = count * (16 + copies)  # bytes: weights, gradient, two moments; and the copies
        base.offloader.check(spec.rank, self.size)
        self._adapter = base.new_adapter(spec)
        self.grads: Tensors | None = None  # fp32, since the last optimizer step
        self._optimizer = torch.optim.AdamW(
            [tensor.requires_grad_() for tensor in self._adapter.master.values()],
            lr=0.0,
            fused=True,  # one kernel for all tensors: half the time on a CPU
        )
        self._fetch: OffloadedTensors | None = None  # brings back what is offloaded
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
        return self._fetch is None

    def offload(self) -> None:
        """Move everything of size elsewhere, until `wake`."""
        if self.on_device:
            self._fetch = self.base.offloader.store(self._tensors(), self)
            self._replace({name: torch.empty(0) for name in self._tensors()})
            self._adapter.copy = {}

    def restore(self) -> None:
        """Have everything in the device's memory; note that the trainer was used."""
        self.last_use = self.base.offloader.tick()
        if self._fetch is not None:
            self._replace(self._fetch.load())
            self._adapter.make_copies(self.base.dtype)  # may fail, too: then nothing is lost
            self._fetch.drop()
            self._fetch = None

    def _tensors(self) -> Tensors:
        """Weights, gradient and the optimizer's moments by name."""
        found = {f"master.{name}": tensor.detach() for name, tensor in self._adapter.master.items()}
        found |= {f"grads.{name}": tensor for name, tensor in (self.grads or {}).items()}
        for name, tensor in self._adapter.master.items():
            state = self._optimizer.state.get(tensor, {})
            found |= {f"{m}.{name}": state[m] for m in MOMENTS if m in state}
        return found

    def _replace(self, tensors: Tensors) -> None:
        """Put other tensors in the place of `_tensors()`; the optimizer knows them by identity."""
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
        """Forget the gradient and the optimizer's moments; the weights stay."""
        self.restore()
        self.grads = None
        self.optimizer.state.clear()

    def work(
        self, rows: Sequence[TrainSequence], loss_fn: str, config: Mapping[str, float | str] | None
    ) -> Work:
        """What `passes` computes, once everything about it has been checked."""
        loss = losses.get_loss(loss_fn, config)
        self._check_rows(rows, loss)
        return Work(self, rows, loss)

    def forward(
        self, rows: Sequence[TrainSequence], loss_fn: str, config: Mapping[str, float | str] | None
    ) -> TrainResult:
        """Logprobs of the targets and the loss, without any gradient."""
        return passes.forward([self.work(rows, loss_fn, config)])[0]

    def forward_backward(
        self, rows: Sequence[TrainSequence], loss_fn: str, config: Mapping[str, float | str] | None
    ) -> TrainResult:
        """As forward, and the gradient of the summed loss is added to the adapter's."""
        return passes.forward_backward([self.work(rows, loss_fn, config)])[0]

    def forward_backward_custom(
        self, rows: Sequence[TrainSequence], function: CustomLoss
    ) -> TrainResult:
        """Any differentiable function of the logprobs of all rows, each shaped like its targets.

        Rows that fit into one pass go through the model once; more cost a second forward, because
        the function needs all logprobs before any gradient is known.
        """
        rows = [dataclasses.replace(row, inputs={}) for row in rows]
        custom = _Custom(function)
        loss = losses.Loss("custom", custom, (), elementwise=False, several_targets=True)
        self._check_rows(rows, loss)
        work = Work(self, rows, loss)
        if work.tokens > self.base.tokens_per_pass:
            linear = losses.LOSSES["cross_entropy"]
            zeros = _with_weights(rows, [np.zeros(row.targets.shape, np.float32) for row in rows])
            logprobs = passes.forward([Work(self, zeros, linear)])[0].logprobs
            work = Work(self, _with_weights(rows, custom.slopes(logprobs)), linear)
        (result,) = passes.forward_backward([work])
        return TrainResult(result.logprobs, custom.metrics)

    def accumulate(self, grads: Tensors) -> None:
        """Add gradients (fp32, one for each of the adapter's tensors) to those of the step."""
        if self.grads is None:
            self.grads = grads
        else:
            for name, grad in grads.items():
                self.grads[name] += grad

    def optim_step(self, adam: AdamConfig) -> dict[str, float]:
        """One AdamW step with the accumulated gradient, which is then empty. Returns its norm."""
        self.restore()
        if self.grads is None:
            raise TrainingError("optim_step without a forward_backward since the last optim_step")
        grads, self.grads = self.grads, None
        params = self.adapter.master
        for name, tensor in params.items():
            tensor.grad = grads[name]
        try:
            limit = adam.grad_clip_norm if adam.grad_clip_norm > 0 else math.inf
            norm = torch.nn.utils.clip_grad_norm_(params.values(), limit).item()
            if not math.isfinite(norm):
                raise TrainingError(
                    f"the gradient's norm is {norm}: this step was not made, its gradient is"
                    " dropped; lower learning_rate or look at the data of this batch"
                )
            self.optimizer.param_groups[0].update(
                lr=adam.learning_rate,
                betas=(adam.beta1, adam.beta2),
                eps=adam.eps,
                weight_decay=adam.weight_decay,
            )
            self.optimizer.step()
        finally:
            for tensor in params.values():
                tensor.grad = None
        self.adapter.refresh()
        return {"grad_norm": norm}

    def _check_rows(self, rows: Sequence[TrainSequence], loss: losses.Loss) -> None:
        losses.check_rows(rows, loss)
        for index, row in enumerate(rows):
            try:
                check_tokens(row.tokens, self.base.vocab_size, "model_input")
                check_tokens(row.targets, self.base.vocab_size, "target_tokens")
            except ValueError as error:
                raise DataValidationError(f"datum {index}: {error}") from error
            if row.length > self.base.context_length:
                raise DataValidationError(
                    f"datum {index} has {row.length} tokens, the model's context is"
                    f" {self.base.context_length}: shorten it (max_length of a recipe does)"
                )


def _with_weights(rows: Sequence[TrainSequence], weights: list[np.ndarray]) -> list[TrainSequence]:
    return [
        dataclasses.replace(row, inputs={"weights": array}) for row, array in zip(rows, weights)
    ]


def _kind(value: object) -> str:
    if not isinstance(value, torch.Tensor):
        return type(value).__name__
    graph = "" if value.requires_grad else " without a gradient"
    return f"a tensor of shape {list(value.shape)}{graph}"


class _Custom:
    """A user's loss in the engine's form: one call with the tokens of all rows of the request."""

    def __init__(self, function: CustomLoss) -> None:
        self.function = function
        self.metrics: dict[str, float] = {}

    def __call__(
        self, logprobs: torch.Tensor, inputs: losses.Inputs, config: losses.Config
    ) -> torch.Tensor:
        # rows that share tokens lie interleaved; a stable sort brings each one's together, in order
        order = torch.argsort(inputs[losses.ROW], stable=True)
        counts = torch.bincount(inputs[losses.ROW])
        return self.value(list(logprobs[order].split(counts.tolist())))

    def slopes(self, logprobs: list[np.ndarray]) -> list[np.ndarray]:
        """Weights with which cross_entropy has this loss's gradient at these logprobs."""
        leaves = [torch.from_numpy(array).requires_grad_() for array in logprobs]
        grads = torch.autograd.grad(self.value(leaves), leaves, allow_unused=True)
        for index, grad in enumerate(grads):
            if grad is not None and not grad.isfinite().all():
                raise DataValidationError(
                    f"the custom loss has a derivative by the logprobs of datum {index} that is"
                    " not finite"
                )
        return [
            np.zeros_like(array) if grad is None else -grad.numpy()
            for grad, array in zip(grads, logprobs)
        ]

    def value(self, logprobs: list[torch.Tensor]) -> torch.Tensor:
        outcome = self.function(logprobs)
        if not (isinstance(outcome, tuple) and len(outcome) == 2):
            raise DataValidationError(
                f"the custom loss returned {type(outcome).__name__}; it must return (loss, metrics)"
            )
        loss, self.metrics = outcome
        if not isinstance(loss, torch.Tensor) or loss.numel() != 1 or not loss.requires_grad:
            raise DataValidationError(
                f"the custom loss returned {_kind(loss)}; it must be a scalar tensor that depends"
                " on the logprobs"
            )
        if not torch.isfinite(loss):
            raise DataValidationError(f"the custom loss is {loss.item()}")
        return loss.reshape(())
