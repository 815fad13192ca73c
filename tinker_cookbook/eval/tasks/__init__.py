"""Inspect tasks that need no hub: each module has one task function of its own name."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from inspect_ai import Task

# bare name -> module; nothing of Inspect is imported before `load`
LOCAL: dict[str, str] = {}


def load(name: str) -> Callable[..., Task]:
    """The task function of a local task; KeyError for a name that is not in LOCAL."""
    return getattr(importlib.import_module(LOCAL[name]), name)
