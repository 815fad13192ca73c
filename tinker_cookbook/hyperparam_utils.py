"""Learning rates by model size, and parameter counts.

    lr = 5e-5 · (10 with LoRA) · (2000 / hidden size)^p

p is the family's (families/family.py): 0.781 for Llama and 0.0775 for Qwen, which the official
Tinker cookbook fitted to sweeps and takes for all that is called so, later generations and vision
models too, as is done here. For the other families of the table, the lower rate of the two fits: a
choice, not measured. nano has no formula, but 6e-3 with LoRA, measured on its supervised recipe.
For the rest there is no value, and learning_rate= must be given.

These are rates for supervised fine-tuning. What recipes take for other methods is beside them.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from tinker_cookbook import models
from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.utils import model_directory
from tinker_cookbook.utils.error_text import first_line

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

_BASE_LR = 5e-5
_LORA_FACTOR = 10.0
_REFERENCE_HIDDEN_SIZE = 2000
NANO_LR = 6e-3


def get_lr(model_name: str, is_lora: bool = True) -> float:
    """A good learning rate for Adam, by the formula above.

    ConfigurationError for a family without a value, and for nano without LoRA.
    """
    info = models.lookup(model_name)
    if info.family == "nano" and is_lora:
        return NANO_LR
    if info.lr_exponent is None or info.hidden_size is None:
        raise ConfigurationError(
            f"model_name={model_name!r}: there is no learning-rate formula for the family "
            f"{info.family!r}, so learning_rate= must be given"
        )
    factor = get_lora_lr_over_full_finetune_lr(model_name) if is_lora else 1.0
    return _BASE_LR * factor * (_REFERENCE_HIDDEN_SIZE / info.hidden_size) ** info.lr_exponent


def get_lora_lr_over_full_finetune_lr(model_name: str, lora_alpha: int = 32) -> float:
    """How much larger the best LoRA rate is than that of full fine-tuning: 10, at any rank.

    Holds for alpha 32, which this cookbook always uses; ConfigurationError for another.
    """
    if lora_alpha != 32:
        raise ConfigurationError(f"lora_alpha={lora_alpha}: the factor is known only for 32")
    return _LORA_FACTOR


def get_full_finetune_lr_multiplier(model_name: str) -> float:
    """1/sqrt(parameters): two models' values stand as their full fine-tuning rates do."""
    return 1.0 / math.sqrt(get_full_finetune_param_count(model_name))


def get_lora_lr_multiplier(model_name: str) -> float:
    """As `get_full_finetune_lr_multiplier`, for LoRA rates."""
    return get_full_finetune_lr_multiplier(model_name) * get_lora_lr_over_full_finetune_lr(
        model_name
    )


def get_full_finetune_param_count(model_name: str) -> int:
    """All parameters, tied ones once. Counted on a model without storage, from its config.json."""
    return sum(parameter.numel() for parameter in _meta_model(model_name).parameters())


def get_lora_param_count(
    model_name: str,
    lora_rank: int = 32,
    train_attn: bool = True,
    train_mlp: bool = True,
    train_unembed: bool = True,
) -> int:
    """Parameters of an adapter: rank·(in + out) for each linear layer it is on.

    An expert of a mixture has three, for gate, up and down; routers have none.
    """
    model = _meta_model(model_name)
    wanted = {"attn": train_attn, "mlp": train_mlp, "unembed": train_unembed}
    return sum(
        lora_rank * layer.size * layer.count
        for layer in _linear_layers(model)
        if wanted[layer.group]
    )


class _Layer(NamedTuple):
    """`size`: in + out features; `count`: matrices of that shape (experts)."""

    group: str
    size: int
    count: int = 1


def _linear_layers(model: nn.Module) -> list[_Layer]:
    from torch import nn

    layers: list[_Layer] = []
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear):
            if not isinstance(module, nn.Conv1d):
                layers += _experts(module)
            continue
        if name.endswith(("lm_head", "embed_out")):
            group = "unembed"
        elif "attn" in name or "attention" in name:
            group = "attn"
        elif name.endswith((".gate", ".router")):  # a linear layer in some families (Jamba, Afmoe)
            continue
        else:
            group = "mlp"
        layers.append(_Layer(group, module.in_features + module.out_features))
    return layers


def _experts(module: nn.Module) -> list[_Layer]:
    """transformers keeps the experts of a layer in stacked matrices, [experts, out, in] or the
    other way round, gate and up in one. An adapter has them apart, as the engine does."""
    parameters = module.named_parameters(recurse=False)
    stacked = {name: weight.shape for name, weight in parameters if weight.dim() == 3}
    if stacked.pop("gate_up_proj", None):  # either has the two sizes of down_proj
        stacked["gate_proj"] = stacked["up_proj"] = stacked["down_proj"]
    return [_Layer("mlp", rows + columns, count) for count, rows, columns in stacked.values()]


def _meta_model(model_name: str) -> PreTrainedModel:
    """The model with its shapes and no memory."""
    import torch
    from transformers import AutoModelForCausalLM

    models.check_files(model_name)
    try:
        config = model_directory.transformers_config(models.load_path(model_name))
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config)
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"model_name={model_name!r}: its config.json cannot be loaded ({first_line(error)})"
            + models.access_hint(model_name)
        ) from error
