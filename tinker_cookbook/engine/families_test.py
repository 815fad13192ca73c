"""Families beyond plain Llama in fp32, against transformers: experts, latent attention, sinks,
sliding windows.

The reference for an adapter is transformers' eager model with W + scale * B A put in the place of
every W, the experts' three-dimensional parameters included, and autograd through that.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tinker_cookbook.engine import attention, elementwise, packing, passes
from tinker_cookbook.engine.attention import PackedPlan
from tinker_cookbook.engine.base_model import BaseModel
from tinker_cookbook.engine.checkpoints import (
    ADAPTER_FILE,
    CONFIG_FILE,
    read_adapter,
    read_optimizer,
    read_spec,
    write_state,
)
from tinker_cookbook.engine.config import EngineConfig
from tinker_cookbook.engine.lora import UNEMBED, Adapter, AdapterSpan, LoraSpec
from tinker_cookbook.engine.packing import consecutive_segments, token_positions
from tinker_cookbook.engine.requests import AdamConfig, SampleRequest, SampleResult, TrainSequence
from tinker_cookbook.engine.testing import (
    MOE,
    PLAIN,
    TINY,
    MergedReference,
    PeftReference,
    largest,
    make_rows,
    make_trainer,
    on_cpu,
    plain_logprobs,
    sample_all,
    trainer_logprobs,
    transformers_model,
)
from tinker_cookbook.engine.torch_sampler import TorchSampler
from tinker_cookbook.engine.trainer import AdapterTrainer
from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.families import FAMILIES, KIMI_K2, NANO, SMOLLM2, Family, Feature

TOLERANCE = 1e-5
WINDOW = 24  # of the fixtures that have one
LENGTHS = (7, 90, 1, 23, 23, 40)  # on both sides of the window

families = pytest.mark.parametrize("family", TINY)


@pytest.fixture
def path(family: str, request: pytest.FixtureRequest) -> str:
    return request.getfixturevalue(family)


def test_every_family_has_its_line() -> None:
    """nano is a Qwen3, SmolLM2 a Llama, and Kimi-K2 has a test of its own below."""
    others = {NANO.name, SMOLLM2.name, KIMI_K2.name}
    assert {*PLAIN.values(), *TINY.values(), *others} == set(FAMILIES)


@pytest.mark.parametrize(("family", "name"), [*PLAIN.items(), *TINY.items()])
def test_a_family_is_what_its_file_says(
    family: str, name: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, seen = FAMILIES[name], set[Feature]()
    attend = attention.attend

    def watched(module: Any, query: Any, key: Any, value: Any, mask: Any, **others: Any) -> Any:
        features: dict[Feature, bool] = {
            "latent": value.shape[-1] < key.shape[-1],
            "sinks": others.get("s_aux") is not None,
            "sliding_window": others.get("sliding_window") is not None,
        }
        seen.update(feature for feature, there in features.items() if there)
        return attend(module, query, key, value, mask, **others)

    monkeypatch.setitem(attention.AttentionInterface._global_mapping, attention.NAME, watched)
    base = BaseModel(request.getfixturevalue(family), EngineConfig(device="cpu"))
    off = set() if getattr(base.config, "sliding_window", None) else {"sliding_window"}
    assert seen == set(found.attention) - off  # Qwen3's windows are a switch of config.json
    check_layers(base, found)


def check_layers(base: BaseModel, family: Family) -> None:
    """The layers of adapters, and the classes that compute what elementwise.py does."""
    assert family.model_type == base.config.model_type
    assert base.config.rope_parameters["rope_type"] in family.rope_types
    spare = {"q_proj"} if "latent" in family.attention else set()  # of models without a low rank
    layers = {path.rsplit(".", 1)[-1] for path in base.shapes} - {UNEMBED}
    assert layers == {*family.attention_layers, *family.mlp_layers} - spare
    assert family.experts == any(".experts." in path for path in base.shapes)
    kinds = {type(module).__name__: module for module in base.decoder.modules()}
    for kind, ours in ((family.norm, elementwise._norm), (family.mlp, elementwise._mlp)):
        if kind in kinds:
            assert kinds[kind].forward.func is ours
    assert family.norm in kinds or not family.norm


@families
def test_forward_equals_transformers(family: str, path: str, device: str) -> None:
    base = BaseModel(path, EngineConfig(device=device, dtype="float32"))
    model = transformers_model(path)
    rows = make_rows(lengths=LENGTHS)
    worst = 0.0
    for row, ours in zip(rows, plain_logprobs(base, rows)):
        with torch.no_grad():
            logits = model(torch.from_numpy(row.tokens)[None]).logits[0]
        theirs = logits.log_softmax(-1).gather(1, torch.from_numpy(row.targets)[:, None])[:, 0]
        worst = max(worst, (ours - theirs).abs().max().item())
    print(f"{family}: forward, max difference {worst:.1e}")
    assert worst <= TOLERANCE


@pytest.mark.parametrize("spec", [LoraSpec(rank=4), LoraSpec(rank=3, train_unembed=False)])
@families
def test_training_equals_merged_weights(
    family: str, path: str, spec: LoraSpec, device: str
) -> None:
    trainer = make_trainer(path, spec, device, tokens_per_pass=110, head_chunk=16)
    reference = MergedReference(trainer)
    rows = make_rows(lengths=LENGTHS)
    result = trainer.forward_backward(rows, "cross_entropy", None)
    expected = [reference.logprobs(row) for row in rows]
    loss = torch.stack(
        [-(torch.from_numpy(r.inputs["weights"]) * lp).sum() for r, lp in zip(rows, expected)]
    ).sum()
    loss.backward()
    worst = max(
        np.abs(ours - lp.detach().numpy()).max() for ours, lp in zip(result.logprobs, expected)
    )
    grads = on_cpu(trainer.grads)
    wanted = {name: p.grad for name, p in reference.parameters.items() if p.grad is not None}
    assert set(wanted) == set(grads)
    assert all(grad.abs().max() > 0 for grad in wanted.values())  # every expert is visited
    gap = largest({name: grads[name] - grad for name, grad in wanted.items()}, wanted)
    lost = abs(result.metrics["loss:sum"] - loss.item())
    print(f"{family}: logprobs {worst:.1e}, loss {lost:.1e}, gradients {gap:.1e}")
    assert worst <= TOLERANCE and lost <= TOLERANCE and gap <= TOLERANCE


def test_sliding_window_equals_peft(tiny_qwen3_sliding: str, tmp_path: Path, device: str) -> None:
    trainer = make_trainer(tiny_qwen3_sliding, LoraSpec(rank=4), device, tokens_per_pass=110)
    reference = PeftReference(trainer, tmp_path)
    rows = make_rows(lengths=LENGTHS)
    expected, loss = reference.loss(rows)
    result = trainer.forward_backward(rows, "cross_entropy", None)
    loss.backward()
    assert max(np.abs(a - b).max() for a, b in zip(result.logprobs, expected)) <= TOLERANCE
    assert result.metrics["loss:sum"] == pytest.approx(loss.item(), abs=TOLERANCE)
    grads = on_cpu(trainer.grads)
    wanted = {name: p.grad for name, p in reference.parameters.items() if p.grad is not None}
    assert set(wanted) == set(grads)
    assert largest({k: grads[k] - g for k, g in wanted.items()}, wanted) <= TOLERANCE


def related_rows(shared: int, tails: tuple[int, ...]) -> list[TrainSequence]:
    """Rows that begin alike; the last two agree further than the others."""
    rng = np.random.default_rng(shared)
    start, more = rng.integers(3, 307, shared), rng.integers(3, 307, 20)
    rows = []
    for index, tail in enumerate(tails):
        middle = more if index >= len(tails) - 2 and shared > WINDOW else more[:0]
        text = np.concatenate([start, middle, rng.integers(3, 307, tail)])
        weights = (rng.normal(size=len(text) - 1) / 50).astype(np.float32)
        rows.append(TrainSequence(text[:-1], text[1:], {"weights": weights}))
    return rows


@pytest.mark.parametrize(
    ("shared", "tails"),
    [(18, (3, 5, 4)), (40, (3, 9, 30, 7))],
    ids=["within the window", "past the window"],
)
@families
def test_shared_prefixes_change_nothing(
    family: str,
    path: str,
    shared: int,
    tails: tuple[int, ...],
    monkeypatch: pytest.MonkeyPatch,
    device: str,
) -> None:
    trainer = make_trainer(path, LoraSpec(rank=4), device)
    rows = related_rows(shared, tails)
    passes: list[int] = []
    hidden = trainer.base.hidden

    def counted(tokens: torch.Tensor, *rest: Any) -> torch.Tensor:
        passes.append(len(tokens))
        return hidden(tokens, *rest)

    monkeypatch.setattr(trainer.base, "hidden", counted)
    together = trainer.forward_backward(rows, "cross_entropy", None)
    ours, trainer.grads = trainer.grads, None
    monkeypatch.setattr(packing, "MIN_SHARED_TOKENS", 1_000_000)
    plain = trainer.forward_backward(rows, "cross_entropy", None)
    theirs = trainer.grads
    assert ours is not None and theirs is not None
    assert passes[0] <= passes[1] - shared * (len(tails) - 1)
    worst = max(np.abs(a - b).max() for a, b in zip(together.logprobs, plain.logprobs))
    gap = largest({name: ours[name] - grad for name, grad in theirs.items()}, theirs)
    print(f"{family}, {shared} shared: logprobs {worst:.1e}, gradients {gap:.1e}")
    assert worst <= TOLERANCE and gap <= TOLERANCE


def some_adapters(base: BaseModel) -> list[Adapter | None]:
    specs = [
        LoraSpec(rank=4),
        LoraSpec(rank=7, seed=1, alpha=16.0, train_unembed=False),
        LoraSpec(rank=2, seed=2, train_attn=False),
        LoraSpec(rank=3, seed=3, train_mlp=False),
    ]
    generator = torch.Generator().manual_seed(0)
    adapters: list[Adapter | None] = []
    for spec in specs:
        adapter = base.new_adapter(spec)
        for name, tensor in adapter.master.items():
            if name.endswith("lora_B"):
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.1)
        adapter.refresh()
        adapters.append(adapter)
    return [*adapters[:2], None, *adapters[2:]]


@families
def test_several_adapters_in_a_pass(family: str, path: str, device: str) -> None:
    """Outputs and gradients of each as if it were alone."""
    base = BaseModel(path, EngineConfig(device=device, dtype="float32"))
    adapters = some_adapters(base)
    rows = make_rows(lengths=(13, 60, 5, 1, 30))  # one for each
    segments = consecutive_segments([row.length for row in rows])
    tokens = torch.from_numpy(np.concatenate([row.tokens for row in rows]))
    slope = torch.randn(len(tokens), base.config.hidden_size).to(device)

    def backward(picked: list[int]) -> tuple[torch.Tensor, dict[int, dict[str, torch.Tensor]]]:
        spans = [segments[i] for i in picked]
        own = torch.cat([torch.arange(s.start, s.stop) for s in spans])
        laid = consecutive_segments([s.stop - s.start for s in spans])
        plan = [AdapterSpan(adapters[i], s.start, s.stop) for i, s in zip(picked, laid)]
        positions = torch.from_numpy(token_positions(laid))
        placed = tokens[own].to(device), positions.to(device)
        hidden = base.hidden(*placed, PackedPlan(laid), plan)
        if hidden.requires_grad:
            hidden.backward(slope[own])
        grads = {}
        for i in picked:
            adapter = adapters[i]
            if adapter is not None:
                grads[i] = {k: c.grad for k, c in adapter.copies.items() if c.grad is not None}
                for copy in adapter.copies.values():
                    copy.grad = None
        return hidden.detach(), grads

    hidden, grads = backward(list(range(len(rows))))
    worst = gap = 0.0
    for index, segment in enumerate(segments):
        alone, own = backward([index])
        worst = max(worst, (alone - hidden[segment.start : segment.stop]).abs().max().item())
        if index in own:
            # an expert that no row of this adapter chose has no gradient
            assert set(own[index]) <= set(grads[index])
            gaps = {k: g - own[index].get(k, 0) for k, g in grads[index].items()}
            gap = max(gap, largest(gaps, own[index]))
    print(f"{family}: hidden states {worst:.1e}, gradients {gap:.1e}")
    assert worst <= TOLERANCE and gap <= TOLERANCE


@families
def test_several_runs_in_a_pass(family: str, path: str, device: str) -> None:
    """The trainer's way: runs with their own adapter and loss, each as if it were alone."""
    base = BaseModel(path, EngineConfig(device=device, dtype="float32"))
    trainers = []
    for adapter in some_adapters(base):
        if adapter is not None:
            trainers.append(AdapterTrainer(base, adapter.spec))
            for name, tensor in trainers[-1].adapter.master.items():
                tensor.detach().copy_(adapter.master[name])
            trainers[-1].adapter.refresh()
    requests = [make_rows(seed, LENGTHS[seed:]) for seed in range(len(trainers))]
    works = [t.prepare_work(rows, "cross_entropy", None) for t, rows in zip(trainers, requests)]
    together = passes.forward_backward(works)
    worst = gap = 0.0
    for trainer, rows, result in zip(trainers, requests, together):
        ours, trainer.grads = trainer.grads, None
        alone = trainer.forward_backward(rows, "cross_entropy", None)
        theirs = trainer.grads
        assert ours is not None and theirs is not None
        worst = max(worst, *(np.abs(a - b).max() for a, b in zip(result.logprobs, alone.logprobs)))
        gap = max(gap, largest({name: ours[name] - grad for name, grad in theirs.items()}, theirs))
    print(f"{family}: logprobs {worst:.1e}, gradients {gap:.1e}")
    assert worst <= TOLERANCE and gap <= TOLERANCE


