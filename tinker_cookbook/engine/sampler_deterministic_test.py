"""Deterministic sampling: a request with a seed gets the same bits whatever else is running."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pytest
import torch

from tinker_cookbook.engine import EngineConfig
from tinker_cookbook.engine.base_model import BaseModel
from tinker_cookbook.engine.lora import Adapter, LoraSpec
from tinker_cookbook.engine.requests import SampleRequest, SampleResult
from tinker_cookbook.engine.torch_sampler import TorchSampler


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def make_adapters(base: BaseModel) -> list[Adapter]:
    generator = torch.Generator().manual_seed(0)
    made = []
    for rank in (4, 9):
        adapter = base.new_adapter(LoraSpec(rank=rank))
        for name, tensor in adapter.master.items():
            if name.endswith("lora_B"):
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.1)
        adapter.refresh()
        made.append(adapter)
    return made


def make_requests(count: int) -> list[SampleRequest]:
    """Requests of many lengths and temperatures; every third starts with a common prefix."""
    rng = np.random.default_rng(0)
    common = rng.integers(3, 307, 30)
    return [
        SampleRequest(
            np.concatenate(
                [common[: 30 * (i % 3 == 0)], rng.integers(3, 307, rng.integers(1, 40))]
            ),
            int(rng.integers(1, 20)),
            5 if i % 10 == 0 else int(rng.integers(1, 3)),
            temperature=float(rng.choice([0, 0.5, 1.0, 1.3])),
            top_p=0.9 if i % 7 == 0 else 1.0,
            seed=i,
            stop_tokens=frozenset({5, 6}),
            prompt_logprobs=i % 4 == 0,
            sample_top_k=2 * (i % 11 == 0),
        )
        for i in range(count)
    ]


def sample(
    base: BaseModel,
    owners: Sequence[Adapter | None],
    requests: Sequence[SampleRequest],
    order: Iterable[int],
    alone: bool = False,
    **config: int | bool,
) -> list[tuple[object, ...]]:
    """Everything in the results, as values that compare bit by bit."""
    sampler = TorchSampler(base, EngineConfig(**config))  # type: ignore[arg-type]
    answers: list[SampleResult | Exception | None] = [None] * len(requests)
    for i in order:
        owner = owners[i % len(owners)]
        sampler.take(requests[i], owner, lambda out, i=i: answers.__setitem__(i, out))  # type: ignore
        while alone and sampler.busy:
            sampler.step()
    while sampler.busy:
        sampler.step()
        assert sampler.admission.tokens <= sampler.limits.kv_tokens
    bits = []
    for answer in answers:
        assert isinstance(answer, SampleResult)
        logprobs = answer.prompt_logprobs
        prompt = None if logprobs is None else logprobs.tobytes()
        bits.append(
            (
                prompt,
                *(
                    (s.tokens, s.logprobs, [t.logprobs.tobytes() for t in s.top_k])
                    for s in answer.sequences
                ),
            )
        )
    return bits


# The cases of 40 and 200 requests are the evidence; the others vary what rounding can depend on.
@pytest.mark.parametrize(
    ("family", "dtype", "number", "count"),
    [
        ("tiny_qwen3", "float32", 1, 40),
        pytest.param("tiny_qwen3", "float32", 1, 200, marks=pytest.mark.slow),
        ("tiny_qwen3", "float32", 2, 12),
        ("tiny_qwen3", "bfloat16", 1, 20),
        ("tiny_qwen3", "bfloat16", 2, 12),
        ("tiny_qwen3_moe", "float32", 1, 24),
        ("tiny_deepseek", "float32", 1, 24),
        ("tiny_gpt_oss", "float32", 1, 24),
    ],
)
def test_the_same_bits_in_any_batch(
    family: str,
    dtype: str,
    number: int,
    count: int,
    threads: None,
    request: pytest.FixtureRequest,
) -> None:
    torch.set_num_threads(number)
    path = request.getfixturevalue(family)
    base = BaseModel(path, EngineConfig(device="cpu", dtype=dtype))  # type: ignore[arg-type]
    owners, asked = make_adapters(base), make_requests(count)
    alone = sample(base, owners, asked, range(count), alone=True, deterministic=True)
    assert sample(base, owners, asked, range(count), deterministic=True) == alone
    order = np.random.default_rng(1).permutation(count).tolist()
    crowded = {
        "max_rows": 45,
        "kv_tokens": 900,
    }  # other slots and lengths, and prompts computed again
    assert sample(base, owners, asked, order, deterministic=True, **crowded) == alone
    if count >= 40:  # the test can fail: without it, the bits do differ
        usual = sample(base, owners, asked, range(count), alone=True)
        assert sample(base, owners, asked, range(count)) != usual


def test_long_prompts_and_the_base_model_too(tiny_llama: str) -> None:
    base = BaseModel(tiny_llama, EngineConfig(device="cpu"))
    owners, asked = [None, *make_adapters(base)], make_requests(12)
    config = {"deterministic": True, "tokens_per_pass": 25}
    alone = sample(base, owners, asked, range(12), alone=True, **config)
    assert sample(base, owners, asked, range(11, -1, -1), max_rows=9, **config) == alone
