"""Another thread may change torch's default dtype at any time: transformers does while it loads a
model. No number of the engine may depend on it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from tinker_cookbook.engine.config import EngineConfig
from tinker_cookbook.engine.lora import LoraSpec
from tinker_cookbook.engine.requests import AdamConfig, SampleRequest
from tinker_cookbook.engine.testing import (
    TINY,
    VOCAB,
    batch_with_everything,
    make_trainer,
    sample_all,
)
from tinker_cookbook.engine.torch_sampler import TorchSampler
from tinker_cookbook.engine.trainer import AdapterTrainer


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("tiny", TINY)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_numbers_do_not_depend_on_it(
    tiny: str, dtype: torch.dtype, request: pytest.FixtureRequest
) -> None:
    path = request.getfixturevalue(tiny)
    trainers = [make_trainer(path, LoraSpec(rank=4, alpha=0.7, seed=3)) for _ in range(2)]
    expected = numbers(trainers[0])
    with default_dtype(dtype):
        found = numbers(trainers[1])
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_a_new_adapter_does_not_depend_on_it(tiny_qwen3_sliding: str) -> None:
    trainer = make_trainer(tiny_qwen3_sliding, LoraSpec(rank=4, seed=3))
    with default_dtype(torch.bfloat16):
        again = AdapterTrainer(trainer.base, trainer.spec)
    for name, master in trainer.adapter.master.items():
        if name.endswith("lora_A"):
            assert torch.equal(again.adapter.master[name], master) and master.dtype == torch.float32


def numbers(trainer: AdapterTrainer) -> dict[str, np.ndarray]:
    """Of a training step and of samples: with windows, temperatures, top-k and top-p, and two
    adapters in a batch."""
    rows = batch_with_everything()
    output = trainer.forward_backward(rows, "cross_entropy", None)
    found = {f"logprobs {i}": np.asarray(v) for i, v in enumerate(output.logprobs)}
    found |= {f"gradient of {k}": v.numpy().copy() for k, v in (trainer.grads or {}).items()}
    trainer.optim_step(AdamConfig(learning_rate=0.01))
    found |= {name: t.detach().numpy().copy() for name, t in trainer.adapter.master.items()}
    rng = np.random.default_rng(2)
    requests = [
        SampleRequest(rng.integers(0, VOCAB, n), 6, temperature=t, top_k=k, top_p=p, seed=n)
        for n, t, k, p in ((20, 0.7, -1, 1.0), (3, 1.0, 5, 1.0), (9, 1.3, -1, 0.8), (4, 0, -1, 1.0))
    ]
    results = sample_all(TorchSampler(trainer.base, EngineConfig()), requests, trainer.adapter)
    for i, result in enumerate(results):
        for j, sequence in enumerate(result.sequences):
            found[f"tokens {i} {j}"] = np.asarray(sequence.tokens)
            found[f"sampled {i} {j}"] = np.asarray(sequence.logprobs)
    return found
