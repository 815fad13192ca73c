"""The loop on nano: what it reports, when it evaluates, what it keeps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn

import chz
import pytest

from tinker_cookbook.exceptions import DataValidationError
from tinker_cookbook.renderers import TrainOnWhat
from tinker_cookbook.service import default_store_dir
from tinker_cookbook.service.store import Store
from tinker_cookbook.supervised import train
from tinker_cookbook.supervised.data import InMemoryChats
from tinker_cookbook.supervised.datasets import LazyRows, render_rows
from tinker_cookbook.supervised.types import (
    ChatDatasetBuilder,
    ChatDatasetBuilderCommonConfig,
    SupervisedDataset,
    SupervisedDatasetBuilder,
)

COMMON = ChatDatasetBuilderCommonConfig(
    model_name_for_tokenizer="nano", renderer_name="qwen3_instruct", max_length=24, batch_size=2
)


def row(question: str, answer: str = "yes") -> dict[str, Any]:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": messages}


ROWS = [row(f"Is {number} a number?") for number in range(4)]


def config(tmp_path: Path, **changes: Any) -> train.Config:
    data = InMemoryChats(common_config=COMMON, conversations=ROWS, test_conversations=ROWS[:2])
    keys = {
        "dataset_builder": data,
        "log_path": str(tmp_path / "log"),
        "display": "plain",
        "lora_rank": 2,
        "eval_every": 0,
        "save_every": 0,
    }
    return train.Config(**{**keys, **changes})


def metrics(log_path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (log_path / "metrics.jsonl").read_text().splitlines()]


async def test_the_seconds_of_an_evaluation_stand_in_the_row_of_its_results(tmp_path: Path) -> None:
    for submit_ahead in (0, 1, 3):
        log_path = tmp_path / str(submit_ahead)
        changes = {"num_epochs": 2, "eval_every": 2, "submit_ahead": submit_ahead}
        await train.main(config(tmp_path, log_path=str(log_path), **changes))
        evaluated = [r["step"] for r in metrics(log_path) if "test/nll" in r]
        assert evaluated == [0, 2, 4]
        assert [r["step"] for r in metrics(log_path) if "time/evals" in r] == evaluated


async def test_what_was_filled_in_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    await train.main(config(tmp_path))
    expected = "nano: learning_rate=0.006 renderer_name=qwen3_instruct"
    assert expected in capsys.readouterr().out.splitlines()
    given = {"learning_rate": 1e-3, "renderer_name": "qwen3_instruct"}
    await train.main(config(tmp_path, log_path=str(tmp_path / "b"), **given))
    assert "nano:" not in capsys.readouterr().out


@chz.chz
class OnDemand(ChatDatasetBuilder):
    """Four rows to train on and three for the test, each with one that is too long."""

    def __call__(self) -> tuple[SupervisedDataset, SupervisedDataset | None]:
        render = render_rows(self.renderer, COMMON.max_length, TrainOnWhat.ALL_ASSISTANT_MESSAGES)
        long = row("yes?", "and " * 40)
        options = {"max_length": COMMON.max_length}
        test = [*ROWS[:1], long, {"messages": []}]
        return (
            LazyRows([*ROWS[:3], long], render, batch_size=2, name="mine", **options),
            LazyRows(test, render, batch_size=3, shuffle_seed=None, name="mine (test)", **options),
        )


async def test_the_accounts_of_data_that_is_rendered_on_demand(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    await train.main(config(tmp_path, dataset_builder=OnDemand(common_config=COMMON)))
    lines = capsys.readouterr().out.splitlines()
    assert lines.count("mine: 4 conversations, rendered when first used") == 1
    mine = [line for line in lines if line.startswith("mine: 4 conversations, 4 examples")]
    assert len(mine) == 1 and lines.index(mine[0]) > len(lines) - 10
    cut = "1 conversation longer than max_length=24, truncated on the right; "
    assert any(line.startswith(f"mine: {cut}") for line in lines)
    assert any(line.startswith("mine (test): 3 conversations, 2 examples") for line in lines)
    assert any(line.startswith(f"mine (test): {cut}") for line in lines)
    assert any(line.startswith("mine (test): 1 example skipped: row 2: ") for line in lines)
    # half an epoch
    short = {"log_path": str(tmp_path / "b"), "max_steps": 1}
    await train.main(config(tmp_path, dataset_builder=OnDemand(common_config=COMMON), **short))
    assert "mine: 2 conversations of 4 so far" in capsys.readouterr().out


async def test_a_finished_run_that_goes_on_keeps_the_results_of_its_weights(tmp_path: Path) -> None:
    await train.main(config(tmp_path, max_steps=2, num_epochs=5, lr_schedule="constant"))
    before = metrics(tmp_path / "log")[2]
    assert before["step"] == 2
    await train.main(config(tmp_path, max_steps=4, num_epochs=5, lr_schedule="constant"))
    rows = metrics(tmp_path / "log")
    assert [r["step"] for r in rows if "test/nll" in r] == [0, 2, 4]
    assert rows[2]["test/nll"] == before["test/nll"]
    assert "train_mean_nll" in rows[2] and "train_mean_nll" not in before


async def test_rolling_checkpoints_replace_each_other(tmp_path: Path) -> None:
    await train.main(config(tmp_path, num_epochs=3, rolling_save_every=1))
    saved = (tmp_path / "log" / "checkpoints.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in saved]
    assert len(records) == 6 and records[-1]["final"]
    kept = [str(each.path) for each in Store(default_store_dir()).list_all()]
    assert sorted(kept) == sorted([records[-1]["state_path"], records[-1]["sampler_path"]])


class _Nothing(train.SupervisedDataset):
    def get_batch(self, index: int) -> NoReturn:
        raise AssertionError("there is none")

    def __len__(self) -> int:
        return 0


@chz.chz
class Nothing(SupervisedDatasetBuilder):
    def __call__(self) -> tuple[SupervisedDataset, SupervisedDataset | None]:
        return _Nothing(), None


async def test_data_without_a_batch_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataValidationError, match="no batch"):
        await train.main(config(tmp_path, dataset_builder=Nothing()))


async def test_more_steps_than_the_epochs_have_are_said_to_be_out_of_reach(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    await train.main(config(tmp_path, max_steps=5))
    line = (
        "max_steps=5 will not be reached: num_epochs=1 gives 2 steps; num_epochs=3 would reach it"
    )
    assert line in capsys.readouterr().out.splitlines()
