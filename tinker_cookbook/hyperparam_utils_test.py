from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tinker_cookbook import hyperparam_utils
from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.hyperparam_utils import (
    get_full_finetune_lr_multiplier,
    get_full_finetune_param_count,
    get_lora_lr_multiplier,
    get_lora_lr_over_full_finetune_lr,
    get_lora_param_count,
    get_lr,
)

if TYPE_CHECKING:
    from transformers import PretrainedConfig


@pytest.mark.parametrize(
    "name, value",
    [
        ("meta-llama/Llama-3.2-1B", 4.91e-4),
        ("meta-llama/Llama-3.1-8B", 2.86e-4),
        ("meta-llama/Llama-3.1-8B-Instruct", 2.86e-4),
        ("meta-llama/Llama-3.3-70B-Instruct", 1.66e-4),
        ("Qwen/Qwen3-4B", 4.91e-4),
        ("Qwen/Qwen3-8B", 4.73e-4),
        ("Qwen/Qwen3-8B-Base", 4.73e-4),
        ("Qwen/Qwen3-30B-A3B", 4.99e-4),
        ("Qwen/Qwen3-32B", 4.65e-4),
    ],
)
def test_learning_rates(name: str, value: float) -> None:
    assert round(get_lr(name), 6) == value
    assert get_lr(name, is_lora=False) == pytest.approx(get_lr(name) / 10)


@pytest.mark.parametrize(
    "name, hidden_size",
    [
        ("openai/gpt-oss-20b", 2880),
        ("openai/gpt-oss-120b", 2880),
        ("deepseek-ai/DeepSeek-V3.1", 7168),
        ("moonshotai/Kimi-K2-Thinking", 7168),
    ],
)
def test_families_without_a_fit_get_the_lower_rate_of_the_two_fits(
    name: str, hidden_size: int
) -> None:
    by_llama, by_qwen = (5e-4 * (2000 / hidden_size) ** p for p in (0.781, 0.0775))
    assert get_lr(name) == pytest.approx(min(by_llama, by_qwen))


def test_nano_has_its_measured_rate() -> None:
    assert get_lr("nano") == 6e-3
    with pytest.raises(ConfigurationError, match=r"learning_rate= must be given"):
        get_lr("nano", is_lora=False)


@pytest.mark.parametrize(
    "config, p",
    [
        ({"text_config": {"model_type": "qwen3_vl_text", "hidden_size": 4096}}, 0.0775),
        ({"text_config": {"model_type": "qwen3_vl_moe_text", "hidden_size": 2048}}, 0.0775),
        ({"text_config": {"model_type": "qwen3_5_text", "hidden_size": 4096}}, 0.0775),
        ({"text_config": {"model_type": "qwen3_5_moe_text", "hidden_size": 2048}}, 0.0775),
        ({"text_config": {"model_type": "mllama_text_model", "hidden_size": 4096}}, 0.781),
        ({"text_config": {"model_type": "llama4_text", "hidden_size": 5120}}, 0.781),
        ({"model_type": "qwen2_5_vl", "hidden_size": 3584}, 0.0775),
        ({"model_type": "qwen3_next", "hidden_size": 2048}, 0.0775),
        ({"model_type": "qwen2", "hidden_size": 3584}, 0.0775),
    ],
)
def test_every_llama_and_qwen_has_its_familys_exponent(
    tmp_path: Path, config: dict[str, Any], p: float
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "outer", **config}))
    hidden_size = {**config, **config.get("text_config", {})}["hidden_size"]
    assert get_lr(str(tmp_path)) == pytest.approx(5e-4 * (2000 / hidden_size) ** p)


def test_no_rate_is_guessed_for_a_family_that_is_not_in_the_table(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "mistral", "hidden_size": 4096}')
    with pytest.raises(ConfigurationError, match=r"'mistral', so learning_rate= must be given"):
        get_lr(str(tmp_path))


def test_lora_factor_is_for_alpha_32() -> None:
    assert get_lora_lr_over_full_finetune_lr("nano") == 10
    with pytest.raises(ConfigurationError, match="lora_alpha=16"):
        get_lora_lr_over_full_finetune_lr("nano", lora_alpha=16)


def save_config(path: Path, config: PretrainedConfig) -> str:
    config.save_pretrained(path)
    return str(path)


@pytest.fixture
def qwen(tmp_path: Path) -> str:
    from transformers import Qwen3Config

    return save_config(
        tmp_path,
        Qwen3Config(
            vocab_size=100,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
            tie_word_embeddings=True,
        ),
    )


ATTENTION = (16 + 16) + 2 * (16 + 8) + (16 + 16)  # q, k and v, o: in + out
MLP = 3 * (16 + 24)
HEAD = 16 + 100


def test_parameter_counts(qwen: str) -> None:
    attention = 16 * 16 + 2 * 16 * 8 + 16 * 16 + 2 * 8  # and two norms over head_dim
    layer = attention + 3 * 16 * 24 + 2 * 16
    assert get_full_finetune_param_count(qwen) == 100 * 16 + 2 * layer + 16
    assert get_lora_param_count(qwen, lora_rank=4) == 4 * (2 * (ATTENTION + MLP) + HEAD)
    assert (
        get_lora_param_count(qwen, lora_rank=1, train_mlp=False, train_unembed=False)
        == 2 * ATTENTION
    )
    assert get_lora_param_count(qwen, lora_rank=1, train_attn=False, train_unembed=False) == 2 * MLP


