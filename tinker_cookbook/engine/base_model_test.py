"""Loading: quantized weights, and models that are refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tinker_cookbook.engine import base_model
from tinker_cookbook.engine.base_model import BaseModel, _load_config
from tinker_cookbook.engine.config import EngineConfig
from tinker_cookbook.engine.testing import make_rows, plain_logprobs
from tinker_cookbook.exceptions import ConfigurationError


def with_quantised_weights(
    source: str, directory: Path, quantization: dict[str, Any]
) -> dict[str, torch.Tensor]:
    """Write a model's files with its layers in 8 or 4 bits; returns the dequantized weights."""
    shutil.copytree(source, directory, dirs_exist_ok=True)
    config = json.loads((directory / "config.json").read_text())
    config["quantization_config"] = quantization
    (directory / "config.json").write_text(json.dumps(config))
    stored, worth = {}, {}
    for name, weight in load_file(directory / "model.safetensors").items():
        if quantization["quant_method"] == "mxfp4" and weight.ndim == 3:
            stored |= mxfp4(name, weight, worth)
        elif quantization["quant_method"] == "fp8" and "_proj" in name:
            stored |= fp8(name, weight, quantization["weight_block_size"], worth)
        else:
            stored[name] = worth[name] = weight
    save_file(stored, directory / "model.safetensors", metadata={"format": "pt"})
    return worth


def fp8(
    name: str, weight: torch.Tensor, block: list[int], worth: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """8-bit floats with one scale per block."""
    rows, columns = weight.shape
    blocks = weight.view(rows // block[0], block[0], columns // block[1], block[1])
    scales = blocks.abs().amax((1, 3)) / 448
    eight = (blocks / scales[:, None, :, None]).to(torch.float8_e4m3fn)
    worth[name] = (eight.float() * scales[:, None, :, None]).view(rows, columns)
    return {name: eight.view(rows, columns), f"{name}_scale_inv": scales}


def mxfp4(
    name: str, weight: torch.Tensor, worth: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """4-bit floats, two per byte; 32 share an exponent (OCP MX specification 1.0)."""
    positive = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    values = torch.tensor(positive + [-value for value in positive])
    experts, fan_in, fan_out = weight.shape
    groups = weight.transpose(1, 2).reshape(experts, fan_out, fan_in // 32, 32)
    exponents = (groups.abs().amax(-1) / 6).log2().ceil()
    scaled = groups / exponents.exp2()[..., None]
    codes = (scaled[..., None] - values).abs().argmin(-1)
    expanded = values[codes] * exponents.exp2()[..., None]
    worth[name] = expanded.reshape(experts, fan_out, fan_in).transpose(1, 2)
    return {
        f"{name}_blocks": (codes[..., 0::2] + 16 * codes[..., 1::2]).to(torch.uint8),
        f"{name}_scales": (exponents + 127).to(torch.uint8),
    }


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("family", "quantization"),
    [
        ("tiny_gpt_oss", {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}),
        ("tiny_qwen3_moe", {"quant_method": "fp8", "weight_block_size": [16, 32]}),
        ("tiny_deepseek", {"quant_method": "fp8", "weight_block_size": [8, 4]}),
    ],
)
def test_quantised_files_are_read_as_plain_weights(
    family: str,
    quantization: dict[str, Any],
    dtype: Any,
    request: pytest.FixtureRequest,
    tmp_path: Path,
) -> None:
    """Small files made here; the real ones of gpt-oss and DeepSeek-V3 were never tried."""
    path = request.getfixturevalue(family)
    worth = with_quantised_weights(path, tmp_path / "quantized", quantization)
    asked = _load_config(str(tmp_path / "quantized")).quantization_config
    assert asked == {**quantization, "dequantize": True}  # on a GPU, transformers must be asked to
    base = BaseModel(str(tmp_path / "quantized"), EngineConfig(device="cpu", dtype=dtype))
    rows = make_rows()
    ours = plain_logprobs(base, rows)
    assert {p.dtype for p in base.decoder.parameters()} == {getattr(torch, dtype)}
    plain = tmp_path / "plain"
    shutil.copytree(path, plain)
    save_file(
        {name: tensor.contiguous() for name, tensor in worth.items()},
        plain / "model.safetensors",
        metadata={"format": "pt"},
    )
    theirs = plain_logprobs(BaseModel(str(plain), EngineConfig(device="cpu", dtype=dtype)), rows)
    before = plain_logprobs(BaseModel(path, EngineConfig(device="cpu", dtype=dtype)), rows)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert max((a - b).abs().max() for a, b in zip(ours, before)) > 1e-3


def test_refusals(tiny_gpt_oss: str, tiny_qwen3_moe: str, tmp_path: Path) -> None:
    def refused(config: dict[str, Any], message: str) -> None:
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(ConfigurationError, match=message):
            BaseModel(str(tmp_path), EngineConfig(device="cpu"))

    refused({"model_type": "mixtral"}, "'mixtral', which the engine does not support; .*qwen3_moe")
    refused({"model_type": "kimi_k25"}, "'kimi_k25', which the engine does not support")
    config = json.loads((Path(tiny_gpt_oss) / "config.json").read_text())
    awq = {"quant_method": "awq", "bits": 4}
    refused({**config, "quantization_config": awq}, "with 'awq', .* use mxfp4 or fp8")
    cut = {"quant_method": "fp8", "weight_block_size": [40, 128]}  # 64 is one and a half blocks
    refused({**config, "quantization_config": cut}, r"do not divide .*q_proj.* of \[64, 64\]")
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    refused({**config, "rope_parameters": rope}, "rope_type='dynamic'; supported: default")
    shutil.copytree(tiny_qwen3_moe, tmp_path, dirs_exist_ok=True)
    whole = load_file(tmp_path / "model.safetensors")
    part = "model.layers.1.mlp.experts.2.up_proj.weight"
    for absent, message in (
        ([part], "some of its experts are missing"),
        ([name for name in whole if ".1.mlp.experts.2." in name], r"lack 'model\.layers\.1\.mlp"),
        ([name for name in whole if ".1.mlp.experts." in name], r"lack 'model\.layers\.1\.mlp"),
    ):
        weights = {name: tensor for name, tensor in whole.items() if name not in absent}
        save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ConfigurationError, match=message):
            BaseModel(str(tmp_path), EngineConfig(device="cpu"))


@pytest.mark.parametrize(
    ("parameters", "device", "has_products", "free_gib", "expected"),
    [
        (2_000_000, "cpu", False, 1, "float32"),  # small
        (135_000_000, "cpu", True, 20, "bfloat16"),
        (135_000_000, "cpu", False, 20, "float32"),  # emulated products are slower
        (135_000_000, "cpu", False, 2, "bfloat16"),  # four copies of 0.5 GiB do not fit
        (135_000_000, "cuda", False, 20, "bfloat16"),
    ],
)
def test_the_automatic_dtype_fits_the_processor_and_its_memory(
    parameters: int,
    device: str,
    has_products: bool,
    free_gib: int,
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(base_model, "has_bf16_products", lambda: has_products)
    monkeypatch.setattr(base_model.memory, "free_bytes", lambda _: free_gib * 2**30)
    assert base_model._choose_dtype(parameters, torch.device(device)) == expected
