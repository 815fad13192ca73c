"""The flat loop: the same rules as the library's, in the file that users copy."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tinker

from recipes import rl_loop
from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.nano import PATH as NANO
from tinker_cookbook.service import EngineConfig
from tinker_cookbook.training.journal import Journal

pytestmark = pytest.mark.skipif(
    not (NANO / "model.safetensors").exists(), reason="nano is being built"
)


def config(log_path: Path, **changes: Any) -> rl_loop.Config:
    keys = {
        "max_steps": 1,
        "groups_per_batch": 4,
        "group_size": 4,
        "max_tokens": 16,
        "lora_rank": 4,
        "display": "none",
        "log_path": str(log_path),
    }
    return rl_loop.Config(**{**keys, **changes})


def rows(log_path: Path) -> list[dict[str, Any]]:
    lines = (log_path / "metrics.jsonl").read_text().splitlines()
    return [
        {k: v for k, v in json.loads(line).items() if not k.startswith("time/")} for line in lines
    ]


# in the default suite the library's loop learns (rl/train_test.py), and this one computes the same
# numbers bit for bit (flat_loops_test.py)
@pytest.mark.slow
async def test_it_learns(tmp_path: Path) -> None:
    sizes = {"groups_per_batch": 32, "group_size": 8, "max_tokens": 40, "lora_rank": 32}
    await rl_loop.main(config(tmp_path, max_steps=8, **sizes))
    rewards = [row["reward/total"] for row in rows(tmp_path)]
    assert np.mean(rewards[:2]) < 0.6
    assert np.mean(rewards[-2:]) > 0.75


@pytest.mark.parametrize(
    ("key", "value"),
    [("group_size", 0), ("groups_per_batch", 0), ("max_tokens", 0), ("max_steps", 0), ("seed", -1)],
)
async def test_a_value_that_cannot_work(tmp_path: Path, key: str, value: int) -> None:
    with pytest.raises(ConfigurationError, match=f"^{key}={value}: "):
        await rl_loop.main(config(tmp_path, **{key: value}))


async def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = {"max_steps": 3, "save_every": 2, "engine": EngineConfig(deterministic=True)}
    await rl_loop.main(config(tmp_path / "whole", **keys))
    whole = rows(tmp_path / "whole")
    assert [row["step"] for row in whole] == [0, 1, 2]
    real = Journal.step

    def crash(self: Journal, i: int) -> Any:
        if i == 2:
            raise RuntimeError("the power went out")
        return real(self, i)

    monkeypatch.setattr(Journal, "step", crash)
    with pytest.raises(RuntimeError, match="power"):
        await rl_loop.main(config(tmp_path / "broken", **keys))
    monkeypatch.setattr(Journal, "step", real)
    await rl_loop.main(config(tmp_path / "broken", **keys))
    assert rows(tmp_path / "broken") == whole


def reply(*tokens: int) -> tinker.SampledSequence:
    return tinker.SampledSequence(
        stop_reason="stop",
        sequence_id="",
        _tokens_list=list(tokens),
        _logprobs_list=[-0.5 - i for i in range(len(tokens))],
    )


def test_what_is_trained_on() -> None:
    """By hand: a prompt of 3 tokens, rewards 1, 0, 0; everything is shifted by one."""
    replies: Sequence[tinker.SampledSequence] = [reply(7, 8), reply(9), reply(9, 9)]
    made = rl_loop.datums([1, 2, 3], replies, [1.0, 0.0, 0.0])
    first = {key: value.to_numpy().tolist() for key, value in made[0].loss_fn_inputs.items()}
    assert made[0].model_input.to_ints() == [1, 2, 3, 7]
    assert first["target_tokens"] == [2, 3, 7, 8]
    assert first["logprobs"] == [0, 0, -0.5, -1.5]
    assert first["advantages"] == pytest.approx([0, 0, 2 / 3, 2 / 3])
    assert made[1].loss_fn_inputs["advantages"].to_numpy().tolist() == pytest.approx([0, 0, -1 / 3])


async def test_groups_whose_replies_are_all_as_good_teach_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rl_loop.Sums, "is_correct", lambda *_: False)
    await rl_loop.main(config(tmp_path))
    (row,) = rows(tmp_path)
    assert (row["num_sequences"], row["reward/total"]) == (0, 0)
    assert "loss:sum" not in row
