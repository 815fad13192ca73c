"""Sharing (one prompt for many samples, cached prefixes) saves work and changes no results."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from tinker_cookbook.engine import EngineConfig, admission
from tinker_cookbook.engine.attention import PackedPlan, Segment, _attend_by_segment, _attend_packed
from tinker_cookbook.engine.base_model import BaseModel
from tinker_cookbook.engine.kv_cache import Block, Slice
from tinker_cookbook.engine.lora import Adapter, LoraSpec
from tinker_cookbook.engine.requests import SampleRequest, SampleResult
from tinker_cookbook.engine.testing import TOLERANCE, make_trainer, sample_all, trainer_logprobs
from tinker_cookbook.engine.torch_sampler import TorchSampler


def text(length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(3, 307, length)


def assert_same(one: SampleResult, other: SampleResult, temperature: float = 1.0) -> None:
    tolerance = TOLERANCE / min(temperature, 1.0)  # logits and their errors are divided by it
    for a, b in zip(one.sequences, other.sequences, strict=True):
        assert a.tokens == b.tokens and a.stop_reason == b.stop_reason
        assert np.abs(np.array(a.logprobs) - b.logprobs).max(initial=0) <= tolerance
        for best, expected in zip(a.top_k, b.top_k, strict=True):
            assert np.array_equal(best.tokens, expected.tokens)
            assert np.abs(best.logprobs - expected.logprobs).max() <= tolerance
    for name in ("prompt_logprobs", "prompt_target_logprobs"):
        a, b = getattr(one, name), getattr(other, name)
        assert (a is None) == (b is None)
        if a is not None:
            np.testing.assert_allclose(a, b, rtol=0, atol=TOLERANCE)
    if one.prompt_top_k is not None and other.prompt_top_k is not None:
        assert np.array_equal(one.prompt_top_k.tokens, other.prompt_top_k.tokens)


def sample_without_sharing(
    base: BaseModel, request: SampleRequest, adapter: Adapter | None = None
) -> SampleResult:
    """Sample with an empty prefix cache and a copy of the prompt in every slot."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(admission, "SHARING_THRESHOLD", 10**9)
        return sample_all(TorchSampler(base, EngineConfig(prefix_tokens=0)), [request], adapter)[0]


