from __future__ import annotations

import json
from pathlib import Path

import pytest

from recipes.preference.constitutional.revisions import (
    RevisedReplies,
    Reviser,
    revisions_file,
    summary_lines,
)
from recipes.preference.constitutional.wording import EXAMPLES, ModelKind
from tinker_cookbook.completers import TinkerMessageCompleter
from tinker_cookbook.exceptions import DataValidationError
from tinker_cookbook.renderers import Message, get_renderer
from tinker_cookbook.sequences import from_datum
from tinker_cookbook.supervised.types import ChatDatasetBuilderCommonConfig
from tinker_cookbook.testing import Asked, ScriptedEngine, scripted_service
from tinker_cookbook.tokenizer_utils import get_tokenizer

PROMPT = [Message(role="user", content="What is 1 + 2?")]
PRINCIPLES = ("Be polite.", "Be brief.")


class Author(ScriptedEngine):
    """Writes what is asked for, with a number drawn by the seed of the request."""

    def __init__(self) -> None:
        super().__init__(reply=self.write)
        self.tokenizer = get_tokenizer("nano")
        self.prompts: list[str] = []
        self.revision = "Sure, 3<|im_end|>"

    def write(self, asked: Asked) -> list[int]:
        text = self.tokenizer.decode(asked.prompt)
        self.prompts.append(text)
        request = text.rpartition("<|im_start|>user\n")[2]
        written = f"3 ({asked.request.seed})<|im_end|>"
        if request.startswith("How could your last reply"):
            written = "It is rude<|im_end|>"
        elif request.startswith("Rewrite your reply"):
            written = self.revision
        return self.tokenizer.encode(written)


async def completer(
    engine: ScriptedEngine, store: Path, max_tokens: int = 20, window: int | None = None
) -> TinkerMessageCompleter:
    client = await scripted_service(engine, store).create_sampling_client(base_model="nano")
    renderer = get_renderer("qwen3_instruct", get_tokenizer("nano"), model_name="nano")
    return TinkerMessageCompleter(client, renderer, max_tokens, context_window=window)


async def reviser(engine: Author, store: Path, kind: ModelKind = "instruct") -> Reviser:
    return Reviser(await completer(engine, store), kind, PRINCIPLES, 2, seed=0)


async def test_a_reply_is_criticized_and_revised(tmp_path: Path) -> None:
    engine = Author()
    row = await (await reviser(engine, tmp_path))(0, PROMPT)
    assert row["prompt_conversation"] == PROMPT and row["problem"] is None
    assert str(row["first_reply"]).startswith("3 (") and row["reply"] == "Sure, 3"
    first, second = json.loads(json.dumps(row["rounds"]))
    assert first["critique"] == "It is rude" and second["revision"] == "Sure, 3"
    assert {first["principle"], second["principle"]} <= set(PRINCIPLES)
    assert len(engine.prompts) == 5
    asked_first, critique, revision, second_critique, _ = engine.prompts
    assert asked_first.count("<|im_start|>") == 2
    assert f"{row['first_reply']}<|im_end|>" in critique and first["principle"] in critique
    assert "It is rude<|im_end|>" in revision and first["principle"] in revision
    # the second round is about the first revision
    assert "Sure, 3<|im_end|>" in second_critique and "3 (" not in second_critique


async def test_samples_depend_on_seed_and_index_alone(tmp_path: Path) -> None:
    engine = Author()
    revise = await reviser(engine, tmp_path)
    rows = [await revise(index, PROMPT) for index in range(4)]
    assert [await revise(index, PROMPT) for index in (3, 1)] == [rows[3], rows[1]]
    assert len({row["first_reply"] for row in rows}) == 4
    seeds = [request.seed for request in engine.samples[:20]]
    assert None not in seeds and len(set(seeds)) == 20


async def test_a_base_model_gets_worked_examples(tmp_path: Path) -> None:
    engine = Author()
    row = await (await reviser(engine, tmp_path, "base"))(0, PROMPT)
    assert row["reply"] == "Sure, 3"
    asked_first, critique, revision = engine.prompts[:3]
    for example in EXAMPLES:
        for text in (asked_first, critique, revision):
            assert example.question in text
        assert example.revision in asked_first and example.reply not in asked_first
        assert example.critique in critique and example.revision not in critique
        assert example.reply in revision and example.revision in revision


@pytest.mark.parametrize(
    ("revision", "window", "problem"),
    [
        ("<|im_end|>", None, "empty"),
        ("1234567890123456789012345", None, "truncated"),
        ("Sure, 3<|im_end|>", 60, "too long"),
    ],
)
async def test_revisions_that_are_not_trained_on(
    tmp_path: Path, revision: str, window: int | None, problem: str
) -> None:
    engine = Author()
    engine.revision = revision
    model = await completer(engine, tmp_path, window=window)
    row = await Reviser(model, "instruct", PRINCIPLES, 1, seed=0)(0, PROMPT)
    assert row["problem"] == problem
    assert str(row["first_reply"]).startswith("3 (")


def write_rows(path: Path, problems: list[str | None]) -> None:
    rows = [
        {
            "index": index,
            "prompt_conversation": PROMPT,
            "first_reply": "3 of them",
            "rounds": [{"principle": "p", "critique": "c", "revision": f"It is {index}"}],
            "reply": f"It is {index}",
            "problem": problem,
        }
        for index, problem in enumerate(problems)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_training_data_is_the_last_revisions_without_problems(tmp_path: Path) -> None:
    path = tmp_path / "revisions.jsonl"
    write_rows(path, [None, "truncated", *[None] * 10])
    common = ChatDatasetBuilderCommonConfig(
        model_name_for_tokenizer="nano",
        renderer_name="qwen3_instruct",
        max_length=99,
        batch_size=20,
    )
    train, test = RevisedReplies(path=str(path), common_config=common)()
    assert test is not None and train.report is not None
    tokenizer = get_tokenizer("nano")
    trained = [
        str(tokenizer.decode(each.tokens[each.loss_mask > 0].tolist()))
        for each in map(from_datum, [*train.get_batch(0), *test.get_batch(0)])
    ]
    assert sorted(trained) == sorted(f"It is {n}<|im_end|>" for n in range(12) if n != 1)
    assert len(test.get_batch(0)) == 1
    lines = summary_lines(revisions_file(path).rows())
    assert lines[0] == "revisions: 12 prompts, 11 usable, 1 truncated"
    assert lines[1] == "words per reply: 3.0 first, 3.0 revised; 0 unchanged"
    assert "  critique: 'c'" in lines


def test_no_usable_revision(tmp_path: Path) -> None:
    path = tmp_path / "revisions.jsonl"
    write_rows(path, ["empty", "truncated"])
    with pytest.raises(DataValidationError, match="no prompt has a usable revision"):
        RevisedReplies(path=str(path))()