@families
def test_bf16_stays_near_fp32(family: str, path: str, device: str) -> None:
    exact = make_trainer(path, LoraSpec(rank=4), device)
    rows = make_rows(lengths=LENGTHS)
    expected = exact.forward(rows, "cross_entropy", None).logprobs
    trainer = AdapterTrainer(
        BaseModel(path, EngineConfig(device=device, dtype="bfloat16")), LoraSpec(4)
    )
    for name, tensor in trainer.adapter.master.items():
        tensor.detach().copy_(exact.adapter.master[name])
    trainer.adapter.refresh()
    rough = trainer.forward_backward(rows, "cross_entropy", None).logprobs
    gaps = np.concatenate([np.abs(a - b) for a, b in zip(rough, expected)])
    print(f"{family}: bf16, mean difference {gaps.mean():.3f}, max {gaps.max():.2f}")
    assert 0 < gaps.mean() < 0.1  # a token near a tie goes to another expert, so not the maximum
    prompt = SampleRequest(rows[1].tokens[:30], 5, temperature=0)
    (result,) = sample_all(TorchSampler(trainer.base, EngineConfig()), [prompt], trainer.adapter)
    sampled = result.sequences[0]
    scores = trainer_logprobs(trainer, prompt.prompt, sampled.tokens)
    assert np.abs(scores - sampled.logprobs).mean() < 0.2


