"""The flat loop: the same rules as the library's, in the file that users copy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recipes import number_words, sl_loop
from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.service import EngineConfig
from tinker_cookbook.supervised.datasets import epoch_order, epoch_seed
from tinker_cookbook.utils.misc_utils import runs_path


def config(**changes: Any) -> sl_loop.Config:
    keys = {"max_steps": 1, "display": "plain", "lora_rank": 2, "batch_size": 4}
    return sl_loop.Config(**{**keys, **changes})


def run_directories() -> list[Path]:
    return sorted(path for path in runs_path().glob("sl_loop-*"))


def read(directory: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (directory / name).read_text().splitlines()]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("batch_size", 0),
        ("num_epochs", 0),
        ("max_steps", 0),
        ("learning_rate", -1.0),
        ("seed", -1),
        ("max_length", -5),
        ("max_length", 4096),
        ("dataset_path", "no.jsonl"),
    ],
)
async def test_a_value_that_cannot_work(key: str, value: object) -> None:
    with pytest.raises(ConfigurationError, match=f"^{key}={value}: "):
        await sl_loop.main(config(**{key: value}))


async def test_a_learning_rate_of_zero_is_a_value(capsys: pytest.CaptureFixture[str]) -> None:
    await sl_loop.main(config(learning_rate=0.0))
    (row,) = read(run_directories()[0], "metrics.jsonl")
    assert row["learning_rate"] == 0
    said = capsys.readouterr().out.splitlines()
    assert "nano: renderer_name=qwen3_instruct max_length=512" in said


async def test_the_renderer_of_the_checkpoint_is_used(tmp_path: Path) -> None:
    first = tmp_path / "first"
    await sl_loop.main(config(log_path=str(first), renderer_name="qwen3_disable_thinking"))
    path = read(first, "checkpoints.jsonl")[-1]["state_path"]
    second = tmp_path / "second"
    await sl_loop.main(config(log_path=str(second), load_checkpoint_path=path))
    assert json.loads((second / "config.json").read_text())["renderer_name"] == (
        "qwen3_disable_thinking"
    )


async def test_another_file_of_the_same_name_is_another_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = Path(number_words.path("train")).read_text().splitlines(keepends=True)
    for name, count in (("a", 8), ("b", 16), ("c", 8)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "chats.jsonl").write_text("".join(lines[:count]))
    monkeypatch.chdir(tmp_path / "a")
    await sl_loop.main(config(dataset_path="chats.jsonl", max_steps=None))
    monkeypatch.chdir(tmp_path / "b")
    await sl_loop.main(config(dataset_path="chats.jsonl", max_steps=None))
    steps = [[row["step"] for row in read(path, "metrics.jsonl")] for path in run_directories()]
    assert sorted(steps) == [[0, 1], [0, 1, 2, 3]]
    monkeypatch.chdir(tmp_path / "c")  # the same data at another place goes on where it was
    await sl_loop.main(config(dataset_path="chats.jsonl", num_epochs=2, max_steps=3))
    steps = [[row["step"] for row in read(path, "metrics.jsonl")] for path in run_directories()]
    assert sorted(steps) == [[0, 1, 2], [0, 1, 2, 3]]


async def test_settings_of_the_engine_may_change(tmp_path: Path) -> None:
    await sl_loop.main(config())
    await sl_loop.main(config(max_steps=2, engine=EngineConfig(tokens_per_pass=4096)))
    (directory,) = run_directories()
    assert [row["step"] for row in read(directory, "metrics.jsonl")] == [0, 1]


async def test_the_order_is_that_of_the_librarys_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seed 1 does not begin with the second epoch of seed 0."""
    seen: list[np.ndarray] = []

    def noted(num_rows: int, shuffle_seed: int | None, epoch: int) -> np.ndarray:
        seen.append(order := epoch_order(num_rows, shuffle_seed, epoch))
        return order

    monkeypatch.setattr("tinker_cookbook.supervised.datasets.epoch_order", noted)
    await sl_loop.main(config(seed=1))
    assert (seen[-1] == epoch_order(70, 0, epoch_seed(1, 0))).all()
    assert (seen[-1] != epoch_order(70, 0, epoch_seed(0, 1))).any()
