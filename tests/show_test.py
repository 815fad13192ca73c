from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import chz
import numpy as np
import pytest

from tests.programs import Programs
from tinker_cookbook.cli_utils import parse
from tinker_cookbook.exceptions import ConfigurationError, DataFormatError
from tinker_cookbook.renderers import TrainOnWhat, get_renderer, loss_mask_view, show
from tinker_cookbook.renderers.examples import Example, conversation_examples
from tinker_cookbook.renderers.loss_mask_view import (
    LossMaskPrinter,
    TokenStatus,
    escape_invisible,
    format_plain,
    text_pieces,
)
from tinker_cookbook.renderers.testing import load
from tinker_cookbook.sequences import Sequence
from tinker_cookbook.supervised import viz_sft_dataset
from tinker_cookbook.tokenizer_utils import Tokenizer

REPOSITORY = Path(__file__).parents[1]
HI = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
BYE = [{"role": "user", "content": "Bye"}, {"role": "assistant", "content": "See you"}]


@pytest.fixture
def shown(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., str]:
    """What the program prints for these conversations and keys."""

    def run(chats: list[list[dict[str, Any]]], *words: str, refused: bool = False) -> str:
        path = tmp_path / "chats.jsonl"
        path.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats))
        load("nano")
        with pytest.raises(SystemExit) if refused else nullcontext():
            show.main(parse(show.Config, [f"data.path={path}", *words]))
        return capsys.readouterr().out.replace(f"{path}", "chats")

    return run


@pytest.fixture
def tokenizer() -> Tokenizer:
    return load("nano")


def test_a_page_as_a_pipe_gets_it(shown: Callable[..., str]) -> None:
    assert shown([HI, HI[:1]]) == (
        "nano, renderer qwen3_instruct, train_on_what=all_assistant_messages, max_length=512\n"
        "«trained»  ⏎ newline  ✂ truncated from here on\n"
        "\n"
        "── chats:1: 15 tokens, 2 trained\n"
        "<|im_start|>user⏎\nHi<|im_end|>⏎\n<|im_start|>assistant⏎\n«Hello<|im_end|>»\n"
        "\n"
        "── chats:2: 7 tokens, 0 trained\n"
        "<|im_start|>user⏎\nHi<|im_end|>\n"
        "! no token is trained under train_on_what=all_assistant_messages\n"
        "\n"
        "chats: 2 conversations, 1 example, 15 tokens, 2 of them trained (13%)\n"
        "! 1 example without trained tokens: chats:2: no token is trained under"
        " train_on_what=all_assistant_messages\n"
    )


def test_the_totals_are_those_of_training(shown: Callable[..., str], tmp_path: Path) -> None:
    """Beside the account that the supervised data set keeps of the same file."""
    from tinker_cookbook.supervised.data import JsonlChats
    from tinker_cookbook.supervised.types import ChatDatasetBuilderCommonConfig

    chats = [HI, [*HI, *BYE], HI[:1], [*BYE, *HI, *BYE, *BYE, *HI]]
    for renderer, mode in [("qwen3", "all_assistant_messages"), ("qwen3", "last_assistant_turn")]:
        words = [f"renderer_name={renderer}", f"train_on_what={mode}", "max_length=45"]
        out = shown(chats, *words, "shown=0")
        common = ChatDatasetBuilderCommonConfig(
            model_name_for_tokenizer="nano",
            renderer_name=renderer,
            max_length=45,
            batch_size=1,
            train_on_what=TrainOnWhat(mode),
        )
        data = JsonlChats(path=str(tmp_path / "chats.jsonl"), common_config=common)()[0]
        report = data.report
        assert report is not None and report.num_truncated
        # a datum has one input token less than its example has tokens
        tokens = report.num_tokens + report.num_examples
        assert (
            f"chats: 4 conversations, {report.num_examples} examples, {tokens} tokens,"
            f" {report.num_loss_tokens} of them trained"
        ) in out
        notes = [line.partition(": ")[2] for line in report.lines() if "became" in line]
        assert all(note in out for note in notes)
        if mode == "all_assistant_messages":
            assert notes[0].startswith("2 conversations became 7 examples, one per reply")
        else:
            assert not notes


