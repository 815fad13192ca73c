"""The shape of what is known of a family of models: plain values, no torch.

A file of this folder holds one `Family`, under the names of config.json, of transformers' modules
and of the renderers, and the published models that `model_name=` knows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

Feature = Literal["latent", "sinks", "sliding_window", "softcap"]
"""What a family's attention has beyond grouped queries: keys and values of low rank with value
heads smaller than the keys (MLA), scores that only take part in the softmax, layers that see the
last positions alone, scores capped by a tanh."""

PLAIN_TRANSCRIPT = ("role_colon",)  # of base models
OWN_TEMPLATE = ("template",)  # whatever the tokenizer's own chat template says


class Exponent(NamedTuple):
    """p of the learning-rate formula in hyperparam_utils: fitted to sweeps, or a choice."""

    value: float
    fitted: bool


# The official Tinker cookbook fitted these, and takes them for every generation of Llama and Qwen.
# For other families nobody has published one: of the two, the one that gives models wider than
# 2000, as all of the others here are, the lower rate.
LLAMA_EXPONENT = Exponent(0.781, fitted=True)
QWEN_EXPONENT = Exponent(0.0775, fitted=True)
CHOSEN_EXPONENT = Exponent(max(LLAMA_EXPONENT.value, QWEN_EXPONENT.value), fitted=False)


class ChatFormat(NamedTuple):
    """Renderers that write what a chat template writes, the recommended one first.

    The template is known by what stands in it: everything of `has`, nothing of `lacks`.
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
    """What is known of one model. None: not known.

    `renderers`: fitting chat formats, the recommended one first; empty when there is no tokenizer
    that tells. `size_str`: parameters, behind -A those active for a token; "" where not known.
    `context_length`: tokens, max_position_embeddings of config.json (DeepSeek-V3.1: what its card
    promises). `lr_exponent`: of the learning-rate formula in hyperparam_utils. `gated`: the hub
    wants a licence accepted.
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
    """One family.

    name: as `ModelInfo.family` has it. title: as people write it.
    model_type: of config.json; "" for a family that is told by the model's name alone.
    transformers_type: the model_type whose code transformers runs it with, where it knows no
        `model_type`.
    models: those known by name. tinker_names: names in Tinker's lists of models -> published ones.
    exponent: None where rates were measured instead. relatives: how the model types begin of other
        generations, and of models with vision, for which the exponent holds, too.

    attention_layers, mlp_layers: linear layers that an adapter can be put on, by the last part of
        the module's path. experts: whether MLPs are mixtures; each expert has `mlp_layers`, and the
        router is never trained.
    attention: what `engine/attention.py` must do for it.
    rope_types: rotary embeddings that do not change with the longest sequence of a pass.
    norm, mlp: transformers' classes, where they compute what `engine/elementwise.py` does: x times
        r rounded, then the weight; silu(gate) times up. "": they stay as they are.
    unreadable: why the engine cannot load the published files; "" where it can.

    chat_formats: the first that fits a chat template tells the renderers; `template` if none does.
    base_end_token: the end-of-sequence token of base models, where their files have the chat
        models' template all the same.
    smallest_vocabulary: tokens; models of this `model_type` with fewer are of an earlier generation
        with other formats, and bear the `model_type` as the name of their family.
    note: for the reader of docs/models.md.
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
    """A model of text on the hub; what follows from these is filled in."""
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
