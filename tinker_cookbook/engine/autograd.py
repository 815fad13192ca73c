"""What torch hands to an autograd function of one's own, typed."""

from __future__ import annotations

from torch import Tensor
from torch.autograd.function import FunctionCtx

Gradients = tuple[Tensor | None, ...]  # one for each argument of `forward`


class Context(FunctionCtx):
    """`ctx`: what `forward` saves and `backward` finds again."""

    saved_tensors: tuple[Tensor, ...]
    needs_input_grad: tuple[bool, ...]
