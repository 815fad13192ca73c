"""Completers: what is asked of the service, seeds, and room in the context."""

from __future__ import annotations

from pathlib import Path

import pytest
import tinker

from tinker_cookbook.completers import (
    ContextOverflow,
    TinkerMessageCompleter,
    TinkerTokenCompleter,
    TokensWithLogprobs,
    completer_from,
    derive_seed,
)
from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.renderers import get_renderer
from tinker_cookbook.service import EngineConfig, connect
from tinker_cookbook.service.api import SamplingClient
from tinker_cookbook.testing import ScriptedEngine, scripted_service, scripted_text
from tinker_cookbook.tokenizer_utils import get_tokenizer

PROMPT = tinker.ModelInput.from_ints([1, 2, 3])


@pytest.fixture
def engine() -> ScriptedEngine:
    """Whose replies never end."""
    return ScriptedEngine(lambda asked: [7] * 100)


@pytest.fixture
def client(engine: ScriptedEngine, tmp_path: Path) -> SamplingClient:
    return scripted_service(engine, tmp_path).create_sampling_client(base_model="nano").result()


async def test_what_is_asked_and_what_comes_back(
    engine: ScriptedEngine, client: SamplingClient
) -> None:
    completer = TinkerTokenCompleter(client, 16, temperature=0.5, top_p=0.9, top_k=4)
    reply = await completer(PROMPT, ["\n"])
    assert reply == TokensWithLogprobs([7] * 16, [-0.5] * 16, "length")
    (asked,) = engine.samples
    assert asked.prompt.tolist() == [1, 2, 3] and asked.num_samples == 1
    assert (asked.max_tokens, asked.temperature, asked.top_p, asked.top_k) == (16, 0.5, 0.9, 4)
    assert (asked.stop_strings, asked.stop_tokens, asked.seed) == (("\n",), frozenset(), None)


async def test_a_call_can_ask_for_less_but_not_for_more(
    engine: ScriptedEngine, client: SamplingClient
) -> None:
    completer = TinkerTokenCompleter(client, 16)
    await completer(PROMPT, [9], max_tokens=5)
    await completer(PROMPT, [9], max_tokens=50)
    assert [each.max_tokens for each in engine.samples] == [5, 16]


async def test_replies_fit_into_the_context(engine: ScriptedEngine, client: SamplingClient) -> None:
    completer = TinkerTokenCompleter(client, 16, context_window=8)
    await completer(PROMPT, [9])
    await completer(tinker.ModelInput.from_ints([1] * 7), [9])
    assert [each.max_tokens for each in engine.samples] == [5, 1]
    with pytest.raises(ContextOverflow, match=r"prompt of 8 tokens.*context of 8"):
        await completer(tinker.ModelInput.from_ints([1] * 8), [9])


def test_a_reply_that_nobody_sampled_has_no_logprobs() -> None:
    with pytest.raises(ValueError, match="no logprobs"):
        _ = TokensWithLogprobs([1], None).logprobs


async def test_seeds_come_from_the_seed_and_the_number_of_the_call(
    engine: ScriptedEngine, client: SamplingClient
) -> None:
    first = TinkerTokenCompleter(client, 16).seeded(5)
    second = first.seeded(6)
    for completer in (first, second, first, first.seeded(5)):
        await completer(PROMPT, [9])
    seeds = [each.seed for each in engine.samples]
    assert seeds == [derive_seed(5, 0), derive_seed(6, 0), derive_seed(5, 1), derive_seed(5, 0)]


def test_derived_seeds() -> None:
    """Fixed numbers: a run that goes on in another process draws what this one would have."""
    assert derive_seed(0, 1) == 1506311409109703068  # printf 0,1 | b2sum -l 64, halved
    seeds = [derive_seed(a, b) for a in range(40) for b in range(40)] + [derive_seed(1), 11]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)


async def test_messages(engine: ScriptedEngine, client: SamplingClient) -> None:
    renderer = get_renderer("qwen3_instruct", get_tokenizer("nano"), model_name="nano")
    engine.reply = scripted_text("nano", lambda asked: "Hello!<|im_end|>")
    completer = TinkerMessageCompleter(client, renderer, 8)
    messages = [{"role": "user", "content": "Hi"}]
    assert await completer(messages) == {"role": "assistant", "content": "Hello!"}
    (asked,) = engine.samples
    assert asked.prompt.tolist() == renderer.build_generation_prompt(messages).to_ints()
    assert (asked.max_tokens, asked.stop_tokens) == (8, {*renderer.get_stop_sequences()})
    other_stop = TinkerMessageCompleter(client, renderer, 8, ["."], seed=3)
    await other_stop(messages)
    assert engine.samples[1].stop_strings == (".",)
    assert engine.samples[1].seed == derive_seed(3, 0)


async def test_a_model_to_talk_to() -> None:
    """nano itself, in process."""
    judge = await completer_from(
        "nano", max_tokens=24, temperature=0.0, engine=EngineConfig(device="cpu")
    )
    reply = await judge([{"role": "user", "content": "Spell the word cat."}])
    assert reply == {"role": "assistant", "content": "c a t"}
    assert judge.sampling_client.get_base_model() == "nano"
    assert type(judge.renderer).__name__ == "Qwen3InstructRenderer"
    with pytest.raises(ContextOverflow, match="2048"):
        await judge([{"role": "user", "content": "word " * 3000}])


async def test_a_model_with_the_renderer_of_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TINKER_COOKBOOK_STORE_DIR", str(tmp_path))
    engine = EngineConfig(device="cpu")
    client = await connect(engine=engine).create_lora_training_client(
        "nano", rank=4, user_metadata={"renderer_name": "role_colon"}
    )
    saved = await client.save_weights_for_sampler("opponent")
    opponent = await completer_from("nano", saved.path, max_tokens=2, engine=engine, seed=1)
    assert type(opponent.renderer).__name__ == "RoleColonRenderer"
    messages = [{"role": "user", "content": "Hi"}]
    assert await opponent(messages) == await opponent.seeded(1)(messages)


async def test_max_tokens_of_none_at_all() -> None:
    with pytest.raises(ConfigurationError, match="max_tokens=0"):
        await completer_from("nano", max_tokens=0)
