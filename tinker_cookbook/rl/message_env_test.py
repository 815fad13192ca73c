"""Message environments in tokens: sampled tokens stay what they are, in every format."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tinker_cookbook.completers import TinkerTokenCompleter, TokensWithLogprobs
from tinker_cookbook.renderers import Message, Renderer, get_renderer
from tinker_cookbook.renderers.qwen3 import Qwen3DisableThinkingRenderer, Qwen3Renderer
from tinker_cookbook.rl.message_env import EnvFromMessageEnv, MessageEnv, MessageStepResult
from tinker_cookbook.rl.rollouts import do_single_rollout
from tinker_cookbook.rl.types import InitialObservationOverflow, StopReason
from tinker_cookbook.service import EngineConfig, connect
from tinker_cookbook.tokenizer_utils import get_tokenizer

FORMATS = [
    ("nano", "qwen3_instruct"),
    ("nano", "role_colon"),
    ("qwen3", "qwen3_instruct"),
    ("qwen3", "role_colon"),
    ("llama-3.1-instruct", "role_colon"),
    ("gpt2", "role_colon"),
    ("llama-3.1-instruct", "llama3"),
    ("llama-3.1-instruct", "template"),
    ("deepseek-v3.1", "deepseekv3"),
]


@pytest.fixture
def tokenizers(request: pytest.FixtureRequest) -> Any:
    def load(name: str) -> Any:
        if name == "nano":
            return get_tokenizer("nano")
        data: Path = request.getfixturevalue("shared_data")
        return get_tokenizer(str(data / "tokenizers" / name))

    return load


class Guess(MessageEnv):
    """Says "Higher." until `turns` replies have come; keeps the whole conversation, as it must."""

    def __init__(self, turns: int = 3, **changes: Any) -> None:
        self.turns, self.changes = turns, changes
        self.history: list[Message] = [{"role": "user", "content": "Guess a number."}]
        self.replies: list[Message] = []

    async def initial_observation(self) -> list[Message]:
        return self.history

    async def step(self, message: Message) -> MessageStepResult:
        self.replies.append(message)
        self.history += [message, self.answer()]
        done = len(self.replies) == self.turns
        self.edit()
        return MessageStepResult(
            1.0, done, self.history, {"guesses": 1}, {"said": str(message["content"])}
        )

    def answer(self) -> Message:
        return {"role": "user", "content": "Higher. 12"}

    def edit(self) -> None:
        pass


def spelled(renderer: Renderer, text: str) -> list[int]:
    """Tokens of the text, character by character: a way to write it that no tokenizer chooses."""
    return [token for character in text for token in renderer.encoder.encode(character)]


def written(renderer: Renderer, text: str) -> list[int]:
    """A whole reply that is spelled out, with what ends it."""
    (stop,) = renderer.get_stop_sequences()
    if isinstance(stop, int):
        return [*spelled(renderer, text), stop]
    return spelled(renderer, f" {text}{stop}")


class Writer:
    """Gives out replies in turn."""

    def __init__(self, replies: Sequence[list[int]], stop_reason: Any = "stop") -> None:
        self.replies, self.stop_reason = iter(replies), stop_reason

    async def __call__(self, model_input: Any, stop: Any) -> TokensWithLogprobs:
        return TokensWithLogprobs(next(self.replies), None, self.stop_reason)


def extends(trajectory: Any) -> list[bool]:
    """For each turn but the first: whether its prompt begins with all that came before."""
    found = []
    observations = [t.ob.to_ints() for t in trajectory.transitions]
    for turn, following in zip(trajectory.transitions, observations[1:]):
        before = [*turn.ob.to_ints(), *turn.ac.tokens]
        found.append(following[: len(before)] == before)
    return found


@pytest.mark.parametrize(("tokenizer", "name"), FORMATS)
async def test_sampled_tokens_are_kept(tokenizers: Any, tokenizer: str, name: str) -> None:
    renderer = get_renderer(name, tokenizers(tokenizer))
    replies = ["12 or 13", "the number 99", "hello"]
    actions = [written(renderer, text) for text in replies]
    whole = [renderer.encoder.encode(text) for text in replies]
    assert all(len(a) - 1 > len(w) for a, w in zip(actions, whole))  # else nothing is tested
    env = Guess()
    trajectory = await do_single_rollout(Writer(actions), EnvFromMessageEnv(renderer, env))
    assert [reply["content"] for reply in env.replies] == replies
    assert extends(trajectory) == [True, True]
    # and the text is that of the conversation, no end of turn or header twice or missing
    conversation: list[Message] = [{"role": "user", "content": "Guess a number."}]
    for text, turn in zip(replies, trajectory.transitions):
        rendered = renderer.build_generation_prompt(conversation).to_ints()
        assert renderer.tokenizer.decode(turn.ob.to_ints()) == renderer.tokenizer.decode(rendered)
        conversation += [
            {"role": "assistant", "content": text},
            {"role": "user", "content": "Higher. 12"},
        ]
    assert [t.reward for t in trajectory.transitions] == [1.0] * 3
    assert trajectory.transitions[0].metrics == {"parse_error": 0.0, "guesses": 1}
    assert trajectory.transitions[0].logs == {"said": "12 or 13"}


@pytest.mark.parametrize("renderer_class", [Qwen3Renderer, Qwen3DisableThinkingRenderer])
@pytest.mark.parametrize("strip", [True, False])
async def test_reasoning_that_history_drops(renderer_class: Any, strip: bool) -> None:
    """Where earlier reasoning is left out of the prompt, the prompt is rendered anew."""
    renderer = renderer_class(get_tokenizer("nano"), strip_thinking_from_history=strip)
    (stop,) = renderer.get_stop_sequences()
    text = (
        "7" if renderer_class is Qwen3DisableThinkingRenderer else "<think>\n3 + 4\n</think>\n\n7"
    )
    action = [*renderer.encoder.encode(text, renderer.markup), stop]
    env = Guess()
    trajectory = await do_single_rollout(Writer([action] * 3), EnvFromMessageEnv(renderer, env))
    assert extends(trajectory) == [not strip] * 2
    if strip:
        expected = renderer.build_generation_prompt(env.history[:-2])
        assert trajectory.transitions[-1].ob.to_ints() == expected.to_ints()


async def test_reasoning_that_history_keeps_for_a_while() -> None:
    """Until the next question: then the turns of a tool's use are one sequence."""

    class Tools(Guess):
        def answer(self) -> Message:
            role = "user" if len(self.replies) == 2 else "tool"
            return {"role": role, "content": "95"}

    renderer = get_renderer("qwen3", get_tokenizer("nano"))
    (stop,) = renderer.get_stop_sequences()
    call = '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'
    text = f"<think>\nHm\n</think>\n\n{call}"
    action = [*renderer.encoder.encode(text, renderer.markup), stop]
    env = EnvFromMessageEnv(renderer, Tools(4))
    trajectory = await do_single_rollout(Writer([action] * 4), env)
    assert extends(trajectory) == [True, False, True]


