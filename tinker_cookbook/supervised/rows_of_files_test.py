"""Whatever builder or program reads a file, the tokens are those of what the file says."""

import json
from pathlib import Path
from typing import Any

import chz
import pytest

from tinker_cookbook.cli_utils import parse
from tinker_cookbook.renderers import show
from tinker_cookbook.renderers.chats import RowReader
from tinker_cookbook.supervised.data import (
    HFDatasetSource,
    HubChats,
    InterleavedChatDatasetBuilder,
    JsonlChats,
    StreamedHubChats,
)
from tinker_cookbook.supervised.mixture import MixtureRows
from tinker_cookbook.supervised.types import ChatDatasetBuilderCommonConfig, SupervisedDataset
from tinker_cookbook.tokenizer_utils import get_tokenizer
from tinker_cookbook.utils import data_files

COMMON = ChatDatasetBuilderCommonConfig(
    model_name_for_tokenizer="nano", renderer_name="qwen3_instruct", max_length=None, batch_size=1
)


@pytest.fixture(autouse=True)
def _fresh_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache of `datasets` keeps tables of files that it has read before."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


@pytest.fixture
def cwd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def talk(question: str = "Q", answer: str = "A", **more: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer, **more}]


def tool(default: Any) -> dict[str, Any]:
    schema = {"type": "object", "properties": {"x": {"type": "number", "default": default}}}
    return {"type": "function", "function": {"name": "f", "description": "d", "parameters": schema}}


def calling(arguments: Any) -> list[dict[str, Any]]:
    call = {"type": "function", "function": {"name": "f", "arguments": arguments}}
    result = {"role": "tool", "content": "ok"}
    return [*talk("Q", "", tool_calls=[call]), result, {"role": "assistant", "content": "done"}]


def part(text: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text}]


ROWS = [
    {"messages": talk("Hi", "Yo 0")},
    {"messages": talk(part("Q1"), part("PARTS 1"))},
    {"messages": talk("Q2", "R2", reasoning_content="why")},
    {"messages": talk("Q3", "2021-05-03"), "id": 5},
    {"messages": calling({"x": 100}), "tools": [tool(100)], "id": "five"},
    {"messages": calling({"x": 2.5}), "tools": [tool(2.5)]},
    {"messages": calling({"x": "5"}), "tools": [tool("five")]},
    {"messages": calling({"x": "2021-05-03", "y": [1]}), "tools": [tool("2021-05-03")]},
    {"messages": calling('{"x": 1.0}'), "tools": json.dumps([tool(1e16)])},
]


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_text(json.dumps(rows, indent=1) if path.suffix == ".json" else text)


def all_texts(dataset: SupervisedDataset) -> list[str]:
    tokenizer = get_tokenizer("nano")
    datums = [datum for index in range(len(dataset)) for datum in dataset.get_batch(index)]
    return sorted(tokenizer.decode(datum.model_input.to_ints()) for datum in datums)


def hub(path: str, **keys: Any) -> list[str]:
    return all_texts(HubChats(common_config=COMMON, path=path, **keys)()[0])


def streamed(path: str, length: int) -> list[str]:
    return all_texts(StreamedHubChats(common_config=COMMON, path=path, length=length)()[0])


def mixed(*sources: dict[str, Any]) -> list[str]:
    parts = [HFDatasetSource(**source) for source in sources]
    return all_texts(InterleavedChatDatasetBuilder(common_config=COMMON, sources=parts)()[0])