@families
def test_sampler_agrees_with_forward_and_prompt_logprobs(
    family: str, path: str, device: str
) -> None:
    trainer = make_trainer(path, LoraSpec(rank=4), device)
    config = EngineConfig(device=device, max_rows=5, kv_tokens=700, tokens_per_pass=90)
    sampler = TorchSampler(trainer.base, config)
    rng = np.random.default_rng(0)
    requests = [
        SampleRequest(
            rng.integers(3, 307, length),
            12 + 5 * index,
            1 + index % 3,
            temperature=float(index % 3 > 0),  # each third is greedy
            seed=index,
            prompt_logprobs=True,
        )
        for index, length in enumerate((1, 5, 12, 23, 24, 25, 50, 33))
    ]
    worst = 0.0
    for req, result in zip(requests, sample_all(sampler, requests, trainer.adapter)):
        for sequence in result.sequences:
            expected = trainer_logprobs(trainer, req.prompt, sequence.tokens)
            worst = max(worst, np.abs(expected - sequence.logprobs).max())
            text = np.concatenate([req.prompt, sequence.tokens])
            score = SampleRequest(text, 0, prompt_logprobs=True)
            (scored,) = sample_all(sampler, [score], trainer.adapter)
            assert scored.prompt_logprobs is not None
            got = scored.prompt_logprobs[len(req.prompt) :]
            worst = max(worst, np.abs(got - sequence.logprobs).max())
    print(f"{family}: sampler, forward and prompt logprobs, max difference {worst:.1e}")
    assert worst <= TOLERANCE


