from __future__ import annotations

import logging
from pathlib import Path

import pytest

from tinker_cookbook import model_info, models
from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.model_info import (
    ModelAttributes,
    get_model_attributes,
    get_recommended_renderer_name,
    get_recommended_renderer_names,
    warn_if_renderer_not_recommended,
)


def test_attributes() -> None:
    assert get_model_attributes("Qwen/Qwen3-30B-A3B") == ModelAttributes(
        organization="Qwen",
        version_str="3",
        size_str="30B-A3B",
        is_chat=True,
        recommended_renderers=("qwen3", "qwen3_disable_thinking"),
    )
    assert get_model_attributes("meta-llama/Llama-3.2-1B").is_chat is False


@pytest.mark.parametrize(
    ("name", "version"),
    [
        ("deepseek-ai/DeepSeek-V3.1", "3"),
        ("deepseek-ai/DeepSeek-V3.1-Base", "3"),
        ("moonshotai/Kimi-K2-Thinking", "K2"),
        ("moonshotai/Kimi-K2-Instruct-0905", "K2"),
        ("Qwen/Qwen3-8B", "3"),
        ("meta-llama/Llama-3.2-1B", "3.2"),
    ],
)
def test_versions(name: str, version: str) -> None:
    assert get_model_attributes(name).version_str == version
    assert get_model_attributes(f"{name}:peft:131072").version_str == version


def test_models_by_organization() -> None:
    found = [
        model_info.get_llama_info(),
        model_info.get_qwen_info(),
        model_info.get_deepseek_info(),
        model_info.get_gpt_oss_info(),
        model_info.get_moonshot_info(),
    ]
    others = [row for row in models.TABLE.values() if row.family in ("nano", "smollm2")]
    assert sum(map(len, found)) == len(models.TABLE) - len(others)
    assert found[1]["Qwen3-8B"] == get_model_attributes("Qwen/Qwen3-8B")
    with pytest.raises(ConfigurationError, match="NVIDIA"):
        model_info.get_nvidia_info()


def test_recommended_renderers() -> None:
    assert get_recommended_renderer_name("nano") == "qwen3_instruct"
    assert get_recommended_renderer_names("Qwen/Qwen3-4B-Instruct-2507") == ["qwen3_instruct"]


def test_a_local_path_is_not_split_into_organization_and_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "mistral"}')
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "[INST]"}')
    assert get_model_attributes(str(tmp_path)).organization == ""
    assert get_recommended_renderer_name(str(tmp_path)) == "template"
    (tmp_path / "tokenizer_config.json").unlink()
    assert get_recommended_renderer_names(str(tmp_path)) == []
    with pytest.raises(ConfigurationError, match="renderer_name="):
        get_recommended_renderer_name(str(tmp_path))


def test_warning(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "qwen3"}')
    with caplog.at_level(logging.WARNING):
        warn_if_renderer_not_recommended("Qwen/Qwen3-8B", "qwen3_disable_thinking")
        warn_if_renderer_not_recommended("Qwen/Qwen3-8B", "template")
        warn_if_renderer_not_recommended("Qwen/Qwen3-8B", None)
        warn_if_renderer_not_recommended(str(tmp_path / "absent"), "qwen3")
        warn_if_renderer_not_recommended(str(tmp_path), "qwen3")  # no tokenizer that tells
        assert caplog.records == []
        warn_if_renderer_not_recommended("Qwen/Qwen3-8B", "role_colon")
        warn_if_renderer_not_recommended("Qwen/Qwen3-8B-Base", "template")
    assert [record.getMessage() for record in caplog.records] == [
        "renderer_name=role_colon is not known to fit Qwen/Qwen3-8B, which expects qwen3 or"
        " qwen3_disable_thinking",
        "renderer_name=template is not known to fit Qwen/Qwen3-8B-Base, which expects role_colon",
    ]
