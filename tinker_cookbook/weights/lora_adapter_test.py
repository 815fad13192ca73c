"""Exported adapters in peft: what it computes, and what it leaves out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tinker_cookbook.exceptions import CheckpointError, ConfigurationError
from tinker_cookbook.service.adapter_tensors import open_adapter
from tinker_cookbook.weights import build_lora_adapter
from tinker_cookbook.weights.lora_adapter import write_adapter
from tinker_cookbook.weights.peft_limits import peft_limit
from tinker_cookbook.weights.testing import load_model, model_logprobs, our_logprobs, train


def export(checkpoint: str, output: Path) -> Path:
    made = build_lora_adapter(
        base_model=None, adapter_path=checkpoint, output_path=str(output / "adapter")
    )
    return Path(made)


def in_peft(base: str, directory: Path) -> np.ndarray:
    from peft import PeftModel

    return model_logprobs(PeftModel.from_pretrained(load_model(base), str(directory)))


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")  # peft's
@pytest.mark.parametrize("unembed", [True, False])
@pytest.mark.parametrize("family", ["tiny_llama", "tiny_qwen3", "tiny_qwen3_moe"])
def test_peft_computes_what_the_engine_computes(
    family: str, unembed: bool, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    base = request.getfixturevalue(family)
    checkpoint = train(base, train_unembed=unembed)
    directory = export(checkpoint, tmp_path)
    ours = our_logprobs(checkpoint)
    assert np.abs(in_peft(base, directory) - ours).max() < 1e-5
    assert np.abs(our_logprobs(str(directory), base) - ours).max() == 0
    with open_adapter(checkpoint) as adapter:
        assert peft_limit(adapter) is None
    config = json.loads((directory / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == base
    assert ("lm_head" in config["target_modules"]) == unembed


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")
@pytest.mark.parametrize(
    ("family", "said"),
    [
        ("tiny_deepseek", r"MLP layers beside the experts, e.g. model.layers.0.mlp.down_proj"),
        ("tiny_gpt_oss", "adapters of this model's experts"),
    ],
)
def test_what_peft_leaves_out_is_said(
    family: str, said: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """If this fails because the gap is gone, peft has learned it: remove the note."""
    base = request.getfixturevalue(family)
    checkpoint = train(base)
    with open_adapter(checkpoint) as adapter:
        assert said in (peft_limit(adapter) or "")
    gap = np.abs(in_peft(base, export(checkpoint, tmp_path)) - our_logprobs(checkpoint)).max()
    assert gap > 0.01
    attention = train(base, train_mlp=False)
    with open_adapter(attention) as adapter:
        assert peft_limit(adapter) is None
    other = export(attention, tmp_path / "attention")
    assert np.abs(in_peft(base, other) - our_logprobs(attention)).max() < 3e-5


def test_nano_gets_a_path_that_peft_can_load(tmp_path: Path) -> None:
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoTokenizer

    checkpoint = train("nano")
    directory = export(checkpoint, tmp_path)
    model = AutoPeftModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    assert np.abs(model_logprobs(model) - our_logprobs(checkpoint)).max() < 1e-5
    text = AutoTokenizer.from_pretrained(directory).apply_chat_template(
        [{"role": "user", "content": "2 + 2"}], tokenize=False, add_generation_prompt=True
    )
    assert "2 + 2" in text


def test_dtype(tiny_llama: str, tmp_path: Path) -> None:
    with open_adapter(train(tiny_llama)) as adapter:
        write_adapter(adapter, tmp_path / "half", "bfloat16", "output")
        write_adapter(adapter, tmp_path / "full", "auto", "output")
        with pytest.raises(ConfigurationError, match="dtype='int8'"):
            write_adapter(adapter, tmp_path / "x", "int8", "output")  # type: ignore[arg-type]
    half, full = (
        load_file(tmp_path / name / "adapter_model.safetensors") for name in ("half", "full")
    )
    assert list(half) == list(full)
    for name, tensor in full.items():
        assert tensor.dtype == torch.float32 and torch.equal(half[name], tensor.bfloat16())


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_an_adapter_of_peft_keeps_its_config(tiny_qwen3: str, tmp_path: Path) -> None:
    """It may cover fewer layers than an adapter of ours, and scale in another way."""
    from peft import LoraConfig, get_peft_model

    settings = LoraConfig(
        task_type="CAUSAL_LM",
        r=4,
        use_rslora=True,
        target_modules=["q_proj", "up_proj"],
        layers_to_transform=[1],
    )
    model = get_peft_model(load_model(tiny_qwen3), settings).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2)
    model.save_pretrained(tmp_path / "made")
    directory = export(str(tmp_path / "made"), tmp_path)
    assert np.abs(in_peft(tiny_qwen3, directory) - model_logprobs(model)).max() < 1e-6


def test_missing_checkpoints(tiny_llama: str, tmp_path: Path) -> None:
    path = train(tiny_llama)
    for wrong in (
        path + "y",
        path.replace("sampler_weights", "weights"),
        "tinker://none/weights/x",
    ):
        with pytest.raises(CheckpointError) as error:
            export(wrong, tmp_path)
        assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []
