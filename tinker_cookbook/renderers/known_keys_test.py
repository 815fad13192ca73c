"""Keys that decide about tokens or weights are refused on rows, messages and parts alike."""

import json
from pathlib import Path
from typing import Any

import pytest

from tinker_cookbook.exceptions import DataFormatError, RendererError, TinkerCookbookError
from tinker_cookbook.renderers import get_renderer
from tinker_cookbook.renderers.chats import parse_row
from tinker_cookbook.renderers.known_keys import MESSAGE_KEYS, PART_KEYS, find_key_problem
from tinker_cookbook.renderers.messages import Message
from tinker_cookbook.tokenizer_utils import Tokenizer

HI, YO = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo."}
SYSTEM = {"role": "system", "content": "Be brief."}
READ = {"row": ("messages", "tools", "system"), "message": MESSAGE_KEYS, "part": PART_KEYS}


@pytest.mark.parametrize("level", READ)
@pytest.mark.parametrize(
    "key, value",
    [
        ("train", False),
        ("train", 0),
        ("train", "false"),
        ("Train", False),
        ("trainabel", False),
        ("isTrainable", False),
        ("use_for_training", False),
        ("loss", False),
        ("loss", 0),
        ("lossMask", [0, 1]),
        ("include_in_loss", False),
        ("train_on_what", "last_assistant_message"),
        ("masked", True),
        ("mask", 1),
        ("ignored", "yes"),
        ("do_not_train", True),
        ("no-loss", True),
        ("untrained", True),
        ("skip", True),
        ("prefix", True),
        ("weight", 0),
        ("weight", 1),
        ("loss_weight", 0.5),
    ],
)
def test_flags_of_other_tools_are_refused(level: str, key: str, value: object) -> None:
    problem = find_key_problem(level, key, value, READ[level])
    assert problem and repr(key) in problem and "\n" not in problem


@pytest.mark.parametrize("level", READ)
@pytest.mark.parametrize(
    "key, value",
    [
        ("train", True),
        ("train", None),
        ("masked", False),
        ("ignore", "no"),
        ("do_not_train", False),
        ("weight", None),
        ("learning_rate", 0.1),
        ("trained_model", "x"),
        ("id", 0),
        ("source", "web"),
        ("cache_control", {"type": "ephemeral"}),
    ],
)
def test_what_changes_nothing_is_not_refused(level: str, key: str, value: object) -> None:
    assert find_key_problem(level, key, value, READ[level]) is None


@pytest.mark.parametrize(
    "key, value",
    [
        ("masked_turns", [0]),
        ("masked_turns", "[0]"),
        ("train_turns", [1]),
        ("trainable_messages", [1]),
        ("ignore_messages", [0]),
        ("mask_ranges", [[0, 3]]),
        ("mask_spans", [[0, 3]]),
        ("untrained_indices", [0]),
        ("importance_weight", 0.0),
        ("instance_weight", 0),
        ("row_weight", 0.2),
        ("row_weight", "0.2"),
        ("sampling_weight", 3),
        ("loss_scale", 0.0),
        ("loss_multiplier", 0),
        ("train_on_input", True),
        ("train_on_inputs", "true"),
        ("train_on_prompt", True),
        ("mask_prompt", False),
        ("mask_user_input", False),
        ("train_last", True),
        ("only_last_turn_loss", True),
        ("label", False),
        ("label", 0),
        ("label", "False"),
        ("desirable", False),
        ("kto_tag", False),
    ],
)
def test_flags_of_rows_are_refused(key: str, value: object) -> None:
    assert repr(key) in (find_key_problem("row", key, value, READ["row"]) or "")


@pytest.mark.parametrize("key", ["train_on_input", "train_on_prompt", "train_last"])
def test_flags_of_replies_that_ask_for_more_or_less_are_refused(key: str) -> None:
    problem = find_key_problem("message", key, True, MESSAGE_KEYS, "assistant")
    assert problem and problem.startswith(f"'{key}': True is not supported; give each message")


def test_the_bad_replies_of_preferences_are_not_trained() -> None:
    with pytest.raises(
        DataFormatError, match="row: 'label': False is not supported; remove rows with bad com"
    ):
        parse_row({"messages": [HI, YO], "label": False}, "row")
    with pytest.raises(
        DataFormatError, match="row: 'label': 0 is not supported; remove rows with bad compl"
    ):
        parse_row({"prompt": "Hi", "completion": "Yo.", "label": 0}, "row")


