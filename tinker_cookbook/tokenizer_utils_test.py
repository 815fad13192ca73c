from __future__ import annotations

from pathlib import Path

import pytest

from tinker_cookbook import models
from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.tokenizer_utils import (
    get_tokenizer,
    is_tokenizer_registered,
    register_tokenizer,
    unregister_tokenizer,
)


def test_registered_tokenizers_are_made_once_and_can_be_replaced():
    made = []

    def factory():
        made.append(object())
        return made[-1]

    register_tokenizer("mine", factory)
    try:
        assert is_tokenizer_registered("mine")
        assert get_tokenizer("mine") is get_tokenizer("mine") is made[0]
        register_tokenizer("mine", factory)
        assert get_tokenizer("mine") is made[1]
    finally:
        unregister_tokenizer("mine")
    assert not is_tokenizer_registered("mine")
    with pytest.raises(ConfigurationError, match="'mine'"):
        unregister_tokenizer("mine")


def test_nano_and_its_directory():
    directory = Path(models.load_path("nano"))
    if not (directory / "tokenizer.json").is_file():
        pytest.skip("nano is not built")
    tokenizer = get_tokenizer("nano")
    assert tokenizer is get_tokenizer("nano")
    assert tokenizer.decode(tokenizer.encode("What is 37 + 58?")) == "What is 37 + 58?"
    assert len(get_tokenizer(str(directory))) == len(tokenizer)


def test_missing_tokenizers_are_named(monkeypatch, tmp_path):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    for name, hint in (
        (str(tmp_path / "absent"), "there is no directory"),
        ("Qwen/Qwen3-8b", "known names near it: Qwen/Qwen3-8B"),
        ("meta-llama/Llama-3.2-1B", "HF_TOKEN"),
    ):
        with pytest.raises(ConfigurationError) as caught:
            get_tokenizer(name)
        assert name in str(caught.value) and hint in str(caught.value)
        assert "\n" not in str(caught.value)


def test_code_of_a_model_does_not_run_unasked(monkeypatch, tmp_path):
    """A tokenizer that is Python code in the model's directory is refused, and was not executed."""
    import transformers.dynamic_module_utils

    monkeypatch.setattr(
        transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules")
    )
    mark = tmp_path / "executed"
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "config.json").write_text('{"model_type": "none-of-ours"}')
    (directory / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "T", "auto_map": {"AutoTokenizer": ["tokenization_t.T", null]}}'
    )
    (directory / "tokenization_t.py").write_text(
        f"open({str(mark)!r}, 'w')\n"
        "from transformers import PreTrainedTokenizer as P\n"
        "class T(P):\n"
        "    vocab_size = 0\n"
        "    def get_vocab(self): return {}\n"
    )
    with pytest.raises(ConfigurationError, match="model"):
        get_tokenizer(str(directory))
    assert not mark.exists()
    assert type(get_tokenizer(str(directory), trust_remote_code=True)).__name__ == "T"
    assert mark.exists()
