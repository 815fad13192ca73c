"""Types for custom autograd functions, whose context torch leaves untyped."""

from __future__ import annotations

from torch import Tensor
from torch.autograd.function import FunctionCtx

Gradients = tuple[Tensor | None, ...]  # one per argument of `forward`


class Context(FunctionCtx):
    """`ctx` of an autograd function: what `forward` saves for `backward`."""

    saved_tensors: tuple[Tensor, ...]
    needs_input_grad: tuple[bool, ...]