@pytest.mark.parametrize(
    "key, value",
    [
        ("label", True),
        ("label", 1),
        ("label", 3),
        ("label", "positive"),
        ("body_weight", "heavy"),
        ("turns", 3),
        ("scale", 3),
        ("user", "Bob"),
        ("last", True),
        ("context", "x"),
        ("messages_count", 2),
        ("loss", 0.71),
        ("train_steps", 3),
        ("weight_kg", 70),
        ("conversation_id", "a"),
        ("tool", "x"),
    ],
)
def test_figures_and_names_of_rows_are_not_refused(key: str, value: object) -> None:
    assert find_key_problem("row", key, value, ("conversations", "tools", "system")) is None


def test_the_table_of_messages_has_all_that_are_read() -> None:
    assert set(Message.__annotations__) <= set(MESSAGE_KEYS)


def problem_of(row: dict[str, Any], tokenizer: Tokenizer) -> str:
    with pytest.raises(TinkerCookbookError) as error:
        chat = parse_row(row, "row")
        renderer = get_renderer("qwen3_instruct", tokenizer)
        renderer.build_supervised_example(chat.messages_for(renderer))
    assert isinstance(error.value, DataFormatError | RendererError)
    return str(error.value)


@pytest.mark.parametrize(
    "more, problem",
    [
        ({"Tools": [{"name": "f"}]}, "unknown key 'Tools'; did you mean 'tools'?"),
        ({"tool": [{"name": "f"}]}, "unknown key 'tool'; did you mean 'tools'?"),
        ({"functions": [{"name": "f"}]}, "'functions' is not supported; write them as 'tools'"),
        (
            {"tools_schema": [{"name": "f"}]},
            "'tools_schema' is not supported; write them as 'tools'",
        ),
        ({"tool_schema": [{"name": "f"}]}, "write them as 'tools'"),
        ({"apis": [{"name": "f"}]}, "write them as 'tools'"),
        ({"api_list": [{"name": "f"}]}, "write them as 'tools'"),
        ({"function_list": [{"name": "f"}]}, "write them as 'tools'"),
        ({"sys": "S"}, "'sys' is not supported; write it as 'system'"),
        ({"chain_of_thought": "Hm"}, "put it into the assistant's message"),
        ({"available_tools": '[{"name": "f"}]'}, "write them as 'tools'"),
        ({"system": 3}, "'system' must be a string, found 3"),
        ({"sytem": "S"}, "unknown key 'sytem'; did you mean 'system'?"),
        ({"system_prompt": "S"}, "'system_prompt' is not supported; write it as 'system'"),
        ({"thinking": "Hm"}, "'thinking' is not supported; put it into the assistant's message"),
        (
            {"enable_thinking": False},
            "'enable_thinking': False is not supported; set renderer_name= to choose",
        ),
        (
            {"input_ids": [1, 2]},
            "'input_ids' is not supported; tokens are rendered from the messages",
        ),
        ({"images": ["a.png"]}, "'images' is not supported; all renderers here are for text"),
        ({"Messages": [HI, YO]}, "unknown key 'Messages'; did you mean 'messages'?"),
    ],
)
def test_keys_beside_the_messages(more: dict[str, Any], problem: str, tokenizer: str) -> None:
    assert problem_of({"messages": [HI, YO], **more}, tokenizer).startswith("row: ")
    assert problem in problem_of({"messages": [HI, YO], **more}, tokenizer)
    parse_row({"messages": [HI, YO], **dict.fromkeys(more)}, "row")  # null counts as absent


@pytest.mark.parametrize(
    "more, problem",
    [
        ({"reasoning_text": "Hm"}, "'reasoning_text' is not supported; use 'reasoning_content'"),
        (
            {"thinking_blocks": [{"thinking": "Hm"}]},
            "'thinking_blocks' is not supported; use 'reas",
        ),
        (
            {"chain_of_thought": "Hm"},
            "'chain_of_thought' is not supported; use 'reasoning_content'",
        ),
        ({"Trainable": False}, "'Trainable': False is not supported"),
        ({"toolCalls": [1]}, "unknown key 'toolCalls'; did you mean 'tool_calls'?"),
        ({"channel": "analysis"}, "'channel': 'analysis' is not supported; write reasoning as"),
        (
            {"end_turn": False},
            "'end_turn': False is not supported; every message is rendered with its end",
        ),
        ({"images": ["a.png"]}, "'images' is not supported"),
        ({"reasoning": "a", "thinking": "b"}, "'reasoning' and 'thinking' differ; keep one"),
        ({"content": [{"type": "text", "text": "a", "train": False}]}, "'train': False is not"),
        ({"content": [{"type": "text", "text": "a", "trainabel": False}]}, "'trainabel': False"),
        ({"content": [{"type": "text", "text": "a", "thinking": "b"}]}, "a text part with 'thi"),
        ({"content": [{"type": "text", "text": "a", "Text": "b"}]}, "did you mean 'text'?"),
    ],
)
def test_keys_of_messages_and_parts(more: dict[str, Any], problem: str, tokenizer: str) -> None:
    found = problem_of({"messages": [HI, {**YO, **more}]}, tokenizer)
    assert found.startswith("message 1: ") and problem in found


