"""Reject models that the engine would compute differently from transformers.

The engine runs transformers' decoder layers, but with its own attention and unembedding, on packed
sequences and without masks. So anything in a configuration that changes masks, attention scores or
logits must be checked here, or it would be ignored silently. Unknown arguments that a layer passes
to the attention are rejected by `attention.attend`; loading a model ends with a forward over a few
tokens, so they show up at once.
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
# Settings that change the logits after the unembedding: key of config.json -> neutral value.
# Only used to name the cause: `check_logits` finds the change itself.
NEUTRAL_LOGIT_SETTINGS = {
    "final_logit_softcapping": None,
    "logit_scale": 1.0,
    "logits_scaling": 1.0,
    "lm_head_multiplier": 1.0,
}


class _DecoderOutput(NamedTuple):
    """The output of a transformers decoder, with the fields that its models read."""

    last_hidden_state: torch.Tensor
    past_key_values: None = None
    hidden_states: None = None
    attentions: None = None
    router_logits: None = None


def family_of(path: str, model_type: str | None) -> Family:
    """Look up a model's family by its `model_type`; raise ConfigurationError if unsupported."""
    family = find_family(model_type)
    if family is None:
        supported = (known.model_type for known in FAMILIES.values() if known.model_type)
        raise ConfigurationError(
            f"model {path!r} is of family {model_type!r}, which the engine does not support;"
            f" supported: {', '.join(supported)}"
        )
    if unknown := [name for name in family.attention if name not in FEATURES]:
        raise ConfigurationError(
            f"model {path!r} is of family {model_type!r}, whose attention uses {unknown[0]!r},"
            " which the engine does not support"
        )
    return family


def check_config(path: str, config: PreTrainedConfig, family: Family) -> None:
    """Check rotary embeddings and masks."""
    rope = getattr(config, "rope_parameters", None) or {}
    # Either one set of parameters, or one per type of layer.
    by_layer_type = [value for value in rope.values() if isinstance(value, dict)]
    for parameters in by_layer_type or [rope]:
        rope_type = parameters.get("rope_type", "default")
        if rope_type not in family.rope_types:
            raise ConfigurationError(
                f"model {path!r} uses rope_type={rope_type!r}; supported:"
                f" {', '.join(family.rope_types)}"
            )
    for layer_type in getattr(config, "layer_types", None) or ():
        if layer_type not in LAYER_TYPES:
            raise ConfigurationError(
                f"model {path!r} has layers of type {layer_type!r}, which the engine does not"
                f" support; supported: {', '.join(LAYER_TYPES)}"
            )
    if not getattr(config, "is_causal", True):
        raise ConfigurationError(
            f"model {path!r} has is_causal=False in its config.json: its attention is"
            " bidirectional, and the engine supports causal language models only"
        )


@torch.no_grad()
def check_logits(path: str, model: PreTrainedModel) -> None:
    """Check that the logits are the unembedding times the hidden state: no scale, cap or bias.

    Runs the model's head on two hidden states, without its layers.
    """
    head = model.get_output_embeddings()
    if not isinstance(head, torch.nn.Linear):
        raise ConfigurationError(
            f"model {path!r} has an unembedding of type {type(head).__name__}; the engine supports"
            " torch.nn.Linear only"
        )
    weight = head.weight
    generator = torch.Generator().manual_seed(0)
    # Large logits show a soft cap, which leaves small ones almost unchanged; zero shows a bias.
    large = 100 * torch.randn(weight.shape[1], generator=generator, dtype=torch.float32)
    hidden = torch.stack([large, torch.zeros_like(large)])[None].to(weight)
    decoder = model.model
    # An instance attribute hides the method; deleting it restores the layers.
    decoder.forward = lambda *_, **__: _DecoderOutput(hidden)
    try:
        logits = model(inputs_embeds=hidden, use_cache=False).logits
    finally:
        del decoder.forward
    if torch.allclose(logits.to(weight.dtype), F.linear(hidden, weight), rtol=1e-3, atol=1e-5):
        return
    config = model.config
    causes = [
        f"{key}={getattr(config, key)}"
        for key, neutral in NEUTRAL_LOGIT_SETTINGS.items()
        if getattr(config, key, neutral) != neutral
    ]
    cause = f" ({', '.join(causes)} in its config.json)" if causes else ""
    raise ConfigurationError(
        f"model {path!r} changes its logits after the unembedding{cause}: the engine supports no"
        " scale, cap or bias there"
    )
