"""The sampler against the training forward, transformers, and the exact distribution."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from tinker_cookbook.engine import EngineConfig
from tinker_cookbook.engine.admission import Admission, AdmittedChunk
from tinker_cookbook.engine.attention import PackedPlan, Segment
from tinker_cookbook.engine.base_model import BaseModel
from tinker_cookbook.engine.kv_cache import KVCache
from tinker_cookbook.engine.lora import Adapter, AdapterSpan, LoraSpec
from tinker_cookbook.engine.requests import AdamConfig, SampleRequest, SampleResult
from tinker_cookbook.engine.sampling_jobs import SamplingJob
from tinker_cookbook.engine.scheduler import Engine
from tinker_cookbook.engine.testing import (
    TOLERANCE,
    make_rows,
    make_trainer,
    sample_all,
    sampled,
    trainer_logprobs,
)
from tinker_cookbook.engine.token_sampling import SampledBatch, sample_tokens
from tinker_cookbook.engine.torch_sampler import TorchSampler
from tinker_cookbook.exceptions import (
    ConfigurationError,
    DataValidationError,
    OutOfMemoryError,
)


def prompts(count: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(3, 307, rng.integers(1, 40)) for _ in range(count)]


@pytest.mark.parametrize("family", ["tiny_llama", "tiny_qwen3"])
def test_sampler_agrees_with_forward(
    family: str, request: pytest.FixtureRequest, device: str
) -> None:
    trainer = make_trainer(request.getfixturevalue(family), LoraSpec(rank=4), device)
    # Few slots and a small cache, so that requests wait, join and leave, and slots are moved.
    config = EngineConfig(device=device, max_rows=5, kv_tokens=500, tokens_per_pass=60)
    sampler = TorchSampler(trainer.base, config)
    requests = [
        SampleRequest(
            p, 5 + 3 * i, 1 + i % 4, seed=i, stop_tokens=frozenset({2, 5}), prompt_logprobs=True
        )
        for i, p in enumerate(prompts(9))
    ]
    worst = 0.0
    for req, result in zip(requests, sample_all(sampler, requests, trainer.adapter)):
        assert len(result.sequences) == req.num_samples
        assert result.prompt_logprobs is not None and np.isnan(result.prompt_logprobs[0])
        for sequence in result.sequences:
            expected = trainer_logprobs(trainer, req.prompt, sequence.tokens)
            worst = max(worst, np.abs(expected - sequence.logprobs).max())
            if sequence.stop_reason == "stop":
                assert sequence.tokens[-1] in req.stop_tokens
            else:
                assert len(sequence.tokens) == req.max_tokens
            assert not set(sequence.tokens[:-1]) & req.stop_tokens
            text = np.concatenate([req.prompt, sequence.tokens])
            scored = sample_all(
                sampler, [SampleRequest(text, 0, prompt_logprobs=True)], trainer.adapter
            )[0]
            (empty,) = scored.sequences
            assert empty.tokens == [] and scored.prompt_logprobs is not None
            got = scored.prompt_logprobs[len(req.prompt) :]
            worst = max(worst, np.abs(got - sequence.logprobs).max())
    assert worst <= TOLERANCE
    print(f"{family}: sampler against forward and prompt logprobs, max difference {worst:.1e}")


def test_greedy_equals_transformers_generate(tiny_qwen3: str, device: str) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_qwen3)
    sampler = TorchSampler(BaseModel(tiny_qwen3, EngineConfig(device=device)), EngineConfig())
    for prompt in prompts(4):
        result = sample_all(sampler, [SampleRequest(prompt, 12, temperature=0)])[0]
        expected = model.generate(
            torch.from_numpy(prompt)[None], max_new_tokens=12, do_sample=False, eos_token_id=None
        )[0, len(prompt) :]
        assert result.sequences[0].tokens == expected.tolist()


def test_seed_fixes_a_request(tiny_qwen3: str, device: str) -> None:
    base = BaseModel(tiny_qwen3, EngineConfig(device=device))
    prompt = prompts(1)[0]
    one = SampleRequest(prompt, 10, 3, seed=7)
    alone = sample_all(TorchSampler(base, EngineConfig()), [one])[0]
    crowd = [SampleRequest(p, 15, 2, seed=i) for i, p in enumerate(prompts(5, seed=1))]
    together = sample_all(TorchSampler(base, EngineConfig(max_rows=4)), [*crowd, one])[-1]
    assert [s.tokens for s in alone.sequences] == [s.tokens for s in together.sequences]
    assert len({tuple(s.tokens) for s in alone.sequences}) == 3
    unseeded = [
        sample_all(TorchSampler(base, EngineConfig()), [SampleRequest(prompt, 10)])[0] for _ in "ab"
    ]
    assert unseeded[0].sequences[0].tokens != unseeded[1].sequences[0].tokens


def sample_on(
    device: str, logits: torch.Tensor, requests: list[SampleRequest], uniform: torch.Tensor
) -> SampledBatch:
    """Sample on the device and move the result to the CPU."""
    drawn = sample_tokens(logits.to(device), requests, uniform.to(device))
    fields = (drawn.tokens, drawn.scaled, drawn.log_sum, drawn.temperature)
    return SampledBatch(*(tensor.cpu() for tensor in fields))


def test_draw_follows_the_distribution(device: str) -> None:
    torch.manual_seed(0)
    logits = torch.randn(1, 11)
    count, temperature = 20000, 0.7
    request = SampleRequest(np.array([0]), 1, temperature=temperature)
    uniform = torch.from_numpy(np.random.default_rng(0).random(count, dtype=np.float32))
    drawn = sample_on(device, logits.expand(count, -1), [request] * count, uniform)
    expected = torch.log_softmax(logits[0].double() / temperature, -1)
    # logprobs of the temperature-scaled distribution
    assert (drawn.logprobs - expected[drawn.tokens]).abs().max() <= 1e-6
    seen = Counter(drawn.tokens.tolist())
    for token, logp in enumerate(expected.tolist()):
        p = np.exp(logp)
        assert abs(seen[token] / count - p) < 5 * np.sqrt(p * (1 - p) / count)


@pytest.mark.parametrize("vocab", [5, 256, 700, 1024])
def test_draw_inverts_the_cumulative_distribution(vocab: int, device: str) -> None:
    torch.manual_seed(0)
    logits = torch.randn(300, vocab) * 4
    logits[:100, vocab // 2 :] -= 200  # half of the vocabulary is impossible
    uniform = torch.rand(300)
    drawn = sample_on(device, logits, [SampleRequest(np.array([0]), 1)] * 300, uniform)
    cumulative = logits.double().softmax(-1).cumsum(-1)
    after = cumulative.gather(1, drawn.tokens[:, None])[:, 0]
    before = after - logits.double().softmax(-1).gather(1, drawn.tokens[:, None])[:, 0]
    assert (before - 1e-6 <= uniform).all() and (uniform <= after + 1e-6).all()
    assert (drawn.tokens[:100] < max(vocab // 2, 1)).all()


def test_draw_top_k_and_top_p(device: str) -> None:
    logits = torch.log(torch.tensor([[0.5, 0.2, 0.15, 0.1, 0.05]])).expand(2000, -1)
    uniform = torch.linspace(0, 1, 2001)[:-1]

    def support(**keys: float) -> set[int]:
        request = SampleRequest(np.array([0]), 1, **keys)  # type: ignore[arg-type]
        drawn = sample_on(device, logits, [request] * 2000, uniform)
        # not renormalised: still the logprob under the full distribution
        full = logits.gather(1, drawn.tokens[:, None])[:, 0]
        assert (drawn.logprobs - full).abs().max() < 1e-6
        return set(drawn.tokens.tolist())

    assert support() == {0, 1, 2, 3, 4}
    assert support(top_k=2) == {0, 1}
    assert support(top_p=0.6) == {0, 1}
    assert support(top_p=0.5) == {0}
    assert support(top_p=0.01) == {0}
    assert support(top_k=3, top_p=0.99) == {0, 1, 2}
    assert support(temperature=0.0) == {0}


def test_largest_uniform_never_draws_an_impossible_token(device: str) -> None:
    logits = torch.full((1, 4096), -1e9)
    logits[0, :3] = torch.tensor([1.0, 2.0, 3.0])
    request = SampleRequest(np.array([0]), 1)
    for value in (0.0, np.nextafter(np.float32(1), np.float32(0)), 1.0):
        drawn = sample_on(device, logits, [request], torch.tensor([value], dtype=torch.float32))
        assert drawn.tokens.item() < 3


def test_segments_with_a_parent_see_it(tiny_llama: str, device: str) -> None:
    trainer = make_trainer(tiny_llama, LoraSpec(rank=4), device)
    rng = np.random.default_rng(0)
    root, left, right = (torch.from_numpy(rng.integers(0, 307, n)) for n in (9, 4, 6))
    leaf = torch.from_numpy(rng.integers(0, 307, 3))
    tree = [
        Segment(0, 9),
        Segment(9, 13, parent=0),
        Segment(13, 19, parent=0),
        Segment(19, 22, parent=2),
    ]
    tokens = torch.cat([root, left, right, leaf])
    positions = torch.cat(
        [torch.arange(9), 9 + torch.arange(4), 9 + torch.arange(6), 15 + torch.arange(3)]
    )

    def hidden(
        tokens: torch.Tensor, positions: torch.Tensor, segments: list[Segment]
    ) -> torch.Tensor:
        spans = [AdapterSpan(trainer.adapter, 0, len(tokens))]
        placed = tokens.to(device), positions.to(device)
        return trainer.base.hidden(*placed, PackedPlan(segments), spans).detach()

    out = hidden(tokens, positions, tree)
    for path, states in (((root, left), out[9:13]), ((root, right, leaf), out[19:22])):
        whole = torch.cat(path)
        plain = hidden(whole, torch.arange(len(whole)), [Segment(0, len(whole))])
        assert (plain[-len(path[-1]) :] - states).abs().max() <= TOLERANCE


def test_top_k_and_prompt_targets(tiny_qwen3: str, device: str) -> None:
    """Top-k of prompt and samples and the logprobs of chosen tokens, against transformers."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_qwen3)
    base = BaseModel(tiny_qwen3, EngineConfig(device=device, head_chunk=7))
    prompt = prompts(3)[2]
    targets = np.random.default_rng(0).integers(0, 307, (len(prompt) - 1, 4))
    request = SampleRequest(
        prompt,
        6,
        2,
        temperature=0.5,
        seed=0,
        prompt_top_k=5,
        sample_top_k=3,
        prompt_targets=targets,
    )
    crowd = [SampleRequest(p, 8, seed=i, sample_top_k=i) for i, p in enumerate(prompts(4, 1))]
    result = sample_all(TorchSampler(base, EngineConfig()), [*crowd, request])[-1]
    logprobs = model(torch.from_numpy(prompt)[None]).logits[0, :-1].log_softmax(-1).detach()
    best = logprobs.topk(5)
    assert result.prompt_top_k is not None and result.prompt_target_logprobs is not None
    assert np.array_equal(result.prompt_top_k.tokens, best.indices)
    assert np.abs(result.prompt_top_k.logprobs - best.values.numpy()).max() <= TOLERANCE
    scores = logprobs.gather(1, torch.from_numpy(targets)).numpy()
    assert np.abs(result.prompt_target_logprobs - scores).max() <= TOLERANCE
    for sequence in result.sequences:
        text = torch.from_numpy(np.concatenate([prompt, sequence.tokens]))
        scaled = (model(text[None]).logits[0] / 0.5).log_softmax(-1).detach()
        assert len(sequence.top_k) == 6
        for position, top in enumerate(sequence.top_k):
            best = scaled[len(prompt) - 1 + position].topk(3)
            assert np.array_equal(top.tokens[0], best.indices)
            assert np.abs(top.logprobs[0] - best.values.numpy()).max() <= TOLERANCE


