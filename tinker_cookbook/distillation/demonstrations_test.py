"""Pairs of a question without and with its demonstration: rendering, splits and bad rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tinker

from tinker_cookbook.distillation.demonstrations import (
    DEMONSTRATION,
    QUESTION,
    DemonstrationChats,
    render_pair,
    show_demonstration,
)
from tinker_cookbook.distillation.sdft_batch import read_questions
from tinker_cookbook.exceptions import ConfigurationError, DataFormatError, DataValidationError
from tinker_cookbook.renderers import Renderer, TrainOnWhat, get_renderer
from tinker_cookbook.renderers.chats import Chat, parse_row
from tinker_cookbook.sequences import from_datum
from tinker_cookbook.supervised.types import ChatDatasetBuilderCommonConfig, SupervisedDataset
from tinker_cookbook.tokenizer_utils import get_tokenizer

TEMPLATE = f"A good answer: {DEMONSTRATION} {QUESTION}"


def user(text: str) -> Any:
    return {"role": "user", "content": text}


def assistant(text: str) -> Any:
    return {"role": "assistant", "content": text}


def renderer(name: str = "qwen3_instruct") -> Renderer:
    return get_renderer(name, get_tokenizer("nano"), model_name="nano")


def decode(tokens: list[int]) -> str:
    return str(get_tokenizer("nano").decode(tokens))


@pytest.mark.parametrize("name", ["qwen3_instruct", "qwen3", "qwen3_disable_thinking"])
def test_the_prompts_are_those_of_sampling(name: str) -> None:
    chat = Chat([user("Who has the lamp?"), assistant("Ivy has the lamp.")], "row")
    rendered = render_pair(chat, TEMPLATE, renderer(name), None)
    (question,) = read_questions(rendered.datums)
    asked = "A good answer: Ivy has the lamp. Who has the lamp?"
    for tokens, text in ((question.prompt, "Who has the lamp?"), (question.teacher_prompt, asked)):
        assert tokens == renderer(name).build_generation_prompt([user(text)]).to_ints()
    student = from_datum(rendered.datums[0])
    reply = student.tokens[student.loss_mask].tolist()
    assert decode(reply).endswith("Ivy has the lamp.<|im_end|>")
    assert student.weights.sum() == pytest.approx(1)


def test_a_sample_with_a_problem_is_no_demonstration() -> None:
    row: dict[str, Any] = {
        "index": 0,
        "messages": [user("Who has the lamp?"), assistant("<|im_end|>")],
        "problem": "empty",
        "num_tokens": 1,
    }
    rendered = render_pair(parse_row(row, "row"), TEMPLATE, renderer(), None)
    assert not rendered.datums and rendered.notes == {("excluded", "empty sample"): 1}


def test_only_the_last_user_message_shows_the_demonstration() -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        user("1 + 1?"),
        assistant("2"),
        user("{demonstration}?"),  # names in the data are text
        assistant("{question} \\1"),
    ]
    shown = show_demonstration(messages, TEMPLATE)
    asked = "A good answer: {question} \\1 {demonstration}?"
    assert [m["content"] for m in shown] == ["Be brief.", "1 + 1?", "2", asked, "{question} \\1"]
    assert messages[3]["content"] == "{demonstration}?"


def test_a_demonstration_keeps_its_reasoning() -> None:
    parts = [{"type": "thinking", "thinking": "1, 2"}, {"type": "text", "text": "2"}]
    (shown, _) = show_demonstration(
        [user("1 + 1?"), {"role": "assistant", "content": parts}], TEMPLATE
    )
    assert shown["content"] == "A good answer: <think>1, 2</think>\n2 1 + 1?"


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([user("a"), assistant("b"), user("c")], "roles are user, assistant, user; expected"),
        ([assistant("b")], "the roles are assistant; expected a user message"),
        ([user("a"), assistant(" ")], "the last message has no text"),
        (
            [user("a"), {"role": "assistant", "content": "b", "tool_calls": [{}]}],
            "the last message has tool calls",
        ),
    ],
)
def test_conversations_without_a_demonstration(messages: list[Any], message: str) -> None:
    with pytest.raises(DataFormatError, match=message):
        show_demonstration(messages, TEMPLATE)


def test_a_prompt_without_room_is_skipped() -> None:
    chat = Chat([user("Who has the lamp?"), assistant("Ivy has the lamp.")], "row")
    whole = render_pair(chat, TEMPLATE, renderer(), None)
    (question,) = read_questions(whole.datums)
    length = len(question.teacher_prompt)
    assert render_pair(chat, TEMPLATE, renderer(), length + 2).datums  # one token, and scoring
    tight = render_pair(chat, TEMPLATE, renderer(), length + 1)
    assert not tight.datums
    assert tight.skipped == [
        f"its prompt of {length} tokens leaves no room in max_length={length + 1}"
    ]


@pytest.mark.parametrize("template", ["{question}", "{demonstration}"])
def test_templates_need_both_names(template: str) -> None:
    with pytest.raises(ConfigurationError, match=f"template='{template}' lacks"):
        DemonstrationChats(path="x", template=template)


def builder(path: Path, **keys: Any) -> DemonstrationChats:
    common = ChatDatasetBuilderCommonConfig(
        model_name_for_tokenizer="nano",
        renderer_name="qwen3_instruct",
        max_length=keys.pop("max_length", 512),
        batch_size=2,
        train_on_what=keys.pop("train_on_what", None),
    )
    return DemonstrationChats(path=str(path), common_config=common, template=TEMPLATE, **keys)


def questions_of(data: SupervisedDataset) -> list[str]:
    batches = [data.get_batch(index) for index in range(len(data))]
    return [
        decode(q.prompt).splitlines()[1][:9] for batch in batches for q in read_questions(batch)
    ]


def test_chats_of_a_file(tmp_path: Path) -> None:
    rows = [{"prompt": f"{n} + 1 = ?", "completion": f"{n + 1}"} for n in range(10, 19)]
    rows.insert(3, {"prompt": "no reply", "completion": ""})
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    train, test = builder(path, test_size=3)()
    assert test is not None and train.report is not None and test.report is not None
    seen, held_out = questions_of(train), questions_of(test)
    assert len(seen) == 6 and len(held_out) == 3 - test.report.num_skipped
    assert not set(seen) & set(held_out)
    (skipped,) = [*train.report.skipped, *test.report.skipped]
    assert skipped == f"{path}:4: the last message has no text; a demonstration is text"
    assert train.report.lines()[0].startswith(f"{path}: 7 questions, ")


def test_no_question_has_room(tmp_path: Path) -> None:
    path = tmp_path / "chats.jsonl"
    path.write_text(json.dumps({"prompt": "1 + 1 = ?", "completion": "2"}) + "\n")
    with pytest.raises(DataValidationError, match=r"none of the 1 questions .*max_length=12"):
        builder(path, max_length=12)()


def test_another_training_mode_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="trains on sampled replies"):
        builder(tmp_path, train_on_what=TrainOnWhat.ALL_TOKENS)


def datum_pair(messages: list[Any], other: list[Any]) -> list[tinker.Datum]:
    chats = [Chat(each, "row") for each in (messages, other)]
    return [render_pair(chat, TEMPLATE, renderer(), None).datums[0] for chat in chats]


def test_batches_that_are_not_of_pairs() -> None:
    batch = datum_pair([user("a"), assistant("yes")], [user("b"), assistant("no")])
    with pytest.raises(DataValidationError, match=r"different replies; use data=Demonstration"):
        read_questions(batch)
    with pytest.raises(DataValidationError, match="a batch has 1 examples"):
        read_questions(batch[:1])
