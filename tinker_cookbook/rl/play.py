"""A person plays an environment in the terminal, with the very code that plays it in training.

    python -m tinker_cookbook.rl.play env=my_env:GuessNumber
    python -m tinker_cookbook.rl.play env=my_env:GuessNumber env.group_size=1 batch=3

`env` names an EnvGroupBuilder, an RLDatasetBuilder, or a function that makes one; `env.key=value`
sets its fields. You see what the model would see, markup and all, and type what it would write; a
line that ends with a backslash goes on in the next. /quit, Ctrl-C or the end of input end it.
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

# a person may take a day
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
    # Not async: only so does Ctrl-C end input() at once, instead of being kept for the event loop
    with _ctrl_c():
        try:
            asyncio.run(_play(config))
        except KeyboardInterrupt:
            print("\nstopped")


@contextlib.contextmanager
def _ctrl_c() -> Iterator[None]:
    """A second Ctrl-C ends the process where cleaning up after the first takes too long.

    In place of the handler of `cli`, which says how a run goes on.
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
    """The person has had enough; says how a game ends that is not over."""


class ManualPolicy(TokenCompleter):
    """Shows what is new in a prompt and asks a person for the reply."""

    def __init__(self, tokenizer: Tokenizer, renderer: Renderer | None = None) -> None:
        self._tokenizer = tokenizer
        self._renderer = renderer
        self._shown: list[int] = []

    async def __call__(
        self, model_input: tinker.ModelInput, stop: StopCondition, *, max_tokens: int | None = None
    ) -> TokensWithLogprobs:
        prompt = model_input.to_ints()
        known = len(self._shown) if prompt[: len(self._shown)] == self._shown else 0
        print(self._tokenizer.decode(prompt[known:]))
        tokens = self._reply(_typed(), stop)
        self._shown = [*prompt, *tokens]
        return TokensWithLogprobs(tokens, None)

    def _reply(self, text: str, stop: StopCondition) -> list[int]:
        """The tokens that a model would have sampled to say this, with what ends them."""
        renderer = self._renderer
        if renderer is not None and stop == renderer.get_stop_sequences():
            said = Message(role="assistant", content=text)
            example = renderer.build_supervised_example([Message(role="user", content="?"), said])
            tokens = example.model_input.to_ints()
            return [token for token, weight in zip(tokens, example.weights.tolist()) if weight]
        strings = [each for each in stop if isinstance(each, str)]
        if strings and not any(string in text for string in strings):
            text += strings[0]
        tokens = self._tokenizer.encode(text, add_special_tokens=False)
        return [*tokens, *[each for each in stop if isinstance(each, int)][:1]]


async def play_env(env: Env, tokenizer: Tokenizer, renderer: Renderer | None = None) -> Trajectory:
    """One episode. Raises Quit."""
    return await do_single_rollout(ManualPolicy(tokenizer, renderer), _Shown(env), limits=_LIMITS)


class _Shown(Env):
    """Prints what an env answers to an action."""

    def __init__(self, env: Env) -> None:
        self._env = env

    async def initial_observation(self) -> tuple[tinker.ModelInput, StopCondition]:
        return await self._env.initial_observation()

    async def step(self, action: Action, *, extra: ActionExtra | None = None) -> StepResult:
        given = {"extra": extra} if takes_extra(type(self._env)) else {}
        result = await self._env.step(action, **given)
        _print({"reward": result.reward, **result.metrics, **result.logs})
        return result


async def _play(config: Config) -> None:
    for number, builder in enumerate(await _builders(config)):
        try:
            if number:
                _typed("enter for another one, /quit to end> ")
            await _play_one(config, builder)
        except Quit:
            return


async def _play_one(config: Config, builder: EnvGroupBuilder) -> None:
    """The first member of a group, and its group reward."""
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
    print(f"the end after {len(trajectory.transitions)} turns ({trajectory.stop_reason})")
    _print({"total reward": total, "of it from the group": group_reward, **metrics})


def _renderer(config: Config) -> Renderer:
    name = config.renderer_name or models.recommended_renderer(config.model_name)
    return get_renderer(name, get_tokenizer(config.model_name), model_name=config.model_name)


_Made = EnvGroupBuilder | RLDatasetBuilder | RLDataset | tuple[RLDataset, RLDataset | None] | None


async def _builders(config: Config) -> Iterator[EnvGroupBuilder]:
    """Without end: a group builder is played again and again, a data set from its first batch."""
    made: _Made | Awaitable[_Made] = config.env
    if isinstance(made, RLDatasetBuilder):
        made = await _filled(made, config)()
    elif inspect.isawaitable(made):
        made = await made
    if isinstance(made, RLDatasetBuilder):
        made = await _filled(made, config)()
    if isinstance(made, tuple):
        made = made[("train", "test").index(config.split)]
    if isinstance(made, EnvGroupBuilder):
        return itertools.repeat(made)
    if not isinstance(made, RLDataset):
        raise ConfigurationError(
            f"env makes {type(made).__name__} {made!r:.60}: expected an EnvGroupBuilder or an"
            f" RLDatasetBuilder (split={config.split})"
        )
    if not 0 <= config.batch < len(made):
        raise ConfigurationError(f"batch={config.batch}: the data set has {len(made)} batches")
    batches = itertools.chain(range(config.batch, len(made)), itertools.cycle(range(len(made))))
    return (builder for index in batches for builder in made.get_batch(index))


def _filled(builder: RLDatasetBuilder, config: Config) -> RLDatasetBuilder:
    """The builder with the keys that a recipe would have filled in."""
    keys = {
        "model_name_for_tokenizer": config.model_name,
        "renderer_name": config.renderer_name or models.recommended_renderer(config.model_name),
        "group_size": 1,
        "groups_per_batch": 1,
        "seed": 0,
    }
    missing = [key for key in keys if getattr(builder, key, "not a field") is None]
    return chz.replace(builder, **{key: keys[key] for key in missing})


def _print(values: Mapping[str, str | float]) -> None:
    print("\n".join(f"  {name}: {value}" for name, value in values.items()))


def _typed(question: str = "> ") -> str:
    lines = []
    try:
        while True:
            lines.append(input(question if not lines else "... "))
            if not lines[-1].endswith("\\"):
                break
            lines[-1] = lines[-1].removesuffix("\\")
    except (EOFError, KeyboardInterrupt) as end:
        print()  # the cursor is still behind the question
        raise Quit("game ended" if isinstance(end, EOFError) else "stopped") from None
    if lines == ["/quit"]:
        raise Quit("game ended")
    return "\n".join(lines)


if __name__ == "__main__":
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 (line editing in input())
    cli(main, Config)
