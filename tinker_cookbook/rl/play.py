"""Play an environment by hand in the terminal, with the same code that runs it in training.

    python -m tinker_cookbook.rl.play env=my_env:GuessNumber
    python -m tinker_cookbook.rl.play env=my_env:GuessNumber env.group_size=1 batch=3

`env` names an EnvGroupBuilder, an RLDatasetBuilder, or a function that returns one; `env.key=value`
sets its fields. You see what the model would see, including special tokens, and type its replies. A
backslash at the end of a line continues the reply on the next. /quit, Ctrl-C or the end of input
(Ctrl-D) quits.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import itertools
import os
import signal
import types
from collections.abc import Awaitable, Iterator, Mapping
from typing import Literal

import chz
import tinker

from tinker_cookbook import models
from tinker_cookbook.cli_utils import cli
from tinker_cookbook.completers import StopCondition, TokenCompleter, TokensWithLogprobs
from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.renderers import Message, Renderer, get_renderer
from tinker_cookbook.rl.rollouts import RolloutLimits, do_single_rollout
from tinker_cookbook.rl.rollouts.env_calls import takes_extra
from tinker_cookbook.rl.rollouts.strategy import RolloutFailedError
from tinker_cookbook.rl.types import (
    Action,
    ActionExtra,
    Env,
    EnvGroupBuilder,
    RLDataset,
    RLDatasetBuilder,
    StepResult,
    Trajectory,
)
from tinker_cookbook.tokenizer_utils import Tokenizer, get_tokenizer

# a person may take a day to reply
_LIMITS = RolloutLimits(max_turns=None, sample_timeout=86_400.0)


@chz.chz
class Config:
    env: EnvGroupBuilder | RLDatasetBuilder | RLDataset = chz.field(
        doc="module:Name of an EnvGroupBuilder or RLDatasetBuilder, or of what makes one",
    )
    model_name: str = chz.field(
        default="nano", doc="model whose tokenizer is used, where the environment has none"
    )
    renderer_name: str | None = chz.field(
        default=None, doc="chat format (None: the environment's, else the model's)"
    )
    split: Literal["train", "test"] = chz.field(default="train", doc="part of a data set")
    batch: int = chz.field(default=0, doc="batch of a data set to begin with")


def main(config: Config) -> None:
    # Not async: under cli's event loop, Ctrl-C would only be noted for the loop while input()
    # blocks it, instead of interrupting input() at once.
    with _ctrl_c_handler():
        try:
            asyncio.run(_play(config))
        except KeyboardInterrupt:
            print("\nstopped")


@contextlib.contextmanager
def _ctrl_c_handler() -> Iterator[None]:
    """Let a second Ctrl-C end the process, if cleaning up after the first takes too long.

    Replaces the handler of `cli`, which would tell the user how to resume a run.
    """
    pressed = itertools.count(1)

    def handler(number: int, frame: types.FrameType | None) -> None:
        if next(pressed) > 1:
            os._exit(128 + number)
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


class Quit(Exception):
    """Raised if the player quits; the message says how."""


class ManualPolicy(TokenCompleter):
    """Prints the new part of each prompt and asks a person for the reply."""

    def __init__(self, tokenizer: Tokenizer, renderer: Renderer | None = None) -> None:
        self._tokenizer = tokenizer
        self._renderer = renderer
        self._shown: list[int] = []

    async def __call__(
        self, model_input: tinker.ModelInput, stop: StopCondition, *, max_tokens: int | None = None
    ) -> TokensWithLogprobs:
        prompt = model_input.to_ints()
        num_shown = len(self._shown) if prompt[: len(self._shown)] == self._shown else 0
        print(self._tokenizer.decode(prompt[num_shown:]))
        tokens = self._reply(_read_reply(), stop)
        self._shown = [*prompt, *tokens]
        return TokensWithLogprobs(tokens, None)

    def _reply(self, text: str, stop: StopCondition) -> list[int]:
        """Return the tokens that a model would have sampled for this text, including the stop
        sequence."""
        renderer = self._renderer
        if renderer is not None and stop == renderer.get_stop_sequences():
            reply_message = Message(role="assistant", content=text)
            example = renderer.build_supervised_example(
                [Message(role="user", content="?"), reply_message]
            )
            tokens = example.model_input.to_ints()
            return [token for token, weight in zip(tokens, example.weights.tolist()) if weight]
        strings = [sequence for sequence in stop if isinstance(sequence, str)]
        if strings and not any(string in text for string in strings):
            text += strings[0]
        tokens = self._tokenizer.encode(text, add_special_tokens=False)
        return [*tokens, *[token for token in stop if isinstance(token, int)][:1]]


async def play_env(env: Env, tokenizer: Tokenizer, renderer: Renderer | None = None) -> Trajectory:
    """Play one episode. Raises Quit if the player quits."""
    return await do_single_rollout(
        ManualPolicy(tokenizer, renderer), _PrintingEnv(env), limits=_LIMITS
    )


class _PrintingEnv(Env):
    """Wraps an env to print the result of each step."""

    def __init__(self, env: Env) -> None:
        self._env = env

    async def initial_observation(self) -> tuple[tinker.ModelInput, StopCondition]:
        return await self._env.initial_observation()

    async def step(self, action: Action, *, extra: ActionExtra | None = None) -> StepResult:
        keywords = {"extra": extra} if takes_extra(type(self._env)) else {}
        result = await self._env.step(action, **keywords)
        _print_values({"reward": result.reward, **result.metrics, **result.logs})
        return result


async def _play(config: Config) -> None:
    for number, builder in enumerate(await _builders(config)):
        try:
            if number:
                _read_reply("press Enter for another episode, /quit to quit> ")
            await _play_one(config, builder)
        except Quit:
            return


async def _play_one(config: Config, builder: EnvGroupBuilder) -> None:
    """Play the first member of a group, including its group reward."""
    try:
        env = (await builder.make_envs())[0]
        renderer = getattr(env, "renderer", None) or _renderer(config)
        trajectory = await play_env(env, renderer.tokenizer, renderer)
        ((group_reward, metrics),) = await builder.compute_group_rewards([trajectory], [env])
    except Quit as end:
        print(end)
        raise
    except RolloutFailedError as failure:
        print(failure.error.traceback or failure.error.message)
        return
    finally:
        await builder.cleanup()
    total = sum(turn.reward for turn in trajectory.transitions) + group_reward
    print(f"episode ended after {len(trajectory.transitions)} turns ({trajectory.stop_reason})")
    _print_values({"total reward": total, "group reward": group_reward, **metrics})


def _renderer(config: Config) -> Renderer:
    name = config.renderer_name or models.recommended_renderer(config.model_name)
    return get_renderer(name, get_tokenizer(config.model_name), model_name=config.model_name)


_EnvSource = (
    EnvGroupBuilder | RLDatasetBuilder | RLDataset | tuple[RLDataset, RLDataset | None] | None
)


async def _builders(config: Config) -> Iterator[EnvGroupBuilder]:
    """Return builders without end: a group builder repeatedly, a data set's from `batch` on, then
    from its first batch again."""
    source: _EnvSource | Awaitable[_EnvSource] = config.env
    if isinstance(source, RLDatasetBuilder):
        source = await _with_defaults(source, config)()
    elif inspect.isawaitable(source):
        source = await source
    if isinstance(source, RLDatasetBuilder):
        source = await _with_defaults(source, config)()
    if isinstance(source, tuple):
        source = source[("train", "test").index(config.split)]
    if isinstance(source, EnvGroupBuilder):
        return itertools.repeat(source)
    if not isinstance(source, RLDataset):
        raise ConfigurationError(
            f"env returns {type(source).__name__} {source!r:.60}: expected an EnvGroupBuilder or an"
            f" RLDatasetBuilder (split={config.split})"
        )
    if not 0 <= config.batch < len(source):
        raise ConfigurationError(f"batch={config.batch}: the data set has {len(source)} batches")
    batches = itertools.chain(range(config.batch, len(source)), itertools.cycle(range(len(source))))
    return (builder for index in batches for builder in source.get_batch(index))


def _with_defaults(builder: RLDatasetBuilder, config: Config) -> RLDatasetBuilder:
    """Set the builder's fields that a recipe would have set, if they are None."""
    keys = {
        "model_name_for_tokenizer": config.model_name,
        "renderer_name": config.renderer_name or models.recommended_renderer(config.model_name),
        "group_size": 1,
        "groups_per_batch": 1,
        "seed": 0,
    }
    missing = [key for key in keys if getattr(builder, key, "not a field") is None]
    return chz.replace(builder, **{key: keys[key] for key in missing})


def _print_values(values: Mapping[str, str | float]) -> None:
    print("\n".join(f"  {name}: {value}" for name, value in values.items()))


def _read_reply(question: str = "> ") -> str:
    lines = []
    try:
        while True:
            lines.append(input(question if not lines else "... "))
            if not lines[-1].endswith("\\"):
                break
            lines[-1] = lines[-1].removesuffix("\\")
    except (EOFError, KeyboardInterrupt) as end:
        print()  # the cursor is still on the line of the question
        raise Quit("game ended" if isinstance(end, EOFError) else "stopped") from None
    if lines == ["/quit"]:
        raise Quit("game ended")
    return "\n".join(lines)


if __name__ == "__main__":
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 (line editing in input())
    cli(main, Config)
