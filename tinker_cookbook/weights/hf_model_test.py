"""Merged models: against our engine, against a merge in float64, shards, dtypes, refusals."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tinker_cookbook.exceptions import ConfigurationError, WeightsError, WeightsMergeError
from tinker_cookbook.service.adapter_tensors import open_adapter
from tinker_cookbook.weights import build_hf_model, merge_check
from tinker_cookbook.weights.hf_model import write_merged
from tinker_cookbook.weights.testing import load_model, model_logprobs, our_logprobs, train


def merge(checkpoint: str, output: Path, dtype: str = "float32", **keys: object) -> Path:
    made = build_hf_model(
        base_model=None, adapter_path=checkpoint, output_path=str(output), dtype=dtype, **keys
    )
    assert made == str(output)
    return output


def in_files(directory: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(directory.glob("*.safetensors")):
        tensors |= load_file(file)
    return tensors


def merged_in_float64(base: str, checkpoint: str) -> dict[str, torch.Tensor]:
    """The weights of a model whose layers are stored under their own names, and the product."""
    weights = {name: tensor.double() for name, tensor in in_files(Path(base)).items()}
    with open_adapter(checkpoint) as adapter:
        for path in adapter.shapes:
            a, b = adapter.pair(path)
            key = f"{path}.weight"
            if key not in weights:
                weights[key] = weights["model.embed_tokens.weight"]  # tied
            weights[key] = weights[key] + adapter.spec.scale * (b.double() @ a.double())
    return weights


@pytest.mark.parametrize("unembed", [True, False])
@pytest.mark.parametrize(
    ("family", "bound"),
    [
        ("tiny_llama", 1e-5),
        ("tiny_qwen3", 1e-5),
        ("tiny_qwen3_moe", 1e-5),
        ("tiny_deepseek", 3e-5),  # its logprobs reach -60
        ("tiny_gpt_oss", 1e-5),
    ],
)
def test_it_computes_what_the_engine_computes(
    family: str, bound: float, unembed: bool, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    base = request.getfixturevalue(family)
    checkpoint = train(base, train_unembed=unembed)
    ours = our_logprobs(checkpoint)
    assert np.abs(ours - our_logprobs(base_model=base)).max() > 0.5, "the adapter must matter"
    directory = merge(checkpoint, tmp_path / "merged")
    assert np.abs(model_logprobs(load_model(directory)) - ours).max() < bound
    config = json.loads((directory / "config.json").read_text())
    untied = family == "tiny_qwen3" and unembed
    assert config["tie_word_embeddings"] == (family == "tiny_qwen3" and not unembed)
    assert ("lm_head.weight" in in_files(directory)) == (family != "tiny_qwen3" or untied)
    if family != "tiny_gpt_oss":  # every weight against a merge in float64
        expected = merged_in_float64(base, checkpoint)
        found = in_files(directory)
        assert set(found) == set(expected)
        for name, tensor in found.items():
            torch.testing.assert_close(tensor.double(), expected[name], rtol=3e-7, atol=1e-6)


@pytest.mark.parametrize("family", ["tiny_llama", "tiny_qwen3_moe"])
def test_it_equals_what_peft_merges(
    family: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    from peft import PeftModel

    base = request.getfixturevalue(family)
    checkpoint = train(base)
    with open_adapter(checkpoint) as adapter:
        merged = PeftModel.from_pretrained(load_model(base), adapter.directory).merge_and_unload()
    ours = load_model(merge(checkpoint, tmp_path / "merged"))
    weights = dict(merged.named_parameters())
    for name, tensor in ours.named_parameters():
        torch.testing.assert_close(tensor, weights[name], rtol=1e-6, atol=2e-6)


def test_experts_that_are_stacked_in_the_files(tiny_qwen3_moe: str, tmp_path: Path) -> None:
    """transformers loads this layout, too; the merged model must be the same."""
    stacked = tmp_path / "stacked"
    shutil.copytree(tiny_qwen3_moe, stacked)
    tensors = in_files(stacked)
    for layer in (0, 1):
        path = f"model.layers.{layer}.mlp.experts"
        parts = {
            kind: torch.stack([tensors.pop(f"{path}.{e}.{kind}_proj.weight") for e in range(4)])
            for kind in ("gate", "up", "down")
        }
        tensors[f"{path}.gate_up_proj"] = torch.cat([parts["gate"], parts["up"]], dim=1)
        tensors[f"{path}.down_proj"] = parts["down"]
    save_file(tensors, stacked / "model.safetensors", {"format": "pt"})
    checkpoint = train(tiny_qwen3_moe)
    with open_adapter(checkpoint) as adapter:
        shutil.copytree(adapter.directory, tmp_path / "adapter")
    config = tmp_path / "adapter" / "adapter_config.json"
    config.write_text(config.read_text().replace(tiny_qwen3_moe, str(stacked)))
    merge(str(tmp_path / "adapter"), tmp_path / "merged")
    found = model_logprobs(load_model(tmp_path / "merged"))
    assert np.abs(found - our_logprobs(checkpoint)).max() < 1e-5


def test_a_base_in_many_shards(tiny_qwen3: str, tmp_path: Path) -> None:
    """The shards keep their names; lm_head.weight, which is new, comes beside the embeddings."""
    sharded = tmp_path / "sharded"
    load_model(tiny_qwen3).save_pretrained(sharded, max_shard_size="100KB")
    names = sorted(file.name for file in sharded.glob("*.safetensors"))
    assert len(names) > 3
    checkpoint = train(str(sharded))
    merge(checkpoint, tmp_path / "merged")
    assert sorted(file.name for file in (tmp_path / "merged").glob("*.safetensors")) == names
    index = json.loads((tmp_path / "merged" / "model.safetensors.index.json").read_text())
    where = index["weight_map"]
    assert where["lm_head.weight"] == where["model.embed_tokens.weight"]
    tensors = in_files(tmp_path / "merged")
    assert set(where) == set(tensors)
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors.values())
    found = model_logprobs(load_model(tmp_path / "merged"))
    assert np.abs(found - our_logprobs(checkpoint)).max() < 1e-5


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_weights_are_rounded_once(tiny_llama: str, tmp_path: Path, dtype: str) -> None:
    checkpoint = train(tiny_llama, steps=1)
    directory = merge(checkpoint, tmp_path / "merged", dtype, check=False)
    config = json.loads((directory / "config.json").read_text())
    assert config["dtype"] == dtype and "torch_dtype" not in config
    expected = merged_in_float64(tiny_llama, checkpoint)
    for name, tensor in in_files(directory).items():
        assert tensor.dtype == getattr(torch, dtype)
        # of float32's rounding before, a tie may go the other way
        gap = (tensor.double() - expected[name]).abs()
        half = torch.finfo(tensor.dtype).eps / 2 * expected[name].abs()
        assert bool((gap <= half * 1.001 + 1e-7).all()), name


def test_what_a_model_keeps_in_float32_stays_so(tiny_deepseek: str, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_deepseek, base)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    tensors = {
        name: tensor if name.endswith("e_score_correction_bias") else tensor.bfloat16()
        for name, tensor in in_files(base).items()
    }
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    directory = merge(train(str(base)), tmp_path / "merged", "bfloat16", check=False)
    assert {name: t.dtype for name, t in in_files(directory).items()} == {
        name: t.dtype for name, t in tensors.items()
    }


def test_numbers_that_float16_cannot_hold(tiny_llama: str, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_llama, base)
    tensors = in_files(base)
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = 1e6
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(WeightsMergeError, match=r"up_proj\.weight' is not finite in float16"):
        merge(train(str(base)), tmp_path / "merged", "float16")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base"]


def test_the_check_finds_a_wrong_merge(
    tiny_qwen3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An adapter of which one layer of two is left out, as a wrong name would leave it."""
    from tinker_cookbook.weights import hf_model

    right = hf_model.merged_parts

    def half(name: str, tensor: torch.Tensor, deltas: list[Any], *rest: Any) -> Any:
        return right(name, tensor, [d for d in deltas if "layers.0" not in d.path], *rest)

    checkpoint = train(tiny_qwen3)
    monkeypatch.setattr(hf_model, "merged_parts", half)
    with pytest.raises(WeightsMergeError, match="the merged model is wrong") as error:
        merge(checkpoint, tmp_path / "merged", "bfloat16")
    assert "bound for bfloat16" in str(error.value) and "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_the_check_is_not_made_where_the_model_does_not_fit(
    tiny_qwen3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merge_check, "free_cpu_memory", lambda: 100)
    lines: list[str] = []
    with open_adapter(train(tiny_qwen3)) as adapter:
        merged = write_merged(adapter, tmp_path / "m", "auto", True, "output", lines.append)
    assert merged.check is None and (tmp_path / "m").is_dir()
    assert lines[-1].startswith("check not made: comparing logprobs takes ")


