"""An environment as the README shows it: a script, nano and a person play it."""

from __future__ import annotations

import importlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from tests.programs import Programs
from tinker_cookbook.completers import TinkerTokenCompleter, TokensWithLogprobs
from tinker_cookbook.exceptions import TrainingError
from tinker_cookbook.rl import train
from tinker_cookbook.rl.rollouts import RolloutLimits, do_group_rollout
from tinker_cookbook.service import EngineConfig, connect

ROOT = Path(__file__).parent.parent
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
(SOURCE,) = (block for block in BLOCKS if "(MessageEnv)" in block)
KEYS = {"model_name_for_tokenizer": "nano", "renderer_name": "qwen3_instruct"}


@pytest.fixture
def my_env(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    (tmp_path / "my_env.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield importlib.import_module("my_env")
    del sys.modules["my_env"]


async def test_bisection_wins_every_game(my_env: Any) -> None:
    games, test = await my_env.GuessNumber(**KEYS, group_size=2, groups_per_batch=40)()
    assert test is None
    assert games.get_batch(3)[5].logging_tags() == ["guess"]
    renderer = games.renderer
    (end,) = renderer.get_stop_sequences()

    async def bisects(model_input: Any, stop: Any) -> TokensWithLogprobs:
        """Reads the whole prompt anew each time."""
        low, high = 0, 15
        for hint in renderer.tokenizer.decode(model_input.to_ints()).split("assistant\n")[1:-1]:
            guess = (low + high) // 2
            low, high = (guess + 1, high) if "Higher." in hint else (low, guess - 1)
        tokens = renderer.encoder.encode(str((low + high) // 2))
        return TokensWithLogprobs([*tokens, end], None)

    won_at = set()
    for builder in games.get_batch(0):
        group = await do_group_rollout(builder, bisects)
        assert group.get_total_rewards() == [1.0, 1.0]
        for trajectory in group.trajectories_G:
            won = [turn.metrics.get("won") for turn in trajectory.transitions]
            assert won == [None] * (len(won) - 1) + [1.0]
            won_at.add(len(won))
    assert won_at == {1, 2, 3, 4, 5}


async def test_nano_plays_it(my_env: Any) -> None:
    """Well enough to be trained: some games are won and some lost, and batches can be had again."""
    games, _ = await my_env.GuessNumber(**KEYS, group_size=4, groups_per_batch=6)()
    client = await connect(engine=EngineConfig(device="cpu")).create_sampling_client(
        base_model="nano"
    )
    policy = TinkerTokenCompleter(client, 8)
    rewards = []
    for _ in range(2):
        groups = [
            await do_group_rollout(builder, policy, seed=i)
            for i, builder in enumerate(games.get_batch(7))
        ]
        assert [group.rollout_errors for group in groups] == [[]] * 6
        rewards.append([reward for group in groups for reward in group.get_total_rewards()])
    assert rewards[0] == rewards[1]
    assert {0.0, 1.0} <= set(rewards[0])


Run = Callable[..., CompletedProcess[str]]


@pytest.fixture
def run(programs: Programs) -> Run:
    def run(directory: Path, words: list[str], typed: str = "") -> CompletedProcess[str]:
        runs = {"TINKER_COOKBOOK_RUNS_DIR": str(directory / "runs")}
        path = {"PYTHONPATH": f"{ROOT}{os.pathsep}{directory}"}
        return programs.run(*words, cwd=directory, env={**os.environ, **runs, **path}, typed=typed)

    return run


def test_the_recipe_trains_on_it(run: Run, my_env: Any, tmp_path: Path) -> None:
    words = ["recipes.rl_basic", "data=my_env:GuessNumber", "groups_per_batch=4", "group_size=4"]
    done = run(tmp_path, [*words, "max_steps=2", "log_path=run"])
    assert (done.returncode, done.stderr) == (0, "")
    rows = [
        json.loads(row) for row in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    assert [row["env/all/total_episodes"] for row in rows] == [16, 16]
    assert 0 < rows[0]["env/all/won"] < 1
    assert rows[0]["env/all/turns_per_episode"] > 1

    # a longer run goes on with this one, but not with another game of the same name
    longer = [*words, "max_steps=3", "log_path=run"]
    (tmp_path / "other_env.py").write_text(SOURCE.replace("range(16)", "range(2)"))
    done = run(
        tmp_path, ["other_env:GuessNumber".join(w.split("my_env:GuessNumber")) for w in longer]
    )
    assert done.returncode == 2
    assert '"my_env:GuessNumber" and is "other_env:GuessNumber" now' in done.stderr
    (tmp_path / "my_env.py").write_text(SOURCE.replace("float(won)", "2.0 * won"))
    done = run(tmp_path, longer)
    assert done.returncode == 2
    assert (
        "my_env.py changed since it was last started or resumed" in done.stderr
        and len(done.stderr.split("\n")) == 2
    )
    done = run(tmp_path, [*longer, "behavior_if_log_dir_exists=resume"])
    assert (done.returncode, done.stderr) == (0, "")
    assert "my_env.py changed: the remaining steps run the edited code" in done.stdout


async def test_python_trains_on_it(my_env: Any, tmp_path: Path) -> None:
    """Also with a bound that was too short at first: the message says which to raise."""

    async def learn(sample_timeout: float) -> None:
        limits = RolloutLimits(sample_timeout=sample_timeout)
        data = my_env.GuessNumber(**KEYS, group_size=4, groups_per_batch=4)
        config = train.Config(
            model_name="nano",
            dataset_builder=data,
            limits=limits,
            max_tokens=8,
            max_steps=2,
            lora_rank=4,
            log_path=str(tmp_path / "run"),
            display="none",
        )
        await train.main(config)

    with pytest.raises(TrainingError, match=r"limits\.sample_timeout=0\.001: .* raise it"):
        await learn(0.001)
    await learn(60)
    rows = [json.loads(row) for row in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [row["env/all/total_episodes"] for row in rows] == [16, 16]
    assert rows[1]["optim/logprob_gap_mean"] < 1e-5


def test_a_person_plays_it(run: Run, my_env: Any, tmp_path: Path) -> None:
    words = ["tinker_cookbook.rl.play", "env=my_env:GuessNumber", "batch=2"]
    done = run(tmp_path, words, "".join(f"{guess}\n" for guess in range(5)))
    assert (done.returncode, done.stderr) == (0, "")
    assert "Guess it.<|im_end|>" in done.stdout
    assert done.stdout.count("Guess it.") == 1  # what was shown once is not shown again
    assert "total reward: " in done.stdout
