"""Problems: prompt, reward by its formula, graders that block or raise; and nano as the player."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tinker_cookbook.completers import TinkerTokenCompleter, TokensWithLogprobs
from tinker_cookbook.renderers import Message, get_renderer
from tinker_cookbook.rl.problem_env import ProblemEnv, ProblemGroupBuilder
from tinker_cookbook.rl.rollouts import RolloutLimits, do_group_rollout
from tinker_cookbook.service import EngineConfig, connect
from tinker_cookbook.tokenizer_utils import get_tokenizer

TOKENIZER = get_tokenizer("nano")
RENDERER = get_renderer("qwen3_instruct", TOKENIZER, model_name="nano")
END = RENDERER.get_stop_sequences()[0]


class Sum(ProblemEnv):
    def get_question(self) -> str:
        return "What is 3 + 4?"

    def check_answer(self, sample_str: str) -> bool:
        self.seen = sample_str
        return sample_str.endswith("7")

    def check_format(self, sample_str: str) -> bool:
        return sample_str.isdigit()

    def get_reference_answer(self) -> str:
        return "7"


def reply(text: str, end: int | None = END) -> list[int]:
    tokens = RENDERER.encoder.encode(text, RENDERER.markup)
    return tokens if end is None else [*tokens, end]


async def test_the_prompt() -> None:
    prefix: list[Message] = [
        {"role": "user", "content": "What is 1 + 1?"},
        {"role": "assistant", "content": "2"},
    ]
    observation, stop = await Sum(RENDERER, prefix).initial_observation()
    question: Message = {"role": "user", "content": "What is 3 + 4?"}
    assert observation == RENDERER.build_generation_prompt([*prefix, question])
    assert stop == [END]
    plain, _ = await Sum(RENDERER).initial_observation()
    assert plain == RENDERER.build_generation_prompt([question])


@pytest.mark.parametrize(
    ("text", "correct", "in_form", "reward"),
    [("7", 1, 1, 1.0), ("it is 7", 1, 0, 0.75), ("8", 0, 1, 0.0), ("eight", 0, 0, -0.25)],
)
async def test_the_reward(text: str, correct: float, in_form: float, reward: float) -> None:
    env = Sum(RENDERER, format_coef=0.25)
    result = await env.step(reply(text))
    assert result.reward == reward
    assert result.metrics == {"format": in_form, "correct": correct}
    assert result.logs == {"question": "What is 3 + 4?", "reply": text, "reference": "7"}
    assert result.episode_done


async def test_reasoning_is_not_graded() -> None:
    env = Sum(RENDERER)
    result = await env.step(reply("<think>\n3 + 4 = 7\n</think>\n\n7"))
    assert env.seen == "7"
    assert result.reward == 1.0
    unfinished = await env.step(reply("<think>\n3 + 4 = 7", end=None))
    assert env.seen == ""
    assert unfinished.reward == pytest.approx(-0.1)


async def test_how_a_reply_ended() -> None:
    eos = TOKENIZER.convert_tokens_to_ids("<|endoftext|>")
    for end, strict, lax in ((END, 1, 1), (eos, 0, 1), (None, 0, 0)):
        for required, expected in ((True, strict), (False, lax)):
            env = Sum(RENDERER, require_stop_sequence_for_format=required)
            result = await env.step(reply("7", end))
            assert result.metrics == {"format": expected, "correct": 1.0}


async def test_long_texts_are_cut_in_the_logs() -> None:
    result = await Sum(RENDERER).step(reply("a" * 5000))
    assert result.logs["reply"] == "a" * 1000 + "…"


async def play(env: type[ProblemEnv], num_envs: int = 2, **limits: Any) -> Any:
    async def policy(model_input: Any, stop: Any) -> TokensWithLogprobs:
        return TokensWithLogprobs(reply("7"), None)

    builder = ProblemGroupBuilder(lambda: env(RENDERER), num_envs)
    assert builder.logging_tags() == ["problems"]
    return await do_group_rollout(builder, policy, termination=RolloutLimits(**limits))


async def test_graders_that_block() -> None:
    class Slow(Sum):
        def check_answer(self, sample_str: str) -> bool:
            time.sleep(0.3)
            return True

    started = time.monotonic()
    group = await play(Slow, 20)
    assert group.get_total_rewards() == [1.0] * 20
    assert time.monotonic() - started < 2.0  # 6 s one after another
    lost = await play(Slow, env_timeout=0.05)
    assert [error.kind for error in lost.rollout_errors] == ["env_timeout"] * 2


async def test_a_grader_that_raises() -> None:
    class Fragile(Sum):
        def check_format(self, sample_str: str) -> bool:
            raise RecursionError("too deep")

    group = await play(Fragile)
    assert group.trajectories_G == []
    assert "Fragile.step: RecursionError: too deep" in group.rollout_errors[1].message


async def test_nano_answers() -> None:
    """Question, sampling, parsing and grading fit together."""

    class Spelling(Sum):
        def get_question(self) -> str:
            return "Spell the word cat."

        def check_answer(self, sample_str: str) -> bool:
            return sample_str == "c a t"

        def check_format(self, sample_str: str) -> bool:
            return True

    client = await connect(engine=EngineConfig(device="cpu")).create_sampling_client(
        base_model="nano"
    )
    builder = ProblemGroupBuilder(lambda: Spelling(RENDERER), 2, "words")
    policy = TinkerTokenCompleter(client, 16, temperature=0.0)
    group = await do_group_rollout(builder, policy)
    assert group.get_total_rewards() == [1.0, 1.0]
    cut = await do_group_rollout(builder, TinkerTokenCompleter(client, 2, temperature=0.0))
    assert cut.get_total_rewards() == pytest.approx([-0.1, -0.1])
    assert cut.trajectories_G[0].transitions[0].ac.stop_reason == "length"
