"""Files of a checkpoint directory: the adapter in PEFT's layout, and the optimizer state.

    adapter_config.json          PEFT's LoraConfig
    adapter_model.safetensors    base_model.model.<path>.lora_{A,B}.weight, fp32
    optimizer.safetensors        <path>.lora_{A,B}.{exp_avg,exp_avg_sq}, step (training state only);
                                 metadata: settings of the run (ComputedWith)

This module writes files into an existing directory and reads them. Atomicity and checksums are the
store's responsibility (`service/store.py`): a checkpoint gets its name, in one rename, only after
all of its files are complete, so a crash while writing leaves no broken checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tinker_cookbook.engine.base_model import BaseModel
from tinker_cookbook.engine.lora import UNEMBED, Adapter, LoraSpec
from tinker_cookbook.engine.trainer import MOMENTS, AdapterTrainer
from tinker_cookbook.exceptions import CheckpointError
from tinker_cookbook.families import ATTENTION_LAYERS, MLP_LAYERS

ADAPTER_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
OPTIMIZER_FILE = "optimizer.safetensors"
PREFIX = "base_model.model."
COMPUTED_KEY = "computed_with"
THREADS_KEY = "num_threads"  # the only key of older checkpoints


class ComputedWith(NamedTuple):
    """Settings on which a run's numbers depend; None: not recorded, or on a GPU (num_threads)."""

    num_threads: int | None = None  # CPU threads
    dtype: str | None = None  # of the base model, e.g. "float32"
    float32_residual: bool | None = None
    exact_logits: int | None = None


