"""LoRA adapters that PEFT wrote.

An adapter is read exactly or refused by name: features of PEFT that the engine does not support
(DoRA, a different rank per layer, trained biases or embeddings, ...) must not be ignored silently.
Any scale is supported, including rank-stabilised LoRA: the engine scales by alpha / rank, so alpha
is set to the value that gives the adapter's scale.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open

from tinker_cookbook.engine.base_model import BaseModel
from tinker_cookbook.engine.checkpoints import ADAPTER_FILE, CONFIG_FILE, PREFIX, load_tensors
from tinker_cookbook.engine.lora import UNEMBED, Adapter, LoraSpec
from tinker_cookbook.exceptions import CheckpointError
from tinker_cookbook.families import ATTENTION_LAYERS, MLP_LAYERS
from tinker_cookbook.utils.json_types import Json

# Keys of adapter_config.json that do not affect what the adapter computes: its origin and training,
# and the choice of layers, which the names of the tensors show as well.
_IGNORED_KEYS = (
    *("peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path"),
    *("revision", "inference_mode", "r", "lora_alpha", "lora_dropout", "use_rslora"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
    *("megatron_core", "qalora_group_size", "runtime_config", "eva_config"),
)
# Values of init_lora_weights that leave the base weights alone. Others, such as PiSSA, start from
# an adapter that is not zero and change the base weights to make up for it.
_SUPPORTED_INITS = (True, False, None, "gaussian", "eva", "orthogonal")
_EMBEDDING = "model.embed_tokens"


class PeftAdapter(NamedTuple):
    """What an adapter's files say. base_model: as in adapter_config.json, "" if it has none."""

    base_model: str
    spec: LoraSpec


def load_adapter_info(directory: Path) -> PeftAdapter:
    """Read what an adapter covers.

    Raises CheckpointError that names the first feature that the engine does not support.
    """
    config = _read_config(directory)
    _check_known_keys(config, directory)
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or not isinstance(alpha, int | float):
        raise CheckpointError(
            f"{directory / CONFIG_FILE} has r={rank!r} and lora_alpha={alpha!r}:"
            " expected an integer r and a number lora_alpha"
        )
    if config.get("use_rslora"):  # alpha / sqrt(rank): https://arxiv.org/abs/2312.03732
        alpha = alpha * math.sqrt(rank)
    names = _tensor_names(directory)
    if foreign := [key for key in names if "lora_" in key and not _lora_layer_path(key)]:
        raise _not_lora_error(directory / ADAPTER_FILE, foreign[0])
    paths = {path.rpartition(".")[2] for path in map(_lora_layer_path, names) if path}
    if paths.isdisjoint((*ATTENTION_LAYERS, *MLP_LAYERS, UNEMBED)):
        raise CheckpointError(
            f"{directory / ADAPTER_FILE} covers the layers {', '.join(sorted(paths)) or 'none'};"
            f" the engine supports {', '.join((*ATTENTION_LAYERS, *MLP_LAYERS, UNEMBED))}"
        )
    spec = LoraSpec(
        rank=rank,
        alpha=float(alpha),
        train_attn=not paths.isdisjoint(ATTENTION_LAYERS),
        train_mlp=not paths.isdisjoint(MLP_LAYERS),
        train_unembed=UNEMBED in paths,
    )
    base_model = config.get("base_model_name_or_path") or ""
    if not isinstance(base_model, str):
        raise CheckpointError(
            f"{directory / CONFIG_FILE}: base_model_name_or_path={base_model!r}: expected a string"
        )
    return PeftAdapter(base_model, spec)