async def test_reasoning_where_the_format_has_none() -> None:
    """qwen3_disable_thinking would refuse to train on it; the game goes on."""
    renderer = get_renderer("qwen3_disable_thinking", get_tokenizer("nano"))
    (stop,) = renderer.get_stop_sequences()
    action = [*renderer.encoder.encode("<think>\nHm\n</think>\n\n7", renderer.markup), stop]
    trajectory = await do_single_rollout(
        Writer([action] * 3), EnvFromMessageEnv(renderer, Guess(3))
    )
    assert len(trajectory.transitions) == 3


async def test_marks_for_supervised_training_do_not_matter() -> None:
    class Marked(Guess):
        def answer(self) -> Message:
            return {"role": "user", "content": "Higher.", "trainable": False}

    renderer = get_renderer("qwen3_instruct", get_tokenizer("nano"))
    actions = [written(renderer, "12 or 13")] * 3
    trajectory = await do_single_rollout(Writer(actions), EnvFromMessageEnv(renderer, Marked(3)))
    assert extends(trajectory) == [True, True]


@pytest.mark.parametrize("name", ["qwen3_instruct", "role_colon"])
async def test_an_env_that_rewrites_its_history(name: str) -> None:
    class Forgetful(Guess):
        def edit(self) -> None:
            self.history = self.history[-1:]

    class Edits(Guess):
        def edit(self) -> None:
            self.history[0]["content"] = f"Guess {len(self.replies)}."

    class Corrects(Guess):
        def edit(self) -> None:
            self.history[-2] = {"role": "assistant", "content": "(a guess)"}

    renderer = get_renderer(name, get_tokenizer("nano"))
    for env in (Forgetful(2), Edits(2), Corrects(2)):
        actions = [written(renderer, "12 or 13")] * 2
        trajectory = await do_single_rollout(Writer(actions), EnvFromMessageEnv(renderer, env))
        assert extends(trajectory) == [False]
    edited = Edits(2)
    trajectory = await do_single_rollout(Writer(actions), EnvFromMessageEnv(renderer, edited))
    assert "Guess 1." in renderer.tokenizer.decode(trajectory.transitions[1].ob.to_ints())


