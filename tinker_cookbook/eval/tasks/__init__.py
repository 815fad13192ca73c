"""Evaluation tasks that need no hub: each is a function that makes an Inspect `Task`.

`LOCAL` names them without importing Inspect, an optional package.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from inspect_ai import Task

_HERE = "tinker_cookbook.eval.tasks"
LOCAL: dict[str, str] = {  # name of a task -> module with a function of this name
    "aime2024": f"{_HERE}.aime",
    "aime2025": f"{_HERE}.aime",
    "aime2026": f"{_HERE}.aime",
    "gpqa": f"{_HERE}.gpqa",
    "gsm8k": f"{_HERE}.gsm8k",
    "ifeval": f"{_HERE}.ifeval",
    "math500": f"{_HERE}.math500",
    "mmlu_pro": f"{_HERE}.mmlu_pro",
    "nano_number_words": f"{_HERE}.nano_number_words",
    "nano_sums": f"{_HERE}.nano_sums",
}


def load(name: str) -> Callable[..., Task]:
    """The function that makes a task of `LOCAL`."""
    return getattr(importlib.import_module(LOCAL[name]), name)
