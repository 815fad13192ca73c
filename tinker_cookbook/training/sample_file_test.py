from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tinker_cookbook.exceptions import ConfigurationError, DataFormatError
from tinker_cookbook.renderers import Message
from tinker_cookbook.training.sample_file import Row, SampleFile, plain_messages

PROMPTS = [[Message(role="user", content=f"{n}?")] for n in range(100)]
SETTINGS = {"seed": 0, "principles": ("polite",)}


async def make_row(index: int, prompt: list[Message]) -> Row:
    # the later ones of a window are ready first
    await asyncio.sleep(0.001 * (100 - index) / 100)
    return {"prompt": plain_messages(prompt), "reply": f"{index}!"}


def sample_file(path: Path) -> SampleFile:
    return SampleFile(path, lambda row: row["prompt"])


async def test_rows_are_in_order_and_a_killed_stage_resumes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = sample_file(tmp_path / "whole.jsonl")
    assert await whole.complete(SETTINGS, PROMPTS, make_row) == 0
    assert [row["index"] for row in whole.rows()] == list(range(100))
    complete = whole.path.read_bytes()

    stopped = sample_file(tmp_path / "stopped.jsonl")

    async def fail_at_70(index: int, prompt: list[Message]) -> Row:
        if index == 70:
            raise RuntimeError("killed")
        return await make_row(index, prompt)

    with pytest.raises(RuntimeError, match="killed"):
        await stopped.complete(SETTINGS, PROMPTS, fail_at_70)
    assert len(stopped.rows()) == 70
    with stopped.path.open("ab") as file:  # as a process that dies while it writes leaves it
        file.write(b'{"index": 70, "pro')
    made: list[int] = []

    async def count(index: int, prompt: list[Message]) -> Row:
        made.append(index)
        return await make_row(index, prompt)

    assert await stopped.complete(SETTINGS, PROMPTS, count) == 70
    assert made == list(range(70, 100))
    assert "stopped.jsonl: resuming at 70 of 100 samples" in capsys.readouterr().out
    assert stopped.path.read_bytes() == complete
    assert await stopped.complete(SETTINGS, PROMPTS, fail_at_70) == 100  # nothing is made again


async def test_more_prompts_extend_a_file(tmp_path: Path) -> None:
    file = sample_file(tmp_path / "rows.jsonl")
    await file.complete(SETTINGS, PROMPTS[:3], make_row)
    assert await file.complete(SETTINGS, PROMPTS[:5], make_row) == 3
    assert len(file.rows()) == 5
    with pytest.raises(ConfigurationError, match="holds 5 samples, more than the 4 of this run"):
        await file.complete(SETTINGS, PROMPTS[:4], make_row)


async def test_rows_of_other_settings_or_prompts(tmp_path: Path) -> None:
    file = sample_file(tmp_path / "rows.jsonl")
    await file.complete(SETTINGS, PROMPTS[:3], make_row)
    with pytest.raises(ConfigurationError, match="other settings: seed was 0 and is 1 now; write"):
        await file.complete({**SETTINGS, "seed": 1}, PROMPTS[:3], make_row)
    with pytest.raises(ConfigurationError, match=r"rows\.jsonl:1 was made with another prompt"):
        await file.complete(SETTINGS, PROMPTS[1:4], make_row)


def test_rows_out_of_order(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"index": 0}\n{"index": 2}\n')
    with pytest.raises(DataFormatError, match=r"rows\.jsonl:2 has index 2, expected 1; delete"):
        sample_file(path).rows()
