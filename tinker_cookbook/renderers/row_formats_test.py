"""Forms of rows, each read as messages or refused with the keys found."""

import json
from pathlib import Path
from typing import Any

import pytest

from tinker_cookbook.exceptions import DataFormatError
from tinker_cookbook.renderers import get_renderer
from tinker_cookbook.renderers.chats import RowReader, make_row_reader, parse_row, read_chats
from tinker_cookbook.renderers.messages import Message
from tinker_cookbook.renderers.row_summary import MAX_KEYS, RowSummary


def said(*words: str) -> list[dict[str, str]]:
    """(role, text), ... as messages."""
    return [{"role": role, "content": text} for role, text in zip(words[::2], words[1::2])]


def turns(*words: str) -> list[dict[str, str]]:
    return [{"from": role, "value": text} for role, text in zip(words[::2], words[1::2])]


HI = said("user", "Hi", "assistant", "Yo.")
SHAREGPT = {"conversations": turns("human", "Hi", "gpt", "Yo.")}
ALPACA = {"instruction": "Hi", "input": "", "output": "Yo."}
COMPLETION = {"prompt": "Hi", "completion": "Yo."}
QUESTION = {"question": "Hi", "answer": "Yo."}
CALL = json.dumps({"name": "f", "arguments": {"x": 1}})


def messages(row: dict[str, Any], **options: Any) -> list[Message]:
    return parse_row(row, "row", **options).messages


@pytest.mark.parametrize(
    "row",
    [
        {"messages": HI},
        {"messages": json.dumps(HI)},
        {"messages": said("human", "Hi", "gpt", "Yo.")},
        {"messages": said("User", "Hi", "Assistant", "Yo.")},
        {"messages": SHAREGPT["conversations"]},
        {"messages": HI, "prompt": "Hi", "completion": "Yo.", **ALPACA, **SHAREGPT, **QUESTION},
        SHAREGPT,
        {"conversations": HI},
        {"conversations": json.dumps(SHAREGPT["conversations"])},
        {"conversations": turns("Human", "Hi", "chatgpt", "Yo.")},
        ALPACA,
        {**ALPACA, "input": None},
        {**ALPACA, "instruction": "", "input": "Hi"},
        COMPLETION,
        {"prompt": HI[:1], "completion": HI[1:]},
        {"prompt": HI[:1], "completion": "Yo."},
        {"prompt": '[{"role":"user","content":"Hi"}]', "completion": "Yo."},
        {"prompt": json.dumps(HI[:1]), "completion": json.dumps(HI[1:])},
        {"prompt": '[{"role":"user","content":"Hi","trainable":null}]', "completion": "Yo."},
        QUESTION,
        {**QUESTION, "input": "", "options": [], "context": None, "prompt": "Hi ", "query": "Hi"},
        {**QUESTION, "response": "Yo.", "output": None, "answers": ["Yo.", "Yo"]},
        {"question": "Hi", "answer": None, **COMPLETION},
        {"messages": json.dumps([{**HI[0], "trainable": None}, HI[1]])},
        {"messages": HI, "system": "  "},
    ],
)
def test_forms_of_one_conversation(row: dict[str, Any]) -> None:
    assert messages(row) == HI


def test_the_parts_of_each_form() -> None:
    system, tools = {"role": "system", "content": "S"}, [{"name": "f"}]
    for form in (SHAREGPT, ALPACA, COMPLETION, QUESTION):
        chat = parse_row({**form, "system": "S", "tools": json.dumps(tools)}, "row")
        assert chat.messages == [system, *HI] and chat.tools == tools
    assert messages({"instruction": "Add", "input": "1\n2", "output": "3"}) == said(
        "user", "Add\n\n1\n2", "assistant", "3"
    )
    for history in ([["a", "b"]], '[["a", "b"]]'):
        assert messages({**ALPACA, "history": history}) == [
            *said("user", "a", "assistant", "b"),
            *HI,
        ]
    assert messages({"prompt": " Hi\n", "completion": " Yo."})[1]["content"] == " Yo."
    verbatim = said("user", " Hi\n", "assistant", '["Yo."]')
    assert messages({"question": " Hi\n", "answer": '["Yo."]'}) == verbatim
    assert messages({"prompt": "[1, 2]", "completion": "Yo."})[0]["content"] == "[1, 2]"
    assert messages({"talk": turns("human", "Hi", "gpt", "Yo.")}, message_field="talk") == HI


