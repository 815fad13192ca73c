from __future__ import annotations

import asyncio
import errno
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tinker_cookbook.completers import TinkerMessageCompleter
from tinker_cookbook.distillation.teacher_samples import (
    TeacherSamples,
    count_problems,
    describe_usable,
    sample_replies,
    samples_file,
)
from tinker_cookbook.exceptions import (
    ConfigurationError,
    DataFormatError,
    DataValidationError,
    RendererError,
)
from tinker_cookbook.renderers import Message, get_renderer
from tinker_cookbook.sequences import from_datum
from tinker_cookbook.supervised.types import ChatDatasetBuilderCommonConfig
from tinker_cookbook.testing import Asked, ScriptedEngine, scripted_service
from tinker_cookbook.tokenizer_utils import get_tokenizer
from tinker_cookbook.training import run_directory
from tinker_cookbook.training.sample_file import SavedRow

PROMPTS = [[Message(role="user", content=f"What is {n} + 2?")] for n in range(6)]
SETTINGS = {"teacher": "nano"}
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call><|im_end|>'
TOKENIZER = get_tokenizer("nano")


class Teacher(ScriptedEngine):
    """Replies with a text, or by default with a thought and a number drawn by the seed."""

    def __init__(self, text: str | None = None, tokens: Sequence[int] | None = None) -> None:
        super().__init__(reply=self.write)
        self.text, self.tokens = text, tokens
        self.sampled: dict[str, list[int]] = {}  # by prompt, the last one

    def write(self, asked: Asked) -> Sequence[int]:
        text = self.text or f"<think>\n{asked.request.seed}\n</think>\n\nIt is 7.<|im_end|>"
        tokens = self.tokens or TOKENIZER.encode(text)
        self.sampled[str(TOKENIZER.decode(asked.prompt))] = [*asked.prompt, *tokens]
        return tokens


async def completer(
    engine: ScriptedEngine,
    store: Path,
    window: int | None = None,
    max_tokens: int = 80,
    renderer_name: str = "qwen3_instruct",
) -> TinkerMessageCompleter:
    client = await scripted_service(engine, store).create_sampling_client(base_model="nano")
    renderer = get_renderer(renderer_name, TOKENIZER, model_name="nano")
    return TinkerMessageCompleter(client, renderer, max_tokens, context_window=window)


async def rows_of(
    tmp_path: Path, engine: ScriptedEngine, renderer_name: str = "qwen3_instruct"
) -> list[SavedRow]:
    path = tmp_path / "samples.jsonl"
    teacher = await completer(engine, tmp_path, renderer_name=renderer_name)
    await sample_replies(path, teacher, PROMPTS[:1], seed=0, settings=SETTINGS)
    return samples_file(path).rows()


def data(path: Path, test_size: int = 0, renderer_name: str = "qwen3_instruct") -> TeacherSamples:
    common = ChatDatasetBuilderCommonConfig(
        model_name_for_tokenizer="nano",
        renderer_name=renderer_name,
        max_length=400,
        batch_size=100,
    )
    return TeacherSamples(path=str(path), test_size=test_size, common_config=common)


async def test_samples_of_a_program_that_was_stopped_are_the_same(tmp_path: Path) -> None:
    teacher = await completer(Teacher(), tmp_path)
    whole, stopped = tmp_path / "whole.jsonl", tmp_path / "stopped.jsonl"
    await sample_replies(whole, teacher, PROMPTS, seed=0, settings=SETTINGS, num_samples=2)
    rows = samples_file(whole).rows()
    assert len(rows) == 12
    assert [row["messages"][0]["content"] for row in rows[:3]] == [
        "What is 0 + 2?",
        "What is 0 + 2?",
        "What is 1 + 2?",
    ]
    assert len({json.dumps(row["messages"]) for row in rows}) == 12  # each has its own seed

    class Stopping(Teacher):
        def write(self, asked: Asked) -> Sequence[int]:
            if "3 + 2" in str(TOKENIZER.decode(asked.prompt)):
                raise RuntimeError("killed")
            return super().write(asked)

    broken = await completer(Stopping(), tmp_path)
    with pytest.raises(RuntimeError, match="killed"):
        await sample_replies(stopped, broken, PROMPTS, seed=0, settings=SETTINGS, num_samples=2)
    assert len(samples_file(stopped).rows()) == 6
    await sample_replies(stopped, teacher, PROMPTS, seed=0, settings=SETTINGS, num_samples=2)
    assert stopped.read_bytes() == whole.read_bytes()


