"""Rows of each format as comparisons, and the reasons for which a row is refused."""

from pathlib import Path
from typing import Any

import pytest

from tinker_cookbook.exceptions import DataFormatError
from tinker_cookbook.preference.comparison_rows import (
    ComparisonReader,
    make_comparison_reader,
    parse_comparison,
)
from tinker_cookbook.utils.data_files import Rows, open_rows


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def reply(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


PAIR = {"prompt": "q", "chosen": "good", "rejected": "bad"}
SYSTEM = {"role": "system", "content": "Be kind."}
HH = "\n\nHuman: q\n\nAssistant: a\n\nHuman: q2 \n\nAssistant: "
RATED = {"context": [user("q")], "response1": "one", "response2": "two"}
STORED = {"prompt_conversation": [user("q")], "completion_A": [reply("x")]}
STORED["completion_B"] = [reply("y")]


def read(row: dict[str, Any]) -> tuple[Any, Any, Any, str]:
    labeled = parse_comparison(row)
    found = labeled.comparison
    return found.prompt_conversation, found.completion_A, found.completion_B, labeled.label


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        (PAIR, [user("q")]),
        (
            {"prompt": [SYSTEM, user("q")], "chosen": [reply("good")], "rejected": "bad"},
            [SYSTEM, user("q")],
        ),
        # HuggingFaceH4/ultrafeedback_binarized
        (
            {
                "prompt": "q",
                "chosen": [user("q"), reply("good")],
                "rejected": [user("q"), reply("bad")],
                "messages": [user("q"), reply("good")],
            },
            [user("q")],
        ),
        (
            {
                "prompt": "q ",
                "chosen": [SYSTEM, user("q"), reply("good")],
                "rejected": [SYSTEM, user("q"), reply("bad")],
            },
            [SYSTEM, user("q")],
        ),
        (
            {
                "prompt": [user("q"), reply("a"), user("q2")],
                "chosen": [user("q"), reply("a"), user("q2"), reply("good")],
                "rejected": [user("q"), reply("a"), user("q2"), reply("bad")],
            },
            [user("q"), reply("a"), user("q2")],
        ),
        (
            {
                "chosen": [SYSTEM, user("q"), reply("good")],
                "rejected": [SYSTEM, user("q"), reply("bad")],
            },
            [SYSTEM, user("q")],
        ),
        ({"chosen": f"{HH}good", "rejected": f"{HH} bad\n"}, [user("q"), reply("a"), user("q2")]),
        # LLaMA-Factory
        (
            {
                "conversations": [
                    {"from": "system", "value": "Be kind."},
                    {"from": "human", "value": "q"},
                ],
                "chosen": {"from": "gpt", "value": "good"},
                "rejected": {"from": "gpt", "value": "bad"},
            },
            [SYSTEM, user("q")],
        ),
        (
            {"messages": [user("q")], "chosen": reply("good"), "rejected": reply("bad")},
            [user("q")],
        ),
        # argilla/ultrafeedback-binarized-preferences
        (
            {"instruction": "q", "chosen_response": "good", "rejected_response": "bad"},
            [user("q")],
        ),
        # a CSV column holds a list as text
        (
            {
                "prompt": '[{"role": "user", "content": "q"}]',
                "chosen": '[{"role": "assistant", "content": "good"}]',
                "rejected": "bad",
            },
            [user("q")],
        ),
        (
            {"system": "Be kind.", "prompt": "q", "chosen": "good", "rejected": "bad"},
            [SYSTEM, user("q")],
        ),
    ],
)
def test_a_chosen_completion_becomes_a(row: dict[str, Any], prompt: list[Any]) -> None:
    assert read(row) == (prompt, [reply("good")], [reply("bad")], "A")


@pytest.mark.parametrize("label", ["A", "B", "Tie"])
def test_stored_comparisons(label: str) -> None:
    row = {"comparison": STORED, "label": label}
    assert read(row) == ([user("q")], [reply("x")], [reply("y")], label)


@pytest.mark.parametrize(
    ("preference", "label"), [(-3, "A"), (-1, "A"), (0, "Tie"), (1, "B"), (2.0, "B")]
)
def test_helpsteer3_prefers_response1_below_0(preference: float, label: str) -> None:
    found = read({**RATED, "overall_preference": preference})
    assert found == ([user("q")], [reply("one")], [reply("two")], label)


