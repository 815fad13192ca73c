"""docs/chats.md: its examples run as they stand, and its tables say what is so."""

from __future__ import annotations

import importlib
import json
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from recipes import sl_basic
from tinker_cookbook.cli_utils import cli, parse
from tinker_cookbook.exceptions import TinkerCookbookError
from tinker_cookbook.hyperparam_utils import get_lr
from tinker_cookbook.renderers import (
    Renderer,
    TrainOnWhat,
    get_registered_renderer_names,
    get_renderer,
    show,
    unregister_renderer,
)
from tinker_cookbook.renderers.chats import parse_row, read_chats
from tinker_cookbook.renderers.examples import conversation_examples
from tinker_cookbook.renderers.testing import assistant, load, marked, rendered_ids, user
from tinker_cookbook.supervised.chat_config import ALIASES, resolve_chat_config
from tinker_cookbook.supervised.data import JsonlChats
from tinker_cookbook.supervised.defaults import SL_DEFAULTS

PAGE = (Path(__file__).parent.parent / "docs" / "chats.md").read_text(encoding="utf-8")
BLOCKS: dict[str, list[str]] = {}
for language, text in re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, flags=re.DOTALL | re.MULTILINE):
    BLOCKS.setdefault(language, []).append(text)
IN_MEMORY, MY_FORMAT, REGISTER = BLOCKS["python"]
(JSONL,) = BLOCKS["jsonl"]
(SHOWN,) = BLOCKS[""]

TOKENIZERS = {
    "qwen3": "nano",
    "llama3": "llama-3.1-instruct",
    "deepseekv3": "deepseek-v3.1",
    "kimi": "kimi-k2",
    "gpt": "gpt-oss",
    "role": "nano",
}


def table(heading: str) -> list[list[str]]:
    """The cells of the table whose first column is called so, without code marks."""
    lines = PAGE.split(f"\n| {heading} |")[1].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip().strip("`") for cell in line.strip("| ").split(" | ")] for line in lines]


RENDERERS = {row[0]: row[2:5] for row in table("name")}


def example(renderer: Renderer, row: dict[str, Any]) -> str:
    """The last example of a conversation as `marked` writes it."""
    examples = renderer.build_supervised_examples(
        parse_row(row, "row").messages_for(renderer), TrainOnWhat.ALL_ASSISTANT_MESSAGES
    )
    return marked(renderer.tokenizer, examples[-1], {})


@pytest.fixture
def my_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "my_format.py").write_text(MY_FORMAT)
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    yield
    sys.modules.pop("my_format", None)


def test_the_data_renders_and_trains_its_replies(tmp_path: Path) -> None:
    (tmp_path / "page.jsonl").write_text(JSONL)
    chats = read_chats(tmp_path / "page.jsonl")
    renderer = get_renderer("qwen3", load("nano"))
    plain, parts, key, tools = (
        example(renderer, {"messages": chat.messages, "tools": chat.tools}) for chat in chats
    )
    assert plain.endswith("assistant⏎«<think>⏎⏎</think>⏎⏎Hello.<|im_end|>»")
    assert parts == key
    assert parts.endswith("«<think>⏎Two, and three more.⏎</think>⏎⏎5<|im_end|>»")
    assert tools.startswith("<|im_start|>system⏎# Tools") and '"name": "weather"' in tools
    assert '{"name": "weather", "arguments": {"city": "Oslo"}}' in tools
    assert "<tool_response>⏎4 degrees⏎</tool_response>" in tools
    assert tools.endswith("It has 4 degrees.<|im_end|>»")
    as_text = {"messages": chats[3].messages, "tools": json.dumps(chats[3].tools)}
    assert example(renderer, as_text) == tools


def _with_string_reasoning(name: str) -> str:
    reply = assistant("<think>\nHm.\n</think>\n\nHi")
    renderer = get_renderer(name, load(_tokenizer(name)))
    return example(renderer, {"messages": [user("Hi"), reply]})