@pytest.mark.parametrize("family", ["tiny_llama", "tiny_qwen3"])
def test_samples_that_share_a_prompt(
    family: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    """Large groups, small ones and samples without shared blocks join and leave one batch."""
    trainer = make_trainer(request.getfixturevalue(family), LoraSpec(rank=4), device)
    monkeypatch.setattr(admission, "SHARING_THRESHOLD", 100)
    sampler = TorchSampler(trainer.base, EngineConfig(max_rows=20))
    common = text(40)
    shapes = [(50, 6), (3, 2), (70, 9), (120, 1), (5, 30), (20, 4), (90, 3)]
    requests = [
        SampleRequest(
            np.concatenate([common[: 40 * (i % 2)], text(size, i)]),
            10 + 7 * i,
            samples,
            seed=i,
            temperature=0.5 + i / 10,
            stop_tokens=frozenset({7, 8}),
            sample_top_k=i % 3,
        )
        for i, (size, samples) in enumerate(shapes)
    ]
    results = sample_all(sampler, requests, trainer.adapter)
    assert sampler.prompt_tokens_computed <= sum(len(r.prompt) for r in requests)
    assert not sampler.cache.tokens and not sampler.admission.prefixes.pinned
    for each, result in zip(requests, results):
        assert_same(
            result, sample_without_sharing(trainer.base, each, trainer.adapter), each.temperature
        )
        for sequence in result.sequences:
            bare = dataclasses.replace(each, temperature=1.0)
            if each.temperature == bare.temperature:
                expected = trainer_logprobs(trainer, each.prompt, sequence.tokens)
                assert np.abs(expected - sequence.logprobs).max() <= TOLERANCE


def test_a_prompt_is_computed_once_however_many_samples(tiny_qwen3: str, device: str) -> None:
    base = BaseModel(tiny_qwen3, EngineConfig(device=device))
    for keep in (0, 1000):
        sampler = TorchSampler(base, EngineConfig(max_rows=4, kv_tokens=400, prefix_tokens=keep))
        request = SampleRequest(text(100), 9, 30, seed=3)
        small = SampleRequest(text(12), 5, 10, seed=4)
        big, little = sample_all(sampler, [request, small])
        assert (sampler.prompt_tokens_computed, sampler.prompt_tokens_reused) == (112, 0)
        held = sampler.admission.tokens
        assert (
            (held == 0) if keep == 0 else (112 - 12 <= held <= 400)
        )  # slots are freed with the last sample
        assert_same(big, sample_without_sharing(base, request))
        assert_same(little, sample_without_sharing(base, small))


@pytest.mark.parametrize("samples", [1, 8])
def test_the_next_turn_of_a_conversation(tiny_qwen3: str, samples: int, device: str) -> None:
    trainer = make_trainer(tiny_qwen3, LoraSpec(rank=4), device)
    sampler = TorchSampler(trainer.base, EngineConfig())
    prompt = text(70)
    for turn in range(3):
        request = SampleRequest(prompt, 20, samples, seed=turn)
        before = sampler.prompt_tokens_computed, sampler.prompt_tokens_reused
        (result,) = sample_all(sampler, [request], trainer.adapter)
        assert_same(result, sample_without_sharing(trainer.base, request, trainer.adapter))
        computed = sampler.prompt_tokens_computed - before[0]
        assert computed + sampler.prompt_tokens_reused - before[1] == len(prompt)
        # The last sampled token never passed through the model, so it is new like the user's turn.
        assert computed == (70 if turn == 0 else 1 + 5)
        answer = result.sequences[samples // 2].tokens
        expected = trainer_logprobs(trainer, prompt, answer)
        assert np.abs(expected - result.sequences[samples // 2].logprobs).max() <= TOLERANCE
        prompt = np.concatenate([prompt, answer, text(5, turn)])


def test_a_prefix_that_ends_inside_a_cached_node(tiny_llama: str, device: str) -> None:
    base = BaseModel(tiny_llama, EngineConfig(device=device))
    sampler = TorchSampler(base, EngineConfig())
    first = text(90)
    cases = [  # prompt, tokens that must come from the cache
        (first, 0),
        (np.concatenate([first[:40], text(30, 1)]), 40),
        (np.concatenate([first[:40], text(30, 1)[:20], text(9, 2)]), 60),
        (first[:50], 49),  # one token has to pass through the model
        (first, 89),
        (np.concatenate([first[:10], text(30, 3)]), 0),  # too short to be reused
    ]
    for prompt, reused in cases:
        before = sampler.prompt_tokens_reused
        request = SampleRequest(prompt, 12, 3, seed=1)
        assert_same(sample_all(sampler, [request])[0], sample_without_sharing(base, request))
        assert sampler.prompt_tokens_reused - before == reused
    assert (
        sample_all(sampler, [SampleRequest(first, 0, prompt_logprobs=True)])[0].prompt_logprobs
        is not None
    )
    assert sampler.prompt_tokens_reused - before == 0  # scoring needs every hidden state
    # Several that continue cached tokens in one pass, and share new tokens with one another.
    rest = text(40, 9)
    together = [
        SampleRequest(np.concatenate([first[:60], rest[:n], text(5, n)]), 8, 2, seed=n)
        for n in (0, 20, 40)
    ] + [SampleRequest(np.concatenate([first[:40], text(30, 1), rest]), 8, 2, seed=5)]
    computed = sampler.prompt_tokens_computed
    for request, result in zip(together, sample_all(sampler, together)):
        assert_same(result, sample_without_sharing(base, request))
    assert sampler.prompt_tokens_computed - computed == 5 + (40 + 5 + 5) + 40


def test_adapters_never_share_keys(tiny_qwen3: str, device: str) -> None:
    one, two = (make_trainer(tiny_qwen3, LoraSpec(rank=4, seed=s), device) for s in (0, 1))
    sampler = TorchSampler(one.base, EngineConfig())
    request = SampleRequest(text(60), 10, 2, seed=0)
    owners = [one.adapter, two.adapter, None]
    first = [sample_all(sampler, [request], owner)[0] for owner in owners]
    assert sampler.prompt_tokens_reused == 0
    assert len({tuple(r.sequences[0].logprobs) for r in first}) == 3
    second = [sample_all(sampler, [request], owner)[0] for owner in owners]
    assert sampler.prompt_tokens_reused == 3 * 59
    for a, b in zip(first, second):
        assert_same(a, b)
    held = sampler.admission.tokens
    copy = one.adapter.snapshot()
    sample_all(sampler, [request], copy)
    assert sampler.prompt_tokens_reused == 3 * 59 and sampler.admission.tokens > held
    del copy
    assert sampler.admission.tokens == held  # the tree was freed with its adapter
    sampler.release()
    assert sampler.admission.tokens == 0


def test_a_tiny_budget_is_kept_and_used(
    tiny_qwen3: str, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    """`sample_all` checks the budget after every step; little fits, and all must be answered."""
    base = BaseModel(tiny_qwen3, EngineConfig(device=device))
    rng = np.random.default_rng(0)
    monkeypatch.setattr(admission, "SHARING_THRESHOLD", 60)
    common = text(80)
    requests = [
        SampleRequest(
            np.concatenate([common[: rng.integers(0, 80)], text(rng.integers(1, 60), i)]),
            int(rng.integers(1, 30)),
            int(rng.integers(1, 7)),
            seed=i,
            prompt_logprobs=i % 5 == 0,
        )
        for i in range(14)
    ]
    expected = [sample_without_sharing(base, request) for request in requests]
    for budget, keep, slots, tokens in (
        (190, 190, 3, 50),
        (260, 100, 8, 8192),
        (600, 300, 30, 100),
    ):
        config = EngineConfig(
            kv_tokens=budget, prefix_tokens=keep, max_rows=slots, tokens_per_pass=tokens
        )
        sampler = TorchSampler(base, config)
        for result, other in zip(sample_all(sampler, requests), expected):
            assert_same(result, other)
        assert sampler.prompt_tokens_reused > 0
        assert not sampler.admission.prefixes.pinned and not sampler.admission._unfinished
        assert sampler.admission.tokens <= keep


def test_cached_prefixes_give_way_to_samples(tiny_qwen3: str) -> None:
    base = BaseModel(tiny_qwen3, EngineConfig(device="cpu"))
    sampler = TorchSampler(base, EngineConfig(kv_tokens=450, prefix_tokens=450))
    for i in range(2):
        sample_all(sampler, [SampleRequest(text(100, i), 5, seed=i)])
    assert sampler.admission.tokens == 200  # too few sampled tokens for a node
    # Beside this request there is room for one of the two prefixes: the last used one.
    sample_all(sampler, [SampleRequest(text(140, 8), 10, seed=0)])
    sample_all(sampler, [SampleRequest(text(100, 1), 5, seed=0)])
    assert sampler.prompt_tokens_reused == 99
    sample_all(sampler, [SampleRequest(text(100, 0), 5, seed=0)])
    assert sampler.prompt_tokens_reused == 99
    sample_all(sampler, [SampleRequest(text(1, 9), 240, seed=0)])
    sampler.release()
    assert sampler.admission.tokens == 0


def test_a_prompt_in_several_passes(tiny_llama: str, device: str) -> None:
    base = BaseModel(tiny_llama, EngineConfig(device=device))
    prompt = text(200)
    targets = np.random.default_rng(0).integers(0, 307, (199, 3))
    requests = [
        SampleRequest(prompt, 0, prompt_logprobs=True, prompt_top_k=2, prompt_targets=targets),
        SampleRequest(prompt, 20, 3, seed=1),
        SampleRequest(text(150, 1), 20, 1, seed=1, prompt_logprobs=True),
        SampleRequest(text(10, 2), 20, 1, seed=1),
    ]
    sizes = []
    hidden = base.hidden

    def counted(tokens: torch.Tensor, *rest: object) -> torch.Tensor:
        sizes.append(len(tokens))
        return hidden(tokens, *rest)  # type: ignore[arg-type]

    expected = [sample_without_sharing(base, request) for request in requests]
    base.hidden = counted  # type: ignore[method-assign]
    for keep in (0, 1000):
        sampler = TorchSampler(base, EngineConfig(tokens_per_pass=33, prefix_tokens=keep))
        for result, other in zip(sample_all(sampler, requests), expected):
            assert_same(result, other)
        assert sampler.prompt_tokens_computed + sampler.prompt_tokens_reused == 560
        assert sampler.prompt_tokens_reused == (
            198 if keep else 0
        )  # 6 passes of 33; the other 2 are too few for a node
    assert max(sizes) <= 33


def test_many_samples_do_not_hold_up_the_others(tiny_qwen3: str) -> None:
    base = BaseModel(tiny_qwen3, EngineConfig(device="cpu"))
    sampler = TorchSampler(base, EngineConfig(max_rows=4))
    order: list[str] = []
    sampler.take(SampleRequest(text(9), 10, 60, seed=0), None, lambda _: order.append("many"))
    sampler.take(SampleRequest(text(9, 1), 10, 1, seed=0), None, lambda _: order.append("one"))
    for _ in range(25):
        sampler.step()
    assert order == ["one"]
    while sampler.busy:
        sampler.step()
    assert order == ["one", "many"]


def test_no_request_is_answered_twice(tiny_qwen3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request may be answered in a step that fails afterwards."""
    base = BaseModel(tiny_qwen3, EngineConfig(device="cpu"))
    sampler = TorchSampler(base, EngineConfig())
    answers: list[list[object]] = [[], [], []]
    sampler.take(SampleRequest(text(5), 0, prompt_logprobs=True), None, answers[0].append)
    sampler.take(SampleRequest(text(5), 1, 2), None, answers[1].append)
    sampler.take(SampleRequest(text(5), 9), None, answers[2].append)
    monkeypatch.setattr(sampler, "_decode", lambda: 1 / 0)
    sampler.step()
    assert [[type(each) for each in got] for got in answers] == [
        [SampleResult],
        [SampleResult],
        [ZeroDivisionError],
    ]
    assert not sampler.busy and not sampler.admission.tokens


def test_segments_that_continue_cached_keys() -> None:
    """Flash parts and the plain fallback agree, in gradients of the pass's own tokens as well."""
    torch.manual_seed(0)
    kept = Block()
    kept.put(0, torch.randn(25, 2, 8), torch.randn(25, 2, 8))
    segments = [
        Segment(0, 6, cached=(0, 20)),
        Segment(6, 12, parent=0),
        Segment(12, 16, cached=(0, 20)),
        Segment(16, 20),
        Segment(20, 29, cached=(20, 25)),
    ]
    # Neighbours that continue the same cached keys attend to them in one call.
    plan = PackedPlan(segments, [Slice(kept, 0, 20, 0), Slice(kept, 20, 25, 0)])
    assert plan.shared is not None
    assert [(p.q0, p.q1) for p in plan.shared if p.k1 <= plan.num_cached] == [(0, 16), (20, 29)]
    grads = []
    outs = []
    for plain in (False, True):
        torch.manual_seed(1)
        q, k, v = (torch.randn(1, h, 29, 8, requires_grad=True) for h in (4, 2, 2))
        if plain:
            keys, values = (
                torch.cat([x.transpose(0, 1)[None], own], dim=2)
                for x, own in ((kept.keys[0], k), (kept.values[0], v))
            )
            out = _attend_by_segment(segments, q, keys, values, None, num_cached=25)
        else:
            out = _attend_packed(plan, 0, q, k, v, None, None, None)
        (out * torch.linspace(-1, 1, out.numel()).view(out.shape)).sum().backward()
        outs.append(out)
        grads.append([x.grad for x in (q, k, v)])
    assert (outs[0] - outs[1]).abs().max() <= 2e-6
    for one, other in zip(*grads):
        assert (one - other).abs().max() <= 2e-6
