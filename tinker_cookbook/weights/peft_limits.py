"""Adapters that peft 0.21 does not load as a whole; it ignores the rest without a word.

Tested in lora_adapter_test.py, so that these notes disappear when peft has learned it.
"""

from __future__ import annotations

from tinker_cookbook.service.adapter_tensors import AdapterTensors
from tinker_cookbook.weights.base_files import base_directory, read_model_type

_STACKED = ("gpt_oss",)  # experts whose stacked tensors peft does not map from names of experts


def peft_limit(adapter: AdapterTensors) -> str | None:
    """What peft leaves out of an adapter, as a sentence; None if nothing."""
    experts = {path.rpartition(".")[2] for path in adapter.shapes if ".experts." in path}
    if not experts:
        return None
    rest = "use format=merged"
    if read_model_type(base_directory(adapter.base_model, weights=False)) in _STACKED:
        return f"peft 0.21 ignores the adapters of this model's experts: {rest}"
    dense = [
        path
        for path in adapter.shapes
        if ".experts." not in path and path.rpartition(".")[2] in experts
    ]
    if dense:
        return (
            f"peft 0.21 ignores the adapters of MLP layers beside the experts, e.g. {dense[0]}:"
            f" {rest}"
        )
    return None
