"""Families of models: one file each, and the one place where they are looked up.

A new family is a file here, a line in `FAMILIES`, its renderer, and a line in the table of
`engine/families_test.py`, which holds it against transformers.
"""

from __future__ import annotations

from collections.abc import Iterable

from tinker_cookbook.families.deepseek_v3 import DEEPSEEK_V3
from tinker_cookbook.families.family import (
    OWN_TEMPLATE,
    PLAIN_TRANSCRIPT,
    ChatFormat,
    Exponent,
    Family,
    Feature,
    ModelInfo,
)
from tinker_cookbook.families.gpt_oss import GPT_OSS
from tinker_cookbook.families.kimi_k2 import KIMI_K2
from tinker_cookbook.families.llama3 import LLAMA3
from tinker_cookbook.families.nano import NANO
from tinker_cookbook.families.qwen3 import QWEN3
from tinker_cookbook.families.qwen3_moe import QWEN3_MOE

__all__ = [
    "ATTENTION_LAYERS",
    "FAMILIES",
    "KIMI_K2",
    "MLP_LAYERS",
    "NANO",
    "OWN_TEMPLATE",
    "PLAIN_TRANSCRIPT",
    "ChatFormat",
    "Exponent",
    "Family",
    "Feature",
    "ModelInfo",
    "exponent",
    "of_model_type",
]

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (NANO, QWEN3, QWEN3_MOE, LLAMA3, DEEPSEEK_V3, GPT_OSS, KIMI_K2)
}


def of_model_type(model_type: str | None) -> Family | None:
    """The family of models whose config.json says so; None for one that is not here."""
    found = (family for family in FAMILIES.values() if family.model_type == model_type)
    return next(found, None) if model_type else None


def exponent(name: str) -> Exponent | None:
    """p of the learning-rate formula, by family or by the model_type of one that is not here."""
    if name in FAMILIES:
        return FAMILIES[name].exponent
    near = (family for family in FAMILIES.values() if name.startswith(family.relatives))
    return next((family.exponent for family in near), None)


def _union(names: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for each in names for name in each))


# Of all families: what an adapter on disk can have, whatever its model
ATTENTION_LAYERS = _union(family.attention_layers for family in FAMILIES.values())
MLP_LAYERS = _union(family.mlp_layers for family in FAMILIES.values())