async def test_a_token_that_reaches_beyond_the_stop_string(tokenizers: Any) -> None:
    """`:**` is one token of Qwen3's: what it adds would be put into the user's mouth."""
    renderer = get_renderer("role_colon", tokenizers("qwen3"))
    action = renderer.encoder.encode(" 12\n\nUser:**")
    assert renderer.tokenizer.decode(action[-1:]) == ":**"
    env = Guess(2)
    trajectory = await do_single_rollout(Writer([action] * 2), EnvFromMessageEnv(renderer, env))
    assert [reply["content"] for reply in env.replies] == ["12", "12"]
    expected = renderer.build_generation_prompt(env.history[:3])
    assert trajectory.transitions[1].ob.to_ints() == expected.to_ints()


async def test_a_next_message_that_is_not_the_users() -> None:
    """The model has already written "User:"; a system message cannot follow that."""

    class System(Guess):
        def answer(self) -> Message:
            return {"role": "system", "content": "Be quick."}

    tokenizer = get_tokenizer("nano")
    for name, kept in (("role_colon", False), ("qwen3_instruct", True)):
        renderer = get_renderer(name, tokenizer)
        env = System(2)
        actions = [written(renderer, "12 or 13")] * 2
        trajectory = await do_single_rollout(Writer(actions), EnvFromMessageEnv(renderer, env))
        assert extends(trajectory) == [kept]
        text = renderer.tokenizer.decode(trajectory.transitions[1].ob.to_ints())
        expected = renderer.build_generation_prompt(env.history[:3]).to_ints()
        assert text == renderer.tokenizer.decode(expected)


async def test_tool_calls() -> None:
    class Tools(Guess):
        def answer(self) -> Message:
            return {"role": "tool", "content": "95"}

    renderer = get_renderer("qwen3_instruct", get_tokenizer("nano"))
    (stop,) = renderer.get_stop_sequences()
    call = '<tool_call>\n{"name":  "add", "arguments": {"a": 37,  "b": 58}}\n</tool_call>'
    broken = '<tool_call>\n{"name": "add"}\n</tool_call>'
    actions = [[*renderer.encoder.encode(text, renderer.markup), stop] for text in (call, broken)]
    env = Tools(3)
    last = [written(renderer, "95")]
    trajectory = await do_single_rollout(Writer(actions + last), EnvFromMessageEnv(renderer, env))
    assert extends(trajectory) == [True, True]
    assert env.replies[0]["tool_calls"][0].function.arguments == '{"a": 37,  "b": 58}'  # type: ignore[typeddict-item]
    assert "arguments" in env.replies[1]["unparsed_tool_calls"][0].error  # type: ignore[typeddict-item]


# --------------------------------------------------------------------- bad replies


@pytest.mark.parametrize("name", ["qwen3_instruct", "role_colon"])
async def test_unreadable_replies(name: str) -> None:
    renderer = get_renderer(name, get_tokenizer("nano"))
    cut = spelled(renderer, "12")
    good = written(renderer, "13")
    env = Guess(1)
    over = await do_single_rollout(Writer([cut], "length"), EnvFromMessageEnv(renderer, env, -0.5))
    (turn,) = over.transitions
    assert (turn.reward, turn.episode_done, turn.trainable) == (-0.5, True, True)
    assert turn.metrics == {"parse_error": 1.0}
    assert (over.stop_reason, env.replies) == (StopReason.DONE, [])

    env = Guess(1)
    tries = EnvFromMessageEnv(
        renderer, env, terminate_on_parse_error=False, train_on_parse_errors=False
    )
    again = await do_single_rollout(Writer([cut, cut, good]), tries)
    assert [t.reward for t in again.transitions] == [-1.0, -1.0, 1.0]
    assert [t.trainable for t in again.transitions] == [False, False, True]
    assert len({tuple(t.ob.to_ints()) for t in again.transitions}) == 1
    assert [reply["content"] for reply in env.replies] == ["13"]


