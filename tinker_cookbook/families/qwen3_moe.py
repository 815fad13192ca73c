"""Qwen3, mixtures of experts: attention and chat formats as in the dense models."""

from __future__ import annotations

from dataclasses import replace

from tinker_cookbook.families.qwen3 import QWEN3, build_models, tinker_names

_SIZES = {"30B-A3B": 2048, "235B-A22B": 4096}

QWEN3_MOE = replace(
    QWEN3,
    name="qwen3_moe",
    title="Qwen3, mixtures of experts",
    model_type="qwen3_moe",
    models=build_models("qwen3_moe", _SIZES, ("30B-A3B",), tuple(_SIZES)),
    tinker_names=tinker_names(tuple(_SIZES)),
    relatives=(),
    experts=True,
    norm="Qwen3MoeRMSNorm",
    mlp="Qwen3MoeMLP",  # of the layers without experts
)
