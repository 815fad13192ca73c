"""LoRA adapters in PEFT's layout that something else than this engine has written.

Read exactly or refused by name: what PEFT computes and this engine does not (DoRA, ranks that
differ from layer to layer, trained biases or embeddings, ...) cannot be left out in silence. A
scale other than ours is kept, also rank-stabilised: the engine's is alpha / rank, so alpha is set
to what gives it.
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
from tinker_cookbook.engine.checkpoints import ADAPTER_FILE, CONFIG_FILE, PREFIX, load
from tinker_cookbook.engine.lora import UNEMBED, Adapter, LoraSpec
from tinker_cookbook.exceptions import CheckpointError
from tinker_cookbook.families import ATTENTION_LAYERS, MLP_LAYERS
from tinker_cookbook.utils.json_types import Json

# says nothing about the function that the adapter computes: origin, initialisation, and what only
# chooses the layers, which the tensors tell themselves
_NEUTRAL = (
    *("peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path"),
    *("revision", "inference_mode", "r", "lora_alpha", "lora_dropout", "use_rslora"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
    *("megatron_core", "qalora_group_size", "runtime_config", "eva_config"),
)
# they start from an adapter that is not zero, and change the base weights to make up for it
_PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
_EMBEDDING = "model.embed_tokens"


class PeftAdapter(NamedTuple):
    """base_model: as adapter_config.json names it, "" where it does not."""

    base_model: str
    spec: LoraSpec


def describe(directory: Path) -> PeftAdapter:
    """CheckpointError names the first thing that the engine would not compute as PEFT does."""
    config = _config(directory)
    _check_known_keys(config, directory)
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or not isinstance(alpha, int | float):
        raise CheckpointError(f"{directory / CONFIG_FILE}: r={rank!r}, lora_alpha={alpha!r}")
    if config.get("use_rslora"):  # alpha / sqrt(rank): https://arxiv.org/abs/2312.03732
        alpha = alpha * math.sqrt(rank)
    names = _names(directory)
    if foreign := [key for key in names if "lora_" in key and not _layer(key)]:
        raise _not_plain(directory / ADAPTER_FILE, foreign[0])
    paths = {path.rpartition(".")[2] for path in map(_layer, names) if path}
    if paths.isdisjoint((*ATTENTION_LAYERS, *MLP_LAYERS, UNEMBED)):
        raise CheckpointError(
            f"{directory / ADAPTER_FILE}: its layers are {', '.join(sorted(paths)) or 'none'}; the"
            f" engine puts adapters on {', '.join((*ATTENTION_LAYERS, *MLP_LAYERS, UNEMBED))}"
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
            f"{directory / CONFIG_FILE}: base_model_name_or_path={base_model!r}, but should be"
            " a string"
        )
    return PeftAdapter(base_model, spec)


def read(adapter: Adapter, base: BaseModel, directory: Path) -> None:
    """Fill an adapter whose spec is that of `describe`, or differs from it in alpha alone.

    A layer that the files leave out (PEFT's own default is q_proj and v_proj) starts at zero.
    """
    file = directory / ADAPTER_FILE
    spec = describe(directory).spec
    wanted = [getattr(adapter.spec, key) for key in _SHAPE]
    found = [getattr(spec, key) for key in _SHAPE]
    if wanted != found:
        differ = ", ".join(
            f"{key}={there}, not {here}"
            for key, here, there in zip(_SHAPE, wanted, found)
            if here != there
        )
        raise CheckpointError(f"{directory} has {differ}")
    tensors = load(file)
    with torch.no_grad():
        for name, master in adapter.master.items():
            if name.endswith(".lora_B"):
                master.zero_()
        for key, tensor in tensors.items():
            path = _layer(key)
            if not path:
                _check_same_base(key, tensor, base, file)
                continue
            name = key.removeprefix(PREFIX).removesuffix(".weight")
            if name not in adapter.master:
                raise CheckpointError(
                    f"{file}: the base model has no layer {path!r} that an adapter is put on"
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


_SHAPE = ("rank", "train_attn", "train_mlp", "train_unembed")


def _config(directory: Path) -> dict[str, Json]:
    file = directory / CONFIG_FILE
    try:
        config: Json = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from None
    if not isinstance(config, dict):
        raise CheckpointError(f"{file} holds no mapping")
    if not (directory / ADAPTER_FILE).is_file():
        raise CheckpointError(
            f"{directory} has {CONFIG_FILE}, but no {ADAPTER_FILE}: other files of weights, such as"
            " adapter_model.bin, are not read; save it as safetensors"
        )
    return config


def _check_known_keys(config: Mapping[str, Json], directory: Path) -> None:
    neutral: dict[str, tuple[Json, ...]] = {
        "peft_type": ("LORA",),
        "task_type": ("CAUSAL_LM", None),
        "bias": ("none",),
        "init_lora_weights": _PLAIN_STARTS,
    }
    for key, value in {"peft_type": None, **config}.items():
        if key in neutral:
            fits = value in neutral[key]
        else:
            fits = key in _NEUTRAL or not value
        if not fits:
            text = json.dumps(value)
            raise CheckpointError(
                f"{directory / CONFIG_FILE} has {key}={text if len(text) < 60 else '...'}, which"
                " the engine does not compute: it reads plain LoRA on attention, MLP and lm_head;"
                " merge the adapter into its model with peft, and use that as model_name"
            )


def _names(directory: Path) -> list[str]:
    file = directory / ADAPTER_FILE
    try:
        with safe_open(file, framework="pt") as opened:
            return list(opened.keys())
    except Exception as error:  # safetensors raises its own type, OSError or ValueError
        raise CheckpointError(f"{file} cannot be read: {error}") from error


def _layer(key: str) -> str:
    """The module path of a LoRA tensor, "" for any other."""
    for end in (".lora_A.weight", ".lora_B.weight"):
        if key.endswith(end):
            return key.removeprefix(PREFIX).removesuffix(end)
    return ""


def _not_plain(file: Path, key: str) -> CheckpointError:
    return CheckpointError(f"{file}: {key!r} is no tensor of a plain LoRA")


def _check_same_base(key: str, tensor: torch.Tensor, base: BaseModel, file: Path) -> None:
    """PEFT puts a copy of the embeddings beside an adapter on lm_head. One that is not the base
    model's own was trained, or belongs to another vocabulary."""
    path = key.removeprefix(PREFIX).removesuffix(".weight").removesuffix(".base_layer")
    own = {UNEMBED: base.head.weight, _EMBEDDING: base.decoder.embed_tokens.weight}.get(path)
    if own is None:
        raise _not_plain(file, key)
    same = tensor.shape == own.shape and torch.equal(tensor.to(own.device, own.dtype), own)
    if not same:
        raise CheckpointError(
            f"{file}: {key!r} is not what the base model has there: it was trained or resized,"
            " and the engine trains adapters alone"
        )
