"""What the engine would compute otherwise than transformers: refused by name when it is loaded.

It runs transformers' decoder layers with its own attention and its own unembedding, packed rows and
no masks. So whatever a configuration puts into masks, scores or logits must be known here. What
layers hand to the attention beyond that is refused by `attention.attend`, in the forward of a few
tokens that loading ends with.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F

from tinker_cookbook.engine.attention import FEATURES
from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.families import FAMILIES, Family, find_family

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

LAYER_TYPES = ("full_attention", "sliding_attention")
# What may stand between the unembedding and the logits: key of config.json -> without effect
ON_LOGITS = {
    "final_logit_softcapping": None,
    "logit_scale": 1.0,
    "logits_scaling": 1.0,
    "lm_head_multiplier": 1.0,
}


class _Decoded(NamedTuple):
    """What a decoder returns, in transformers' names."""

    last_hidden_state: torch.Tensor
    past_key_values: None = None
    hidden_states: None = None
    attentions: None = None
    router_logits: None = None


def family_of(path: str, model_type: str | None) -> Family:
    """The family of a model by its config.json, if the engine has it."""
    family = find_family(model_type)
    if family is None:
        supported = (each.model_type for each in FAMILIES.values() if each.model_type)
        raise ConfigurationError(
            f"model {path!r} is of family {model_type!r}, which the engine does not support;"
            f" supported: {', '.join(supported)}"
        )
    if unknown := [name for name in family.attention if name not in FEATURES]:
        raise ConfigurationError(
            f"model {path!r} is of family {model_type!r}, whose attention has {unknown[0]!r}, which"
            " the engine does not compute"
        )
    return family


def check_config(path: str, config: PreTrainedConfig, family: Family) -> None:
    """Rotary embeddings and masks."""
    rope = getattr(config, "rope_parameters", None) or {}
    by_layer = [each for each in rope.values() if isinstance(each, dict)]
    for each in by_layer or [rope]:
        kind = each.get("rope_type", "default")
        if kind not in family.rope_types:
            raise ConfigurationError(
                f"model {path!r} uses rope_type={kind!r}; supported: {', '.join(family.rope_types)}"
            )
    for kind in getattr(config, "layer_types", None) or ():
        if kind not in LAYER_TYPES:
            raise ConfigurationError(
                f"model {path!r} has layers of type {kind!r}, which the engine does not compute;"
                f" supported: {', '.join(LAYER_TYPES)}"
            )
    if not getattr(config, "is_causal", True):
        raise ConfigurationError(
            f"model {path!r} has is_causal=False in its config.json: its tokens see those behind"
            " them, which the engine, that trains and samples from left to right, does not compute"
        )


@torch.no_grad()
def check_logits(path: str, model: PreTrainedModel) -> None:
    """The logits must be the unembedding times the hidden state and nothing else: no scale, cap or
    bias. Compared for two hidden states, one with large logits and zero, without the layers."""
    head = model.get_output_embeddings()
    if not isinstance(head, torch.nn.Linear):
        raise ConfigurationError(
            f"model {path!r} has no linear unembedding, but {type(head).__name__}, which the engine"
            " does not compute"
        )
    weight = head.weight
    generator = torch.Generator().manual_seed(0)
    large = 100 * torch.randn(weight.shape[1], generator=generator)
    hidden = torch.stack([large, torch.zeros_like(large)])[None].to(weight)
    decoder = model.model
    decoder.forward = lambda *_, **__: _Decoded(hidden)
    try:
        logits = model(inputs_embeds=hidden, use_cache=False).logits
    finally:
        del decoder.forward
    if torch.allclose(logits.to(weight.dtype), F.linear(hidden, weight), rtol=1e-3, atol=1e-5):
        return
    config = model.config
    found = [
        f"{key}={getattr(config, key)}"
        for key, neutral in ON_LOGITS.items()
        if getattr(config, key, neutral) != neutral
    ]
    why = f" ({', '.join(found)} in its config.json)" if found else ""
    raise ConfigurationError(
        f"model {path!r} changes its logits behind the unembedding{why}, by a scale, a cap or a"
        " bias, which the engine does not compute"
    )
