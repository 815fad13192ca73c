"""Fixtures for every test: tiny random models on disk, offline."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TINKER_TELEMETRY", "0")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("INSPECT_DISPLAY", "none")
# One thread in each of the processes that run the tests, for tiny matrices gain nothing from more.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import tinker_cookbook as tinker_cookbook  # before torch, which reads how threads are to wait
from tests.programs import Programs

SHARED_DATA = Path(__file__).parent.parent / "shared" / "data"


@pytest.fixture(scope="session")
def _runs_directories(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A new directory for each test. `mktemp` would look through those of all earlier tests."""
    parent = tmp_path_factory.mktemp("runs")
    return (parent / str(number) for number in itertools.count())


@pytest.fixture(autouse=True)
def _private_directories(
    _runs_directories: Iterator[Path], monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """No test writes into the user's runs directory."""
    runs = next(_runs_directories)
    runs.mkdir()
    monkeypatch.setenv("TINKER_COOKBOOK_RUNS_DIR", str(runs))
    monkeypatch.delenv("TINKER_COOKBOOK_STORE_DIR", raising=False)
    yield


@pytest.fixture(scope="session")
def programs() -> Iterator[Programs]:
    """Starts programs that do not import the libraries anew."""
    started = Programs()
    yield started
    started.close()


def _save(config: object, directory: Path, sharpness: float = 3) -> str:
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # norms at exactly one, or biases at zero, would hide that they are left out
            if parameter.ndim == 1 or name.endswith("_bias"):
                parameter.add_(torch.randn_like(parameter) * 0.1)
            else:
                parameter.mul_(sharpness)  # so that logprobs differ
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):  # at zero nobody would miss it
                buffer.add_(torch.randn_like(buffer) * 0.1)
    model.save_pretrained(directory)
    return str(directory)


SIZES: dict[str, Any] = {
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
def tiny_qwen3_sliding(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Directory of a random Qwen3 whose second layer sees only the last 24 positions."""
    from transformers import Qwen3Config

    config = Qwen3Config(**SIZES, use_sliding_window=True, sliding_window=24, max_window_layers=1)
    return _save(config, tmp_path_factory.mktemp("tiny_qwen3_sliding"), sharpness=6)


@pytest.fixture(scope="session")
def tiny_qwen3_moe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Directory of a random Qwen3-MoE: 4 experts, two for each token."""
    from transformers import Qwen3MoeConfig

    config = Qwen3MoeConfig(
        **SIZES,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
        norm_topk_prob=True,
    )
    return _save(config, tmp_path_factory.mktemp("tiny_qwen3_moe"), sharpness=6)


YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "original_max_position_embeddings": 64,
}
DEEPSEEK: dict[str, Any] = {
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "q_lora_rank": 24,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "n_shared_experts": 1,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 0.7},
}


@pytest.fixture(scope="session")
def tiny_deepseek(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Directory of a random DeepSeek-V3: latent attention, a dense layer, then 4 experts."""
    from transformers import DeepseekV3Config

    sizes = {key: value for key, value in SIZES.items() if key != "head_dim"}
    config = DeepseekV3Config(**{**sizes, **DEEPSEEK})
    return _save(config, tmp_path_factory.mktemp("tiny_deepseek"), sharpness=6)


@pytest.fixture(scope="session")
def tiny_gpt_oss(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Directory of a random gpt-oss: sinks, biases, 4 experts, its first layer sees the last 24."""
    from transformers import GptOssConfig

    config = GptOssConfig(
        **{**SIZES, "intermediate_size": 32},
        num_local_experts=4,
        num_experts_per_tok=2,
        sliding_window=24,
        swiglu_limit=0.5,  # low enough to be reached
        rope_parameters={**YARN, "truncate": False},
    )
    return _save(config, tmp_path_factory.mktemp("tiny_gpt_oss"), sharpness=6)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real tokenizers and data sets; tests that need them are skipped where they are absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip("no shared data beside the checkout")
    return SHARED_DATA


@pytest.fixture(scope="session")
def shared_cases() -> Path:
    """Inputs on which the product was wrong; tests that need them are skipped where absent."""
    directory = SHARED_DATA.parent / "cases"
    if not directory.is_dir():
        pytest.skip("no shared cases beside the checkout")
    return directory
