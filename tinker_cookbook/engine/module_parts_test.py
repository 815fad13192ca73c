"""Attributes of modules, on every version of Python."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch

from tinker_cookbook.engine.module_parts import has_parts


class Parts(Protocol):
    weight: torch.Tensor
    act_fn: Callable[[torch.Tensor], torch.Tensor]
    size: int


class Module(torch.nn.Module):
    def __init__(self, size: int | None) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.act_fn = torch.nn.SiLU()
        if size is not None:
            self.size = size


def test_parameters_submodules_and_plain_attributes_count() -> None:
    assert has_parts(Module(size=2), Parts)
    assert not has_parts(Module(size=None), Parts)


def test_the_engine_does_not_use_isinstance_for_it() -> None:
    files = [path for path in Path(__file__).parent.glob("*.py") if "_test" not in path.name]
    users = [path.name for path in files if "import runtime_checkable" in path.read_text()]
    users += [path.name for path in files if "@runtime_checkable" in path.read_text()]
    assert len(files) > 20 and users == []