def read(adapter: Adapter, base: BaseModel, directory: Path) -> None:
    """Load the weights of PEFT's files into an adapter.

    The adapter's spec must equal that of `load_adapter_info`, except for alpha. A layer that the
    files do not cover (PEFT's default covers only q_proj and v_proj) starts at zero.
    """
    file = directory / ADAPTER_FILE
    spec = load_adapter_info(directory).spec
    adapter_values = [getattr(adapter.spec, key) for key in _SPEC_FIELDS]
    file_values = [getattr(spec, key) for key in _SPEC_FIELDS]
    if adapter_values != file_values:
        differ = ", ".join(
            f"{key}={file_value}, not {adapter_value}"
            for key, adapter_value, file_value in zip(_SPEC_FIELDS, adapter_values, file_values)
            if adapter_value != file_value
        )
        raise CheckpointError(f"{directory} has {differ}")
    tensors = load_tensors(file)
    with torch.no_grad():
        for name, master in adapter.master.items():
            if name.endswith(".lora_B"):  # with B = 0, a layer's product is 0, whatever A is
                master.zero_()
        for key, tensor in tensors.items():
            path = _lora_layer_path(key)
            if not path:
                _check_same_base(key, tensor, base, file)
                continue
            name = key.removeprefix(PREFIX).removesuffix(".weight")
            if name not in adapter.master:
                raise CheckpointError(
                    f"{file}: the base model has no layer {path!r} that supports an adapter"
                )
            master = adapter.master[name]
            if tensor.shape != master.shape:
                raise CheckpointError(
                    f"{file}: {name} has shape {list(tensor.shape)}, the base model needs"
                    f" {list(master.shape)}: it was made for another model, or its rank is not"
                    f" r={spec.rank} everywhere"
                )
            other = f"{PREFIX}{path}.lora_{'B' if name.endswith('A') else 'A'}.weight"
            if other not in tensors:
                raise CheckpointError(f"{file}: {other} is missing")
            master.copy_(tensor)
            if name.endswith(".lora_B") and spec.scale != adapter.spec.scale:
                master.mul_(spec.scale / adapter.spec.scale)
    adapter.refresh()


_SPEC_FIELDS = ("rank", "train_attn", "train_mlp", "train_unembed")


def _read_config(directory: Path) -> dict[str, Json]:
    file = directory / CONFIG_FILE
    try:
        config: Json = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from None
    if not isinstance(config, dict):
        raise CheckpointError(f"{file} must contain a JSON object")
    if not (directory / ADAPTER_FILE).is_file():
        raise CheckpointError(
            f"{directory} has {CONFIG_FILE}, but no {ADAPTER_FILE}: other formats, such as"
            " adapter_model.bin, are not supported; save it as safetensors"
        )
    return config


def _check_known_keys(config: Mapping[str, Json], directory: Path) -> None:
    allowed: dict[str, tuple[Json, ...]] = {
        "peft_type": ("LORA",),
        "task_type": ("CAUSAL_LM", None),
        "bias": ("none",),
        "init_lora_weights": _SUPPORTED_INITS,
    }
    for key, value in {"peft_type": None, **config}.items():
        if key in allowed:
            supported = value in allowed[key]
        else:  # a feature that is off (None, False, empty) is no obstacle, known or not
            supported = key in _IGNORED_KEYS or not value
        if not supported:
            text = json.dumps(value)
            raise CheckpointError(
                f"{directory / CONFIG_FILE} has {key}={text if len(text) < 60 else '...'}, which"
                " the engine does not support: it reads plain LoRA on attention, MLP and lm_head;"
                " merge the adapter into its base model with peft and set model_name to the result"
            )


def _tensor_names(directory: Path) -> list[str]:
    file = directory / ADAPTER_FILE
    try:
        with safe_open(file, framework="pt") as opened:
            return list(opened.keys())
    except Exception as error:  # safetensors raises its own type, OSError or ValueError
        raise CheckpointError(f"{file} cannot be read: {error}") from error


def _lora_layer_path(key: str) -> str:
    """The module path of a LoRA tensor; "" for any other tensor."""
    for end in (".lora_A.weight", ".lora_B.weight"):
        if key.endswith(end):
            return key.removeprefix(PREFIX).removesuffix(end)
    return ""


def _not_lora_error(file: Path, key: str) -> CheckpointError:
    return CheckpointError(f"{file}: {key!r} is not a tensor of plain LoRA")


def _check_same_base(key: str, tensor: torch.Tensor, base: BaseModel, file: Path) -> None:
    """Check that a tensor other than LoRA's is an unchanged copy of the base model's.

    PEFT saves a copy of the embeddings beside an adapter on lm_head. If it differs from the base
    model's, it was trained, or belongs to another vocabulary.
    """
    path = key.removeprefix(PREFIX).removesuffix(".weight").removesuffix(".base_layer")
    base_weights = {UNEMBED: base.head.weight, _EMBEDDING: base.decoder.embed_tokens.weight}
    expected = base_weights.get(path)
    if expected is None:
        raise _not_lora_error(file, key)
    same = tensor.shape == expected.shape and torch.equal(
        tensor.to(expected.device, expected.dtype), expected
    )
    if not same:
        raise CheckpointError(
            f"{file}: {key!r} differs from the base model's: it was trained or resized, but"
            " the engine supports adapters only"
        )
