"""Playing by hand: what is shown, what is typed, and how it ends."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import chz
import pytest
import tinker

from tests.programs import Program, Programs
from tinker_cookbook.cli_utils import parse
from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.renderers import get_renderer
from tinker_cookbook.rl import play, play_w_env
from tinker_cookbook.rl.problem_env import ProblemEnv, ProblemGroupBuilder
from tinker_cookbook.rl.types import (
    Env,
    EnvGroupBuilder,
    RLDataset,
    RLDatasetBuilder,
    StepResult,
)
from tinker_cookbook.tokenizer_utils import get_tokenizer

NANO = get_tokenizer("nano")
HERE = f"{__name__}:"


class Sum(ProblemEnv):
    def __init__(self, name: str = "qwen3_instruct", a: int = 3) -> None:
        super().__init__(get_renderer(name, NANO))
        self.a = a

    def get_question(self) -> str:
        return f"What is {self.a} + 4?"

    def check_answer(self, sample_str: str) -> bool:
        return sample_str == str(self.a + 4)

    def check_format(self, sample_str: str) -> bool:
        return True

    def get_reference_answer(self) -> str:
        return str(self.a + 4)


class SumGroup(EnvGroupBuilder):
    def __init__(self, name: str = "qwen3_instruct") -> None:
        self.name = name

    async def make_envs(self) -> list[Env]:
        return [Sum(self.name) for _ in range(3)]

    async def compute_group_rewards(self, trajectories_G: Any, env_group: Any) -> Any:
        return [(0.25, {"lucky": 1})] * len(trajectories_G)


class SumData(RLDataset):
    def get_batch(self, index: int) -> list[EnvGroupBuilder]:
        return [ProblemGroupBuilder(lambda a=index + i: Sum(a=a), 2) for i in (0, 10)]

    def __len__(self) -> int:
        return 2


@chz.chz
class SumDataBuilder(RLDatasetBuilder):
    model_name_for_tokenizer: str | None = None
    renderer_name: str | None = None
    group_size: int | None = None
    groups_per_batch: int = 2

    async def __call__(self) -> tuple[RLDataset, RLDataset | None]:
        assert (self.model_name_for_tokenizer, self.renderer_name) == ("nano", "qwen3_instruct")
        assert (self.group_size, self.groups_per_batch) == (1, 2)
        return SumData(), None


def make_data(group_size: int = 2) -> SumDataBuilder:
    return SumDataBuilder()


class Raw(Env):
    """Speaks tokens, stops at "]", and its step knows nothing of `extra`."""

    async def initial_observation(self) -> Any:
        return tinker.ModelInput.from_ints(NANO.encode("Say [x")), ["]"]

    async def step(self, action: list[int]) -> StepResult:  # type: ignore[override]
        return StepResult(
            0.5, True, tinker.ModelInput.empty(), [], logs={"said": NANO.decode(action)}
        )


class RawGroup(EnvGroupBuilder):
    async def make_envs(self) -> list[Env]:
        return [Raw()]


class Breaks(Sum):
    def check_answer(self, sample_str: str) -> bool:
        raise KeyError("no such answer")


class BreaksGroup(EnvGroupBuilder):
    cleaned = 0

    async def make_envs(self) -> list[Env]:
        return [Breaks()]

    async def cleanup(self) -> None:
        type(self).cleaned += 1


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Any]:
    """`typed("env=...", "a line", ...)` plays; an exception among the lines is raised."""

    def run(words: str, *lines: Any) -> str:
        waiting = iter(lines)

        def answer(question: str) -> str:
            line = next(waiting, EOFError())
            if isinstance(line, BaseException):
                raise line
            return line

        monkeypatch.setattr("builtins.input", answer)
        play.main(parse(play.Config, words.split()))
        assert next(waiting, None) is None, "not all lines were asked for"
        return capsys.readouterr().out

    yield run


def test_a_group(typed: Any) -> None:
    out = typed(f"env={HERE}SumGroup", "7", "/quit")
    assert out.count("What is 3 + 4?<|im_end|>") == 1
    assert "reward: 1.0" in out
    assert "correct: 1.0" in out
    assert "format: 1.0" in out
    assert "total reward: 1.25\n  group reward: 0.25\n  lucky: 1" in out


@pytest.mark.parametrize("name", ["role_colon", "qwen3_disable_thinking", "qwen3"])
def test_in_every_format(typed: Any, name: str) -> None:
    out = typed(f"env={HERE}SumGroup env.name={name}", "7", "/quit")
    assert "reward: 1.0" in out
    assert "format: 1.0" in out


def test_one_after_another_and_several_lines(typed: Any) -> None:
    out = typed(f"env={HERE}SumGroup", "It is\\", "seven", "", "7")
    assert "reply: It is\nseven" in out
    assert out.count("total reward") == 2


@pytest.mark.parametrize("env", ["SumDataBuilder", "make_data"])
def test_a_data_set(typed: Any, env: str) -> None:
    out = typed(f"env={HERE}{env} batch=1", "5", "", "15", "", "4")
    asked = [line for line in out.splitlines() if line.startswith("What is")]
    assert asked == [f"What is {a} + 4?<|im_end|>" for a in (1, 11, 0)]
    assert out.count("total reward: 1.0\n") == 3


def test_an_env_in_tokens(typed: Any) -> None:
    out = typed(f"env={HERE}RawGroup", "x", "", "y] z")
    assert "Say [x" in out
    assert "said: x]" in out
    assert "said: y] z" in out
    assert "total reward: 0.5" in out


def test_an_env_that_raises_shows_where(typed: Any) -> None:
    out = typed(f"env={HERE}BreaksGroup", "7", "", "/quit")
    assert "in check_answer" in out
    assert "KeyError: 'no such answer'" in out
    assert BreaksGroup.cleaned == 2


@pytest.mark.parametrize(
    ("end", "said"),
    [("/quit", "game ended"), (EOFError(), "game ended"), (KeyboardInterrupt(), "stopped")],
)
def test_the_end(typed: Any, end: Any, said: str) -> None:
    BreaksGroup.cleaned = 0
    out = typed(f"env={HERE}BreaksGroup", end)
    assert out.splitlines()[-1] == said
    assert BreaksGroup.cleaned == 1
    assert said not in typed(f"env={HERE}SumGroup", "7", end)  # that game was over


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("env=no_such_module:X", "env='no_such_module:X': no module 'no_such_module'"),
        (f"env={HERE}SumGrop", f"module '{__name__}' has no 'SumGrop'"),
        (f"env={HERE}SumDataBuilder split=test", "split=test"),
        (f"env={HERE}SumDataBuilder batch=2", "batch=2: the data set has 2 batches"),
        (f"env={HERE}chz", "env"),
        ("", "missing env"),
    ],
)
def test_refused(typed: Any, words: str, text: str) -> None:
    with pytest.raises(ConfigurationError, match=text):
        typed(words)


def test_the_known_name() -> None:
    assert play_w_env.main is play.main


class SlowlyCleaned(SumGroup):
    async def cleanup(self) -> None:
        print("cleaning up", flush=True)
        await asyncio.sleep(60)


def start(programs: Programs, env: str, tmp_path: Path) -> Program:
    module = "tinker_cookbook.rl.play_w_env"
    path = os.pathsep.join([*sys.path, str(Path(__file__).parent)])
    environment = {**os.environ, "PYTHONPATH": path}
    return programs.start(module, f"env={Path(__file__).stem}:{env}", env=environment, cwd=tmp_path)


def test_ctrl_c_at_the_prompt(programs: Programs, tmp_path: Path) -> None:
    process = start(programs, "SumGroup", tmp_path)
    while "assistant" not in process.stdout.readline():
        pass
    time.sleep(0.3)  # it asks for input now
    started = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 0
    assert time.monotonic() - started < 8  # not by the grace time of Ctrl-C
    assert process.stderr.read() == ""


def test_a_second_ctrl_c_ends_a_slow_cleanup_and_promises_nothing(
    programs: Programs, tmp_path: Path
) -> None:
    process = start(programs, "SlowlyCleaned", tmp_path)
    for line in ("assistant", "cleaning up"):
        while line not in process.stdout.readline():
            pass
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
    assert process.wait(20) == 130
    assert process.stderr.read() == ""