def test_what_is_cut_is_shown_and_counted(shown: Callable[..., str]) -> None:
    out = shown([[*HI, *BYE]], "max_length=20")
    assert (
        "── chats:1: 20 tokens, 2 trained\n"
        "<|im_start|>user⏎\nHi<|im_end|>⏎\n<|im_start|>assistant⏎\n«Hello<|im_end|>»⏎\n"
        "<|im_start|>user⏎\n✂Bye<|im_end|>⏎\n<|im_start|>assistant⏎\nSee you<|im_end|>\n"
        "! truncated from 33 to max_length=20 tokens: 4 trained tokens are lost\n"
    ) in out
    lost = "13 tokens lost, 4 of them trained"
    assert f"! 1 example truncated at max_length=20: {lost}: chats:1\n" in out


def test_replies_without_weight_and_dropped_reasoning(shown: Callable[..., str]) -> None:
    thought = [{"type": "thinking", "thinking": "greet"}, {"type": "text", "text": "Hello"}]
    chat = [HI[0], {"role": "assistant", "content": thought}, *BYE]
    words = ["renderer_name=qwen3", "train_on_what=last_assistant_message"]
    out = shown([chat], *words)
    assert "! message 1 is not trained under train_on_what=last_assistant_message\n" in out
    assert "! 1 of 2 assistant messages not trained under" in out
    assert "! the reasoning of message 1 is dropped by this chat format\n" in out
    # each reply is an example of its own, and the first one has its reasoning
    out = shown([chat], "renderer_name=qwen3")
    assert "── chats:1, example 2 of 2: " in out and "greet⏎" in out and "!" not in out


@pytest.mark.parametrize("key", ["reasoning_content", "thinking"])
def test_reasoning_is_looked_for_where_it_stands(shown: Callable[..., str], key: str) -> None:
    """Not in words that happen to be the same, and under every key that data sets use."""
    chat = [HI[0], {**HI[1], key: "i"}, *BYE]
    words = ["renderer_name=qwen3", "train_on_what=last_assistant_message"]
    assert "! the reasoning of message 1 is dropped by this chat format\n" in shown([chat], *words)
    assert "reasoning" not in shown([chat], "renderer_name=qwen3_instruct")
    inside = [HI[0], {"role": "assistant", "content": "<think>\ni\n</think>\n\nHello"}, *BYE]
    assert "reasoning" not in shown([inside], *words)  # a string passes through whole


def test_reasoning_in_several_parts(shown: Callable[..., str]) -> None:
    parts = [{"type": kind, kind: f"a {kind}"} for kind in ("thinking", "text", "thinking", "text")]
    chat = [HI[0], {"role": "assistant", "content": parts}]
    assert "reasoning" not in shown([chat], "renderer_name=qwen3_instruct")


def test_a_conversation_without_a_reply_counts_where_each_reply_is_an_example(
    shown: Callable[..., str],
) -> None:
    out = shown([HI, HI[:1]], "renderer_name=qwen3")
    assert "── chats:2\n! no message is trained under train_on_what=all_assistant_messages" in out
    assert "! 1 example without trained tokens: chats:2\n" in out


def test_what_customized_leaves_out_is_meant(shown: Callable[..., str]) -> None:
    chat = [{**message, "trainable": False} for message in [*HI, *BYE]]
    chat[-1]["trainable"] = True
    out = shown([chat], "train_on_what=customized")
    assert "«See you<|im_end|>»" in out and "!" not in out


def test_tools_beside_the_messages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tool = {"name": "add", "description": "Adds.", "parameters": {}}
    path = tmp_path / "tools.jsonl"
    path.write_text(json.dumps({"messages": HI, "tools": [tool]}))
    show.main(show.Config(dataset_path=str(path)))
    assert '"name": "add"' in capsys.readouterr().out
    with pytest.raises(SystemExit):
        show.main(show.Config(dataset_path=str(path), renderer_name="role_colon"))
    assert "! cannot be rendered: RoleColonRenderer has no format for" in capsys.readouterr().out


def test_what_cannot_be_rendered_is_named_and_the_rest_shown(shown: Callable[..., str]) -> None:
    out = shown([HI, [{"role": "x", "content": "y"}], HI], refused=True)
    assert "── chats:2\n! cannot be rendered: message 0: unknown role 'x'" in out
    refused = "! 1 conversation cannot be rendered, and training rejects the whole file: chats:2: "
    assert f"{refused}message 0: unknown role 'x'" in out
    assert "chats: 3 conversations, 2 examples" in out