@families
def test_greedy_equals_transformers_generate(family: str, path: str, device: str) -> None:
    model = transformers_model(path)
    sampler = TorchSampler(BaseModel(path, EngineConfig(device=device)), EngineConfig())
    rng = np.random.default_rng(1)
    for length in (3, 30):
        prompt = rng.integers(3, 307, length)
        (result,) = sample_all(sampler, [SampleRequest(prompt, 40, temperature=0)])
        expected = model.generate(
            torch.from_numpy(prompt)[None], max_new_tokens=40, do_sample=False, eos_token_id=None
        )[0, length:]
        assert result.sequences[0].tokens == expected.tolist()


@families
def test_adapters_side_by_side_in_a_decoding_batch(family: str, path: str, device: str) -> None:
    base = BaseModel(path, EngineConfig(device=device))
    adapters = some_adapters(base)
    rng = np.random.default_rng(2)
    requests = [SampleRequest(rng.integers(3, 307, 4 + 5 * i), 20, seed=i) for i in range(10)]
    owners = [adapters[i % 5] for i in range(10)]
    together: list[SampleResult] = [None] * 10  # type: ignore[list-item]
    sampler = TorchSampler(base, EngineConfig(max_rows=7))
    for i, (request, owner) in enumerate(zip(requests, owners)):
        sampler.take(request, owner, lambda out, i=i: together.__setitem__(i, out))  # type: ignore
    while sampler.busy:
        sampler.step()
    worst, changed = 0.0, set()
    for request, owner, result in zip(requests, owners, together):
        (alone,) = sample_all(TorchSampler(base, EngineConfig()), [request], owner)
        assert result.sequences[0].tokens == alone.sequences[0].tokens
        gap = np.subtract(result.sequences[0].logprobs, alone.sequences[0].logprobs)
        worst = max(worst, np.abs(gap).max())
        (bare,) = sample_all(TorchSampler(base, EngineConfig()), [request], None)
        if bare.sequences[0].tokens != alone.sequences[0].tokens:
            changed.add(id(owner))
    # products over another number of rows sum in another order, which these sharp weights amplify
    assert worst <= 2 * TOLERANCE
    assert len(changed) == 4  # each adapter does change what is said