def write_adapter(adapter: Adapter, base_model: str, directory: Path) -> None:
    """Write the adapter alone, in the files that peft loads."""
    spec = adapter.spec
    # only names of layers that this model has: families name their layers differently
    covered = {name.split(".")[-2] for name in adapter.master}
    targets = [name for name in (*ATTENTION_LAYERS, *MLP_LAYERS, UNEMBED) if name in covered]
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "r": spec.rank,
        "lora_alpha": spec.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": targets,
        "inference_mode": True,
    }
    (directory / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n")
    tensors = {
        f"{PREFIX}{name}.weight": tensor.detach().cpu().contiguous()
        for name, tensor in adapter.master.items()
    }
    _save_tensors(tensors, directory / ADAPTER_FILE)


def write_state(trainer: AdapterTrainer, base_model: str, directory: Path) -> None:
    """Write the adapter and everything the next optimizer step depends on.

    An accumulated gradient is not saved: resuming starts with an empty one.
    """
    write_adapter(trainer.adapter, base_model, directory)
    tensors = {}
    for name, master in trainer.adapter.master.items():
        state = trainer.optimizer.state.get(master)
        if not state:
            continue  # AdamW makes its state in the first step
        for moment in MOMENTS:
            tensors[f"{name}.{moment}"] = state[moment].cpu().contiguous()
        tensors["step"] = state["step"].cpu().clone()
    metadata = {COMPUTED_KEY: json.dumps(computed_with(trainer.base)._asdict(), sort_keys=True)}
    _save_tensors(tensors, directory / OPTIMIZER_FILE, metadata)


def computed_with(base: BaseModel) -> ComputedWith:
    """The settings of this process."""
    return ComputedWith(
        torch.get_num_threads() if base.device.type == "cpu" else None,
        str(base.dtype).removeprefix("torch."),
        base.residual_dtype == torch.float32,
        base.head.num_exact,
    )


def read_spec(directory: Path) -> LoraSpec:
    """Read which layers a saved adapter covers, and its rank and alpha.

    The seed is not saved: it only matters for initialisation.
    """
    try:
        config = json.loads((directory / CONFIG_FILE).read_text())
        targets = config["target_modules"]
        return LoraSpec(
            rank=config["r"],
            alpha=config["lora_alpha"],
            train_attn=any(name in targets for name in ATTENTION_LAYERS),
            train_mlp=any(name in targets for name in MLP_LAYERS),
            train_unembed=UNEMBED in targets,
        )
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{directory / CONFIG_FILE} cannot be read: {error!r}") from error


def read_adapter(adapter: Adapter, directory: Path) -> None:
    """Load the weights of a checkpoint into an adapter.

    Raises CheckpointError unless names and shapes are exactly the adapter's. Alpha may differ.
    """
    scale = read_spec(directory).scale / adapter.spec.scale
    tensors = load_tensors(directory / ADAPTER_FILE)
    saved = {name.removeprefix(PREFIX).removesuffix(".weight"): t for name, t in tensors.items()}
    _check_tensors(adapter, directory / ADAPTER_FILE, saved)
    with torch.no_grad():
        for name, master in adapter.master.items():
            master.copy_(saved[name])
            # with another alpha, B absorbs the ratio of the scales, so the product stays the same
            if name.endswith(".lora_B") and scale != 1:
                master.mul_(scale)
    adapter.refresh()


def read_optimizer(trainer: AdapterTrainer, directory: Path) -> None:
    """Restore the optimizer's moments and step count, and drop the gradient.

    Raises CheckpointError if the directory has no optimizer state, or one for another alpha:
    moments are of gradients, which depend on alpha.
    """
    file = directory / OPTIMIZER_FILE
    if not file.exists():
        raise CheckpointError(
            f"{directory} has no optimizer state (it was saved for sampling);"
            " use create_training_client_from_state to start with a fresh optimizer"
        )
    alpha = read_spec(directory).alpha
    if alpha != trainer.spec.alpha:
        raise CheckpointError(
            f"{directory} was trained with alpha {alpha:g}, not {trainer.spec.alpha:g}: its"
            " optimizer state fits only a client created from it"
        )
    tensors = load_tensors(file)
    step = tensors.pop("step", None)
    trainer.reset()
    state = trainer.optimizer.state
    if step is None:  # saved before the first step
        return
    for moment in MOMENTS:
        saved = {
            name.removesuffix(f".{moment}"): tensor
            for name, tensor in tensors.items()
            if name.endswith(f".{moment}")
        }
        _check_tensors(trainer.adapter, file, saved)
        for name, master in trainer.adapter.master.items():
            state[master][moment] = saved[name].to(master.device)
            state[master]["step"] = step.to(master.device, copy=True)


def read_computed_with(directory: Path) -> ComputedWith:
    """Read the settings of the run that saved a training state."""
    file = directory / OPTIMIZER_FILE
    try:
        with safe_open(file, "pt") as tensors:
            metadata = tensors.metadata() or {}
        if COMPUTED_KEY in metadata:
            saved = json.loads(metadata[COMPUTED_KEY])
            return ComputedWith(**{k: v for k, v in saved.items() if k in ComputedWith._fields})
        return ComputedWith(int(metadata[THREADS_KEY]) if THREADS_KEY in metadata else None)
    except Exception as error:  # as in load_tensors
        raise CheckpointError(f"{file} cannot be read: {error}") from error


def _save_tensors(
    tensors: dict[str, torch.Tensor], file: Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Save tensors with the usual file permissions; safetensors makes files for the owner only.

    metadata: at most one key. safetensors writes several in varying order, so equal checkpoints
    would have different bytes.
    """
    file.touch()
    mode = file.stat().st_mode
    save_file(tensors, file, metadata=dict(metadata or {"format": "pt"}))
    file.chmod(mode)


def load_tensors(file: Path) -> dict[str, torch.Tensor]:
    """Load a safetensors file; raises CheckpointError if it cannot be read."""
    try:
        return load_file(file)
    except Exception as error:  # safetensors raises its own type, OSError or ValueError
        raise CheckpointError(f"{file} cannot be read: {error}") from error


def _check_tensors(adapter: Adapter, file: Path, saved: dict[str, torch.Tensor]) -> None:
    for name in sorted(set(saved) ^ set(adapter.master)):
        problem = "is not part of this run's adapter" if name in saved else "is missing"
        raise CheckpointError(f"{file}: tensor {name!r} {problem}; base model or targets differ")
    for name, master in adapter.master.items():
        if saved[name].shape != master.shape:
            raise CheckpointError(
                f"{file}: {name} has shape {list(saved[name].shape)}, this run needs"
                f" {list(master.shape)}; base model or rank differ"
            )