async def test_a_reply_that_ends_the_text_instead_of_the_turn() -> None:
    """Nothing is put behind an end-of-text token: the model never saw that in its format."""
    renderer = get_renderer("qwen3_instruct", get_tokenizer("nano"))
    action = [*spelled(renderer, "12"), renderer.encoder.id("<|endoftext|>")]
    env = Guess(2)
    trajectory = await do_single_rollout(Writer([action] * 2), EnvFromMessageEnv(renderer, env))
    assert [reply["content"] for reply in env.replies] == ["12", "12"]
    expected = renderer.build_generation_prompt(env.history[:3])
    assert trajectory.transitions[1].ob.to_ints() == expected.to_ints()


async def test_a_stop_condition_of_the_envs_own() -> None:
    class Brackets(Guess):
        async def step(self, message: Message) -> MessageStepResult:
            result = await super().step(message)
            result.next_stop_condition = ["]"]
            return result

    renderer = get_renderer("qwen3_instruct", get_tokenizer("nano"))
    asked: list[Any] = []

    class Asked(Writer):
        async def __call__(self, model_input: Any, stop: Any) -> TokensWithLogprobs:
            asked.append(stop)
            return await super().__call__(model_input, stop)

    actions = [written(renderer, "1"), spelled(renderer, "[two]"), spelled(renderer, "[3]")]
    env = Brackets(3)
    trajectory = await do_single_rollout(Asked(actions), EnvFromMessageEnv(renderer, env))
    assert asked == [renderer.get_stop_sequences(), ["]"], ["]"]]
    assert [reply["content"] for reply in env.replies] == ["1", "[two]", "[3]"]
    assert extends(trajectory) == [True, False]  # the turn's own end is missing behind "[two]"


# ---------------------------------------------------------------------- long ones


async def test_a_conversation_that_gets_too_long() -> None:
    renderer = get_renderer("qwen3_instruct", get_tokenizer("nano"))
    action = written(renderer, "12 or 13")

    async def play(**limits: Any) -> Any:
        env = EnvFromMessageEnv(renderer, Guess(turns=9), context_overflow_reward=-0.25, **limits)
        return await do_single_rollout(Writer([action] * 9), env)

    free = await play()
    lengths = [t.ob.length for t in free.transitions]
    third = lengths[2]
    exact = await play(max_trajectory_tokens=third + 8, max_generation_tokens=8)
    assert [t.ob.length for t in exact.transitions] == lengths[:3]
    assert [t.reward for t in exact.transitions] == [1.0, 1.0, 0.75]
    assert [t.metrics["context_overflow"] for t in exact.transitions] == [0, 0, 1]
    assert "context_overflow" not in free.transitions[0].metrics
    shorter = await play(max_trajectory_tokens=third + 7, max_generation_tokens=8)
    assert len(shorter.transitions) == 2
    with pytest.raises(InitialObservationOverflow, match="max_trajectory_tokens=5"):
        await EnvFromMessageEnv(renderer, Guess(), max_trajectory_tokens=5).initial_observation()


# ------------------------------------------------------------------------- nano


async def test_nano_plays() -> None:
    client = await connect(engine=EngineConfig(device="cpu")).create_sampling_client(
        base_model="nano"
    )
    renderer = get_renderer("qwen3_instruct", get_tokenizer("nano"))
    policy = TinkerTokenCompleter(client, 48, seed=0, context_window=2048)
    turns = 0
    for i in range(4):
        env = EnvFromMessageEnv(renderer, Guess(3))
        trajectory = await do_single_rollout(policy.seeded(i), env)
        assert all(extends(trajectory))
        turns += len(trajectory.transitions)
    assert turns > 8
