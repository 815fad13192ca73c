from __future__ import annotations

import math

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
def test_learning_rates(name, value):
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
def test_families_without_a_fit_get_the_lower_rate_of_the_two_fits(name, hidden_size):
    by_llama, by_qwen = (5e-4 * (2000 / hidden_size) ** p for p in (0.781, 0.0775))
    assert get_lr(name) == pytest.approx(min(by_llama, by_qwen))


def test_nano_has_its_measured_rate():
    assert get_lr("nano") == 6e-3
    with pytest.raises(ConfigurationError, match=r"learning_rate= must be given"):
        get_lr("nano", is_lora=False)


def test_no_rate_is_guessed_for_a_family_that_is_not_in_the_table(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "mistral", "hidden_size": 4096}')
    with pytest.raises(ConfigurationError, match=r"'mistral', so learning_rate= must be given"):
        get_lr(str(tmp_path))


def test_lora_factor_is_for_alpha_32():
    assert get_lora_lr_over_full_finetune_lr("nano") == 10
    with pytest.raises(ConfigurationError, match="lora_alpha=16"):
        get_lora_lr_over_full_finetune_lr("nano", lora_alpha=16)


def save_config(path, config):
    config.save_pretrained(path)
    return str(path)


@pytest.fixture
def qwen(tmp_path):
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


def test_parameter_counts(qwen):
    attention = 16 * 16 + 2 * 16 * 8 + 16 * 16 + 2 * 8  # and two norms over head_dim
    layer = attention + 3 * 16 * 24 + 2 * 16
    assert get_full_finetune_param_count(qwen) == 100 * 16 + 2 * layer + 16
    assert get_lora_param_count(qwen, lora_rank=4) == 4 * (2 * (ATTENTION + MLP) + HEAD)
    assert (
        get_lora_param_count(qwen, lora_rank=1, train_mlp=False, train_unembed=False)
        == 2 * ATTENTION
    )
    assert get_lora_param_count(qwen, lora_rank=1, train_attn=False, train_unembed=False) == 2 * MLP


def test_multipliers(qwen):
    count = get_full_finetune_param_count(qwen)
    assert get_full_finetune_lr_multiplier(qwen) == pytest.approx(1 / math.sqrt(count))
    assert get_lora_lr_multiplier(qwen) == pytest.approx(10 / math.sqrt(count))


def test_experts_count_one_adapter_each(tmp_path):
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
    gate_and_up = 16 + 2 * 24  # one stacked matrix in transformers
    assert mlp_only == 4 * (gate_and_up + 24 + 16)


def test_known_sizes_without_weights():
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


def test_a_model_that_cannot_be_had_is_named(monkeypatch, tmp_path):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ConfigurationError, match=r"meta-llama/Llama-3\.2-1B.*HF_TOKEN"):
        get_full_finetune_param_count("meta-llama/Llama-3.2-1B")