def test_prompts_with_a_common_prefix(
    tiny_qwen3: str, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    """A shared prefix is computed once per adapter, with the results of separate requests."""
    trainer = make_trainer(tiny_qwen3, LoraSpec(rank=4), device)
    rng = np.random.default_rng(0)
    system, other = rng.integers(3, 307, 60), rng.integers(3, 307, 20)
    texts = [np.concatenate([system, rng.integers(3, 307, n)]) for n in (5, 9, 1)]
    texts += [system, np.concatenate([texts[0], other]), other, texts[1]]
    requests = [SampleRequest(t, 6, 2, seed=i, prompt_logprobs=True) for i, t in enumerate(texts)]
    computed = 0
    hidden = trainer.base.hidden

    def counted(tokens: torch.Tensor, *rest: object) -> torch.Tensor:
        nonlocal computed
        computed += len(tokens)
        return hidden(tokens, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(trainer.base, "hidden", counted)
    sampler = TorchSampler(trainer.base, EngineConfig())
    together: list[SampleResult] = [None] * 14  # type: ignore[list-item]
    for i in range(14):
        owner = trainer.adapter if i % 2 else None
        sampler.take(requests[i // 2], owner, lambda out, i=i: together.__setitem__(i, out))  # type: ignore
    sampler.step()
    # 60 + 5 + 9 + 1 + 20 + 20 for each of the two owners, and 5 + 9 that are too short to be
    # shared; then one decoding step of 28 samples
    assert computed == 2 * (115 + 14) + 28
    while sampler.busy:
        sampler.step()
    for i, result in enumerate(together):
        owner = trainer.adapter if i % 2 else None
        (alone,) = sample_all(TorchSampler(trainer.base, EngineConfig()), [requests[i // 2]], owner)
        assert [s.tokens for s in result.sequences] == [s.tokens for s in alone.sequences]
        assert result.prompt_logprobs is not None and alone.prompt_logprobs is not None
        assert np.abs(result.prompt_logprobs - alone.prompt_logprobs)[1:].max() <= TOLERANCE


def test_adapters_of_many_shapes_in_one_batch(tiny_llama: str, device: str) -> None:
    """Adapters of different ranks and layers, and none: each request as if it were alone.

    Up to rounding, which depends on the number of rows of a product (1.05e-5 with two threads on
    AVX2).
    """
    base = BaseModel(tiny_llama, EngineConfig(device=device))
    specs = [
        LoraSpec(rank=4),
        LoraSpec(rank=9, seed=1, train_unembed=False),
        LoraSpec(rank=2, seed=2, train_attn=False, train_mlp=False),
        LoraSpec(rank=3, seed=3, train_mlp=False),
    ]
    generator = torch.Generator().manual_seed(0)
    adapters: list[Adapter | None] = [None]
    for spec in specs:
        adapter = base.new_adapter(spec)
        for name, tensor in adapter.master.items():
            if name.endswith("lora_B"):
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.2)
        adapter.refresh()
        adapters.append(adapter)
    requests = [
        SampleRequest(p, 4 + i, 1 + i % 3, seed=i, prompt_logprobs=True)
        for i, p in enumerate(prompts(15))
    ]
    owners = [adapters[i % 5] for i in range(15)]
    together: list[SampleResult] = [None] * 15  # type: ignore[list-item]
    sampler = TorchSampler(base, EngineConfig(max_rows=7, tokens_per_pass=80))
    for i, (request, owner) in enumerate(zip(requests, owners)):
        sampler.take(request, owner, lambda out, i=i: together.__setitem__(i, out))  # type: ignore
    while sampler.busy:
        sampler.step()
    different = set()
    for request, owner, result in zip(requests, owners, together):
        (alone,) = sample_all(TorchSampler(base, EngineConfig()), [request], owner)
        for one, other in zip(result.sequences, alone.sequences, strict=True):
            assert one.tokens == other.tokens
            assert np.abs(np.array(one.logprobs) - other.logprobs).max() <= 2 * TOLERANCE
        assert result.prompt_logprobs is not None and alone.prompt_logprobs is not None
        diff = np.abs(result.prompt_logprobs - alone.prompt_logprobs)[1:]
        assert diff.size == 0 or diff.max() <= 2 * TOLERANCE
        (bare,) = sample_all(TorchSampler(base, EngineConfig()), [request], None)
        if bare.sequences[0].tokens != alone.sequences[0].tokens:
            different.add(id(owner))
    assert len(different) == 4  # all four adapters change the samples


def test_stop_strings(tiny_qwen3: str) -> None:
    base = BaseModel(tiny_qwen3, EngineConfig(device="cpu"))
    base._decode = lambda ids: "".join(chr(97 + i % 26) for i in ids)  # one letter a token
    sampler = TorchSampler(base, EngineConfig())
    request = SampleRequest(prompts(1)[0], 200, seed=3)
    text = base.decode(sample_all(sampler, [request])[0].sequences[0].tokens)
    stop = text[40:42]  # spans two tokens
    import dataclasses

    stopped = sample_all(sampler, [dataclasses.replace(request, stop_strings=(stop, "~~~~"))])[
        0
    ].sequences[0]
    assert base.decode(stopped.tokens) == text[: text.index(stop) + 2]
    assert stopped.stop_reason == "stop"


def test_the_cache_stays_within_its_budget(tiny_qwen3: str, device: str) -> None:
    """A long sample joins many short ones: the slots become fewer and longer."""
    base = BaseModel(tiny_qwen3, EngineConfig(device=device))
    short, longer = prompts(1)[0][:4], prompts(1)[0]
    requests = [SampleRequest(short, 3 + i % 50, seed=i) for i in range(40)]
    requests.append(SampleRequest(longer, 200, seed=99))
    small = EngineConfig(kv_tokens=1024)
    results = sample_all(TorchSampler(base, small), requests)
    roomy = sample_all(TorchSampler(base, EngineConfig()), requests)
    for one, other in zip(results, roomy):
        assert one.sequences[0].tokens == other.sequences[0].tokens


def test_an_error_in_a_step_answers_every_request_in_it(
    tiny_qwen3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = BaseModel(tiny_qwen3, EngineConfig(device="cpu"))
    hidden, calls = base.hidden, 0

    def starving(*args: object) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls in (1, 6):  # a prefill, later a decoding step
            raise MemoryError("no room")
        return hidden(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(base, "hidden", starving)
    sampler = TorchSampler(base, EngineConfig(max_rows=4))
    outcomes: list[list[object]] = [[] for _ in range(6)]
    for index, outcome in enumerate(outcomes):
        samples = 9 if index == 0 else 1  # the first takes several rounds of slots
        sampler.take(SampleRequest(np.array([5, 6]), 10, samples, seed=index), None, outcome.append)
    for _ in range(500):
        if sampler.busy:
            sampler.step()
    assert not sampler.busy
    assert [len(outcome) for outcome in outcomes] == [1] * 6  # each answered exactly once
    failed = [isinstance(outcome[0], MemoryError) for outcome in outcomes]
    assert failed[0] and any(failed[1:]) and not all(failed)


def test_bad_requests_fail_alone(tiny_qwen3: str) -> None:
    engine = Engine(EngineConfig(device="cpu", kv_tokens=100))
    try:
        good = SampleRequest(np.array([5, 6]), 4, seed=0)
        cases = {
            "token id 999": SampleRequest(np.array([5, 999]), 4),
            "non-empty": SampleRequest(np.array([], dtype=np.int64), 4),
            "context of 256; lower max_tokens": SampleRequest(np.array([5]), 256),
            "temperature=-1": SampleRequest(np.array([5]), 4, temperature=-1),
            "top_p=0": SampleRequest(np.array([5]), 4, top_p=0),
            "seed=-1": SampleRequest(np.array([5]), 4, seed=-1),
            "num_samples=0": SampleRequest(np.array([5]), 4, num_samples=0),
            "top_p=2.0: expected a number above 0 and at most 1": SampleRequest(
                np.array([5]), 4, top_p=2.0
            ),
            "prompt of 300 tokens: .*; shorten the prompt": SampleRequest(np.arange(300) % 300, 0),
        }
        for message, request in cases.items():
            with pytest.raises(DataValidationError, match=message):
                sampled(engine, tiny_qwen3, request).result(30)
        with pytest.raises(ConfigurationError, match=r"engine\.kv_tokens=100"):
            sampled(engine, tiny_qwen3, SampleRequest(np.array([5]), 150)).result(30)
        assert len(sampled(engine, tiny_qwen3, good).result(30).sequences) == 1
    finally:
        engine.close()


def test_a_cancelled_request_leaves_the_batch(tiny_qwen3: str) -> None:
    """Running, partly running or waiting: it stops, and the others are not affected."""
    base = BaseModel(tiny_qwen3, EngineConfig(device="cpu"))
    prompts = [np.arange(5 + i, 40 + i) for i in range(4)]
    requests = [
        SampleRequest(prompt, 60, num_samples=3, seed=i) for i, prompt in enumerate(prompts)
    ]
    (alone,) = sample_all(TorchSampler(base, EngineConfig()), [requests[3]], None)
    sampler = TorchSampler(base, EngineConfig(device="cpu", max_rows=5))
    done: list[int] = []
    cancelled: set[int] = set()
    results = {}
    for i, request in enumerate(requests):
        sampler.take(
            request,
            None,
            lambda out, i=i: (done.append(i), results.update({i: out})),  # type: ignore[misc]
            lambda i=i: i in cancelled,  # type: ignore[misc]
        )
    for _ in range(5):
        sampler.step()
    cancelled |= {0, 1, 2}  # running; partly running; waiting
    steps = 5
    while sampler.busy:
        sampler.step()
        steps += 1
    assert sorted(done) == [0, 1, 2, 3]
    assert steps <= 5 + 62
    assert not sampler.cache.tokens and not sampler.admission.prefixes.pinned
    for ours, expected in zip(results[3].sequences, alone.sequences, strict=True):
        assert ours.tokens == expected.tokens


def test_new_weights_of_an_adapter_are_not_mixed_with_old_keys(tiny_llama: str) -> None:
    trainer = make_trainer(tiny_llama, LoraSpec(rank=4))
    request = SampleRequest(np.arange(3, 60), 8, num_samples=2, seed=0)
    sampler = TorchSampler(trainer.base, EngineConfig())
    (before,) = sample_all(sampler, [request], trainer.adapter)
    trainer.forward_backward(make_rows(), "cross_entropy", None)
    trainer.optim_step(AdamConfig(learning_rate=0.1))
    (warm,) = sample_all(sampler, [request], trainer.adapter)
    (cold,) = sample_all(TorchSampler(trainer.base, EngineConfig()), [request], trainer.adapter)
    for ours, expected, old in zip(warm.sequences, cold.sequences, before.sequences):
        assert ours.tokens == expected.tokens and ours.logprobs == expected.logprobs
        assert ours.logprobs != old.logprobs


def test_out_of_memory_while_slots_grow_is_reported(
    tiny_qwen3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(EngineConfig(device="cpu"))
    failures = [MemoryError("no slots")]
    reserve = KVCache.reserve

    def starve(self: KVCache, *args: int) -> None:
        if failures:
            raise failures.pop()
        reserve(self, *args)

    monkeypatch.setattr(KVCache, "reserve", starve)
    request = SampleRequest(np.arange(5, 40), 5, seed=0)
    with pytest.raises(OutOfMemoryError, match="no slots"):
        sampled(engine, tiny_qwen3, request).result(60)
    assert len(sampled(engine, tiny_qwen3, request).result(60).sequences) == 1
    engine.close()


def test_prompt_targets_of_minus_one_are_skipped(tiny_qwen3: str) -> None:
    base = BaseModel(tiny_qwen3, EngineConfig(device="cpu"))
    prompt = np.arange(5, 12)
    full = np.stack([prompt[1:], prompt[:-1]], axis=1)
    partial = full.copy()
    partial[2, 0] = partial[5, 1] = -1
    sampler = TorchSampler(base, EngineConfig())
    requests = [SampleRequest(prompt, 0, prompt_targets=targets) for targets in (full, partial)]
    whole, sparse = (each.prompt_target_logprobs for each in sample_all(sampler, requests))
    assert whole is not None and sparse is not None
    assert (sparse[partial == -1] == 0).all()
    assert np.abs(sparse - whole)[partial != -1].max() <= TOLERANCE
    with pytest.raises(DataValidationError, match="holds token id -2"):
        sampler.take(SampleRequest(prompt, 0, prompt_targets=full * 0 - 2), None, print)


def test_an_error_before_anything_runs_answers_the_request(
    tiny_qwen3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise it would be retried forever and block all others."""
    admit_job = Admission._admit_job

    def stumble(
        self: Admission, job: SamplingJob, *args: int, **kwargs: bool
    ) -> AdmittedChunk | None:
        if job.request.seed == 13:
            raise RuntimeError("stumbled")
        return admit_job(self, job, *args, **kwargs)

    monkeypatch.setattr(Admission, "_admit_job", stumble)
    engine = Engine(EngineConfig(device="cpu"))
    try:
        prompt = np.arange(5, 40)
        bad, good = (
            sampled(engine, tiny_qwen3, SampleRequest(prompt, 5, seed=seed)) for seed in (13, 14)
        )
        with pytest.raises(RuntimeError, match="stumbled"):
            bad.result(20)
        assert len(good.result(20).sequences) == 1
    finally:
        engine.close()


@pytest.mark.parametrize("key", ["num_samples", "max_tokens", "top_k", "prompt_top_k", "seed"])
@pytest.mark.parametrize("value", [float("nan"), 1.5, 2.0, "2", True])
def test_counts_must_be_whole_numbers(tiny_qwen3: str, key: str, value: object) -> None:
    base = BaseModel(tiny_qwen3, EngineConfig(device="cpu"))
    values = {"max_tokens": 3, key: value}
    with pytest.raises(DataValidationError, match=f"{key}={value!r}: expected a whole number"):
        TorchSampler(base, EngineConfig()).take(SampleRequest(np.array([5]), **values), None, print)
