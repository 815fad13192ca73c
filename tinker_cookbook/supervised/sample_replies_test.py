"""Replies to prompts of the data, before and after training, which they do not change."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tinker_cookbook import checkpoint_utils
from tinker_cookbook.renderers import TrainOnWhat, get_renderer
from tinker_cookbook.service import connect
from tinker_cookbook.supervised import sample_replies, train
from tinker_cookbook.supervised.chat_config import ChatConfig, resolve_chat_config
from tinker_cookbook.supervised.data import (
    InMemoryChats,
    conversation_to_datum,
    conversation_to_datums,
)
from tinker_cookbook.supervised.defaults import SL_DEFAULTS, Batches
from tinker_cookbook.supervised.nll_evaluator import NLLEvaluator
from tinker_cookbook.supervised.sample_replies import SampleRepliesEvaluator
from tinker_cookbook.tokenizer_utils import get_tokenizer
from tinker_cookbook.training.resolve import Resolved

LONG = "Where is the ship? " * 20
CHATS: list[list[tuple[str, str]]] = [
    [("user", "Who are you?"), ("assistant", "A pirate! Arr!")],
    [
        ("system", "Be brief."),
        ("user", "What do you want?\nTell me."),
        ("assistant", "Gold!\nArr!"),
    ],
    [("user", "Hi"), ("assistant", "Ahoy."), ("user", LONG), ("assistant", "At sea.")],
]


def messages(turns: list[tuple[str, str]]) -> list[dict[str, Any]]:
    return [{"role": role, "content": content} for role, content in turns]


ROWS = [{"messages": messages(chat)} for chat in CHATS]


def config(tmp_path: Path, **changes: Any) -> Resolved[ChatConfig, Batches]:
    keys = {
        "dataset_builder": InMemoryChats(conversations=ROWS),
        "num_epochs": 4,
        "batch_size": 2,
        "lora_rank": 2,
        "log_path": str(tmp_path / "log"),
        "display": "plain",
    }
    return resolve_chat_config(
        ChatConfig(**{**keys, **changes}), SL_DEFAULTS, InMemoryChats(conversations=[])
    )


async def run(tmp_path: Path, **changes: Any) -> list[dict[str, Any]]:
    """The metrics, without those of the clock."""
    resolved = config(tmp_path, **changes)
    await train.run(resolved, recipe="supervised")
    lines = (Path(str(resolved.config.log_path)) / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows]


async def test_before_and_after(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = await run(tmp_path, num_epochs=16, batch_size=3)
    out = capsys.readouterr().out.splitlines()
    heads = [
        i
        for i, line in enumerate(out)
        if line == "greedy replies (->) and reference replies (data):"
    ]
    assert len(heads) == 2
    assert heads[0] < out.index(next(line for line in out if line.startswith("step 1/"))) < heads[1]
    before, after = (out[head + 1 : head + 10] for head in heads)
    tail = LONG.strip()[-60:]
    questions = [before[0], before[3], before[6]]
    assert sorted(questions)[1:] == ["  'What do you want?\\nTell me.'", "  'Who are you?'"]
    assert re.fullmatch(rf"  '\.\.\..*{re.escape(tail)}'", sorted(questions)[0])
    said = {"  data 'A pirate! Arr!'", "  data 'Gold!\\nArr!'", "  data 'At sea.'"}
    assert {before[2], before[5], before[8]} == {after[2], after[5], after[8]} == said
    assert [line for line in after if line.startswith("  ") and "->" not in line] == [
        line for line in before if line.startswith("  ") and "->" not in line
    ]
    for number in (0, 3, 6):  # it has learned them by heart
        assert after[number + 1] == after[number + 2].replace("  data", "    ->")
        assert before[number + 1] != after[number + 1]
    log = (tmp_path / "log" / "logs.log").read_text()
    assert log.count("greedy replies (->) and reference replies (data):") == 2
    assert [row["step"] for row in rows] == list(range(16))  # no row for what measures nothing


async def test_training_is_the_same_without(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = await run(tmp_path, log_path=str(tmp_path / "a"))
    assert "greedy replies" in capsys.readouterr().out
    assert await run(tmp_path, log_path=str(tmp_path / "b"), sample_replies=0) == shown
    assert "greedy replies" not in capsys.readouterr().out
    # whoever evaluates knows what to look at; but what is asked for is done
    evaluators = {"evaluator_builders": [_Nothing], "log_path": str(tmp_path / "c")}
    assert await run(tmp_path, **evaluators) == shown
    assert "greedy replies" not in capsys.readouterr().out


class _Nothing(NLLEvaluator):
    def __init__(self) -> None:
        pass

    async def __call__(self, client: Any, /) -> dict[str, float]:
        return {}


async def test_a_run_that_goes_on_shows_the_end_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = await run(tmp_path, log_path=str(tmp_path / "whole"))
    finish_step = train._finish_step

    async def die(done: Any, *rest: Any) -> None:
        await finish_step(done, *rest)
        if done.step == 1:
            raise KeyboardInterrupt

    keys: dict[str, Any] = {"save_every": 1, "submit_ahead": 0, "log_path": str(tmp_path / "cut")}
    with monkeypatch.context() as patch:
        patch.setattr(train, "_finish_step", die)
        with pytest.raises(KeyboardInterrupt):
            await run(tmp_path, **keys)
    first = capsys.readouterr().out
    assert await run(tmp_path, **keys, sample_replies=2) == whole
    second = capsys.readouterr().out
    assert "at step 2 of 4" in second and second.count("greedy replies (->) and") == 1
    assert second.index("step 4/4") < second.index("greedy replies (->) and")
    asked = re.findall(r"^  '.*'$", second, re.M)  # those of the first batch, as before
    assert len(asked) == 2 and all(each in first for each in asked)
    assert checkpoint_utils.get_last_checkpoint(tmp_path / "cut").final  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["qwen3_instruct", "qwen3", "role_colon"])
async def test_any_renderer(name: str) -> None:
    tokenizer = get_tokenizer("nano")
    renderer = get_renderer(name, tokenizer, model_name="nano")
    chats: list[Any] = [messages(chat) for chat in CHATS]
    datums = [conversation_to_datums(chat, renderer, None)[-1] for chat in chats]
    client = connect().create_sampling_client(base_model="nano")
    evaluator = SampleRepliesEvaluator(lambda: datums, renderer, tokenizer, 9)
    assert await evaluator(client) == {}  # type: ignore[arg-type]
    lines = evaluator.lines()
    assert len(lines) == 1 + 3 * 3
    samples = evaluator.samples()["replies"]
    assert "Who are you?" in str(samples[0]["prompt"])
    assert "Gold!\nArr!" in str(samples[1]["reference"])
    assert "Who are you?" in lines[1] and "pirate" not in lines[1]
    thought = "<think>\\n\\n</think>\\n\\n" if name == "qwen3" else ""  # it is trained, too
    assert lines[3] == f"  data '{thought}A pirate! Arr!'"
    assert lines[6] == f"  data '{thought}Gold!\\nArr!'"
    assert "Tell me." in lines[4] and "the ship?" in lines[7] and "sea" not in lines[7]
    assert max(map(len, lines)) < sample_replies.MAX_REPLY_CHARS + 20


async def test_long_ones_are_cut_and_what_has_no_prompt_is_left_out() -> None:
    tokenizer = get_tokenizer("nano")
    renderer = get_renderer("qwen3_instruct", tokenizer, model_name="nano")
    client = connect().create_sampling_client(base_model="nano")
    endless = messages([("user", "Hm?"), ("assistant", "ha " * 300)])
    datum = conversation_to_datum(endless, renderer, 400)  # type: ignore[arg-type]
    evaluator = SampleRepliesEvaluator(lambda: [datum], renderer, tokenizer, 3)
    await evaluator(client)  # type: ignore[arg-type]
    assert (
        evaluator.lines()[3]
        == f"  data {('ha ' * 300)[: sample_replies.MAX_REPLY_CHARS] + '...'!r}"
    )
    whole = conversation_to_datum(endless, renderer, 400, TrainOnWhat.ALL_TOKENS)  # type: ignore[arg-type]
    asked = messages([("user", "Hm? " * 1500), ("assistant", "ha")])
    long = conversation_to_datum(asked, renderer, None)  # type: ignore[arg-type]
    evaluator = SampleRepliesEvaluator(lambda: [whole, long], renderer, tokenizer, 3)
    await evaluator(client)  # type: ignore[arg-type]
    assert evaluator.lines() == []


class _Data(train.SupervisedDataset):
    """A data set of so many batches."""

    def __init__(self, batches: int, num_rows: int | None = None) -> None:
        self.batches = batches
        if num_rows is not None:
            self.num_rows = num_rows

    def __len__(self) -> int:
        return self.batches

    def get_batch(self, index: int) -> list[Any]:
        raise NotImplementedError


@pytest.mark.parametrize(
    ("rows", "batch_size", "num_epochs", "expected"),
    [
        (
            70,
            32,
            1,
            "2 steps may be too few to learn much: num_epochs=10 makes 20, batch_size=3 makes 23",
        ),
        (
            3,
            32,
            15,
            "15 steps may be too few to learn much: num_epochs=20 makes 20, batch_size=1 makes 45",
        ),
        (3, 32, 1, "1 step may be too few to learn much: num_epochs=20 makes 20"),
        (
            600,
            32,
            1,
            "18 steps may be too few to learn much: num_epochs=2 makes 36, batch_size=30 makes 20",
        ),
        (640, 32, 1, None),
        (70, 32, 10, None),
    ],
)
def test_a_hint_where_steps_are_few(
    rows: int, batch_size: int, num_epochs: int, expected: str | None, tmp_path: Path
) -> None:
    made = config(tmp_path, batch_size=batch_size, num_epochs=num_epochs).config
    data = _Data(max(1, rows // batch_size), rows)
    total = len(data) * num_epochs
    hint = train.few_steps_hint(made, data, total)
    assert hint == expected
    for epochs, size, steps in _promises(hint or "", num_epochs, batch_size):
        assert max(1, rows // size) * epochs == steps >= train.FEW_STEPS
    limited = config(tmp_path, max_steps=total).config
    assert train.few_steps_hint(limited, data, total) is None


def _promises(hint: str, epochs: int, size: int) -> list[tuple[int, int, int]]:
    """(num_epochs, batch_size, steps) of each way that a hint names."""
    found = re.findall(r"(num_epochs|batch_size)=(\d+) makes (\d+)", hint)
    return [
        (int(value) if key == "num_epochs" else epochs, int(value) if key != "num_epochs" else size,
         int(steps))
        for key, value, steps in found
    ]  # fmt: skip


def test_a_hint_knows_no_rows_of_a_stream(tmp_path: Path) -> None:
    hint = train.few_steps_hint(config(tmp_path).config, _Data(7), 7)
    assert hint == "7 steps may be too few to learn much: num_epochs=3 makes 21"
