"""Llama 3. Earlier Llamas share the `model_type`, but have other vocabularies and templates."""

from __future__ import annotations

from tinker_cookbook.families.family import (
    LLAMA_EXPONENT,
    PLAIN_TRANSCRIPT,
    ChatFormat,
    Family,
    ModelInfo,
    published,
)

_RENDERERS = ("llama3",)


def _model(version: str, size: str, hidden_size: int, suffix: str) -> ModelInfo:
    return published(
        f"meta-llama/Llama-{version}-{size}{suffix}",
        "llama3",
        version,
        size,
        hidden_size,
        131_072,
        _RENDERERS if suffix else PLAIN_TRANSCRIPT,
        LLAMA_EXPONENT,
        gated=True,
    )


_SIZES = (
    ("3.1", "8B", 4096),
    ("3.1", "70B", 8192),
    ("3.1", "405B", 16_384),
    ("3.2", "1B", 2048),
    ("3.2", "3B", 3072),
)

LLAMA3 = Family(
    name="llama3",
    title="Llama 3",
    model_type="llama",
    models=(
        *(_model(*size, suffix) for size in _SIZES for suffix in ("", "-Instruct")),
        _model("3.3", "70B", 8192, "-Instruct"),
    ),
    tinker_names={"meta-llama/Llama-3.3-70B": "meta-llama/Llama-3.3-70B-Instruct"},
    exponent=LLAMA_EXPONENT,
    relatives=("llama", "mllama"),  # mllama: Llama with vision
    norm="LlamaRMSNorm",
    mlp="LlamaMLP",
    chat_formats=(ChatFormat(_RENDERERS, has=("<|start_header_id|>",)),),
    smallest_vocabulary=128_256,
)
