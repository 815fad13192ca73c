"""Fixtures for every test: tiny random models on disk, offline, with a fixed number of threads."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TINKER_TELEMETRY", "0")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from collections.abc import Iterator
from pathlib import Path

import pytest

SHARED_DATA = Path(__file__).parent.parent / "shared" / "data"


@pytest.fixture(autouse=True)
def _private_directories(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """No test writes into the user's runs directory."""
    runs = tmp_path_factory.mktemp("runs")
    monkeypatch.setenv("TINKER_COOKBOOK_RUNS_DIR", str(runs))
    monkeypatch.delenv("TINKER_COOKBOOK_STORE_DIR", raising=False)
    yield


def _save(config: object, directory: Path) -> str:
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:  # norms at exactly one would hide a norm left out
                parameter.add_(torch.randn_like(parameter) * 0.1)
            else:
                parameter.mul_(3)  # sharp enough that logprobs differ
            del name
    model.save_pretrained(directory)
    return str(directory)


SIZES = {
    "vocab_size": 307,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 2,
}


@pytest.fixture(scope="session")
def tiny_qwen3(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Directory of a random Qwen3 with tied embeddings."""
    from transformers import Qwen3Config

    config = Qwen3Config(**SIZES, tie_word_embeddings=True)
    return _save(config, tmp_path_factory.mktemp("tiny_qwen3"))


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Directory of a random Llama with untied embeddings and Llama-3 rope scaling."""
    from transformers import LlamaConfig

    rope = {
        "rope_type": "llama3",
        "rope_theta": 10000.0,
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    config = LlamaConfig(**SIZES, tie_word_embeddings=False, rope_parameters=rope)
    return _save(config, tmp_path_factory.mktemp("tiny_llama"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real tokenizers and data sets; tests that need them are skipped where they are absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip("no shared data beside the checkout")
    return SHARED_DATA