def test_calls_and_results_of_sharegpt() -> None:
    row = {"conversations": turns("human", "Hi", "function_call", CALL, "observation", "4")}
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    calling = {"role": "assistant", "content": "", "tool_calls": [call]}
    assert messages(row) == [HI[0], calling, *said("tool", "4")]
    two = turns("human", "Hi", "function_call", f"[{CALL}, {CALL}]", "tool", "4", "tool", "5")
    calling["tool_calls"] = [call, call]
    assert messages({"conversations": two}) == [HI[0], calling, *said("tool", "4", "tool", "5")]


@pytest.mark.parametrize(
    "row, problem",
    [
        ({"from": "x"}, "no 'messages'; found 'from'; expected {"),
        (
            {"question": "Hi", "solution": "Yo."},
            "no 'messages'; found 'question', 'solution'; expected",
        ),
        ({"chat": HI, "id": 1}, "found 'chat', 'id' (message_field=chat reads that list)"),
        (
            {"chosen": "a", "rejected": "b"},
            "(preference pairs are not conversations to train on)",
        ),
        (
            {**ALPACA, **COMPLETION},
            "both instruction/input/output and prompt/completion; found 'ins",
        ),
        ({**SHAREGPT, **ALPACA}, "set message_field=conversations"),
        ({**SHAREGPT, **QUESTION}, "set message_field=conversations"),
        ({**COMPLETION, **QUESTION}, "both prompt/completion and question/answer; found 'prompt'"),
        ({**ALPACA, **QUESTION}, "both instruction/input/output and question/answer; found"),
        ({**QUESTION, "answer": 72}, "'answer' must be a non-empty string, found 72"),
        ({**QUESTION, "answer": ["a", "b"]}, "'answer' must be a non-empty string, found ["),
        ({**QUESTION, "answer": {"text": "a"}}, "'answer' must be a non-empty string, found {"),
        ({**QUESTION, "question": " "}, "'question' must be a non-empty string, found"),
        ({**QUESTION, "options": ["a", "b"]}, "'options' together with 'question' and 'answer' is"),
        ({**QUESTION, "context": "A text."}, "is not supported; write it into 'question'"),
        ({**QUESTION, "prompt": HI[:1]}, "'prompt' together with 'question' and 'answer' is not"),
        ({**QUESTION, "response": "No."}, "'response' together with 'question' and 'answer': eith"),
        ({**QUESTION, "reasoning": "Hm."}, "'reasoning' is not supported; put it into the assis"),
        ({**QUESTION, "answers": "Yo."}, "unknown key 'answers'; did you mean 'answer'?"),
        ({"conversations": turns("human", 3)}, "message 0: 'value' must be a string, found {"),
        ({"conversations": [*SHAREGPT["conversations"], {}]}, "message 2: 'from' must be a string"),
        (
            {"conversations": [{"from": "gpt", "value": "a", "content": "b"}]},
            "'content' together with 'fro",
        ),
        ({"conversations": []}, "'conversations' must be a non-empty list of messages"),
        ({"conversations": turns("function_call", "f()")}, "message 0: a 'function_call' must be"),
        (
            {"conversations": turns("function_call", f"[{CALL}, {CALL}]", "tool", "4", "gpt", "a")},
            "message 2: 1 result for 2 calls of a 'function_call'; write",
        ),
        ({**ALPACA, "output": 3}, "'output' must be a string, found 3"),
        (
            {**ALPACA, "history": [["a"]]},
            "'history' must be a list of [question, answer] pairs",
        ),
        ({**ALPACA, "history": "a"}, "'history' must be a list of [question, answer] pairs"),
        ({"instruction": "Hi", "inputs": "x", "output": "y"}, "unknown key 'inputs'; did you mean"),
        (
            {"instruction": "Hi", "context": "x", "output": "y"},
            "'context' is not supported; write it as",
        ),
        (
            {**ALPACA, "input": "x", "context": "y"},
            "'context' is not supported; write it into 'input'",
        ),
        (
            {**COMPLETION, "history": [["a", "b"]]},
            "'history' together with 'prompt' and 'completion' is",
        ),
        (
            {**COMPLETION, "instruction": "Add."},
            "'instruction' together with 'prompt' and 'completion'",
        ),
        ({**COMPLETION, "input": "2 3"}, "'input' together with 'prompt' and 'completion' is not"),
        (
            {"prompt": 3, "completion": "a"},
            "'prompt' must be a string or a list of messages, found 3",
        ),
        (
            {**COMPLETION, "label": False},
            "'label': False is not supported; remove rows with bad completions",
        ),
        ({**SHAREGPT, "weight": 1}, "'weight': 1 is not supported"),
    ],
)
def test_what_is_refused(row: dict[str, Any], problem: str) -> None:
    with pytest.raises(DataFormatError) as error:
        parse_row(row, "data.json, row 3")
    assert str(error.value).startswith("data.json, row 3: ") and problem in str(error.value)
    assert "\n" not in str(error.value)