def test_a_completion_may_hold_several_messages() -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": "{}"}}
    steps = [
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "1"},
        reply("one"),
    ]
    assert read({"prompt": "q", "chosen": steps, "rejected": "bad"})[1] == steps


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({**PAIR, "chosen": " "}, "'chosen': the completion is empty"),
        ({**PAIR, "rejected": [reply("")]}, "'rejected': the completion is empty"),
        ({**PAIR, "rejected": []}, "'rejected' must be a non-empty list of messages; found []"),
        ({**PAIR, "rejected": 5}, "'rejected' must be a non-empty list of messages; found 5"),
        ({**PAIR, "rejected": "good"}, "'chosen' and 'rejected' are equal"),
        ({**PAIR, "prompt": ""}, "the prompt is empty"),
        ({**PAIR, "prompt": HH}, "'prompt' holds turns of a conversation in one string"),
        (
            {**PAIR, "rejected": None},
            "found 'prompt', 'chosen'; expected the keys",
        ),
        ({**PAIR, "question": "other"}, "'question' together with 'prompt' and 'chosen' and"),
        ({**PAIR, "tools": [{"name": "f"}]}, "'tools' is not supported in preference data"),
        ({**PAIR, "sample_weight": 2}, "'sample_weight': 2 is not supported"),
        (
            {**PAIR, "system": "x", "prompt": [SYSTEM, user("q")]},
            "'system' differs from the system message",
        ),
        (
            {**PAIR, "chosen": [user("q"), reply("good")]},
            "'chosen' and 'rejected' differ before the last assistant message",
        ),
        (
            {
                "prompt": "other",
                "chosen": [user("q"), reply("good")],
                "rejected": [user("q"), reply("bad")],
            },
            "whole conversations, but they do not begin with 'prompt'",
        ),
        (
            {"chosen": [user("q")], "rejected": [user("q"), reply("bad")]},
            "'chosen' ends with a message of role 'user'; expected an assistant message",
        ),
        ({"chosen": [reply("good")], "rejected": [reply("bad")]}, "the prompt is empty"),
        ({"chosen": "good", "rejected": "bad"}, "'chosen' must be a list of messages, or a string"),
        (
            {"chosen": HH, "rejected": f"{HH}bad"},
            "'chosen': the completion is empty",
        ),
        (
            {"chosen": f"{HH}good", "rejected": "\n\nHuman: other\n\nAssistant: bad"},
            "'chosen' and 'rejected' differ before the last assistant message",
        ),
        (
            {"chosen": f"{HH}good\n\nHuman: q3", "rejected": f"{HH}bad"},
            "'chosen' ends with a message of role 'user'",
        ),
        ({"prompt": [{"role": "user"}], "chosen": "a", "rejected": "b"}, "'prompt', message 0:"),
        ({"comparison": STORED, "label": "C"}, '\'label\' must be "A", "B" or "Tie", found'),
        (
            {"comparison": {"completion_A": "x"}, "label": "A"},
            "'comparison' must be an object with",
        ),
        ({**RATED, "overall_preference": "1"}, "'overall_preference' must be a number, found"),
        ({**RATED, "overall_preference": True}, "'overall_preference' must be a number, found"),
        ({**RATED, "overall_preference": float("nan")}, "'overall_preference' is NaN"),
        ([1], "found [1]; expected the keys"),
    ],
)
def test_malformed_rows(row: Any, reason: str) -> None:
    with pytest.raises(DataFormatError) as error:
        parse_comparison(row, "pairs.jsonl:3")
    assert str(error.value).startswith("pairs.jsonl:3: ") and reason in str(error.value)


def test_dropped_keys_are_counted() -> None:
    message = {**reply("good"), "score": 5}
    row = {**PAIR, "chosen": [message], "prompt_id": "x", "score_chosen": 5.0, "context": "q"}
    assert ComparisonReader()(row, "row").notes == {
        ("form", "prompt/chosen/rejected, read as comparisons"): 1,
        ("row", "prompt_id"): 1,
        ("row", "score_chosen"): 1,
        ("row", "context"): 1,  # it repeats the prompt
        ("message", "score"): 1,
    }


def test_keys_that_are_dropped_do_not_make_completions_differ() -> None:
    chosen, rejected = ([{**reply("same"), "score": score}] for score in (1, 2))
    with pytest.raises(DataFormatError, match="are equal"):
        parse_comparison({"prompt": "q", "chosen": chosen, "rejected": rejected})


def test_the_first_row_sets_the_format_of_the_data_set() -> None:
    reader = make_comparison_reader([{"prompt": None}, PAIR], "pairs")
    assert reader.source_formats == ["prompt/chosen/rejected, read as comparisons"]
    with pytest.raises(
        DataFormatError,
        match="row 7: found chosen/rejected, but the data set begins with prompt/chosen/rejected",
    ):
        reader({"chosen": f"{HH}good", "rejected": f"{HH}bad"}, "row 7")


def test_a_data_set_without_a_known_format_is_refused() -> None:
    with pytest.raises(DataFormatError) as error:
        make_comparison_reader([{"question": "q", "better": "x"}, {"a": 1}], "pairs")
    assert str(error.value) == (
        "data set pairs: row 0: found 'question', 'better'; expected the keys comparison/label, or"
        " prompt/chosen/rejected, or messages/chosen/rejected, or conversations/chosen/rejected, or"
        " chosen/rejected, or instruction/chosen_response/rejected_response, or"
        " context/response1/response2/overall_preference"
    )


# Real files


def malformed(rows: Rows) -> dict[str, str]:
    """The reasons of the rows that cannot be used, by line."""
    reader, problems = make_comparison_reader(rows, "data"), {}
    for index in range(len(rows)):
        try:
            reader(rows[index], "row")
        except DataFormatError as error:
            problems[rows.where(index).rpartition(":")[2]] = str(error)
    return problems


def test_hh_rlhf(shared_data: Path) -> None:
    rows = open_rows(str(shared_data / "datasets" / "hh-rlhf" / "harmless-base-test.jsonl.gz"))
    assert len(rows) == 2312
    empty = dict.fromkeys(("87", "517", "926", "1104"), "row: 'chosen': the completion is empty")
    differing = dict.fromkeys(
        ("1255", "1689", "1951", "1953", "2037"),
        "row: 'chosen' and 'rejected' differ before the last assistant message",
    )
    assert malformed(rows) == empty | differing
    prompt, chosen, rejected, label = read(rows[0])
    assert [message["role"] for message in prompt] == ["user", "assistant"] * 2 + ["user"]
    assert prompt[0]["content"] == "what are some pranks with a pen i can do?"
    assert chosen[0]["content"].startswith("No, sorry!  All of these involve a pen")
    assert rejected != chosen and label == "A"


def test_llama_factory(shared_data: Path) -> None:
    rows = open_rows(str(shared_data / "datasets" / "llamafactory-demo" / "dpo_en_demo.json"))
    assert len(rows) == 300 and malformed(rows) == {}
    prompts = [read(row)[0] for row in rows]
    assert sum(prompt[0]["role"] == "system" for prompt in prompts) == 80
    assert all(prompt[-1]["role"] == "user" for prompt in prompts)
