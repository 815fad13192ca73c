"""A renderer that does not fit is noticed by the first loss, with the loss of the one that does."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import chz
import pytest

from tinker_cookbook.exceptions import RendererError
from tinker_cookbook.supervised import renderer_check, train
from tinker_cookbook.supervised.data import InMemoryChats
from tinker_cookbook.supervised.renderer_check import RendererCheck
from tinker_cookbook.supervised.types import ChatDatasetBuilderCommonConfig
from tinker_cookbook.utils.ml_log import read_metrics


def row(question: str, answer: str) -> dict[str, Any]:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": messages}


SUMS = [row(f"What is {number} + {number}?", f"{2 * number}") for number in range(1, 21)]
FOUND = "the first training loss is"


def data(renderer_name: str, rows: Sequence[dict[str, Any]] = SUMS) -> InMemoryChats:
    common = ChatDatasetBuilderCommonConfig(
        model_name_for_tokenizer="nano", renderer_name=renderer_name, max_length=64, batch_size=10
    )
    return InMemoryChats(common_config=common, conversations=list(rows))


async def run(log_path: Path, builder: InMemoryChats, **changes: Any) -> float:
    """Train; returns the loss of the first step."""
    keys = {
        "dataset_builder": builder,
        "log_path": str(log_path),
        "display": "plain",
        "lora_rank": 2,
        "eval_every": 0,
        "save_every": 0,
        "sample_replies": 0,
        "lr_schedule": "constant",
    }
    await train.main(train.Config(**{**keys, **changes}))
    return read_metrics(log_path)[0]["train_mean_nll"]


async def test_a_wrong_renderer_is_noticed_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the two losses, which are those of runs with either renderer; a resumed run is silent
    and the check changes no number."""
    wrong = data("role_colon")
    first = await run(tmp_path / "wrong", wrong, max_steps=2)
    lines = [line for line in capsys.readouterr().out.splitlines() if FOUND in line]
    fitting = await run(tmp_path / "fits", data("qwen3_instruct"), max_steps=2)
    assert FOUND not in capsys.readouterr().out
    assert len(lines) == 1
    assert "with renderer_name=role_colon, " in lines[0]
    assert lines[0].count("renderer_name=qwen3_instruct") == 2
    found = [float(number) for number in re.findall(r"\d+\.\d\d", lines[0])]
    assert found == pytest.approx([first, fitting], abs=0.3)  # of 8 examples, not of 10
    assert found[0] > found[1] + renderer_check.MARGIN
    await run(tmp_path / "wrong", wrong, max_steps=3, num_epochs=2)
    assert FOUND not in capsys.readouterr().out


async def test_the_check_changes_no_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await run(tmp_path / "checked", data("role_colon"))
    monkeypatch.setattr(train, "make_renderer_check", lambda *_: None)
    await run(tmp_path / "unchecked", data("role_colon"))
    losses = [
        [each["train_mean_nll"] for each in read_metrics(tmp_path / name)]
        for name in ("checked", "unchecked")
    ]
    assert len(losses[0]) == 2 and losses[0] == losses[1]


async def test_data_that_is_hard_in_both_formats_is_no_sign(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Words that nano has never seen: its own format helps with the first of many tokens only."""
    rows = [row("?", "zqx wvk " * 6) for _ in range(10)]
    assert await run(tmp_path / "hard", data("role_colon", rows)) > 2.5
    assert FOUND not in capsys.readouterr().out


async def test_data_that_the_recommended_renderer_cannot_render(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: RendererCheck) -> None:
        raise RendererError("message 0: role 'critic'")

    monkeypatch.setattr(RendererCheck, "_examples_as_recommended", fail)
    await run(tmp_path / "one", data("role_colon"))
    assert FOUND not in capsys.readouterr().out


def test_when_there_is_nothing_to_check() -> None:
    def check(model: str, renderer: str, **changes: Any) -> RendererCheck | None:
        builder = chz.replace(data(renderer), **changes)
        return renderer_check.make_renderer_check(builder, model, renderer, seed=0)

    found = check("Qwen/Qwen3-8B", "role_colon")
    assert found is not None and found.recommended == "qwen3"
    assert check("Qwen/Qwen3-8B", "qwen3_disable_thinking") is None
    assert check("Qwen/Qwen3-8B", "template") is None
    assert check("Qwen/Qwen3-8B-Base", "qwen3") is None
    assert check("nobody/knows-it", "role_colon") is None
    assert check("nano", "role_colon", common_config=None) is None
