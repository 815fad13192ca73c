from __future__ import annotations

from pathlib import Path

import pytest

from recipes.prompt_distillation import bakery, languages
from recipes.prompt_distillation.tasks import (
    TASKS,
    HeldOutQuestions,
    default_task,
    load_prompt,
    load_questions,
    put_before,
)
from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.renderers import Message, get_renderer, get_text_content
from tinker_cookbook.tokenizer_utils import get_tokenizer

QUESTION = Message(role="user", content="Why?")
SIZES = {"reply_rule": (483, 100), "bakery": (48, 24), "languages": (70, 26)}


@pytest.mark.parametrize("name", TASKS)
def test_held_out_questions_are_not_trained_on(name: str) -> None:
    task = TASKS[name]()
    assert (len(task.questions), len(task.held_out)) == SIZES[name]
    trained = {str(question[-1]["content"]) for question in task.questions}
    held_out = {str(messages[-2]["content"]) for messages in task.held_out}
    assert len(trained) == len(task.questions) and len(held_out) == len(task.held_out)
    assert not trained & held_out


@pytest.mark.parametrize("name", TASKS)
def test_the_expected_replies_are_right_and_the_questions_are_not(name: str) -> None:
    task = TASKS[name]()
    for *_, question, reply in task.held_out:
        assert task.is_right(get_text_content(reply), get_text_content(reply))
        assert not task.is_right(get_text_content(question), get_text_content(reply))


def test_nano_reads_no_more_than_it_was_trained_on() -> None:
    task = TASKS["reply_rule"]()
    renderer = get_renderer("qwen3_instruct", get_tokenizer("nano"), model_name="nano")
    for question in (*task.questions, *(messages[:-1] for messages in task.held_out)):
        prompt = renderer.build_generation_prompt(put_before(task.prompt, question))
        assert 90 <= prompt.length <= 500 - 64


def test_the_prompts_contain_what_is_asked_for() -> None:
    facts = {get_text_content(messages[-1]) for messages in bakery.bakery().held_out}
    assert len(facts) == 12 and all(fact in bakery.PROMPT for fact in facts)
    codes = {get_text_content(messages[-1]) for messages in languages.languages().held_out}
    assert codes == languages.CODES.keys()


@pytest.mark.parametrize(
    ("name", "reply", "expected", "right"),
    [
        ("reply_rule", "iron: 4 5 6", "iron: 4 5 6", True),
        ("reply_rule", "iron: Your name is Ben.", "iron: Your name is Ben", True),
        ("reply_rule", "4 5 6", "iron: 4 5 6", False),
        ("reply_rule", "iron: 4 5 6 7", "iron: 4 5 6", False),
        ("bakery", "We rest on TUESDAY, sorry!", "Tuesday", True),
        ("bakery", "We rest on Monday.", "Tuesday", False),
        ("bakery", "Rye with walnuts, 4.20 dollars.", "walnut", True),
        ("bakery", "Rye with walnuts, 4.20 dollars.", "4.20", True),
        ("bakery", "Ask the cashier.", "cash", False),
        ("languages", " fi\n", "fi", True),
        ("languages", "fi.", "fi", False),
    ],
)
def test_grades(name: str, reply: str, expected: str, right: bool) -> None:
    assert TASKS[name]().is_right(reply, expected) is right


def test_prompts_and_questions_by_name_and_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load_prompt("bakery") == bakery.PROMPT
    (tmp_path / "rules.txt").write_text("Rule one.\nRule two.\n")
    assert load_prompt(str(tmp_path / "rules.txt")) == "Rule one.\nRule two."
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rules").write_text("Rule three.")
    assert load_prompt("rules") == "Rule three."
    (tmp_path / "asked.txt").write_text("One?\nTwo?\n")
    assert len(load_questions(str(tmp_path / "asked.txt"), 9, 0, "nano")) == 2
    few, many = (load_questions("bakery", number, 0, "nano") for number in (5, 50))
    assert len(few) == 5 and many[:5] == few and len(many) == 48
    assert load_questions("bakery", 5, 1, "nano") != few
    assert default_task("nano") == "reply_rule" and default_task("Qwen/Qwen3-8B") == "languages"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("bakry", "prompt='bakry' is unknown; set one of reply_rule, bakery, languages"),
        ("missing.txt", r"prompt=missing\.txt: no such file"),
        ("EMPTY", "prompt=.*: the file is empty"),
    ],
)
def test_prompts_that_cannot_be_read(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(ConfigurationError, match=message):
        load_prompt(str(tmp_path / "empty.txt") if name == "EMPTY" else name)


def test_a_conversation_keeps_its_own_system_message() -> None:
    system = Message(role="system", content="Be brief.")
    assert put_before("Rules.", [QUESTION]) == [
        Message(role="system", content="Rules."),
        QUESTION,
    ]
    first, second = put_before("Rules.", [system, QUESTION])
    assert first == Message(role="system", content="Rules.\n\nBe brief.") and second == QUESTION


def test_the_evaluations_differ_in_the_prompt() -> None:
    without, prompted = (
        HeldOutQuestions(
            task="reply_rule",
            with_prompt=with_prompt,
            model_name="nano",
            renderer_name="qwen3_instruct",
            max_tokens=48,
        )()
        for with_prompt in (False, True)
    )
    assert (without.name, prompted.name) == ("test", "with_prompt")
    assert len(without.conversations) == len(prompted.conversations) == 100
    for short, long in zip(without.conversations, prompted.conversations):
        assert long[1:] == short and "iron" in str(long[0]["content"])