@families
def test_resume_from_disk_is_exact(family: str, path: str, tmp_path: Path, device: str) -> None:
    trainer = make_trainer(path, LoraSpec(rank=4), device)
    trainer.forward_backward(make_rows(1), "cross_entropy", None)
    trainer.optim_step(AdamConfig(1e-2))
    write_state(trainer, "x", tmp_path)
    again = AdapterTrainer(trainer.base, read_spec(tmp_path))
    read_adapter(again.adapter, tmp_path)
    read_optimizer(again, tmp_path)
    for each in (trainer, again):
        each.forward_backward(make_rows(2), "cross_entropy", None)
        each.optim_step(AdamConfig(1e-2))
    for name, tensor in trainer.adapter.master.items():
        assert torch.equal(tensor, again.adapter.master[name]), name


@pytest.mark.parametrize("family", MOE)
def test_names_on_disk(family: str, path: str, tmp_path: Path) -> None:
    """Two matrices per expert and projection, by the names that vLLM reads."""
    trainer = make_trainer(path, LoraSpec(rank=4))
    write_state(trainer, "x", tmp_path)
    tensors = load_file(tmp_path / ADAPTER_FILE)
    for expert in range(4):
        prefix = f"base_model.model.model.layers.1.mlp.experts.{expert}"
        sizes = {"gate_proj": (64, 32), "up_proj": (64, 32), "down_proj": (32, 64)}
        for name, (fan_in, fan_out) in sizes.items():
            assert tensors[f"{prefix}.{name}.lora_A.weight"].shape == (4, fan_in)
            assert tensors[f"{prefix}.{name}.lora_B.weight"].shape == (fan_out, 4)
    targets = json.loads((tmp_path / CONFIG_FILE).read_text())["target_modules"]
    latent = ["q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj"]
    attn = ["o_proj", *latent] if family == "tiny_deepseek" else ["q_proj", "k_proj", "v_proj"]
    assert set(attn) <= set(targets)
    assert {"gate_proj", "up_proj", "down_proj", "lm_head"} <= set(targets)
    present = {name.split(".")[-3] for name in tensors}
    assert set(targets) == present
    narrow = trainer.base.new_adapter(LoraSpec(rank=4, train_mlp=False))
    assert not any("experts" in name or "mlp" in name for name in narrow.master)


