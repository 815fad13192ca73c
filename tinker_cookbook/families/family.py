"""The data types of this folder: facts about a model family as plain values, without torch.

Each file defines one `Family`: its names in config.json, in transformers and in our renderers, and
the published models that `model_name=` knows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

Feature = Literal["latent", "sinks", "sliding_window", "softcap"]
"""Attention features beyond grouped-query attention.

latent: low-rank keys and values, value heads smaller than key heads (MLA). sinks: extra logits that
take part only in the softmax. sliding_window: layers that attend to the last positions only.
softcap: attention scores capped by a tanh.
"""

PLAIN_TRANSCRIPT = ("role_colon",)  # for base models
OWN_TEMPLATE = ("template",)  # follows the tokenizer's chat template


class Exponent(NamedTuple):
    """p of the learning-rate formula in hyperparam_utils; fitted: to sweeps, not just chosen."""

    value: float
    fitted: bool


# The official Tinker cookbook fitted these two, and uses them for every generation of Llama and
# Qwen. No exponent has been published for the other families. All of their models are wider than
# 2000, where the larger exponent gives the lower, safer learning rate.
LLAMA_EXPONENT = Exponent(0.781, fitted=True)
QWEN_EXPONENT = Exponent(0.0775, fitted=True)
CHOSEN_EXPONENT = Exponent(max(LLAMA_EXPONENT.value, QWEN_EXPONENT.value), fitted=False)


class ChatFormat(NamedTuple):
    """Renderers that reproduce a chat template, the recommended one first.

    A template is recognized by its text: it contains every string of `has` and none of `lacks`.
    """

    renderers: tuple[str, ...]
    has: tuple[str, ...]
    lacks: tuple[str, ...] = ()

    def fits(self, template: str) -> bool:
        return all(text in template for text in self.has) and not any(
            text in template for text in self.lacks
        )


@dataclass(frozen=True)
class ModelInfo:
    """Facts about one model. None: unknown.

    renderers: renderers that fit, the recommended one first; empty if there is no tokenizer to
        detect them from.
    size_str: parameters, with "-A" and the active parameters for mixtures of experts; "" if
        unknown.
    context_length: tokens, max_position_embeddings of config.json (DeepSeek-V3.1: the length in its
        model card).
    lr_exponent: p of the learning-rate formula in hyperparam_utils.
    gated: downloading requires accepting a licence on the hub.
    """

    name: str
    family: str
    organization: str
    version_str: str
    size_str: str
    is_chat: bool
    is_moe: bool
    is_vl: bool
    renderers: tuple[str, ...]
    hidden_size: int | None
    context_length: int | None
    lr_exponent: float | None
    gated: bool


@dataclass(frozen=True)
class Family:
    """Facts about one model family.

    name: the value of `ModelInfo.family`. title: the usual spelling, for docs.
    model_type: the key in config.json; "" if the family is recognized by the model name only.
    transformers_type: the model_type whose implementation transformers uses, if it does not know
        `model_type` itself.
    models: the published models. tinker_names: names in Tinker's model lists -> published names.
    exponent: None if learning rates were measured instead. relatives: prefixes of the model types
        of other generations and of vision models that share the exponent.

    attention_layers, mlp_layers: linear layers that can have an adapter, by the last part of the
        module path. experts: whether the MLPs are mixtures of experts; each expert then has
        `mlp_layers`, and the router is never trained.
    attention: the features that `engine/attention.py` must implement.
    rope_types: rotary embeddings whose frequencies do not depend on the longest sequence of a pass.
    norm, mlp: transformers classes that `engine/elementwise.py` replaces with versions that save
        less for the backward pass. They must compute the same: the norm multiplies x by the
        reciprocal RMS, rounds, then applies the weight; the MLP computes silu(gate) * up. "": not
        replaced.
    unreadable: why the engine cannot load the published files; "" if it can.

    chat_formats: the first one that fits a chat template gives the renderers; `template` if none
        fits.
    base_end_token: the end-of-sequence token that identifies base models whose files contain the
        chat model's template.
    smallest_vocabulary: tokens; a smaller vocabulary means an earlier generation with other chat
        formats, which then counts as a family named after its `model_type`.
    note: a paragraph for docs/models.md.
    """

    name: str
    title: str
    model_type: str
    transformers_type: str = ""
    models: tuple[ModelInfo, ...] = ()
    tinker_names: Mapping[str, str] = field(default_factory=dict)
    exponent: Exponent | None = None
    relatives: tuple[str, ...] = ()

    attention_layers: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")
    mlp_layers: tuple[str, ...] = ("gate_proj", "up_proj", "down_proj")
    experts: bool = False
    attention: tuple[Feature, ...] = ()
    rope_types: tuple[str, ...] = ("default", "linear", "llama3", "yarn")
    norm: str = ""
    mlp: str = ""
    unreadable: str = ""

    chat_formats: tuple[ChatFormat, ...] = ()
    base_end_token: str | None = None
    smallest_vocabulary: int = 0
    note: str = ""


def published(
    name: str,
    family: str,
    version: str,
    size: str,
    hidden_size: int,
    context_length: int,
    renderers: tuple[str, ...],
    exponent: Exponent,
    gated: bool = False,
) -> ModelInfo:
    """Build the ModelInfo of a text model on the hub; derives the remaining fields."""
    return ModelInfo(
        name=name,
        family=family,
        organization=name.split("/")[0],
        version_str=version,
        size_str=size,
        is_chat=renderers != PLAIN_TRANSCRIPT,
        is_moe="-A" in size,
        is_vl=False,
        renderers=renderers,
        hidden_size=hidden_size,
        context_length=context_length,
        lr_exponent=exponent.value,
        gated=gated,
    )
