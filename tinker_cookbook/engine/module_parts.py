"""What a module of transformers is made of."""

from __future__ import annotations

from typing import TypeGuard, TypeVar

import torch

P = TypeVar("P")


def has_parts(module: torch.nn.Module, parts: type[P]) -> TypeGuard[P]:
    """Whether a module has the attributes of a protocol, by name.

    In place of isinstance with a runtime_checkable protocol, which looks for attributes without
    `__getattr__` since Python 3.12, and so finds no submodule, parameter or buffer of a module.
    """
    return all(hasattr(module, name) for name in parts.__annotations__)
