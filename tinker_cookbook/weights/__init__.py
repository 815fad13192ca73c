"""Weights out: PEFT adapters, merged Hugging Face models, downloads and the hub."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tinker_cookbook.utils.misc_utils import import_of

if TYPE_CHECKING:
    from tinker_cookbook.weights.checkpoint_files import download
    from tinker_cookbook.weights.hf_model import build_hf_model
    from tinker_cookbook.weights.lora_adapter import build_lora_adapter
    from tinker_cookbook.weights.model_card import generate_model_card
    from tinker_cookbook.weights.publishing import publish_to_hf_hub

__all__ = [
    "build_hf_model",
    "build_lora_adapter",
    "download",
    "generate_model_card",
    "publish_to_hf_hub",
]
_MODULES = {
    "build_hf_model": "weights.hf_model",
    "build_lora_adapter": "weights.lora_adapter",
    "download": "weights.checkpoint_files",
    "generate_model_card": "weights.model_card",
    "publish_to_hf_hub": "weights.publishing",
}


def __getattr__(name: str) -> Any:
    """Import the names above on first use: their modules load torch."""
    return import_of(name, __name__, _MODULES)
