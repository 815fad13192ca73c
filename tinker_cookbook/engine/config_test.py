"""Invalid settings raise a one-line error as soon as the config is built."""

from __future__ import annotations

import pytest
import torch

from tinker_cookbook.engine import EngineConfig
from tinker_cookbook.exceptions import ConfigurationError


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("tokens_per_pass", "a", "a whole number of at least 1 or None"),
        ("tokens_per_pass", 1.5, "a whole number of at least 1 or None"),
        ("tokens_per_pass", True, "a whole number of at least 1 or None"),
        ("kv_tokens", 99.5, "a whole number of at least 1 or None"),
        ("kv_tokens", 0, "a whole number of at least 1 or None"),
        ("prefix_tokens", -1, "a whole number of at least 0 or None"),
        ("max_rows", 2.5, "a whole number of at least 1"),
        ("max_rows", 0, "a whole number of at least 1"),
        ("max_rows", None, "a whole number of at least 1"),
        ("head_chunk", "8", "a whole number of at least 1"),
        ("exact_logits", -1, "a whole number of at least 0 or None"),
        ("exact_logits", 1.5, "a whole number of at least 0 or None"),
        ("float32_residual", 1, "True, False or None"),
        ("float32_residual", "on", "True, False or None"),
        ("dtype", "fp8", "one of 'auto', 'float32', 'bfloat16'"),
        ("checkpointing", "nope", "one of 'auto', 'always', 'never'"),
        ("adapter_gib", float("inf"), "a finite number above 0 or None"),
        ("adapter_gib", float("nan"), "a finite number above 0 or None"),
        ("adapter_gib", 0, "a finite number above 0 or None"),
        ("adapter_gib", "1", "a finite number above 0 or None"),
        ("deterministic", "yes", "True or False"),
        ("device", "meta", "'auto', 'cpu', 'cuda' or 'cuda:0'"),
        ("device", "mps", "'auto', 'cpu', 'cuda' or 'cuda:0'"),
        ("device", "tpu", "'auto', 'cpu', 'cuda' or 'cuda:0'"),
        ("device", "cuda:x", "'auto', 'cpu', 'cuda' or 'cuda:0'"),
        ("device", None, "'auto', 'cpu', 'cuda' or 'cuda:0'"),
    ],
)
def test_what_cannot_work_is_refused(key: str, value: object, expected: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        EngineConfig(**{key: value})
    message = str(caught.value)
    assert message.startswith(f"engine.{key}={value!r}: expected {expected}")
    assert "\n" not in message


def test_what_works_is_accepted() -> None:
    EngineConfig(tokens_per_pass=1, kv_tokens=1, prefix_tokens=0, adapter_gib=1, deterministic=True)
    EngineConfig(device="cpu", dtype="bfloat16", checkpointing="never", head_chunk=1, max_rows=1)
    EngineConfig(exact_logits=0, float32_residual=False)
    EngineConfig(float32_residual=True)


def test_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigurationError, match=r"engine\.device='cuda': torch sees no GPU here"):
        EngineConfig(device="cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    EngineConfig(device="cuda:1")
    with pytest.raises(ConfigurationError, match=r"'cuda:2': torch sees cuda:0 to cuda:1 here"):
        EngineConfig(device="cuda:2")