def test_one_data_set_has_one_form() -> None:
    read = RowReader()
    assert [read(SHAREGPT, "row 0").messages, read(SHAREGPT, "row 1").messages] == [HI, HI]
    for other in (ALPACA, QUESTION, {"messages": HI}, {"conversations": HI}):
        with pytest.raises(
            DataFormatError, match=r"row 2: .* but the data set begins with conversat"
        ):
            read(other, "row 2")
    with pytest.raises(
        DataFormatError, match=r"row 3: 'conversations' must be a non-empty list .* found \[\]"
    ):
        read({"conversations": []}, "row 3")
    with pytest.raises(DataFormatError, match="row 4: found instruction/input/output, but the"):
        read({"conversations": None, **ALPACA}, "row 4")


def test_the_form_of_a_table_is_that_of_its_first_row_that_has_one() -> None:
    read = make_row_reader(
        [{"n": 1}, {"messages": None, **ALPACA}, {"messages": HI}], "messages", "set"
    )
    assert read.source_formats == ["instruction/input/output, read as user and assistant messages"]
    for first in ({"conversations": []}, {"conversations": "[]"}):
        read = make_row_reader([first, SHAREGPT], "messages", "set")
        assert read(SHAREGPT, "row 1").messages == HI
        read = RowReader()
        with pytest.raises(
            DataFormatError, match="row 0: 'conversations' must be a non-empty list"
        ):
            read(first, "row 0")
        assert read(SHAREGPT, "row 1").messages == HI
    with pytest.raises(
        DataFormatError, match="data set s: row 0: 'messages' must be a non-empty list"
    ):
        make_row_reader([{"messages": []}], "messages", "s")
    with pytest.raises(DataFormatError, match="data set s: row 0: no 'messages'; found 'n'; exp"):
        make_row_reader([{"n": 1}, {"m": 2}], "messages", "s")
    with pytest.raises(DataFormatError, match="data set s: row 0: no 'talk'; found 'messages'"):
        make_row_reader([{"messages": HI}], "talk", "s")


def test_a_row_that_is_nested_too_deeply(tmp_path: Path) -> None:
    deep = "[" * 100_000 + "]" * 100_000
    path = tmp_path / "deep.jsonl"
    path.write_text(f'{{"messages": {json.dumps(HI)}, "more": {deep}}}\n')
    with pytest.raises(
        DataFormatError,
        match=r"deep\.jsonl:1 is not JSON: .* more than 100 deep",
    ):
        read_chats(path)
    value: list = []
    for _ in range(10_000):
        value = [value]
    with pytest.raises(DataFormatError, match="row: the row is nested too deeply"):
        parse_row({"messages": HI, "more": value}, "row")
    with pytest.raises(DataFormatError, match="row: the row is nested too deeply"):
        parse_row({"messages": HI, "tools": deep}, "row")


# The account


def account(*rows: dict[str, Any]) -> list[str]:
    read, found = RowReader(), RowSummary()
    for number, row in enumerate(rows):
        found.add(read(row, f"row {number}").notes)
    return found.lines()


