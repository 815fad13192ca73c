"""Adapters that plain peft has trained start runs here, with the loss that peft computes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recipes import sl_basic
from recipes.number_words import NumberWords
from tinker_cookbook.exceptions import CheckpointError
from tinker_cookbook.nano import PATH as NANO
from tinker_cookbook.service import EngineConfig, connect
from tinker_cookbook.supervised.common import compute_mean_nll
from tinker_cookbook.supervised.types import ChatDatasetBuilderCommonConfig

LAYERS = {
    "attention and MLP": [
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    ],
    "q_proj and v_proj": ["q_proj", "v_proj"],  # peft's default
}


def first_batch() -> list[Any]:
    """What sl_basic trains on in its first step, by its own defaults."""
    common = ChatDatasetBuilderCommonConfig(
        model_name_for_tokenizer="nano",
        renderer_name="qwen3_instruct",
        max_length=512,
        batch_size=32,
    )
    train, _ = NumberWords(common_config=common)()
    train.set_epoch(0)
    return train.get_batch(0)


def peft_logprobs(model: Any, batch: list[Any]) -> list[torch.Tensor]:
    found = []
    for datum in batch:
        tokens = torch.tensor([datum.model_input.to_ints()])
        targets = torch.tensor(datum.loss_fn_inputs["target_tokens"].tolist())
        logits = model(tokens).logits[0].log_softmax(-1)
        found.append(logits.gather(1, targets[:, None])[:, 0])
    return found


def weights_of(batch: list[Any]) -> list[np.ndarray]:
    return [np.array(datum.loss_fn_inputs["weights"].tolist()) for datum in batch]


def train_in_peft(directory: Path, layers: list[str], batch: list[Any]) -> tuple[float, float]:
    """A few steps of AdamW; the losses on the batch before and after."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(NANO, dtype=torch.float32)
    settings = LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=16, target_modules=layers)
    model: Any = get_peft_model(base, settings)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-2)
    losses = []
    for step in range(5):
        logprobs = peft_logprobs(model, batch)
        losses.append(compute_mean_nll([lp.detach().numpy() for lp in logprobs], weights_of(batch)))
        if step < 4:
            sum(
                -(lp * torch.from_numpy(w)).sum() for lp, w in zip(logprobs, weights_of(batch))
            ).backward()
            optimizer.step()
            optimizer.zero_grad()
    model.save_pretrained(directory)
    return losses[0], losses[-1]


@pytest.mark.parametrize("layers", LAYERS)
async def test_the_first_loss_of_the_run_is_that_of_peft(layers: str, tmp_path: Path) -> None:
    batch = first_batch()
    before, after = train_in_peft(tmp_path / "adapter", LAYERS[layers], batch)
    assert after < before / 2, "it must have learned something"
    config = sl_basic.CLI(
        load_checkpoint_path=str(tmp_path / "adapter"),
        log_path=str(tmp_path / "run"),
        lora_rank=8,
        train_mlp="gate_proj" in LAYERS[layers],
        train_unembed=False,
        max_steps=1,
        evaluator_builders=[],
        engine=EngineConfig(device="cpu", dtype="float32"),
        display="none",
    )
    await sl_basic.main(config)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    loss = next(row["train_mean_nll"] for row in map(json.loads, lines) if "train_mean_nll" in row)
    assert abs(loss - after) < 1e-5


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("layers", "said"),
    [
        (["q_proj", "gate"], "no layer 'model.layers.0.mlp.gate' that supports an adapter"),
        (["gate"], "covers the layers gate; the engine supports q_proj, k_proj, "),
    ],
)
def test_layers_that_are_not_ours_are_refused(
    layers: list[str], said: str, tiny_qwen3_moe: str, tmp_path: Path
) -> None:
    """The router of a mixture of experts, which stays frozen here."""
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    from safetensors.torch import save_file

    sizes = {"q_proj": (64, "self_attn.q_proj"), "gate": (4, "mlp.gate")}
    tensors = {}
    for out, path in (sizes[layer] for layer in layers):
        name = f"base_model.model.model.layers.0.{path}"
        tensors[f"{name}.lora_A.weight"] = torch.ones(2, 64)
        tensors[f"{name}.lora_B.weight"] = torch.ones(out, 2)
    save_file(tensors, adapter / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": layers}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    service = connect(engine=EngineConfig(device="cpu"))
    with pytest.raises(CheckpointError, match=said):
        client = service.create_training_client_from_state(str(adapter), base_model=tiny_qwen3_moe)
        client.save_weights_and_get_sampling_client().result()