def test_many_places_are_not_all_named(shown: Callable[..., str]) -> None:
    out = shown([HI[:1]] * 9, "shown=0", refused=True)  # as a whole: nothing is trained
    line = out.splitlines()[-1]
    assert line.startswith("! 9 examples without trained tokens: chats:1: ")
    assert line.endswith("; ...") and "chats:5: " in line and "chats:6: " not in line


def test_a_part_of_the_data(shown: Callable[..., str]) -> None:
    chats = [HI, BYE, HI, BYE]
    out = shown(chats, "start=1", "limit=2", "shown=1")
    assert "── chats:2: " in out and "── chats:1" not in out and "── chats:3" not in out
    assert "chats: 2 conversations" in out
    assert out.endswith(
        "The data has more conversations; set limit= to render more than these 2.\n"
    )
    assert "set limit=" not in shown(chats, "limit=4")
    with pytest.raises(ConfigurationError, match=r"start=4: there are not that many"):
        shown(chats, "start=4")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["dataset_path=a.jsonl"], r"dataset_path=a\.jsonl and data\.path=.* remove one of them"),
        (["max_length=1"], "max_length=1: expected 2 or more"),
        (["limit=0"], "limit=0: expected 1 or more"),
        (["renderer_name=qwen"], "renderer_name='qwen' is not a registered renderer"),
        (["train_on_what=all"], "train_on_what='all'"),
    ],
)
def test_bad_keys(shown: Callable[..., str], words: list[str], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        shown([HI], *words)


def test_bad_files(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"messages": 3}')
    with pytest.raises(DataFormatError, match=r"x\.jsonl:1: 'messages' must be a non-empty list"):
        show.main(show.Config(dataset_path=str(tmp_path / "x.jsonl")))
    with pytest.raises(ConfigurationError, match=r"dataset_path=.*: no such file"):
        show.main(show.Config(dataset_path=str(tmp_path / "y.jsonl")))
    (tmp_path / "z.jsonl").write_text(json.dumps({"chat": HI}))
    words = [f"data.path={tmp_path / 'z.jsonl'}", "data.message_field=chat"]
    show.main(parse(show.Config, words))


def test_what_is_converted_and_what_is_not_read_as_in_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tinker_cookbook.supervised.data import builder_for_path
    from tinker_cookbook.supervised.types import ChatDatasetBuilderCommonConfig

    load("nano")
    rows = [{"instruction": "Hi", "input": "", "output": "Yo.", "topic": "x"}] * 3
    (tmp_path / "a.json").write_text(json.dumps(rows))
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = ChatDatasetBuilderCommonConfig(
        model_name_for_tokenizer="nano",
        renderer_name="qwen3_instruct",
        max_length=30,
        batch_size=3,
    )
    for path in (str(tmp_path / "a.json"), str(tmp_path / "a.jsonl")):
        show.main(parse(show.Config, [f"dataset_path={path}", "shown=0"]))
        out = capsys.readouterr().out
        data, _ = chz.replace(builder_for_path(path, "dataset_path"), common_config=common)()
        data.get_batch(0)
        said = [line for line in data.report.lines() if "rows" in line]
        assert said == [
            f"{path}: 3 rows of instruction/input/output, read as user and assistant messages",
            f"{path}: dropped keys: topic (3 rows)",
        ]
        assert all(f"{line}\n" in out for line in said)


def test_rows_of_a_data_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A row without messages is left out, as in training."""
    import datasets

    load("nano")
    rows = datasets.Dataset.from_list([{"chat": HI, "n": 1}, {"chat": [], "n": 2}])
    rows.save_to_disk(str(tmp_path / "saved"))
    words = [f"data.path={tmp_path / 'saved'}", "data.message_field=chat"]
    show.main(parse(show.Config, words))
    out = capsys.readouterr().out
    assert "saved, row 0: 15 tokens, 2 trained" in out
    assert "saved, row 1: 'chat' must be a non-empty list" in out
    with pytest.raises(DataFormatError, match=r"saved: row 0: no 'messages'; found 'chat', 'n'"):
        show.main(parse(show.Config, words[:1]))


@pytest.mark.parametrize(
    ("renderer", "found", "refused"),
    [
        ("qwen3_instruct", ["«<think>7 + 8", '"city": "Oslo"', "15 degrees"], []),
        ("qwen3", ["«<think>⏎\n2 * 45", "# Tools", "«<think>⏎\n⏎\n</think>⏎\n⏎\nSantiago."], []),
        ("role_colon", ["Assistant:« Lima.⏎\n⏎\n»User:"], ["reasoning", "tools"]),
        ("qwen3_disable_thinking", ["</think>⏎\n⏎\n«In Rome."], ["reasoning"]),
    ],
)
def test_built_in_conversations(
    renderer: str, found: list[str], refused: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    load("nano")
    show.main(show.Config(renderer_name=renderer))
    out = capsys.readouterr().out
    assert all(text in out for text in found)
    left_out = f"Omitted, because this chat format does not support them: {', '.join(refused)}.\n"
    assert (left_out in out) == bool(refused) and "!" not in out


def test_pieces_join_to_the_text_and_know_their_fate(tokenizer: Tokenizer) -> None:
    text = "Grüße 🙂 𝔘nicode <|im_end|>\ufffd\n"
    chat = [{"role": "user", "content": text}, {"role": "assistant", "content": text}]
    (example,) = conversation_examples(chat, get_renderer("qwen3_instruct", tokenizer), 20)
    found = list(text_pieces(example, tokenizer))
    assert "".join(p.text for p in found) == tokenizer.decode(example.full.tokens.tolist())
    assert [p.text for p in found if p.is_special] == [
        *["<|im_start|>", "<|im_end|>"] * 2  # those in the text are text
    ]
    assert {p.status for p in found} >= {
        TokenStatus.UNTRAINED,
        TokenStatus.TRUNCATED,
    } and example.is_truncated
    whole = Example(example.full, len(example.full), None)
    assert "".join(
        p.text for p in text_pieces(whole, tokenizer) if p.status is TokenStatus.TRAINED
    ) == (f"{text}<|im_end|>")


def test_the_first_token_is_not_shown_as_trained() -> None:
    """Nothing predicts it."""
    tokenizer = load("nano")
    tokens = tokenizer.encode("lamp tree")
    example = Example(Sequence(tokens, np.ones(len(tokens))), len(tokens), None)
    first = next(text_pieces(example, tokenizer))
    assert first.status is TokenStatus.UNTRAINED
    assert format_plain(text_pieces(example, tokenizer)).startswith(f"{first.text}«")


def test_what_a_terminal_would_obey_is_escaped() -> None:
    assert escape_invisible("a\x1b[31m\tb\u202ec\r\n") == "a\\x1b[31m\\tb\\u202ec\\r⏎\n"
    assert escape_invisible("é🙂«") == "é🙂«"
    assert escape_invisible("\ud800") == "\\ud800"


def test_colours(tokenizer: Tokenizer) -> None:
    renderer = get_renderer("qwen3_instruct", tokenizer)
    examples = conversation_examples([*HI, *BYE], renderer, 20)
    stream = io.StringIO()
    page = LossMaskPrinter(renderer, stream, colours=True)
    page.chat("here", examples, ["a note"])
    out = stream.getvalue()
    styles = loss_mask_view._STYLES
    text = loss_mask_view.format_coloured(text_pieces(examples[0], tokenizer))
    trained = [text.plain[s.start : s.end] for s in text.spans if "on " in str(s.style)]
    assert "".join(trained) == "Hello<|im_end|>"
    assert any(str(s.style).endswith(styles[TokenStatus.TRUNCATED][0]) for s in text.spans)
    assert "\x1b[" in out and "«" not in out and "a note" in out


def test_both_command_lines(programs: Programs, tmp_path: Path) -> None:
    """And no colours where NO_COLOR is set or nobody looks."""
    path = tmp_path / "chats.jsonl"
    path.write_text(json.dumps({"messages": HI}))
    load("nano")
    outputs = [
        programs.run(module, *words, cwd=REPOSITORY, env={**os.environ, "NO_COLOR": "1"})
        for module, words in (
            ("tinker_cookbook.renderers.show", [f"data.path={path}"]),
            ("tinker_cookbook.supervised.viz_sft_dataset", ["dataset_path=/absent.jsonl"]),
        )
    ]
    assert [each.returncode for each in outputs] == [0, 2], outputs[0].stderr
    assert "«Hello<|im_end|>»" in outputs[0].stdout
    assert outputs[1].stderr == "error: dataset_path=/absent.jsonl: no such file\n"
    assert viz_sft_dataset.Config is show.Config