def test_what_is_not_read_is_named_once_with_its_count() -> None:
    part = {"type": "text", "text": "Yo.", "index": 0}
    row = {"messages": [{**HI[0], "id": "a"}, {**HI[1], "id": "b", "content": [part]}]}
    assert account({**row, "source": "web"}, {"messages": HI, "source": "web", "meta": None}) == [
        "dropped keys: source (2 rows), id (2 messages), index (1 part)"
    ]
    assert account({"messages": HI, "meta": None, "tags": []}) == []
    (many,) = account({"messages": HI, **{f"key {n}": n for n in range(MAX_KEYS + 7)}})
    assert many.endswith(", key 49 (1 row), 7 more")


def test_what_is_converted_is_said() -> None:
    assert account(ALPACA, {**ALPACA, "text": "x"}) == [
        "2 rows of instruction/input/output, read as user and assistant messages",
        "dropped keys: text (1 row)",
    ]
    assert account(QUESTION, {**QUESTION, "solution": "x"}) == [
        "2 rows of question/answer, read as user and assistant messages",
        "dropped keys: solution (1 row)",
    ]
    assert account(SHAREGPT) == ["1 row of conversations of from/value, read as messages"]
    assert account({"messages": said("human", "Hi", "gpt", "Yo.")}) == [
        "roles: human read as user (1 message), gpt read as assistant (1 message)"
    ]
    assert account({"prompt": [*HI, HI[0]], "completion": HI[1:]}, COMPLETION)[1] == (
        "1 row with replies in 'prompt', which are trained like the completion unless "
        "train_on_what=last_assistant_message"
    )


def test_nulls_that_are_left_out_are_said() -> None:
    tool = {"name": "f", "parameters": {"x": {"default": None}}}
    call = {"id": None, "function": {"name": "f", "arguments": {"x": 1, "y": None}}}
    calling = {"role": "assistant", "content": None, "tool_calls": [call]}
    row = {"messages": [HI[0], calling], "tools": [tool]}
    chat = parse_row(row, "row")
    assert chat.tools == [{"name": "f", "parameters": {"x": {}}}]
    assert chat.messages[1]["tool_calls"] == [{"function": {"name": "f", "arguments": {"x": 1}}}]
    assert account(row, row) == ["nulls dropped from tools (2 rows), arguments (2 rows)"]
    as_text = {**row, "messages": json.dumps(row["messages"])}
    assert parse_row(as_text, "row").messages == chat.messages
    assert parse_row(as_text, "row").notes == chat.notes
    replies = {"prompt": row["messages"][:1], "completion": row["messages"][1:]}
    assert ("null", "arguments") in parse_row(replies, "row").notes
    call["function"]["arguments"] = '{"x": 1, "y": null}'
    kept = parse_row({**row, "tools": json.dumps([tool])}, "row")
    assert kept.tools == [tool] and not kept.notes
    assert kept.messages[1]["tool_calls"][0]["function"]["arguments"] == '{"x": 1, "y": null}'


# Files that others have written


def test_real_alpaca_and_sharegpt(shared_data: Path, tokenizer: str) -> None:
    renderer = get_renderer("qwen3_instruct", tokenizer)
    alpaca = json.loads((shared_data / "datasets/alpaca/alpaca_2000.json").read_text())
    assert account(*alpaca) == [
        "2,000 rows of instruction/input/output, read as user and assistant messages"
    ]
    path = shared_data / "datasets/llamafactory-demo/glaive_toolcall_en_demo.json"
    read, calls = RowReader(), 0
    for row in json.loads(path.read_text()):
        chat = read(row, "row")
        found = chat.messages_for(renderer)
        values = [turn["value"] for turn in row["conversations"]]
        for value, message in zip(values, chat.messages, strict=True):
            if not (called := message.get("tool_calls")):
                assert message["content"] == value
                continue
            calls += 1
            assert json.loads(value) == called[0]["function"]
        renderer.build_supervised_example(found[:8])
    assert calls == 211
    pairs = json.loads((shared_data / "datasets/llamafactory-demo/dpo_en_demo.json").read_text())
    with pytest.raises(DataFormatError, match="row: 'chosen' is not supported"):
        parse_row(pairs[0], "row")
