"""A bf16 model with an fp32 residual stream, against float64 with the same bf16 weights."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch

from tinker_cookbook.engine import residual
from tinker_cookbook.engine.base_model import BaseModel
from tinker_cookbook.engine.config import EngineConfig
from tinker_cookbook.engine.lora import LoraSpec
from tinker_cookbook.engine.requests import SampleRequest
from tinker_cookbook.engine.testing import (
    PLAIN,
    TINY,
    VOCAB,
    MergedReference,
    batch_with_everything,
    gradients,
    make_rows,
    on_cpu,
    sample_all,
    trainer_logprobs,
)
from tinker_cookbook.engine.torch_sampler import TorchSampler
from tinker_cookbook.engine.trainer import AdapterTrainer
from tinker_cookbook.exceptions import ConfigurationError

families = pytest.mark.parametrize("family", [*PLAIN, *TINY])


def bf16_trainer(path: str, **keys: object) -> AdapterTrainer:
    config = EngineConfig(device="cpu", dtype="bfloat16", **keys)
    trainer = AdapterTrainer(BaseModel(path, config), LoraSpec(rank=4, train_unembed=False))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, tensor in trainer.adapter.master.items():
            if name.endswith("lora_B"):
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.05)
            tensor.copy_(tensor.bfloat16())  # so that the reference has the same adapter
    trainer.adapter.refresh()
    return trainer


def float64_reference(trainer: AdapterTrainer) -> MergedReference:
    reference = MergedReference(trainer, torch.float64)
    reference.model.bfloat16().double()
    return reference


@families
def test_closer_to_float64(family: str, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(family)
    rows = make_rows(lengths=(7, 90, 23, 23, 40))
    on, off = (bf16_trainer(path, float32_residual=key) for key in (None, False))
    reference = float64_reference(on)
    expected = [reference.logprobs(row) for row in rows]
    torch.stack(
        [-(torch.from_numpy(r.inputs["weights"]) * lp).sum() for r, lp in zip(rows, expected)]
    ).sum().backward()
    exact = torch.cat(expected).detach()
    wanted = {name: p.grad for name, p in reference.parameters.items() if p.grad is not None}
    values, grads = [], []
    for trainer in (on, off):
        result = trainer.forward_backward(rows, "cross_entropy", None)
        ours = torch.from_numpy(np.concatenate(result.logprobs))
        values.append((ours - exact).abs().mean().item())
        found = on_cpu(trainer.grads)
        total = torch.stack([(found[k] - g).square().sum() for k, g in wanted.items()]).sum()
        scale = torch.stack([g.square().sum() for g in wanted.values()]).sum()
        grads.append((total / scale).sqrt().item())
    print(family, values, grads)
