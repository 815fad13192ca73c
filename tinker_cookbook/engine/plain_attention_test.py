"""The attention that devices without the CPU's flash kernel take, forced on the CPU.

Packed passes then go segment by segment through torch's SDPA, decoding through the definition in
fp32. Where the heads are grouped and a mask is needed, a GPU has no fused SDPA kernel either, so
SDPA is held to its plain one.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from tinker_cookbook.engine import admission, attention, decode_attention
from tinker_cookbook.engine.config import EngineConfig
from tinker_cookbook.engine.lora import LoraSpec
from tinker_cookbook.engine.losses import LOSSES, SEQUENCE_INDEX, get_loss
from tinker_cookbook.engine.requests import SampleRequest, TrainSequence
from tinker_cookbook.engine.testing import (
    MOE,
    PLAIN,
    MergedReference,
    PeftReference,
    batch_with_everything,
    gradients,
    largest,
    make_trainer,
    sample_all,
    trainer_logprobs,
    with_inputs,
)
from tinker_cookbook.engine.torch_sampler import TorchSampler
from tinker_cookbook.engine.trainer import AdapterTrainer

TOLERANCE = 1e-5
FAMILIES = [*PLAIN, *MOE]


@pytest.fixture(autouse=True)
def no_flash(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def forbidden(*args: object, **keys: object) -> None:
        raise AssertionError("a flash kernel of the CPU was called")

    for module in (attention, decode_attention):
        monkeypatch.setattr(module, "has_flash", lambda tensor: False)
    monkeypatch.setattr(attention.SharedPrefixAttention, "apply", forbidden)
    monkeypatch.setattr(decode_attention, "_flash", forbidden)
    with sdpa_kernel(SDPBackend.MATH):
        yield


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def trainer(family: str, request: pytest.FixtureRequest) -> AdapterTrainer:
    return make_trainer(request.getfixturevalue(family), LoraSpec(rank=4), head_chunk=64)


@pytest.fixture
def reference(family: str, trainer: AdapterTrainer, tmp_path: Path) -> Any:
    """In float64: two roundings to fp32 differ by more than 1e-5 in the sharpest of these models.

    peft has no adapters for the experts of a layer; there they are added to the weights.
    """
    if family not in MOE:
        peft = PeftReference(trainer, tmp_path)
        peft.model.double()
        return peft
    merged = MergedReference(trainer)
    merged.model.double()
    merged.parameters = {
        name: tensor.detach().double().requires_grad_()
        for name, tensor in merged.parameters.items()
    }
    return merged


def test_losses_over_shared_beginnings(
    family: str, trainer: AdapterTrainer, reference: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logprobs, the value and every gradient of every loss, against one unpadded row at a time."""
    rows = batch_with_everything()
    expected = [reference.logprobs(row) for row in rows]
    parameters = reference.parameters
    rng = np.random.default_rng(3)
    computed = 0
    hidden = trainer.base.hidden

    def counted(tokens: torch.Tensor, *rest: Any) -> torch.Tensor:
        nonlocal computed
        computed += len(tokens)
        return hidden(tokens, *rest)

    monkeypatch.setattr(trainer.base, "hidden", counted)
    worst = gap = 0.0
    for name in LOSSES:
        batch = with_inputs(rows, name)
        total = torch.zeros(())
        for row, lp in zip(batch, expected):
            if "logprobs" in row.inputs:  # sampled under weights near these
                near = lp.detach().numpy() + rng.normal(0, 0.3, row.length)
                row.inputs["logprobs"][:] = near  # type: ignore[index]
            inputs = {key: torch.from_numpy(array) for key, array in row.inputs.items()}
            inputs[SEQUENCE_INDEX] = torch.zeros(row.length, dtype=torch.int64)
            total = total + get_loss(name, None).value(lp, inputs)
        found = torch.autograd.grad(total, list(parameters.values()), retain_graph=True)
        wanted = dict(zip(parameters, found))
        result = trainer.forward_backward(batch, name, None)
        grads = gradients(trainer)
        assert set(grads) == set(wanted)
        for ours, lp in zip(result.logprobs, expected):
            worst = max(worst, np.abs(ours - lp.detach().numpy()).max())
        gap = max(gap, largest({key: grads[key] - grad for key, grad in wanted.items()}, wanted))
        assert result.metrics["loss:sum"] == pytest.approx(total.item(), abs=1e-4)
    assert computed < 0.7 * sum(row.length for row in rows) * len(LOSSES)
    print(f"{family}: logprobs {worst:.1e}, gradients {gap:.1e}")
    assert worst <= TOLERANCE and gap <= TOLERANCE


def test_sampling_with_shared_prompts(
    family: str, trainer: AdapterTrainer, reference: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Samples in slots, over shared blocks and over what earlier requests left behind."""
    monkeypatch.setattr(admission, "SHARING_THRESHOLD", 100)
    config = EngineConfig(max_rows=9, tokens_per_pass=90)
    sampler = TorchSampler(trainer.base, config)
    rng = np.random.default_rng(0)
    system = rng.integers(3, 307, 45)
    requests = [
        SampleRequest(
            np.concatenate([system[: 45 * (i % 2)], rng.integers(3, 307, size)]),
            30,
            samples,
            seed=i,
            prompt_logprobs=i % 3 == 0,
        )
        for i, (size, samples) in enumerate([(9, 2), (5, 6), (60, 4), (20, 3)])
    ]
    results = sample_all(sampler, requests, trainer.adapter)
    talks = [
        np.concatenate([each.prompt, result.sequences[0].tokens, system[:5]])
        for each, result in zip(requests, results)
    ]
    longer = [SampleRequest(talk, 10, 3, seed=i) for i, talk in enumerate(talks)]
    results += sample_all(sampler, longer, trainer.adapter)
    assert sampler.prompt_tokens_reused > 100
    worst = 0.0
    for each, result in zip([*requests, *longer], results):
        for index, sequence in enumerate(result.sequences):
            ours = trainer_logprobs(trainer, each.prompt, sequence.tokens)
            worst = max(worst, np.abs(ours - sequence.logprobs).max())
            if index == 0:
                text = np.concatenate([each.prompt, sequence.tokens])
                theirs = reference.logprobs(TrainSequence(text[:-1], text[1:], {})).detach().numpy()
                start = len(each.prompt) - 1
                worst = max(worst, np.abs(theirs[start:] - sequence.logprobs).max())
                if result.prompt_logprobs is not None:
                    gaps = np.abs(result.prompt_logprobs[1:] - theirs[:start])
                    worst = max(worst, gaps.max())
    print(f"{family}: sampler, forward and reference, max difference {worst:.1e}")
    assert worst <= TOLERANCE
