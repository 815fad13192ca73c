"""Learning rates by model size, and parameter counts.

    lr = 5e-5 · (10 with LoRA) · (2000 / hidden size)^p

p depends on the family (families/family.py). 0.781 for Llama and 0.0775 for Qwen are from the
official Tinker cookbook, which fitted them to sweeps and uses them for all later generations and
vision models of these families; so do we. The other families in the table use the exponent that
gives the lower rate: a choice, not a measurement. nano has no formula but a rate that was measured
on its supervised recipe, 6e-3 with LoRA. For all other models learning_rate= must be given.

These rates are for supervised fine-tuning. Other methods have defaults of their own.
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
    """The Adam learning rate by the formula above.

    Raises ConfigurationError for a family without an exponent, and for nano without LoRA.
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
    """The ratio of the best LoRA learning rate to that of full fine-tuning: 10, at any rank.

    The ratio is known for alpha 32 only, which this cookbook always uses; raises ConfigurationError
    for any other alpha.
    """
    if lora_alpha != 32:
        raise ConfigurationError(
            f"lora_alpha={lora_alpha}: the learning-rate ratio is known only for 32"
        )
    return _LORA_FACTOR


def get_full_finetune_lr_multiplier(model_name: str) -> float:
    """1/sqrt(parameters): scales a full fine-tuning learning rate from one model to another."""
    return 1.0 / math.sqrt(get_full_finetune_param_count(model_name))


def get_lora_lr_multiplier(model_name: str) -> float:
    """`get_full_finetune_lr_multiplier` for LoRA learning rates."""
    return get_full_finetune_lr_multiplier(model_name) * get_lora_lr_over_full_finetune_lr(
        model_name
    )


def get_full_finetune_param_count(model_name: str) -> int:
    """Count all parameters, tied ones once, from config.json alone (no weights are loaded)."""
    return sum(parameter.numel() for parameter in _meta_model(model_name).parameters())


def get_lora_param_count(
    model_name: str,
    lora_rank: int = 32,
    train_attn: bool = True,
    train_mlp: bool = True,
    train_unembed: bool = True,
) -> int:
    """Count the parameters of an adapter: rank·(in + out) for each adapted linear layer.

    Each expert of a mixture has three such layers (gate, up, down); routers have no adapter.
    """
    model = _meta_model(model_name)
    is_trained = {"attn": train_attn, "mlp": train_mlp, "unembed": train_unembed}
    return sum(
        lora_rank * layer.size * layer.count
        for layer in _linear_layers(model)
        if is_trained[layer.group]
    )


class _Layer(NamedTuple):
    """size: in + out features. count: number of layers of that shape (experts)."""

    group: str
    size: int
    count: int = 1


def _linear_layers(model: nn.Module) -> list[_Layer]:
    from torch import nn

    layers: list[_Layer] = []
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear):
            if not isinstance(module, nn.Conv1d):
                layers += _expert_layers(module)
            continue
        if name.endswith(("lm_head", "embed_out")):
            group = "unembed"
        elif "attn" in name or "attention" in name:
            group = "attn"
        elif name.endswith((".gate", ".router")):  # routers are linear layers in Jamba and Afmoe
            continue
        else:
            group = "mlp"
        layers.append(_Layer(group, module.in_features + module.out_features))
    return layers


def _expert_layers(module: nn.Module) -> list[_Layer]:
    """The experts' layers of a module, counted separately as in the engine's adapters.

    transformers stacks the experts in 3-D parameters, [experts, out, in] or [experts, in, out],
    with gate and up merged into one parameter.
    """
    parameters = module.named_parameters(recurse=False)
    stacked = {name: weight.shape for name, weight in parameters if weight.dim() == 3}
    if stacked.pop("gate_up_proj", None):  # gate and up each have the two sizes of down_proj
        stacked["gate_proj"] = stacked["up_proj"] = stacked["down_proj"]
    return [_Layer("mlp", rows + columns, count) for count, rows, columns in stacked.values()]


def _meta_model(model_name: str) -> PreTrainedModel:
    """Build the model on the meta device: shapes without memory."""
    import torch
    from transformers import AutoModelForCausalLM

    models.check_files(model_name)
    try:
        config = model_directory.transformers_config(models.load_path(model_name))
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config)
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"model_name={model_name!r}: its config.json could not be loaded ({first_line(error)})"
            + models.access_hint(model_name)
        ) from error