def test_rounding_that_costs_the_training_is_told(tiny_llama: str, tmp_path: Path) -> None:
    lines: list[str] = []
    with open_adapter(train(tiny_llama, steps=0)) as adapter:  # B is zero: no effect at all
        write_merged(adapter, tmp_path / "m", "float16", True, "output", lines.append)
    assert re.match(r"note: rounding to float16 changes logprobs by \S+, training by 0", lines[-1])


def test_refusals(tiny_llama: str, tiny_qwen3: str, tmp_path: Path) -> None:
    checkpoint = train(tiny_llama)
    with open_adapter(checkpoint) as adapter:
        shutil.copytree(adapter.directory, tmp_path / "adapter")
    adapter_config = tmp_path / "adapter" / "adapter_config.json"
    content = json.loads(adapter_config.read_text())

    def refused(base: str | Path, error: type[Exception], said: str, **keys: str) -> None:
        adapter_config.write_text(
            json.dumps(content | {"base_model_name_or_path": str(base)} if base else content)
        )
        with pytest.raises(error, match=said) as raised:
            merge(str(tmp_path / "adapter"), tmp_path / "merged", **keys)
        assert "\n" not in str(raised.value)
        assert not (tmp_path / "merged").exists()

    def copied(name: str, **config: object) -> Path:
        shutil.copytree(tiny_llama, tmp_path / name)
        file = tmp_path / name / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | config))
        return tmp_path / name

    refused(tmp_path / "absent", ConfigurationError, "base_model=.*there is no .*config.json")
    quantized = copied("quantized", quantization_config={"quant_method": "mxfp4"})
    refused(quantized, WeightsError, "quantized with 'mxfp4'.*copy in bfloat16")
    eight_bit = copied("eight_bit")
    tensors = in_files(eight_bit)
    tensors["model.norm.weight"] = tensors["model.norm.weight"].to(torch.float8_e4m3fn)
    save_file(tensors, eight_bit / "model.safetensors")
    refused(eight_bit, WeightsError, "'model.norm.weight' has dtype F8_E4M3")
    short = copied("short")
    tensors = in_files(short)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, short / "model.safetensors")
    refused(short, WeightsMergeError, r"'model.layers.1.mlp.up_proj'.*does not have it")
    pickled = copied("pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    refused(pickled, WeightsError, "only safetensors can be merged")
    cut = copied("cut")
    file = cut / "model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])
    refused(cut, WeightsError, r"model.safetensors cannot be read")
    other = copied("other")
    tensors = in_files(other)
    name = "model.layers.0.self_attn.q_proj.weight"
    save_file(tensors | {name: tensors[name][:-1].contiguous()}, other / "model.safetensors")
    refused(other, WeightsMergeError, r"\[out, in\] = \[64, 64\].*has \[63, 64\]")
    refused(tiny_llama, ConfigurationError, "dtype='bf16'", dtype="bf16")
    refused(tiny_llama, ConfigurationError, "merge_strategy='x'", merge_strategy="x")
    with pytest.raises(Exception, match="was trained on"):
        build_hf_model(
            base_model=tiny_qwen3, adapter_path=checkpoint, output_path=str(tmp_path / "merged")
        )


def test_an_adapter_of_peft_with_copies_of_the_embeddings(tiny_llama: str, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(
        load_model(tiny_llama),
        LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "lm_head"]),
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2)
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    copies = [name for name in load_file(file) if "lora_" not in name]
    assert copies
    merge(str(tmp_path / "adapter"), tmp_path / "merged")
    found = model_logprobs(load_model(tmp_path / "merged"))
    assert np.abs(found - model_logprobs(model.eval())).max() < 1e-5
    tensors = load_file(file)
    save_file(tensors | {copies[0]: tensors[copies[0]] + 0.1}, file)
    with pytest.raises(WeightsMergeError, match="it was trained or resized"):
        merge(str(tmp_path / "adapter"), tmp_path / "again")