@pytest.mark.parametrize(
    "name, trained",
    {
        "kimi_k2": "«<think>Hm.</think>Hi<|im_end|>»",
        "qwen3": "«<think>⏎Hm.⏎</think>⏎⏎Hi<|im_end|>»",
        "deepseekv3_thinking": "<think>«⏎Hm.⏎</think>⏎⏎Hi<｜end▁of▁sentence｜>»",
        "qwen3_disable_thinking": None,
        "deepseekv3": None,
        "qwen3_instruct": "«<think>⏎Hm.⏎</think>⏎⏎Hi<|im_end|>»",
        "llama3": "«<think>⏎Hm.⏎</think>⏎⏎Hi<|eot_id|>»",
        "role_colon": "« <think>⏎Hm.⏎</think>⏎⏎Hi⏎⏎User:»",
        "gpt_oss_low_reasoning": "final<|message|><think>⏎Hm.⏎</think>⏎⏎Hi<|return|>»",
    }.items(),
)
def test_reasoning_inside_a_string(name: str, trained: str | None) -> None:
    named = " ".join(row[0] for row in table("renderer")).replace("gpt_oss_*", name)
    assert name in re.findall(r"\w+", named)
    if trained is None:
        with pytest.raises(TinkerCookbookError, match="the reply contains reasoning"):
            _with_string_reasoning(name)
    else:
        assert _with_string_reasoning(name).endswith(trained)


def test_qwen3_drops_reasoning_from_history_only_where_it_was_not_in_a_string() -> None:
    renderer = get_renderer("qwen3", load("nano"))
    as_string, as_part = assistant("<think>\nHm.\n</think>\n\nHi"), assistant("Hi", "Hm.")
    for reply, stays in ((as_string, True), (as_part, False)):
        chat = [user("Hi"), reply, user("Bye"), assistant("See you")]
        assert ("Hm." in example(renderer, {"messages": chat})) is stays


@pytest.mark.parametrize("message, error", table("message"))
def test_what_is_refused(message: str, error: str) -> None:
    renderer = get_renderer("qwen3_instruct", load("nano"))
    row = {"messages": [user("Hi"), json.loads(message)]}
    if json.loads(message)["role"] == "system":
        row["messages"].reverse()
    with pytest.raises(TinkerCookbookError, match=re.escape(error)):
        example(renderer, row)


@pytest.mark.parametrize("row, read_as", table("row"))
def test_the_forms_of_rows(row: str, read_as: str) -> None:
    def said(message: Any) -> str:
        calls = [call["function"] for call in message.get("tool_calls", ())]
        words = [f"{call['name']}({json.dumps(call['arguments'])})" for call in calls]
        return f"{message['role']}: {message['content']}{''.join(words)}"

    chat = parse_row(json.loads(row), "row")
    assert " / ".join(map(said, chat.messages)).replace("\n", "⏎") == read_as


@pytest.mark.parametrize("key, outcome", table("key next to `messages`"))
def test_what_becomes_of_a_key_beside_the_messages(key: str, outcome: str) -> None:
    row = {"messages": [user("Hi"), assistant("Hello")]}
    more = {**row, **json.loads(f"{{{key}}}")}
    if outcome.startswith("rejected"):
        with pytest.raises(TinkerCookbookError, match=re.escape(outcome.split("`: `")[1])):
            parse_row(more, "row")
        return
    chat = parse_row(more, "row")
    name = next(iter(more.keys() - row))
    assert dict(chat.notes) == ({("row", name): 1} if outcome == "dropped" else {})
    assert (chat.messages != row["messages"]) is (name == "system")


def test_keys_that_say_nothing_of_tokens_are_not_read() -> None:
    renderer = get_renderer("qwen3_instruct", load("nano"))
    plain = {"messages": [user("Hi"), assistant("Hello")]}
    more = {"id": 1, "messages": [user("Hi"), assistant("Hello", id="m1", timestamp="today")]}
    assert example(renderer, more) == example(renderer, plain)


