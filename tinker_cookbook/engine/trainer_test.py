"""Training in fp32 against transformers + peft: logprobs, loss, every gradient, Adam steps."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tinker_cookbook.engine.base_model import BaseModel
from tinker_cookbook.engine.checkpoints import read_adapter, read_optimizer, write_state
from tinker_cookbook.engine.config import EngineConfig
from tinker_cookbook.engine.lora import LoraSpec
from tinker_cookbook.engine.losses import LOSSES, SEQUENCE_INDEX, get_loss
from tinker_cookbook.engine.requests import AdamConfig, TrainSequence
from tinker_cookbook.engine.testing import (
    TOLERANCE,
    VOCAB,
    PeftReference,
    make_rows,
    make_trainer,
    on_cpu,
    with_inputs,
)
from tinker_cookbook.engine.trainer import AdapterTrainer
from tinker_cookbook.exceptions import (
    CheckpointError,
    ConfigurationError,
    DataValidationError,
    TrainingError,
)


@pytest.mark.parametrize("unembed", [True, False])
@pytest.mark.parametrize("family", ["tiny_llama", "tiny_qwen3"])
def test_training_equals_peft(
    family: str, unembed: bool, request: pytest.FixtureRequest, tmp_path: Path, device: str
) -> None:
    spec = LoraSpec(rank=4, train_unembed=unembed)
    trainer = make_trainer(
        request.getfixturevalue(family), spec, device, tokens_per_pass=50, head_chunk=16
    )
    reference = PeftReference(trainer, tmp_path)
    assert set(reference.parameters) == set(trainer.adapter.master)
    adam = {"lr": 1e-2, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
    optimizer = torch.optim.AdamW(reference.parameters.values(), **adam)
    worst = 0.0
    for step in range(3):
        rows = make_rows(seed=step)
        expected, loss = reference.loss(rows)
        result = trainer.forward_backward(rows, "cross_entropy", None)
        for ours, theirs in zip(result.logprobs, expected):
            worst = max(worst, float(np.abs(ours - theirs).max()))
        assert result.metrics["loss:sum"] == pytest.approx(loss.item(), abs=TOLERANCE)
        optimizer.zero_grad()
        loss.backward()
        grads = on_cpu(trainer.grads)
        for name, parameter in reference.parameters.items():
            difference = (grads[name] - parameter.grad).abs().max().item()
            assert difference <= TOLERANCE, name
            worst = max(worst, difference)
        trainer.optim_step(AdamConfig(1e-2, 0.9, 0.95, 1e-8, 0.1))
        optimizer.step()
        master = on_cpu(trainer.adapter.master)
        for name, parameter in reference.parameters.items():
            worst = max(worst, (master[name] - parameter).abs().max().item())
        with torch.no_grad():  # so that differences do not add up over steps
            for name, parameter in reference.parameters.items():
                parameter.copy_(master[name])
    assert worst <= TOLERANCE
    print(f"{family} unembed={unembed}: max difference {worst:.1e}")


def test_adam_step_by_hand(tiny_qwen3: str, device: str) -> None:
    trainer = make_trainer(tiny_qwen3, LoraSpec(rank=2), device)
    before = {k: v.double() for k, v in on_cpu(trainer.adapter.master).items()}
    m = {k: torch.zeros_like(v) for k, v in before.items()}
    v = {k: torch.zeros_like(v) for k, v in before.items()}
    lr, b1, b2, eps, decay = 3e-3, 0.9, 0.95, 1e-12, 0.05
    for t in (1, 2, 3):
        trainer.forward_backward(make_rows(t), "cross_entropy", None)
        grads = {k: g.double() for k, g in on_cpu(trainer.grads).items()}
        trainer.optim_step(AdamConfig(lr, b1, b2, eps, decay))
        for k, g in grads.items():
            m[k] = b1 * m[k] + (1 - b1) * g
            v[k] = b2 * v[k] + (1 - b2) * g * g
            step = (m[k] / (1 - b1**t)) / ((v[k] / (1 - b2**t)).sqrt() + eps)
            before[k] = before[k] * (1 - lr * decay) - lr * step
    after = on_cpu(trainer.adapter.master)
    for k, expected in before.items():
        assert (after[k] - expected).abs().max() <= TOLERANCE, k


def test_gradient_clipping(tiny_qwen3: str, device: str) -> None:
    clipped, free = (make_trainer(tiny_qwen3, LoraSpec(rank=2), device) for _ in range(2))
    for trainer in (clipped, free):
        trainer.forward_backward(make_rows(), "cross_entropy", None)
    assert free.grads is not None
    norm = torch.stack([g.double().pow(2).sum() for g in free.grads.values()]).sum().sqrt().item()
    assert clipped.optim_step(AdamConfig(grad_clip_norm=norm / 4))["grad_norm"] == pytest.approx(
        norm
    )
    free.optim_step(AdamConfig())
    states = [t.optimizer.state[next(iter(t.adapter.master.values()))] for t in (clipped, free)]
    ratio = states[0]["exp_avg"].norm() / states[1]["exp_avg"].norm()
    assert ratio.item() == pytest.approx(0.25, rel=1e-4)


def gradients(trainer: AdapterTrainer, *batches: list[TrainSequence]) -> dict[str, torch.Tensor]:
    for rows in batches:
        trainer.forward_backward(rows, "cross_entropy", None)
    grads, trainer.grads = trainer.grads, None
    assert grads is not None
    return grads


def test_packing_and_accumulation_change_nothing(tiny_llama: str, device: str) -> None:
    rows = make_rows(lengths=(9, 33, 2, 17, 60, 5))
    base = gradients(make_trainer(tiny_llama, LoraSpec(rank=4), device), rows)
    one_by_one = make_trainer(tiny_llama, LoraSpec(rank=4), device, tokens_per_pass=1, head_chunk=7)
    variants = [
        gradients(one_by_one, rows),
        gradients(
            make_trainer(tiny_llama, LoraSpec(rank=4), device, tokens_per_pass=64), rows[::-1]
        ),
        gradients(make_trainer(tiny_llama, LoraSpec(rank=4), device), rows[:2], rows[2:]),
    ]
    for variant in variants:
        for name, grad in base.items():
            assert (variant[name] - grad).abs().max() <= TOLERANCE, name
    results = one_by_one.forward(rows, "cross_entropy", None).logprobs
    shuffled = one_by_one.forward(rows[::-1], "cross_entropy", None).logprobs
    for row, ours, other in zip(rows, results, shuffled[::-1]):
        assert len(ours) == row.length
        assert np.array_equal(ours, other)


def test_forward_leaves_no_gradient(tiny_qwen3: str, device: str) -> None:
    trainer = make_trainer(tiny_qwen3, LoraSpec(rank=2), device)
    forward = trainer.forward(make_rows(), "cross_entropy", None)
    assert trainer.grads is None
    both = trainer.forward_backward(make_rows(), "cross_entropy", None)
    for a, b in zip(forward.logprobs, both.logprobs):
        assert np.abs(a - b).max() <= TOLERANCE
    with pytest.raises(TrainingError, match="optim_step without"):
        trainer.optim_step(AdamConfig())
        trainer.optim_step(AdamConfig())


def test_only_the_covered_layers_train(tiny_qwen3: str, device: str) -> None:
    trainer = make_trainer(
        tiny_qwen3, LoraSpec(rank=2, train_attn=False, train_mlp=False, train_unembed=True), device
    )
    assert set(trainer.adapter.master) == {"lm_head.lora_A", "lm_head.lora_B"}
    grads = gradients(trainer, make_rows())
    assert all(grad.abs().max() > 0 for grad in grads.values())
    with pytest.raises(ConfigurationError, match="nothing would be trained; set"):
        LoraSpec(train_attn=False, train_mlp=False, train_unembed=False)


def test_fresh_adapter_is_the_base_model(tiny_llama: str, device: str) -> None:
    from transformers import AutoModelForCausalLM

    trainer = AdapterTrainer(BaseModel(tiny_llama, EngineConfig(device=device)), LoraSpec(rank=3))
    for name, tensor in trainer.adapter.master.items():
        if name.endswith("lora_A"):
            bound = 1 / np.sqrt(tensor.shape[1])
            assert 0.8 * bound < tensor.abs().max() <= bound
        else:
            assert not tensor.any()
    rows = make_rows()
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    for row, ours in zip(rows, trainer.forward(rows, "cross_entropy", None).logprobs):
        logits = model(torch.from_numpy(row.tokens)[None]).logits[0].log_softmax(-1)
        theirs = logits[torch.arange(row.length), torch.from_numpy(row.targets)]
        assert np.abs(ours - theirs.detach().numpy()).max() <= TOLERANCE


def test_bf16_stays_near_fp32(tiny_llama: str, device: str) -> None:
    rows = make_rows()
    exact = make_trainer(tiny_llama, LoraSpec(rank=4), device).forward(rows, "cross_entropy", None)
    config = EngineConfig(device=device, dtype="bfloat16")
    trainer = AdapterTrainer(BaseModel(tiny_llama, config), LoraSpec(rank=4))
    source = make_trainer(tiny_llama, LoraSpec(rank=4), device).adapter.master
    with torch.no_grad():
        for name, tensor in trainer.adapter.master.items():
            tensor.copy_(source[name])
    trainer.adapter.refresh()
    assert trainer.adapter.copies["lm_head.lora_A"].dtype == torch.bfloat16
    rough = trainer.forward_backward(rows, "cross_entropy", None)
    difference = max(np.abs(a - b).max() for a, b in zip(exact.logprobs, rough.logprobs))
    assert 0 < difference < 0.5  # bf16 keeps 8 bits; a wrong mask or position is off by whole nats
    assert trainer.grads is not None and trainer.grads["lm_head.lora_A"].dtype == torch.float32


def test_resume_from_disk_is_exact(tiny_qwen3: str, tmp_path: Path, device: str) -> None:
    trainer = make_trainer(tiny_qwen3, LoraSpec(rank=4), device)
    adam = AdamConfig(1e-2)
    trainer.forward_backward(make_rows(1), "cross_entropy", None)
    trainer.optim_step(adam)
    write_state(trainer, "x", tmp_path)
    again = AdapterTrainer(trainer.base, LoraSpec(rank=4, seed=99))
    read_adapter(again.adapter, tmp_path)
    read_optimizer(again, tmp_path)
    for each in (trainer, again):
        each.forward_backward(make_rows(2), "cross_entropy", None)
        each.optim_step(adam)
    for name, tensor in trainer.adapter.master.items():
        assert torch.equal(tensor, again.adapter.master[name]), name
    other = AdapterTrainer(trainer.base, LoraSpec(rank=8))
    with pytest.raises(CheckpointError, match="rank differ"):
        read_adapter(other.adapter, tmp_path)
    narrow = AdapterTrainer(trainer.base, LoraSpec(rank=4, train_unembed=False))
    with pytest.raises(CheckpointError, match=r"lm_head\.lora_A"):
        read_adapter(narrow.adapter, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": np.array([1, 999])}, "datum 1: model_input holds token id 999 at position 1"),
        ({"targets": np.array([-1, 2])}, "datum 1: target_tokens holds token id -1"),
        ({"targets": np.array([1, 2, 3])}, r"datum 1: target_tokens has shape \[3\]"),
        ({"inputs": {}}, "datum 1: no input 'weights'"),
        ({"inputs": {"weights": np.ones(2), "mask": np.ones(2)}}, "unknown input 'mask'"),
        ({"inputs": {"weights": np.array([1.0, np.nan])}}, "weights holds NaN"),
        ({"inputs": {"weights": np.ones(3)}}, r"datum 1: weights has shape \[3\]"),
    ],
)
def test_bad_rows_fail_alone(tiny_qwen3: str, change: dict, message: str) -> None:
    trainer = make_trainer(tiny_qwen3, LoraSpec(rank=2))
    good = TrainSequence(np.array([1, 2]), np.array([2, 3]), {"weights": np.ones(2, np.float32)})
    bad = dataclasses.replace(good, **change)
    with pytest.raises(DataValidationError, match=message):
        trainer.forward_backward([good, bad], "cross_entropy", None)
    assert trainer.grads is None
    trainer.forward_backward([good], "cross_entropy", None)


def test_refusals(tiny_qwen3: str, tmp_path: Path) -> None:
    trainer = make_trainer(tiny_qwen3, LoraSpec(rank=2))
    with pytest.raises(ConfigurationError, match="unknown loss_fn 'nll'; known: cispo, cross_"):
        trainer.forward(make_rows(), "nll", None)
    with pytest.raises(ConfigurationError, match="key 'beta': cross_entropy takes temperature"):
        trainer.forward(make_rows(), "cross_entropy", {"beta": 1.0})
    with pytest.raises(DataValidationError, match="no datum"):
        trainer.forward([], "cross_entropy", None)
    with pytest.raises(
        DataValidationError, match=r"300 tokens, but the model's context length is 256"
    ):
        trainer.forward(make_rows(lengths=(300,)), "cross_entropy", None)
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(ConfigurationError, match="'gpt2', which the engine does not support"):
        BaseModel(str(tmp_path), EngineConfig())
    with pytest.raises(ConfigurationError, match="cannot be loaded"):
        BaseModel(str(tmp_path / "nowhere"), EngineConfig())
    with pytest.raises(ConfigurationError, match=r"rank=65 exceeds .* at most 64"):
        AdapterTrainer(trainer.base, LoraSpec(rank=65))


def test_weights_that_do_not_fit_are_refused(tiny_qwen3: str, tmp_path: Path) -> None:
    source = Path(tiny_qwen3)
    (tmp_path / "config.json").write_text((source / "config.json").read_text())
    weights = load_file(source / "model.safetensors")
    name = "model.layers.1.mlp.down_proj.weight"

    def refused(tensors: dict[str, torch.Tensor], message: str) -> None:
        save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ConfigurationError, match=message):
            BaseModel(str(tmp_path), EngineConfig(device="cpu"))

    refused({k: v for k, v in weights.items() if k != name}, f"lack '{name}'")
    refused({**weights, name: weights[name][:, :-1].contiguous()}, f"lack '{name}'")
    whole = (source / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ConfigurationError, match="cannot be loaded"):
        BaseModel(str(tmp_path), EngineConfig(device="cpu"))


def test_non_finite_gradient_is_refused(tiny_qwen3: str, device: str) -> None:
    trainer = make_trainer(tiny_qwen3, LoraSpec(rank=2), device)
    rows = [
        TrainSequence(np.array([1]), np.array([2]), {"weights": np.array([1e30], np.float32)})
    ] * 3
    before = {k: v.detach().clone() for k, v in trainer.adapter.master.items()}
    trainer.forward_backward(rows, "cross_entropy", None)
    with pytest.raises(TrainingError, match="this step was skipped"):
        trainer.optim_step(AdamConfig())
    assert all(torch.equal(before[k], v) for k, v in trainer.adapter.master.items())


@pytest.mark.parametrize("unembed", [True, False])
@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_equals_autograd_through_peft(
    name: str, unembed: bool, tiny_qwen3: str, tmp_path: Path, device: str
) -> None:
    """The chunked head and the packed passes against plain autograd over full logits."""
    spec = LoraSpec(rank=4, train_unembed=unembed)
    trainer = make_trainer(tiny_qwen3, spec, device, tokens_per_pass=50, head_chunk=16)
    reference = PeftReference(trainer, tmp_path)
    rows = with_inputs(make_rows(), name)
    # sampling logprobs near the training ones, so that ratios keep their precision in fp32
    logprobs = trainer.forward(make_rows(), "cross_entropy", None).logprobs
    if "logprobs" in LOSSES[name].inputs:
        rng = np.random.default_rng(3)
        for row, lp in zip(rows, logprobs):
            row.inputs["logprobs"][:] = lp + rng.normal(0, 0.3, row.length)  # type: ignore[index]
    result = trainer.forward_backward(rows, name, None)
    loss = get_loss(name, None)
    total = torch.zeros(())
    for index, row in enumerate(rows):
        inputs = {key: torch.from_numpy(array) for key, array in row.inputs.items()}
        inputs[SEQUENCE_INDEX] = torch.zeros(row.length, dtype=torch.int64)
        lp = reference.logprobs(row)
        assert np.abs(result.logprobs[index] - lp.detach().numpy()).max() <= TOLERANCE
        total = total + loss.value(lp, inputs)
    total.backward()
    assert result.metrics["loss:sum"] == pytest.approx(total.item(), abs=TOLERANCE)
    grads = on_cpu(trainer.grads)
    for key, parameter in reference.parameters.items():
        assert (grads[key] - parameter.grad).abs().max() <= TOLERANCE, key


@pytest.mark.parametrize("unembed", [True, False])
def test_several_targets_per_token(
    tiny_llama: str, unembed: bool, tmp_path: Path, device: str
) -> None:
    spec = LoraSpec(rank=4, train_unembed=unembed)
    trainer = make_trainer(tiny_llama, spec, device, tokens_per_pass=40, head_chunk=9)
    reference = PeftReference(trainer, tmp_path)
    rng = np.random.default_rng(1)
    rows = []
    for length in (12, 30, 5):
        weights = rng.random((length, 3)).astype(np.float32) / 20
        weights[: length // 2] = 0
        targets = rng.integers(0, VOCAB, (length, 3))
        rows.append(TrainSequence(rng.integers(0, VOCAB, length), targets, {"weights": weights}))
    result = trainer.forward_backward(rows, "cross_entropy", None)
    total = torch.zeros(())
    for row, ours in zip(rows, result.logprobs):
        logits = reference.model(torch.from_numpy(row.tokens)[None]).logits[0].log_softmax(-1)
        lp = logits.gather(1, torch.from_numpy(row.targets))
        assert ours.shape == (row.length, 3)
        assert np.abs(ours - lp.detach().numpy()).max() <= TOLERANCE
        total = total - (torch.from_numpy(row.inputs["weights"]) * lp).sum()
    total.backward()
    grads = on_cpu(trainer.grads)
    for key, parameter in reference.parameters.items():
        assert (grads[key] - parameter.grad).abs().max() <= TOLERANCE, key
    with pytest.raises(DataValidationError, match=r"shape \[12, 3\]; ppo takes \[N\]"):
        trainer.forward(rows, "ppo", None)
    mixed = [rows[0], make_rows()[0]]
    with pytest.raises(DataValidationError, match=r"datum 1: .* the number of targets per token"):
        trainer.forward(mixed, "cross_entropy", None)


@pytest.mark.parametrize("unembed", [True, False])
@pytest.mark.parametrize(
    ("loss", "key", "value", "advantage", "message"),
    [
        ("importance_sampling", "logprobs", -500.0, 1.0, "datum 2's loss is -inf: its input logpr"),
        ("importance_sampling", "logprobs", -500.0, 0.0, "loss is nan: its input logprobs is -500"),
        ("ppo", "logprobs", -1000.0, -1.0, "datum 2's loss is inf: .* is -1000 at position 3"),
        ("ppo", "logprobs", -500.0, 1.0, "datum 2's gradient overflows: its input logprobs is"),
        ("gspo", "logprobs", -40000.0, -1.0, "gspo: datum 2's loss is inf: its input logprobs"),
        ("dro", "logprobs", -1e30, 1.0, "dro: datum 2's loss is inf: its input logprobs is -1e"),
        (
            "dro",
            "advantages",
            3e38,
            3e38,
            "datum 2's loss is inf: its input advantages goes up to 3e",
        ),
        ("cross_entropy", "weights", 3e38, 0.0, "datum 2's loss is inf: its input weights goes up"),
    ],
)
def test_a_loss_that_is_not_finite_is_refused(
    tiny_qwen3: str,
    unembed: bool,
    loss: str,
    key: str,
    value: float,
    advantage: float,
    message: str,
    device: str,
) -> None:
    """Its request fails, and what was accumulated before stays."""
    spec = LoraSpec(rank=2, train_unembed=unembed)
    trainer = make_trainer(tiny_qwen3, spec, device, tokens_per_pass=60)
    rows = with_inputs(make_rows(), loss)
    trainer.forward_backward(rows, loss, None)
    before = {name: grad.clone() for name, grad in (trainer.grads or {}).items()}
    bad = [
        dataclasses.replace(row, inputs={k: v.copy() for k, v in row.inputs.items()})
        for row in rows
    ]
    bad[2] = TrainSequence(
        rows[1].tokens[:7],
        rows[1].targets[:7],
        {k: v[:7].copy() for k, v in rows[1].inputs.items()},
    )
    if "advantages" in bad[2].inputs:
        bad[2].inputs["advantages"][3] = advantage
    if "sequence_ratio_mask" in bad[2].inputs:
        bad[2].inputs["sequence_ratio_mask"][3] = 1
    bad[2].inputs[key][3] = value
    with pytest.raises(DataValidationError, match=message):
        trainer.forward_backward(bad, loss, None)
    if "gradient" not in message:
        with pytest.raises(DataValidationError, match=message):
            trainer.forward(bad, loss, None)
    assert before and all(torch.equal(before[k], v) for k, v in (trainer.grads or {}).items())
    assert np.isfinite(trainer.optim_step(AdamConfig())["grad_norm"])


def test_weights_that_overflowed_are_told(tiny_qwen3: str) -> None:
    trainer = make_trainer(tiny_qwen3, LoraSpec(rank=2))
    with torch.no_grad():
        next(iter(trainer.adapter.master.values())).fill_(3e38)
    trainer.adapter.refresh()
    with pytest.raises(TrainingError, match=r"logprobs of datum \d are not finite"):
        trainer.forward_backward(make_rows(), "cross_entropy", None)
    assert trainer.grads is None


@pytest.mark.parametrize("unembed", [True, False])
@pytest.mark.parametrize("tokens_per_pass", [8192, 30])
def test_custom_loss(
    tiny_qwen3: str, unembed: bool, tokens_per_pass: int, tmp_path: Path, device: str
) -> None:
    """A loss that couples all sequences, in one pass and in several, against plain autograd."""
    spec = LoraSpec(rank=4, train_unembed=unembed)
    trainer = make_trainer(tiny_qwen3, spec, device, tokens_per_pass=tokens_per_pass, head_chunk=16)
    reference = PeftReference(trainer, tmp_path)
    rows = make_rows()
    forwards = 0
    hidden = trainer.base.hidden

    def counted(*args: Any) -> torch.Tensor:
        nonlocal forwards
        forwards += 1
        return hidden(*args)

    trainer.base.hidden = counted  # type: ignore[method-assign]

    def function(logprobs: list[torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
        assert [len(lp) for lp in logprobs] == [row.length for row in rows]
        sums = torch.stack([lp.mean() for lp in logprobs])
        loss = torch.nn.functional.softplus(sums[0] - sums[1]) + sums.std() * 0.1
        return loss, {"margin": (sums[0] - sums[1]).item()}

    result = trainer.forward_backward_custom(rows, function)
    if tokens_per_pass == 8192:
        assert forwards == 1
    expected, metrics = function([reference.logprobs(row) for row in rows])
    expected.backward()
    assert result.metrics == pytest.approx(metrics, abs=TOLERANCE)
    grads = on_cpu(trainer.grads)
    for key, parameter in reference.parameters.items():
        assert (grads[key] - parameter.grad).abs().max() <= TOLERANCE, key
    for wrong, message in (
        (lambda lps: (torch.tensor(1.0), {}), "must be a scalar tensor that depends"),
        (lambda lps: (lps[0], {}), r"returned a tensor of shape \[7\]; it must be a scalar tensor"),
        (
            lambda lps: ((lps[1] * 0).sum().sqrt(), {}),
            "derivative of the custom loss .* not finite",
        ),
        (lambda lps: (lps[1].sum() * float("nan"), {}), "the custom loss is nan"),
    ):
        trainer.grads = None
        with pytest.raises(DataValidationError, match=message):
            trainer.forward_backward_custom(rows, wrong)
        assert trainer.grads is None