@pytest.mark.parametrize("family", MOE)
def test_only_the_adapter_gets_a_gradient(family: str, path: str, device: str) -> None:
    trainer = make_trainer(path, LoraSpec(rank=4), device)
    trainer.forward_backward(make_rows(), "cross_entropy", None)
    for name, parameter in trainer.base.decoder.named_parameters():
        assert not parameter.requires_grad and parameter.grad is None, name


def test_queries_without_a_low_rank(tiny_deepseek: str, tmp_path: Path, device: str) -> None:
    """DeepSeek-V3's smaller relatives have a plain q_proj; no grouping of experts either."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(tiny_deepseek)
    config.q_lora_rank, config.n_group, config.rope_interleave = None, 1, False
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():  # at the initial size, norms blow up what fp32 rounds away
        for parameter in model.parameters():
            parameter.mul_(6 if parameter.ndim > 1 else 1)
    model.save_pretrained(tmp_path)
    trainer = make_trainer(str(tmp_path), LoraSpec(rank=2), device)
    assert "model.layers.0.self_attn.q_proj.lora_A" in trainer.adapter.master
    # in float64: these sharp weights amplify rounding, and both our fp32 forward and transformers'
    # own are up to 1.3e-5 away from it on some processors
    reference = MergedReference(trainer, torch.float64)
    rows = make_rows()
    ours = trainer.forward(rows, "cross_entropy", None).logprobs
    for row, lp in zip(rows, ours):
        assert np.abs(reference.logprobs(row).detach().numpy() - lp).max() <= 2 * TOLERANCE


def test_kimi_k2_is_deepseek_v3(tiny_deepseek: str, tmp_path: Path) -> None:
    shutil.copytree(tiny_deepseek, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    code = {  # as the real files have it
        "AutoConfig": "configuration_deepseek.DeepseekV3Config",
        "AutoModelForCausalLM": "modeling_deepseek.DeepseekV3ForCausalLM",
    }
    changed = {**config, "model_type": "kimi_k2", "auto_map": code}
    changed["architectures"] = ["DeepseekV3ForCausalLM"]
    (tmp_path / "config.json").write_text(json.dumps(changed))
    rows = make_rows()
    ours, theirs = (
        plain_logprobs(BaseModel(path, EngineConfig(device="cpu")), rows)
        for path in (str(tmp_path), tiny_deepseek)
    )
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_rank_may_not_exceed_the_widest_layer(tiny_qwen3_moe: str) -> None:
    base = BaseModel(tiny_qwen3_moe, EngineConfig(device="cpu"))
    assert base.shapes["model.layers.0.mlp.experts.3.down_proj"] == (64, 32)
    assert base.shapes[UNEMBED] == (307, 64)
    with pytest.raises(ConfigurationError, match="at most 32"):
        base.new_adapter(LoraSpec(rank=33, train_attn=False, train_unembed=False))
