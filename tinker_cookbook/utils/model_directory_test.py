"""What models_test.py does not see of a model's files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tinker_cookbook.utils import model_directory


def write(directory: Path, name: str, content: model_directory.Json) -> None:
    (directory / name).write_text(json.dumps(content))


def test_a_family_that_transformers_has_by_another_name(tmp_path: Path) -> None:
    write(tmp_path, "config.json", {"model_type": "kimi_k2", "num_hidden_layers": 3})
    config = model_directory.transformers_config(str(tmp_path))
    assert (config.model_type, config.num_hidden_layers) == ("deepseek_v3", 3)
    write(tmp_path, "config.json", {"model_type": "qwen2", "num_hidden_layers": 2})
    assert model_directory.transformers_config(str(tmp_path)).model_type == "qwen2"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"hidden_size": "64"}, "Field 'hidden_size' expected int, got str"),
        ({"hidden_size": 65, "num_attention_heads": 4}, "65) is not a multiple of the number of"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "Missing required keys in `rope_parameters`"),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(
    content: dict[str, model_directory.Json], words: str, tmp_path: Path
) -> None:
    write(tmp_path, "config.json", {"model_type": "llama", **content})
    with pytest.raises(ValueError) as caught:
        model_directory.transformers_config(str(tmp_path))
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("token", "expected"),
    [("<eos>", "<eos>"), ({"content": "<eos>"}, "<eos>"), (None, None), ({"content": 3}, None)],
)
def test_end_token(token: model_directory.Json, expected: str | None, tmp_path: Path) -> None:
    assert model_directory.end_token(tmp_path) is None
    write(tmp_path, "tokenizer_config.json", {"eos_token": token})
    assert model_directory.end_token(tmp_path) == expected


def test_the_text_model_inside_counts_first(tmp_path: Path) -> None:
    text = {"model_type": "qwen3_vl_text", "hidden_size": 8, "vocab_size": 100}
    outer = {"model_type": "qwen3_vl", "hidden_size": 4, "text_config": text, "vision_config": {}}
    write(tmp_path, "config.json", outer)
    assert model_directory.config(tmp_path) == model_directory.ModelConfig(
        "qwen3_vl_text", 100, 8, None, is_moe=False, is_vl=True
    )