def shown(path: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What `renderers.show` prints of the conversations, without their places."""
    capsys.readouterr()
    show.main(parse(show.Config, [f"dataset_path={path}", "shown=99", "max_length=4000"]))
    pages = capsys.readouterr().out.split("\n── ")[1:]
    return [page.partition("\n")[2].partition(f"\n{path}: ")[0] for page in pages]


@pytest.mark.parametrize("form", ["a file", "two files", "an array", "two arrays", "both"])
def test_everything_reads_what_the_file_says(
    cwd: Path, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    halves = [ROWS[:1], ROWS[1:]] if form in ("two files", "two arrays", "both") else [ROWS]
    ends = {"both": ["json", "jsonl"]}.get(form, ["json" if "array" in form else "jsonl"] * 2)
    for name, half, end in zip("ab", halves, ends):
        write(cwd / f"s/{name}.{end}", half)
    write(cwd / "one.jsonl", ROWS)
    expected = all_texts(JsonlChats(common_config=COMMON, path="one.jsonl")()[0])
    assert len(expected) == len(ROWS)
    for value in ("100", "2.5", '"five"', '"2021-05-03"', "1e+16"):
        assert sum(f'"default": {value}}}' in text for text in expected) == 1
    assert hub("s") == streamed("s", len(ROWS)) == mixed({"path": "s"}) == expected
    pages = shown("s", capsys)
    assert len(pages) == len(ROWS) and pages == shown("one.jsonl", capsys)
    if len(halves) == 1:
        assert hub(f"s/a.{ends[0]}") == streamed(f"s/a.{ends[0]}", len(ROWS)) == expected


def test_nulls_that_a_table_has_left_are_not_there(cwd: Path) -> None:
    row = {"messages": calling({"x": 1, "other": None}), "tools": [tool(5)], "system": None}
    write(cwd / "s/a.jsonl", [row])
    (text,) = hub("s")
    assert text.count("null") == 0 and '{"x": 1}' in text


def test_a_mixture_keeps_the_other_keys_of_each_row(cwd: Path) -> None:
    """Tools that are declared, above all; and another column never takes the messages' place."""
    rows = [{"messages": talk("old", "no"), "chat": calling({"x": i}), "id": i} for i in range(4)]
    write(cwd / "a/train.jsonl", [{**row, "tools": [tool(row["id"])]} for row in rows])
    table = data_files.open_rows("a")
    both = MixtureRows([table, table], [RowReader("chat"), RowReader("messages")])
    assert both.chat(both[1], "row").messages == calling({"x": 1})
    assert both.chat(both[1], "row").tools == [tool(1)]
    assert both[5] == (1, table[1]) and both.where(5) == "a/train.jsonl:2"
    parts = [{"path": "a", "message_field": "chat"}, {"path": "a"}]
    assert mixed(*parts) == sorted(hub("a", message_field="chat") + hub("a"))
    assert all('"name": "f"' in text for text in mixed(parts[0]))


def test_a_row_that_cannot_be_rendered_is_named_by_its_file_and_line(cwd: Path) -> None:
    write(cwd / "s/a.jsonl", ROWS[:3])
    write(cwd / "s/b.jsonl", [{"messages": "none"}])
    common = chz.replace(COMMON, batch_size=2)
    sources = [HFDatasetSource(path="s")]
    for builder in (
        HubChats(common_config=common, path="s"),
        StreamedHubChats(common_config=common, path="s", length=4),
        InterleavedChatDatasetBuilder(common_config=common, sources=sources),
    ):
        data, _ = builder()
        assert len(all_texts(data)) == 3
        (skipped,) = data.report.skipped
        assert skipped.startswith("s/b.jsonl:1: 'messages' must be a non-empty list of messages")


def test_the_cases_that_were_wrong(shared_cases: Path) -> None:
    for path, length, answer in (
        ("mixed_content_two_files/data", 8, "PARTS 3"),
        ("json_array_streamed/array.json", 4, "Yo 0"),
        ("late_key_streamed_crash/data", 8, "<think>why</think>R0"),
    ):
        found = hub(str(shared_cases / path))
        assert found == streamed(str(shared_cases / path), length)
        assert found == mixed({"path": str(shared_cases / path)}) and len(found) == length
        assert any(text.endswith(f"\n{answer}") for text in found)
    retyped = shared_cases / "hub_tools_retyped"
    for path, defaults in (
        ("strings", ['"five"', "5"]),
        ("dates.jsonl", ['"2021-05-03"', '"2020-01-31"']),
        ("numbers.jsonl", ["100", "2.5", "3"]),
    ):
        texts = hub(str(retyped / path))
        for value in defaults:
            assert sum(f'"default": {value}}}' in text for text in texts) == 1