def test_a_flag_on_a_message_that_is_not_trained_anyway(tokenizer: str) -> None:
    found = problem_of({"messages": [{**HI, "train": True}, YO]}, tokenizer)
    assert found.startswith("message 0: 'train': True is not supported")
    assert "'reasoning'" not in problem_of({"messages": [{**HI, "reasoning": "x"}, YO]}, tokenizer)


@pytest.mark.parametrize("file", ["row_keys_dropped.jsonl", "untrained_flags_ignored.jsonl"])
def test_keys_that_were_dropped_once(file: str, tokenizer: str, shared_cases: Path) -> None:
    rows = [json.loads(line) for line in (shared_cases / file).read_text().splitlines()]
    for row in rows:
        if "system" in row:
            assert parse_row(row, "row").messages[0]["content"] == row["system"]
        else:
            assert "row" not in problem_of(row, tokenizer)[5:]


def test_a_system_prompt_beside_the_messages() -> None:
    row = {"messages": [HI, YO], "system": "Be brief."}
    assert parse_row(row, "row").messages == [SYSTEM, HI, YO]
    assert parse_row({**row, "system": ""}, "row").messages == [HI, YO]
    marked = [{**message, "trainable": True} for message in (HI, YO)]
    first = parse_row({**row, "messages": marked}, "row").messages[0]
    assert first == {**SYSTEM, "trainable": False}
    again = parse_row({**row, "messages": [SYSTEM, HI, YO]}, "row")
    assert again.messages == [SYSTEM, HI, YO] and again.notes == {("row", "system"): 1}
    with pytest.raises(DataFormatError, match="row: 'system' differs from the system message in"):
        parse_row({**row, "messages": [{**SYSTEM, "content": "Be long."}, HI, YO]}, "row")


def test_text_that_the_messages_repeat_is_not_lost() -> None:
    row = {"messages": [SYSTEM, HI, {**YO, "reasoning_content": "They greet me."}]}
    chat = parse_row({**row, "system_prompt": "Be brief.", "reasoning": "They greet me."}, "row")
    assert chat.notes == {("row", "system_prompt"): 1, ("row", "reasoning"): 1}
    parts = [{"type": "thinking", "thinking": "They\ngreet me."}, {"type": "text", "text": "Yo."}]
    row["messages"][2] = {**YO, "content": parts}
    assert parse_row({**row, "reasoning": "They\ngreet me."}, "row").notes
    with pytest.raises(DataFormatError, match="'reasoning' is not supported; put it into"):
        parse_row({**row, "reasoning": "They do not."}, "row")


@pytest.mark.parametrize(
    "row",
    [
        {"system_prompt": "Be kind", "messages": [{**HI, "content": "Be kind to Bob?"}, YO]},
        {"system_prompt": "Be brief.", "messages": [HI, {**YO, "content": "Be brief."}]},
        {"system_prompt": "Be", "messages": [SYSTEM, HI, YO]},
        {"sys": "Be", "messages": [SYSTEM, HI, YO]},
        {"reasoning": "2+2", "messages": [{**HI, "content": "2+2?"}, YO]},
        {"reasoning": "Hi", "messages": [HI, YO]},
        {"reasoning": "Yo.", "messages": [HI, YO]},
        {"reasoning": "greet", "messages": [HI, {**YO, "reasoning_content": "They greet me."}]},
        {"completion": "Yo.", "messages": [{**HI, "content": "Yo. Hi"}]},
        {"completion": "Hi", "messages": [HI]},
    ],
)
def test_text_that_stands_elsewhere_in_the_messages_would_be_lost(row: dict[str, Any]) -> None:
    with pytest.raises(DataFormatError, match="is not supported"):
        parse_row(row, "row")


def test_reasoning_beside_a_reply_that_has_it_in_its_string() -> None:
    row = {"messages": [HI, {**YO, "content": "<think>\nHm.\n</think>\n\nYo."}], "reasoning": "Hm."}
    assert parse_row(row, "row").notes == {("row", "reasoning"): 1}


@pytest.mark.parametrize("key", ["completion", "response", "output", "chosen"])
def test_a_reply_beside_a_conversation_without_one(key: str) -> None:
    with pytest.raises(
        DataFormatError, match=f"'{key}' is not supported; put the reply into the last"
    ):
        parse_row({"messages": [HI], key: "Yo."}, "row")
    assert parse_row({"messages": [HI, YO], key: "Yo."}, "row").notes == {("row", key): 1}
