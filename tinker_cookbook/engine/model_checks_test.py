"""Models that the engine would compute differently from transformers are rejected by name, and only
those."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    GraniteConfig,
    PhiConfig,
    PreTrainedConfig,
)

from conftest import SIZES
from tinker_cookbook import families
from tinker_cookbook.engine import attention
from tinker_cookbook.engine.attention import PackedPlan, attend
from tinker_cookbook.engine.base_model import BaseModel
from tinker_cookbook.engine.config import EngineConfig
from tinker_cookbook.engine.model_checks import check_logits
from tinker_cookbook.engine.packing import consecutive_segments
from tinker_cookbook.engine.testing import make_rows, plain_logprobs, transformers_model
from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.families import Family
from tinker_cookbook.utils.json_types import Json


def save_random_model(config: PreTrainedConfig, directory: Path) -> str:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3 if parameter.ndim > 1 else 1)
    model.save_pretrained(directory)
    return str(directory)


def load(path: str) -> BaseModel:
    return BaseModel(path, EngineConfig(device="cpu"))


def load_error(path: str) -> str:
    with pytest.raises(ConfigurationError) as caught:
        load(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def add_family(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Register a family, as a file in families/ does."""

    def add(model_type: str, attention: tuple[families.Feature, ...] = ()) -> None:
        family = Family(model_type, model_type, model_type, attention=attention)
        monkeypatch.setitem(families.FAMILIES, model_type, family)

    return add


def gemma2(attention_cap: float | None, logit_cap: float | None) -> Gemma2Config:
    return Gemma2Config(
        **SIZES,
        query_pre_attn_scalar=16,
        sliding_window=24,
        attn_logit_softcapping=attention_cap,
        final_logit_softcapping=logit_cap,
    )


def test_a_softcap_in_the_attention(add_family: Callable[..., None], tmp_path: Path) -> None:
    path = save_random_model(gemma2(50.0, None), tmp_path)
    assert "is of family 'gemma2', which the engine does not support" in load_error(path)
    add_family("gemma2", ("sliding_window", "softcap"))
    assert "whose attention uses 'softcap', which the engine does not support" in load_error(path)
    add_family("gemma2", ("sliding_window",))  # without declaring the soft cap
    assert load_error(path) == (
        "Gemma2Attention passes softcap=50.0 to its attention, which the engine does not support"
    )


def test_a_softcap_on_the_logits(add_family: Callable[..., None], tmp_path: Path) -> None:
    add_family("gemma2", ("sliding_window",))
    path = save_random_model(gemma2(None, 30.0), tmp_path)
    message = load_error(path)
    assert "changes its logits after the unembedding (final_logit_softcapping=30.0 in" in message


def test_the_same_model_without_caps_is_computed_exactly(
    add_family: Callable[..., None], tmp_path: Path
) -> None:
    """Query scale, norms and embedding factor are part of modules that the engine runs as is."""
    add_family("gemma2", ("sliding_window",))
    path = save_random_model(gemma2(None, None), tmp_path)
    rows = make_rows()
    reference = transformers_model(path)
    for row, ours in zip(rows, plain_logprobs(load(path), rows)):
        logits = reference(torch.from_numpy(row.tokens)[None]).logits[0]
        theirs = logits.log_softmax(-1).gather(1, torch.from_numpy(row.targets)[:, None])[:, 0]
        assert (ours - theirs).abs().max() <= 1e-5


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        (CohereConfig(**SIZES, logit_scale=0.0625), "logit_scale=0.0625"),
        (GraniteConfig(**SIZES, logits_scaling=8.0), "logits_scaling=8.0"),
    ],
)
def test_a_scale_on_the_logits(
    config: PreTrainedConfig, scale: str, add_family: Callable[..., None], tmp_path: Path
) -> None:
    add_family(config.model_type)
    assert f"({scale} in its config.json)" in load_error(save_random_model(config, tmp_path))


def test_a_bias_on_the_logits() -> None:
    sizes = {key: value for key, value in SIZES.items() if key != "head_dim"}
    model = AutoModelForCausalLM.from_config(PhiConfig(**sizes))
    check_logits("x", model)  # a bias of zero
    torch.nn.init.constant_(model.lm_head.bias, 0.01)
    with pytest.raises(ConfigurationError, match=r"'x' changes its logits .*no scale, cap or bias"):
        check_logits("x", model)


def test_an_unembedding_of_another_kind() -> None:
    model = AutoModelForCausalLM.from_config(GraniteConfig(**SIZES))
    model.set_output_embeddings(torch.nn.Bilinear(4, 4, 4))
    with pytest.raises(ConfigurationError, match="has an unembedding of type Bilinear"):
        check_logits("x", model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_scale_of_one_has_no_effect(dtype: torch.dtype) -> None:
    model = AutoModelForCausalLM.from_config(GraniteConfig(**SIZES), dtype=dtype)
    check_logits("x", model)
    assert "forward" not in vars(model.model)  # the layers are back
    model.config.logits_scaling = 1.01
    with pytest.raises(ConfigurationError, match=r"logits_scaling=1\.01"):
        check_logits("x", model)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"is_causal": False}, "has is_causal=False in its config.json"),
        (
            {"layer_types": ["full_attention", "chunked_attention"]},
            "has layers of type 'chunked_attention', which the engine does not support",
        ),
        (
            {"rope_parameters": {"full_attention": {"rope_type": "dynamic", "factor": 2.0}}},
            "uses rope_type='dynamic'; supported: default, linear, llama3, yarn",
        ),
        ({"hidden_size": "64"}, "Field 'hidden_size' expected int, got str (value: '64')"),
        ({"rope_parameters": {"rope_type": "linear"}}, "Missing required keys in"),
    ],
)
def test_what_a_configuration_says_of_masks_and_positions(
    changes: dict[str, Json], message: str, tiny_qwen3: str, tmp_path: Path
) -> None:
    shutil.copytree(tiny_qwen3, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **changes}))
    assert message in load_error(str(tmp_path))


@pytest.mark.parametrize(
    ("argument", "shown"),
    [
        ({"softcap": 30.0}, "softcap=30.0"),
        ({"dropout": 0.1}, "dropout=0.1"),
        ({"is_causal": False}, "is_causal=False"),
        ({"use_cache": True}, "use_cache=True"),
        ({"position_bias": torch.zeros(1, 2, 3, 3)}, "position_bias=a tensor"),
        ({"attention_mask": torch.zeros(1, 1, 3, 3)}, "attention_mask=a tensor"),
    ],
)
def test_arguments_with_an_effect(argument: dict[str, attention.Argument], shown: str) -> None:
    module = torch.nn.Identity()
    module.layer_idx = 0  # type: ignore[assignment]
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 2, 3, 8).unbind()
    plan = PackedPlan(consecutive_segments([3]))
    neutral = {"softcap": None, "dropout": 0.0, "is_causal": True, "use_cache": False}
    plain, _ = attend(module, q, k, v, None, plan=plan)
    same, _ = attend(module, q, k, v, None, plan=plan, position_ids=torch.arange(3), **neutral)
    assert torch.equal(plain, same)
    with pytest.raises(ConfigurationError, match=f"Identity passes {shown} to its attention"):
        attend(module, q, k, v, **{"attention_mask": None, "plan": plan, **argument})