def test_multipliers(qwen: str) -> None:
    count = get_full_finetune_param_count(qwen)
    assert get_full_finetune_lr_multiplier(qwen) == pytest.approx(1 / math.sqrt(count))
    assert get_lora_lr_multiplier(qwen) == pytest.approx(10 / math.sqrt(count))


def test_experts_count_one_adapter_each(tmp_path: Path) -> None:
    from transformers import Qwen3MoeConfig

    name = save_config(
        tmp_path,
        Qwen3MoeConfig(
            vocab_size=100,
            hidden_size=16,
            moe_intermediate_size=24,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
            num_experts=4,
            num_experts_per_tok=2,
        ),
    )
    mlp_only = get_lora_param_count(name, lora_rank=1, train_attn=False, train_unembed=False)
    assert mlp_only == 4 * 3 * (16 + 24)  # gate, up and down of each


@pytest.fixture
def tiny_kimi(tiny_deepseek: str, tmp_path: Path) -> str:
    """Directory of a DeepSeek-V3 by Kimi's name, with its own code named as in the real files."""
    shutil.copytree(tiny_deepseek, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    code = {"AutoConfig": "configuration_deepseek.DeepseekV3Config"}
    changed = {**config, "model_type": "kimi_k2", "auto_map": code}
    (tmp_path / "config.json").write_text(json.dumps(changed))
    return str(tmp_path)


@pytest.mark.parametrize(
    "family",
    ["tiny_qwen3", "tiny_llama", "tiny_qwen3_moe", "tiny_deepseek", "tiny_gpt_oss", "tiny_kimi"],
)
def test_adapters_have_as_many_parameters_as_the_engine_trains(
    request: pytest.FixtureRequest, family: str
) -> None:
    from tinker_cookbook.engine.base_model import BaseModel
    from tinker_cookbook.engine.config import EngineConfig
    from tinker_cookbook.engine.lora import LoraSpec

    path = request.getfixturevalue(family)
    base = BaseModel(path, EngineConfig(device="cpu"))
    for only in ((True, True, True), (True, False, False), (False, True, False)):
        trained = dict(zip(("train_attn", "train_mlp", "train_unembed"), only))
        adapter = base.new_adapter(LoraSpec(rank=4, **trained))
        engine = sum(tensor.numel() for tensor in adapter.master.values())
        assert get_lora_param_count(path, lora_rank=4, **trained) == engine


def test_all_parameters_of_kimi_are_those_of_deepseek(tiny_deepseek: str, tiny_kimi: str) -> None:
    from safetensors.torch import load_file

    stored = load_file(Path(tiny_deepseek) / "model.safetensors")
    # beside the weights, what balances the experts' load, which no gradient moves
    count = sum(t.numel() for name, t in stored.items() if "e_score_correction_bias" not in name)
    assert get_full_finetune_param_count(tiny_deepseek) == count
    assert get_full_finetune_param_count(tiny_kimi) == count


def test_routers_that_are_linear_layers_are_left_out(tmp_path: Path) -> None:
    """As in Jamba, here without its other kind of layer: attention, then 4 experts."""
    from transformers import JambaConfig

    name = save_config(
        tmp_path,
        JambaConfig(
            vocab_size=100,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            num_experts=4,
            attn_layer_period=1,
            attn_layer_offset=0,
            expert_layer_period=1,
            expert_layer_offset=0,
        ),
    )
    mlp_only = get_lora_param_count(name, lora_rank=1, train_attn=False, train_unembed=False)
    assert mlp_only == 4 * 3 * (16 + 24)


def test_convolutions_are_no_experts(tmp_path: Path) -> None:
    """The layers of Qwen3-Next that are no attention have one, of three dimensions."""
    from transformers import Qwen3NextConfig

    name = save_config(
        tmp_path,
        Qwen3NextConfig(
            vocab_size=100,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=1,
            layer_types=["linear_attention"],
            num_experts=0,
        ),
    )
    mlp_only = get_lora_param_count(name, lora_rank=1, train_attn=False, train_unembed=False)
    assert mlp_only == MLP


def test_known_sizes_without_weights() -> None:
    """The counts on the model card of Qwen3-0.6B, from a config with its published sizes."""
    import torch
    from transformers import AutoModelForCausalLM, Qwen3Config

    config = Qwen3Config(
        vocab_size=151_936,
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        tie_word_embeddings=True,
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    total = sum(p.numel() for p in model.parameters())
    assert (round(total / 1e9, 1), round((total - 151_936 * 1024) / 1e9, 2)) == (0.6, 0.44)
    assert len(hyperparam_utils._linear_layers(model)) == 28 * 7 + 1


def test_a_home_directory_and_a_config_without_a_language_model(
    monkeypatch: pytest.MonkeyPatch, qwen: str, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path.parent))
    assert get_full_finetune_param_count(f"~/{tmp_path.name}") == get_full_finetune_param_count(
        qwen
    )
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(ConfigurationError, match=r"its config\.json could not be loaded"):
        get_full_finetune_param_count(qwen)


def test_a_model_that_cannot_be_had_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ConfigurationError, match=r"meta-llama/Llama-3\.2-1B.*HF_TOKEN"):
        get_full_finetune_param_count("meta-llama/Llama-3.2-1B")
