"""Temperature in scoring, losses and sampling, against transformers in float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tinker_cookbook.engine.config import EngineConfig
from tinker_cookbook.engine.lora import LoraSpec
from tinker_cookbook.engine.losses import LOSSES, SEQUENCE_INDEX, get_loss
from tinker_cookbook.engine.requests import SampleRequest, TrainSequence
from tinker_cookbook.engine.testing import VOCAB, PeftReference, make_trainer, on_cpu, sample_all
from tinker_cookbook.engine.torch_sampler import TorchSampler
from tinker_cookbook.engine.trainer import AdapterTrainer

TEMPERATURES = (0.5, 1.0, 2.0)
TOLERANCE = {0.5: 2e-5, 1.0: 1e-5, 2.0: 1e-5}  # logits and their errors are divided by it


@pytest.fixture(params=["tiny_qwen3", "tiny_llama", "tiny_llama, frozen head"])
def trained(
    request: pytest.FixtureRequest, tmp_path: Path, device: str
) -> tuple[AdapterTrainer, PeftReference]:
    """An adapter, with or without the unembedding, and its float64 copy in transformers + peft."""
    family, _, frozen = request.param.partition(",")
    spec = LoraSpec(rank=4, train_unembed=not frozen)
    path = request.getfixturevalue(family)
    trainer = make_trainer(path, spec, device, head_chunk=7, tokens_per_pass=60)
    reference = PeftReference(trainer, tmp_path)
    reference.model.double()
    return trainer, reference


def logits_of(reference: PeftReference, tokens: np.ndarray) -> torch.Tensor:
    """float64 [N, V]."""
    return reference.model(torch.from_numpy(tokens)[None]).logits[0]


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_scoring_is_the_log_softmax_of_scaled_logits(
    trained: tuple[AdapterTrainer, PeftReference], temperature: float
) -> None:
    trainer, reference = trained
    tolerance = TOLERANCE[temperature]
    rng = np.random.default_rng(0)
    sampler = TorchSampler(trainer.base, EngineConfig(device=trainer.base.device.type))
    prompts = [rng.integers(3, VOCAB, n) for n in (2, 30, 90)]  # the last in several passes
    prompt_targets = [rng.integers(0, VOCAB, (len(p) - 1, 3)) for p in prompts]
    requests = [
        SampleRequest(
            prompt,
            max_tokens=3 * (i % 2),
            temperature=0.3,  # of the samples; the prompt has its own
            prompt_temperature=temperature,
            prompt_logprobs=True,
            prompt_top_k=4,
            prompt_targets=targets,
        )
        for i, (prompt, targets) in enumerate(zip(prompts, prompt_targets))
    ]
    results = sample_all(sampler, requests, trainer.adapter)
    for prompt, targets, result in zip(prompts, prompt_targets, results):
        scaled = logits_of(reference, prompt)[:-1].detach() / temperature
        expected = scaled.log_softmax(-1)
        following = torch.from_numpy(prompt[1:, None])
        assert result.prompt_logprobs is not None and result.prompt_top_k is not None
        assert result.prompt_target_logprobs is not None
        ours = result.prompt_logprobs[1:]
        assert np.abs(ours - expected.gather(1, following)[:, 0].numpy()).max() <= tolerance
        best = expected.topk(4)
        assert np.array_equal(result.prompt_top_k.tokens, best.indices)
        assert np.abs(result.prompt_top_k.logprobs - best.values.numpy()).max() <= tolerance
        scores = expected.gather(1, torch.from_numpy(targets)).numpy()
        assert np.abs(result.prompt_target_logprobs - scores).max() <= tolerance


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_what_was_sampled_scores_the_same(
    trained: tuple[AdapterTrainer, PeftReference], temperature: float
) -> None:
    """By the sampler and by the trainer; top-k and top-p do not change logprobs."""
    trainer, _ = trained
    tolerance = TOLERANCE[temperature]
    sampler = TorchSampler(trainer.base, EngineConfig(device=trainer.base.device.type))
    prompt = np.arange(5, 25)
    truncations = ({}, {"top_k": 5}, {"top_p": 0.7})
    requests = [
        SampleRequest(prompt, 12, 2, temperature=temperature, seed=i, **truncation)  # type: ignore[arg-type]
        for i, truncation in enumerate(truncations)
    ]
    for result in sample_all(sampler, requests, trainer.adapter):
        for sequence in result.sequences:
            text = np.concatenate([prompt, sequence.tokens])
            score = SampleRequest(text, 0, prompt_temperature=temperature, prompt_logprobs=True)
            (scored,) = sample_all(sampler, [score], trainer.adapter)
            assert scored.prompt_logprobs is not None
            own = scored.prompt_logprobs[len(prompt) :]
            assert np.abs(own - sequence.logprobs).max() <= tolerance
            train_sequence = TrainSequence(
                text[:-1], text[1:], {"weights": np.ones(len(text) - 1, np.float32)}
            )
            config = {"temperature": temperature}
            trained_on = trainer.forward([train_sequence], "cross_entropy", config).logprobs[0]
            assert np.abs(trained_on[len(prompt) - 1 :] - sequence.logprobs).max() <= tolerance


@pytest.mark.parametrize("temperature", (0.5, 2.0))
@pytest.mark.parametrize("name", LOSSES)
def test_losses_and_their_gradients(
    trained: tuple[AdapterTrainer, PeftReference], name: str, temperature: float
) -> None:
    """Two sequences with a common prefix and one without, in several chunks of the head."""
    trainer, reference = trained
    tolerance = TOLERANCE[temperature]
    rng = np.random.default_rng(1)
    prefix = rng.integers(3, VOCAB, 20)
    texts = [np.concatenate([prefix, rng.integers(3, VOCAB, n)]) for n in (6, 11)]
    texts.append(rng.integers(3, VOCAB, 9))
    sequences, expected, total = [], [], torch.zeros((), dtype=torch.float64)
    loss = get_loss(name, {"temperature": temperature})
    for text in texts:
        scaled = logits_of(reference, text[:-1]) / temperature
        lp = scaled.log_softmax(-1).gather(1, torch.from_numpy(text[1:, None]))[:, 0]
        sampled = (lp.detach().numpy() + rng.normal(0, 0.1, len(lp))).astype(np.float32)
        given = {
            "weights": rng.normal(size=len(lp)).astype(np.float32) / 50,
            "advantages": rng.normal(size=len(lp)).astype(np.float32) / 50,
            "logprobs": sampled,
            "sequence_ratio_mask": np.ones(len(lp), np.float32),
        }
        inputs = {key: given[key] for key in loss.inputs}
        tensors = {key: torch.from_numpy(value).double() for key, value in inputs.items()}
        tensors[SEQUENCE_INDEX] = torch.zeros(len(lp), dtype=torch.int64)
        total = total + loss.value(lp, tensors)
        sequences.append(TrainSequence(text[:-1], text[1:], inputs))
        expected.append(lp.detach().numpy())
    total.backward()
    result = trainer.forward_backward(sequences, name, {"temperature": temperature})
    for ours, theirs in zip(result.logprobs, expected, strict=True):
        assert np.abs(ours - theirs).max() <= tolerance
    assert result.metrics["loss:sum"] == pytest.approx(total.item(), abs=tolerance)
    grads = on_cpu(trainer.grads)
    assert set(grads) == set(reference.parameters)
    top = max(parameter.grad.abs().max().item() for parameter in reference.parameters.values())
    for key, parameter in reference.parameters.items():
        assert (grads[key] - parameter.grad).abs().max() <= tolerance * max(top, 1.0), key


def test_temperature_one_is_the_default(tiny_qwen3: str, device: str) -> None:
    sequences = [
        TrainSequence(np.arange(5, 30), np.arange(6, 31), {"weights": np.ones(25, np.float32)})
    ]
    outcomes = []
    for config in (None, {"temperature": 1.0}):
        trainer = make_trainer(tiny_qwen3, LoraSpec(rank=2), device)
        result = trainer.forward_backward(sequences, "cross_entropy", config)
        outcomes.append((result.logprobs[0], on_cpu(trainer.grads)))
    (one, grads), (other, others) = outcomes
    assert np.array_equal(one, other)
    assert all(torch.equal(grads[name], others[name]) for name in grads)