def test_the_commands_have_only_keys_that_there_are() -> None:
    programs = {
        "recipes.sl_basic": (sl_basic.CLI, ALIASES),
        "tinker_cookbook.renderers.show": (show.Config, None),
    }
    lines = [line for block in BLOCKS["sh"] for line in block.splitlines()]
    assert len(lines) == 5
    for line in lines:
        run, program, *words = shlex.split(line)
        config, aliases = programs[program]
        assert run == "./scripts/run" and words
        parse(config, words, aliases)


def test_conversations_in_python() -> None:
    load("nano")
    names: dict[str, Any] = {}
    exec(IN_MEMORY, names)
    asked = sl_basic.CLI(dataset_builder=names["builder"])
    builder = resolve_chat_config(
        asked, SL_DEFAULTS, JsonlChats(path="unused")
    ).config.dataset_builder
    assert builder is not None
    train, _ = builder()
    (datum,) = train.get_batch(0)
    tokens = datum.loss_fn_inputs["target_tokens"].to_numpy()
    trained = tokens[datum.loss_fn_inputs["weights"].to_numpy() > 0].tolist()
    assert load("nano").decode(trained) == "Hello.<|im_end|>"


def test_the_modes_are_all_there_are() -> None:
    assert [row[0] for row in table("mode")] == list(TrainOnWhat)


@pytest.mark.parametrize(
    "mode, trained",
    {
        "last_assistant_message": "B",
        "last_assistant_turn": "CB",
        "all_assistant_messages": "ACB",
        "all_messages": "SQAPCB",
        "all_user_and_system_messages": "SQP",
        "customized": "Q",
    }.items(),
)
def test_what_a_mode_trains(mode: str, trained: str) -> None:
    """With the end-of-turn token, and no header."""
    roles = {"S": "system", "Q": "user", "A": "assistant", "P": "user"}
    chat = [{"role": roles.get(text, "assistant"), "content": text} for text in "SQAPCB"]
    if mode == "customized":
        chat = [{**message, "trainable": message["content"] == "Q"} for message in chat]
    renderer = get_renderer("qwen3_instruct", load("nano"))
    text = marked(load("nano"), renderer.build_supervised_example(chat, mode), {})
    assert re.findall("«(.*?)»", text) == [f"{letter}<|im_end|>" for letter in trained]


def test_the_renderers_are_all_there_are() -> None:
    assert sorted(RENDERERS) == get_registered_renderer_names()


def _tokenizer(name: str) -> str:
    return next(tokenizer for start, tokenizer in TOKENIZERS.items() if name.startswith(start))


@pytest.mark.parametrize("name", [name for name in RENDERERS if name != "template"])
def test_what_the_table_says_of_a_renderer(name: str) -> None:
    reasoning, tools, one_example = RENDERERS[name]
    renderer = get_renderer(name, load(_tokenizer(name)))
    thoughtful = {"messages": [user("Hi"), assistant("Hello", "Hm.")]}
    call = [user("Hi"), assistant("", calls=[("find", "{}")])]
    tool = {"name": "find", "description": "", "parameters": {"type": "object", "properties": {}}}

    def found(row: dict[str, Any], what: str) -> str:
        try:
            text = example(renderer, row)
        except TinkerCookbookError:
            return "rejected"
        return "trained" if what in text.rpartition("«")[2] else "dropped"

    assert found(thoughtful, "Hm.") == reasoning
    assert found({"messages": call}, "find") == ("rejected" if tools == "rejected" else "trained")
    declared = found({"messages": call, "tools": [tool]}, "find")
    assert declared == ("trained" if tools == "declared" else "rejected")
    chat = [user("Hi"), assistant("Hello"), user("Bye"), assistant("See you")]
    count = len(conversation_examples(chat, renderer))
    assert count == (1 if one_example == "yes" else 2)