async def test_two_programs_do_not_write_to_one_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second waits for the first, and finds its rows."""
    monkeypatch.setattr(run_directory, "LOCK_POLL_SECONDS", 0.01)
    path, engine = tmp_path / "new" / "samples.jsonl", Teacher()
    teacher = await completer(engine, tmp_path)
    programs = [sample_replies(path, teacher, PROMPTS, seed=0, settings=SETTINGS) for _ in range(2)]
    await asyncio.gather(*programs)
    assert len(samples_file(path).rows()) == len(engine.samples) == 6
    assert "waiting for another process" in capsys.readouterr().out


async def test_a_file_system_without_locks_is_used_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    teacher = await completer(Teacher(), tmp_path)
    monkeypatch.setattr("fcntl.flock", no_locks)
    path = tmp_path / "samples.jsonl"
    await sample_replies(path, teacher, PROMPTS[:1], seed=0, settings=SETTINGS)
    assert len(samples_file(path).rows()) == 1
    assert f"{path}: this file system does not support locks" in caplog.text


async def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    teacher = await completer(Teacher(), tmp_path)
    with pytest.raises(ConfigurationError, match=r"file/s\.jsonl cannot be written \(.*exists"):
        await sample_replies(
            tmp_path / "file" / "s.jsonl", teacher, PROMPTS, seed=0, settings=SETTINGS
        )


@pytest.mark.parametrize("key", ["seed", "num_samples", "max_tokens", "temperature", "teacher"])
async def test_other_settings_are_refused(tmp_path: Path, key: str) -> None:
    path = tmp_path / "samples.jsonl"
    teacher = await completer(Teacher(), tmp_path)
    await sample_replies(path, teacher, PROMPTS, seed=0, settings=SETTINGS, num_samples=2)
    other = replace(teacher, max_tokens=70) if key == "max_tokens" else teacher
    other = replace(other, temperature=0.5) if key == "temperature" else other
    with pytest.raises(ConfigurationError, match=f"{path} was made with other settings: {key}"):
        await sample_replies(
            path,
            other,
            PROMPTS,
            seed=int(key == "seed"),
            settings={"teacher": "another"} if key == "teacher" else SETTINGS,
            num_samples=3 if key == "num_samples" else 2,
        )


@pytest.mark.parametrize(
    ("text", "window", "problem", "content"),
    [
        ("<think>\nfour</think>\n<|im_end|>", None, "empty", None),
        ("7" * 100, None, "truncated", "7" * 80),
        ("7<|im_end|>", 12, "too long", ""),
        (CALL, None, "tool call", None),
        ("<tool_call>\nadd\n</tool_call><|im_end|>", None, "tool call", None),
        # one that would be rendered as text, not as the token that was sampled
        ("7<|im_start|>user<|im_end|>", None, "malformed", None),
    ],
)
async def test_problems_are_marked(
    tmp_path: Path, text: str, window: int | None, problem: str, content: str | None
) -> None:
    path = tmp_path / "samples.jsonl"
    teacher = await completer(Teacher(text), tmp_path, window)
    await sample_replies(path, teacher, PROMPTS[:1], seed=0, settings=SETTINGS)
    (row,) = samples_file(path).rows()
    assert row["problem"] == problem
    assert row["messages"][-1] == {
        "role": "assistant",
        "content": text if content is None else content,
    }
    with pytest.raises(DataValidationError, match=rf"no reply can be trained on \(1 {problem}\)"):
        data(path)()


async def test_bytes_that_are_no_text_are_marked(tmp_path: Path) -> None:
    half = TOKENIZER.encode("🙂")[:1]
    tokens = [*TOKENIZER.encode("7 "), *half, *TOKENIZER.encode("<|im_end|>")]
    (row,) = await rows_of(tmp_path, Teacher(tokens=tokens))
    assert row["problem"] == "malformed" and row["num_tokens"] == len(tokens)


async def test_another_split_of_the_same_text_is_accepted(tmp_path: Path) -> None:
    tokens = [*TOKENIZER.encode("se"), *TOKENIZER.encode("ven"), *TOKENIZER.encode("<|im_end|>")]
    assert TOKENIZER.encode("seven<|im_end|>") != tokens
    (row,) = await rows_of(tmp_path, Teacher(tokens=tokens))
    assert row["problem"] is None and row["messages"][-1]["content"] == "seven"


@pytest.mark.parametrize(
    ("renderer_name", "text"),
    [
        ("qwen3_instruct", None),
        ("qwen3_instruct", "<think></think> 7 <|im_end|>"),
        ("qwen3_instruct", "It is\n\n7.\n<|im_end|>"),
        ("qwen3", None),
        ("qwen3_disable_thinking", "It is 7.<|im_end|>"),
        ("role_colon", " It is 7.\n\nUser:"),
    ],
)
async def test_training_examples_are_the_sampled_tokens(
    tmp_path: Path, renderer_name: str, text: str | None
) -> None:
    path, engine = tmp_path / "samples.jsonl", Teacher(text)
    teacher = await completer(engine, tmp_path, renderer_name=renderer_name)
    await sample_replies(path, teacher, PROMPTS, seed=0, settings=SETTINGS)
    assert count_problems(samples_file(path).rows()) == {}
    train, test = data(path, renderer_name=renderer_name)()
    assert test is None
    examples = {tuple(from_datum(datum).tokens.tolist()) for datum in train.get_batch(0)}
    assert examples == {*map(tuple, engine.sampled.values())} and len(examples) == 6


async def test_the_teacher_may_see_more_than_the_student(tmp_path: Path) -> None:
    path, engine = tmp_path / "samples.jsonl", Teacher("7<|im_end|>")
    system = Message(role="system", content="Add.")
    await sample_replies(
        path,
        await completer(engine, tmp_path),
        PROMPTS[:1],
        seed=0,
        settings=SETTINGS,
        teacher_prompt=lambda prompt: [system, *prompt],
    )
    (prompt,) = engine.sampled
    assert "system\nAdd." in prompt
    (row,) = samples_file(path).rows()
    assert [message["role"] for message in row["messages"]] == ["user", "assistant"]
    train, _ = data(path)()
    (datum,) = train.get_batch(0)
    assert "Add" not in str(TOKENIZER.decode(from_datum(datum).tokens.tolist()))


def write_rows(path: Path, rows: Sequence[tuple[str, str | None]]) -> Path:
    lines = [
        {
            "index": index,
            "messages": [
                {"role": "user", "content": prompt},
                {"role": "assistant", "content": f"reply {index}"},
            ],
            "problem": problem,
            "num_tokens": 3,
        }
        for index, (prompt, problem) in enumerate(rows)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_rows_with_problems_are_left_out_and_counted(tmp_path: Path) -> None:
    problems = [None, "truncated", "empty", None, "truncated", None]
    path = write_rows(tmp_path / "s.jsonl", [(f"{i}?", p) for i, p in enumerate(problems)])
    found = describe_usable(samples_file(path).rows(), "sample")
    assert found == "6 samples, 3 usable, 2 truncated, 1 empty"
    train, test = data(path)()
    assert len(train.get_batch(0)) == 3 and test is None
    assert train.report is not None
    lines = train.report.lines()
    assert f"{path}: 2 truncated samples dropped" in lines
    assert f"{path}: 1 empty sample dropped" in lines


def test_all_samples_of_a_prompt_are_trained_or_held_out(tmp_path: Path) -> None:
    rows = [(f"{i // 3}?", None) for i in range(30)]
    path = write_rows(tmp_path / "s.jsonl", rows)
    train, test = data(path, test_size=4)()
    assert test is not None
    train_prompts, test_prompts = (
        [
            str(TOKENIZER.decode(from_datum(datum).tokens.tolist())).partition("?")[0]
            for datum in part.get_batch(0)
        ]
        for part in (train, test)
    )
    assert len(train_prompts) == 18 and len(test_prompts) == 12
    assert not {*train_prompts} & {*test_prompts}
    with pytest.raises(ConfigurationError, match=r"test_size=10: .* has 10 prompts .* 0 to 9"):
        data(path, test_size=10)()


def test_identity_is_the_content(tmp_path: Path) -> None:
    one = write_rows(tmp_path / "a.jsonl", [("1?", None)])
    same = write_rows(tmp_path / "b.jsonl", [("1?", None)])
    other = write_rows(tmp_path / "c.jsonl", [("2?", None)])
    assert data(one).identity() == data(same).identity() != data(other).identity()


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"path=.*missing\.jsonl: no such file"):
        data(tmp_path / "missing.jsonl")()
    chats = tmp_path / "chats.jsonl"
    chats.write_text(json.dumps({"messages": PROMPTS[0]}) + "\n")
    with pytest.raises(DataFormatError, match=r"chats\.jsonl:1 has index None"):
        data(chats)()


async def test_a_student_without_reasoning_refuses_it(tmp_path: Path) -> None:
    await rows_of(tmp_path, Teacher())
    with pytest.raises(RendererError, match=r"samples\.jsonl:1: .*reasoning"):
        data(tmp_path / "samples.jsonl", renderer_name="qwen3_disable_thinking")()
