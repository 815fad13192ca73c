"""Model families: one file each; the tables and lookups over all of them.

To add a family: a file in this folder, an entry in `FAMILIES`, its renderer, and a line in the
table of `engine/families_test.py`, which compares it with transformers.
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
from tinker_cookbook.families.smollm2 import SMOLLM2

__all__ = [
    "ATTENTION_LAYERS",
    "FAMILIES",
    "KIMI_K2",
    "MLP_LAYERS",
    "NANO",
    "OWN_TEMPLATE",
    "PLAIN_TRANSCRIPT",
    "SMOLLM2",
    "ChatFormat",
    "Exponent",
    "Family",
    "Feature",
    "ModelInfo",
    "find_family",
    "lookup_exponent",
]

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (NANO, QWEN3, QWEN3_MOE, LLAMA3, SMOLLM2, DEEPSEEK_V3, GPT_OSS, KIMI_K2)
}


def find_family(model_type: str | None) -> Family | None:
    """The family whose config.json has this `model_type`; None if there is none."""
    matches = (family for family in FAMILIES.values() if family.model_type == model_type)
    return next(matches, None) if model_type else None  # nano has model_type ""


def lookup_exponent(name: str) -> Exponent | None:
    """The learning-rate exponent p of a family, or of a `model_type` related to a family."""
    if name in FAMILIES:
        return FAMILIES[name].exponent
    related = (family for family in FAMILIES.values() if name.startswith(family.relatives))
    return next((family.exponent for family in related), None)


def _ordered_union(groups: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for group in groups for name in group))


# Every layer name of any family: an adapter on disk does not record its model's family.
ATTENTION_LAYERS = _ordered_union(family.attention_layers for family in FAMILIES.values())
MLP_LAYERS = _ordered_union(family.mlp_layers for family in FAMILIES.values())