def test_two_names_of_one_renderer() -> None:
    first, second = (
        get_renderer(name, load("deepseek-v3.1"))
        for name in ("deepseekv3", "deepseekv3_disable_thinking")
    )
    chat = [user("Hi"), assistant("Hello"), user("Bye"), assistant("See you")]
    assert type(first) is type(second)
    assert rendered_ids(first, chat) == rendered_ids(second, chat)


def test_each_module_named_is_headed_by_its_list_of_differences() -> None:
    files = re.findall(
        r"`(\w+)\.py`", PAGE.split("in the docstring of each module")[1].split("\n\n")[0]
    )
    assert len(files) == 6
    for file in files:
        module = importlib.import_module(f"tinker_cookbook.renderers.{file}")
        assert "with these intentional differences:\n\n1. " in (module.__doc__ or "")


def test_what_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load("nano")
    path = tmp_path / "my.jsonl"
    path.write_text(json.dumps({"messages": [user("Hi"), assistant("Hello.")]}) + "\n")
    show.main(parse(show.Config, [f"data.path={path}"]))
    assert SHOWN in capsys.readouterr().out


@pytest.mark.parametrize(
    "line, code", [('{"messages": [{"role": "human", "content": "Hi"}]}', 1), ("Hi", 2)]
)
def test_how_show_ends_where_training_would_refuse_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, code: int
) -> None:
    load("nano")
    (tmp_path / "my.jsonl").write_text(f"{line}\n")
    monkeypatch.setattr(sys, "argv", ["show", f"data.path={tmp_path / 'my.jsonl'}", "shown=0"])
    with pytest.raises(SystemExit) as exit:
        cli(show.main, show.Config)
    assert exit.value.code == code


def test_a_renderer_of_ones_own(my_format: None) -> None:
    tokenizer = load("nano")
    renderer = get_renderer("my_format:MyRenderer", tokenizer)
    for reply in (assistant("Hello."), assistant("Hello <|im_end|>.", "Hm.")):
        chat = [user("Hi <think>"), reply]
        whole = rendered_ids(renderer, chat)
        prompt = renderer.build_generation_prompt(chat[:1]).to_ints()
        assert whole[: len(prompt)] == prompt
        message, termination = renderer.parse_response(whole[len(prompt) :])
        assert message == reply and termination.is_stop_sequence
        assert whole.count(renderer.encoder.id("<|im_end|>")) == 2  # the text in a message is none
        assert whole.count(renderer.encoder.id("<think>")) == isinstance(reply["content"], list)
    text = example(renderer, {"messages": [user("Hi"), assistant("Hello.", "Hm.")]})
    assert text == "[user]⏎Hi<|im_end|>⏎[assistant]⏎«<think>Hm.</think>Hello.<|im_end|>»"
    assert text.replace("«", "").replace("»", "") in MY_FORMAT
    with pytest.raises(TinkerCookbookError, match="message 1: this format does not support tool"):
        rendered_ids(renderer, [user("Hi"), assistant("", calls=[("f", "{}")])])
    chat = [user("Hi"), assistant("Hello"), user("Bye"), assistant("See you")]
    first, second = (renderer.build_generation_prompt(chat[:n]).to_ints() for n in (1, 3))
    assert second[: len(first)] == first  # the extension property, which it claims


def test_a_name_for_it(my_format: None) -> None:
    names: dict[str, Any] = {}
    load("nano")
    try:
        exec(REGISTER, names)
        assert type(names["renderer"]).__name__ == "MyRenderer"
    finally:
        unregister_renderer("my_format")


def test_the_learning_rate() -> None:
    found = re.search(r'`hyperparam_utils.get_lr\("(.*?)"\)`, which is ([\de.-]+),', PAGE)
    assert found is not None
    assert get_lr(found[1]) == pytest.approx(float(found[2]), rel=1e-3)
