"""The builders. Hub names are real; what they find is a directory of that name in a temporary cwd,
which `datasets.load_dataset` prefers to the hub."""

import csv
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import chz
import pytest

from tinker_cookbook import tokenizer_utils
from tinker_cookbook.exceptions import (
    ConfigurationError,
    DataError,
    DataFormatError,
    DataValidationError,
)
from tinker_cookbook.renderers import TrainOnWhat, register_renderer, unregister_renderer
from tinker_cookbook.supervised.data import (
    FromConversationFileBuilder,
    HFDatasetSource,
    HubChats,
    InMemoryChats,
    InterleavedChatDatasetBuilder,
    JsonlChats,
    NoRobots,
    StreamedHubChats,
    StreamingSupervisedDatasetFromHFDataset,
    Tulu3,
    builder_for_path,
    conversation_to_datum,
)
from tinker_cookbook.supervised.mixture import mixture_counts
from tinker_cookbook.supervised.testing import LetterRenderer, epoch, shown, talk, texts
from tinker_cookbook.supervised.types import (
    ChatDatasetBuilder,
    ChatDatasetBuilderCommonConfig,
    SupervisedDataset,
)

COMMON = ChatDatasetBuilderCommonConfig(
    model_name_for_tokenizer="letters", renderer_name="letters", max_length=30, batch_size=4
)


@pytest.fixture(autouse=True)
def _letters() -> Iterator[None]:
    tokenizer_utils.register_tokenizer("letters", lambda: object())
    register_renderer("letters", lambda tokenizer, _: LetterRenderer())
    yield
    unregister_renderer("letters")
    tokenizer_utils.unregister_tokenizer("letters")


@pytest.fixture
def cwd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rows(count: int, prefix: str = "q") -> list[dict[str, Any]]:
    return [{"messages": talk(f"{prefix}{i}", f"a{i}")} for i in range(count)]


def write(path: Path, table: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in table), encoding="utf-8")


def all_texts(dataset: SupervisedDataset) -> list[str]:
    return [text for index in range(len(dataset)) for text in texts(dataset.get_batch(index))]


# Files and lists


def test_a_file_with_a_test_split(cwd: Path) -> None:
    write(cwd / "chats.jsonl", rows(11))
    train, test = JsonlChats(common_config=COMMON, path="chats.jsonl", test_size=3)()
    assert train.report.num_conversations == 8
    seen, held_out = all_texts(train), all_texts(test)
    assert len(seen) == 8 and len(held_out) == 3
    assert sorted(seen + held_out) == sorted(f"u:q{i}|a:a{i}|" for i in range(11))

    known = FromConversationFileBuilder(common_config=COMMON, file_path="chats.jsonl", test_size=3)
    assert [all_texts(data) for data in known()] == [seen, held_out]
    other = JsonlChats(common_config=COMMON, path="chats.jsonl", test_size=3, shuffle_seed=1)
    assert all_texts(other()[1]) != held_out


def samples(*problems: str | None) -> list[dict[str, Any]]:
    """A teacher's replies, as `distillation.teacher_samples` writes them."""
    return [
        {"index": i, **row, "problem": problem, "num_tokens": 2}
        for i, (row, problem) in enumerate(zip(rows(len(problems)), problems))
    ]


@pytest.mark.parametrize("name", ["replies.jsonl", "replies"])
def test_samples_with_a_problem_are_counted_and_not_trained_on(cwd: Path, name: str) -> None:
    table = samples(None, "truncated", None, "too long", None, "truncated", None, None)
    write(cwd / name / "train.jsonl" if name == "replies" else cwd / name, table)
    for test_size in (0, 2):
        builder = chz.replace(builder_for_path(name, "dataset"), test_size=test_size)
        train, test = chz.replace(builder, common_config=chz.replace(COMMON, batch_size=1))()
        seen = epoch(train, 0)
        held_out = [] if test is None else epoch(test, 0)
        usable = {f"u:q{i}|a:a{i}|" for i in (0, 2, 4, 6, 7)}
        assert {*seen, *held_out} == usable
        lines = "".join(train.report.lines() + (test.report.lines() if test else []))
        assert "2 truncated samples dropped" in lines or lines.count("1 truncated sample dr") == 2
        assert "1 too long sample dropped" in lines


def test_as_many_samples_are_held_out_as_asked_for(cwd: Path) -> None:
    write(cwd / "replies.jsonl", samples(*["empty"] * 20, None, None))
    builder = JsonlChats(common_config=COMMON, path="replies.jsonl", test_size=1)
    train, test = builder()
    assert len(all_texts(train)) == len(all_texts(test)) == 1
    with pytest.raises(ConfigurationError, match=r"test_size=2: replies\.jsonl has 2"):
        chz.replace(builder, test_size=2)()
    write(cwd / "bad.jsonl", samples("empty"))
    with pytest.raises(DataValidationError, match=r"bad\.jsonl: none of .*1 empty sample dropped"):
        JsonlChats(common_config=COMMON, path="bad.jsonl")()


def test_other_columns_named_problem_do_not_matter(cwd: Path) -> None:
    others = [
        {**rows(1)[0], "problem": "truncated"},
        {**samples(None)[0], "problem": "What is 1 + 1?"},
        {**samples(None)[0], "problem": ["truncated"]},
    ]
    write(cwd / "chats.jsonl", others)
    train, _ = JsonlChats(common_config=COMMON, path="chats.jsonl")()
    assert len(all_texts(train)) == 3
    assert "chats.jsonl: dropped keys: problem (3 rows)" in "\n".join(train.report.lines())


def test_a_test_set_is_one_batch_in_order_however_large(cwd: Path) -> None:
    write(cwd / "chats.jsonl", rows(20))
    _, test = JsonlChats(common_config=COMMON, path="chats.jsonl", test_size=9)()
    assert len(test) == 1 and len(test.get_batch(0)) == 9
    assert epoch(test, 0) == epoch(test, 1)


def test_a_test_split_larger_than_the_file_is_refused(cwd: Path) -> None:
    write(cwd / "chats.jsonl", rows(3))
    with pytest.raises(ConfigurationError, match=r"test_size=3: chats\.jsonl has 3"):
        JsonlChats(common_config=COMMON, path="chats.jsonl", test_size=3)()


def test_a_file_of_its_own_for_the_test(cwd: Path) -> None:
    write(cwd / "chats.jsonl", rows(4))
    write(cwd / "test.jsonl", rows(6, "t"))
    builder = JsonlChats(common_config=COMMON, path="chats.jsonl", test_path="test.jsonl")
    train, test = builder()
    assert len(all_texts(train)) == 4
    assert all_texts(test) == [f"u:t{i}|a:a{i}|" for i in range(6)]
    with pytest.raises(ConfigurationError, match="drop either"):
        chz.replace(builder, test_size=1)()
    with pytest.raises(ConfigurationError, match=r"^test_path=no\.jsonl: no such file"):
        chz.replace(builder, test_path="no.jsonl")()


def test_the_key_of_a_missing_file_is_named(cwd: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"^file_path=no\.jsonl: no such file"):
        FromConversationFileBuilder(common_config=COMMON, file_path="no.jsonl")()
    with pytest.raises(ConfigurationError, match=r"^path=no\.jsonl: no such file"):
        JsonlChats(common_config=COMMON, path="no.jsonl")()


def test_lists_in_memory() -> None:
    builder = InMemoryChats(
        common_config=COMMON, conversations=rows(5), test_conversations=rows(2, "t"), label="sums"
    )
    train, test = builder()
    assert len(train) == 1 and len(train.get_batch(0)) == 4
    assert all_texts(test) == ["u:t0|a:a0|", "u:t1|a:a1|"]
    assert train.report.lines()[0].startswith("sums: 5 conversations, 5 examples")
    with pytest.raises(DataFormatError, match="sums, conversation 0: no 'messages'"):
        InMemoryChats(common_config=COMMON, conversations=[{}], label="sums")()


# What a row is, for all builders alike

ROWS = {
    "messages": [{"messages": talk(f"q{i}", f"a{i}"), "source": "s"} for i in range(8)],
    "sharegpt": [
        {
            "conversations": [
                {"from": "human", "value": f"q{i}"},
                {"from": "gpt", "value": f"a{i}"},
            ],
            "source": "s",
        }
        for i in range(8)
    ],
    "alpaca": [{"instruction": f"q{i}", "output": f"a{i}", "source": "s"} for i in range(8)],
    "completion": [{"prompt": f"q{i}", "completion": f"a{i}", "source": "s"} for i in range(8)],
}
BUILDERS = {
    "jsonl": lambda table: JsonlChats(common_config=COMMON, path="s/train.jsonl"),
    "memory": lambda table: InMemoryChats(common_config=COMMON, conversations=table),
    "hub": lambda table: HubChats(common_config=COMMON, path="s"),
    "json": lambda table: builder_for_path("s.json", "dataset_path"),
    "csv": lambda table: builder_for_path("s.csv", "dataset_path"),
    "parquet": lambda table: builder_for_path("s.parquet", "dataset_path"),
    "stream": lambda table: StreamedHubChats(common_config=COMMON, path="s", length=8),
    "mixture": lambda table: InterleavedChatDatasetBuilder(
        common_config=COMMON, sources=[HFDatasetSource(path="s")]
    ),
}


def stored(table: list[dict[str, Any]]) -> list[str]:
    """The rows as files of five kinds."""
    import datasets

    write(Path("s/train.jsonl"), table)
    Path("s.json").write_text(json.dumps(table))
    datasets.Dataset.from_list(table).to_parquet("s.parquet")
    with open("s.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(table[0]))
        writer.writeheader()
        for row in table:
            texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in row.items()}
            writer.writerow(texts)


@pytest.mark.parametrize("form", ROWS)
def test_every_builder_reads_every_form(cwd: Path, form: str) -> None:
    stored(ROWS[form])
    for name, make in BUILDERS.items():
        data, _ = chz.replace(make(ROWS[form]), common_config=COMMON)()
        start = data.report.lines()
        assert sorted(all_texts(data)) == [f"u:q{i}|a:a{i}|" for i in range(8)], name
        lines = "\n".join(data.report.lines())
        assert "dropped keys: source (8 rows)" in lines, name
        assert ("8 rows of " in lines) is (form != "messages"), name
        assert any("rows of " in line for line in start) is (form != "messages"), name


def test_every_builder_refuses_the_same_keys(cwd: Path) -> None:
    table = [{**row, "chat_template_kwargs": "{}"} for row in ROWS["messages"]]
    stored(table)
    for name, make in BUILDERS.items():
        with pytest.raises((DataFormatError, DataValidationError)) as error:
            data, _ = chz.replace(make(table), common_config=COMMON)()
            data.get_batch(0)
        assert "'chat_template_kwargs': '{}' is not supported" in str(error.value), name


def test_rows_of_another_form_than_the_first_are_named(cwd: Path) -> None:
    table = [*ROWS["messages"][:4], ROWS["alpaca"][0]]
    problem = "instruction/input/output, but the data set begins with messages of role/content"
    write(cwd / "s/train.jsonl", table)
    for name in ("jsonl", "memory"):
        with pytest.raises(DataFormatError, match=problem):
            BUILDERS[name](table)()
    common = chz.replace(COMMON, batch_size=5)
    data, _ = chz.replace(BUILDERS["hub"](table), common_config=common)()
    assert sorted(texts(data.get_batch(0))) == [f"u:q{i}|a:a{i}|" for i in range(4)]
    (skipped,) = data.report.skipped
    assert skipped.endswith(f"{problem}; all rows of a data set must have the same format")


def test_a_mixture_of_forms(cwd: Path) -> None:
    write(cwd / "a/train.jsonl", ROWS["alpaca"])
    write(cwd / "b/train.jsonl", ROWS["sharegpt"])
    sources = [HFDatasetSource(path="a"), HFDatasetSource(path="b")]
    data, _ = InterleavedChatDatasetBuilder(common_config=COMMON, sources=sources)()
    assert sorted(all_texts(data)) == sorted([f"u:q{i}|a:a{i}|" for i in range(8)] * 2)
    assert {line for line in data.report.lines() if "8 rows" in line} == {
        "mixture: 8 rows of instruction/input/output, read as user and assistant messages",
        "mixture: 8 rows of conversations of from/value, read as messages",
    }


# Configuration


def test_a_builder_without_common_config_says_what_to_pass(cwd: Path) -> None:
    write(cwd / "chats.jsonl", rows(3))
    with pytest.raises(ConfigurationError, match="JsonlChats was called without common_config"):
        JsonlChats(path="chats.jsonl")()


def test_data_is_chosen_by_name_on_the_command_line(cwd: Path) -> None:
    @chz.chz
    class Recipe:
        data: ChatDatasetBuilder = chz.field(default_factory=NoRobots)

    words = ["data=JsonlChats", "data.path=chats.jsonl", "data.test_size=2"]
    recipe = chz.Blueprint(Recipe).make_from_argv(words)
    assert recipe.data == JsonlChats(path="chats.jsonl", test_size=2)
    write(cwd / "chats.jsonl", rows(6))
    train, test = chz.replace(recipe.data, common_config=COMMON)()
    assert (train.report.num_conversations, test.report.num_conversations) == (4, 2)

    words = ["data=Tulu3", "data.common_config.train_on_what=all_tokens"]
    words += [f"data.common_config.{key}=letters" for key in ("renderer_name",)]
    words += ["data.common_config.model_name_for_tokenizer=letters"]
    words += ["data.common_config.max_length=None", "data.common_config.batch_size=3"]
    config = chz.Blueprint(Recipe).make_from_argv(words).data.config
    assert config.train_on_what is TrainOnWhat.ALL_TOKENS and config.max_length is None


# Hub data


def test_no_robots(cwd: Path) -> None:
    table = [{**row, "category": "Chat", "prompt_id": "x"} for row in rows(9)]
    write(cwd / "HuggingFaceH4/no_robots/train.jsonl", table)
    write(cwd / "HuggingFaceH4/no_robots/test.jsonl", rows(5, "t"))
    train, test = NoRobots(common_config=COMMON)()
    assert (len(train), len(train.get_batch(0))) == (2, 4)
    assert all_texts(test) == [f"u:t{i}|a:a{i}|" for i in range(5)]
    assert test.report.complete
    order = [all_texts(train), epoch(train, 1)]
    again, _ = NoRobots(common_config=COMMON)()
    assert [epoch(again, 0), epoch(again, 1)] == order and order[0] != order[1]
    assert len(all_texts(NoRobots(common_config=COMMON, test_size=2)()[1])) == 2


def test_tulu3_trains_the_last_reply_and_holds_out_the_first_of_the_shuffle(cwd: Path) -> None:
    import datasets

    table = [{"messages": talk(f"q{i}", "a", "b", "c"), "source": "s"} for i in range(30)]
    (cwd / "allenai/tulu-3-sft-mixture").mkdir(parents=True)
    whole = datasets.Dataset.from_list(table)
    whole.to_parquet(str(cwd / "allenai/tulu-3-sft-mixture/train.parquet"))
    train, test = Tulu3(common_config=COMMON, test_size=6)()
    expected = [f"u:{row['messages'][0]['content']}|a:a|u:b|a:c|" for row in whole.shuffle(seed=0)]
    assert all_texts(test) == expected[:6]
    assert set(all_texts(train)) <= set(expected[6:])
    assert {shown(datum)[1] for datum in train.get_batch(0)} == {"c|"}
    assert Tulu3().test_size == 1024


def test_local_copies(cwd: Path) -> None:
    """A directory from save_to_disk, with and without splits, and single files."""
    import datasets

    whole = datasets.Dataset.from_list(rows(8))
    whole.save_to_disk(str(cwd / "saved"))
    datasets.DatasetDict(train=whole, test=whole.select(range(2))).save_to_disk(str(cwd / "splits"))
    write(cwd / "chats.jsonl", rows(8))
    for path in ("saved", "splits", "chats.jsonl"):
        train, _ = HubChats(common_config=COMMON, path=path)()
        assert sorted(all_texts(train)) == [f"u:q{i}|a:a{i}|" for i in range(8)]
    _, test = HubChats(common_config=COMMON, path="splits", test_split="test")()
    assert all_texts(test) == ["u:q0|a:a0|", "u:q1|a:a1|"]
    for path in ("splits", "chats.jsonl"):
        with pytest.raises(ConfigurationError, match="valid"):
            HubChats(common_config=COMMON, path=path, test_split="valid")()
    (cwd / "notes.txt").write_text("x")
    with pytest.raises(ConfigurationError, match=r"cannot read \.txt files"):
        HubChats(common_config=COMMON, path="notes.txt")()


def test_a_missing_column_shows_those_that_are_there(cwd: Path) -> None:
    table = [{"talk": row["messages"], "id": 1} for row in rows(4)]
    write(cwd / "some/set/train.jsonl", table)
    with pytest.raises(DataFormatError, match=r"no 'messages'; found '(talk', 'id|id', 'talk)'"):
        HubChats(common_config=COMMON, path="some/set")()
    train, _ = HubChats(common_config=COMMON, path="some/set", message_field="talk")()
    assert len(all_texts(train)) == 4


def test_data_that_cannot_be_reached_gives_one_line(cwd: Path) -> None:
    with pytest.raises(DataError) as error:
        NoRobots(common_config=COMMON)()
    message = str(error.value)
    assert "HuggingFaceH4/no_robots" in message and "dataset_path=" in message
    assert "HF_HUB_OFFLINE" in message and "\n" not in message


# Mixtures


@pytest.mark.parametrize(
    ("sizes", "weights", "total", "counts"),
    [
        ([10, 10], [1, 1], None, [10, 10]),
        ([10, 100], [1, 1], None, [10, 10]),
        ([10, 100], [1, 3], None, [10, 30]),
        ([10, 20], [1, 3], None, [7, 20]),  # 20 / (3/4) = 26.7 rows in all
        ([10, 100], [1, 3], 8, [2, 6]),
    ],
)
def test_mixture_counts(
    sizes: list[int], weights: list[int], total: int | None, counts: list[int]
) -> None:
    assert mixture_counts(sizes, weights, total) == counts


def test_a_mixture_has_its_proportions_in_every_epoch_and_no_row_twice(cwd: Path) -> None:
    write(cwd / "a/train.jsonl", rows(40, "a"))
    write(cwd / "b/train.jsonl", [{"talk": row["messages"]} for row in rows(40, "b")])
    builder = InterleavedChatDatasetBuilder(
        common_config=COMMON,
        sources=[
            HFDatasetSource(path="a"),
            HFDatasetSource(path="b", weight=0.25, message_field="talk"),
        ],
        test_size=10,
    )
    train, test = builder()
    held_out = all_texts(test)
    assert Counter(text[2] for text in held_out) == {"a": 8, "b": 2}
    assert len(train) == 10  # 32 rows of a are left, and 8 of b for them
    epochs = [epoch(train, seed) for seed in range(2)]
    for seen in epochs:
        assert Counter(text[2] for text in seen) == {"a": 32, "b": 8}
        assert len(set(seen)) == 40 and not set(seen) & set(held_out)
    assert set(epochs[0]) != set(epochs[1])  # other rows of b
    again, _ = builder()
    assert epoch(again, 1) == epochs[1]


def test_mixtures_that_cannot_be_made(cwd: Path) -> None:
    write(cwd / "a/train.jsonl", rows(4))
    with pytest.raises(ConfigurationError, match="sources is empty"):
        InterleavedChatDatasetBuilder(common_config=COMMON, sources=[])()
    with pytest.raises(ConfigurationError, match="weight=0"):
        InterleavedChatDatasetBuilder(
            common_config=COMMON, sources=[HFDatasetSource(path="a", weight=0)]
        )()
    with pytest.raises(ConfigurationError, match="test_size=4"):
        InterleavedChatDatasetBuilder(
            common_config=COMMON, sources=[HFDatasetSource(path="a")], test_size=4
        )()


# Streams


def streamed(cwd: Path, count: int = 40, **options: Any) -> SupervisedDataset:
    write(cwd / "s/train.jsonl", rows(count))
    options = {"length": 40, "buffer_size": 8, **options}
    return StreamedHubChats(common_config=COMMON, path="s", **options)()[0]


def test_a_stream_is_shuffled_by_epoch_and_holds_each_row_once(cwd: Path) -> None:
    data = streamed(cwd)
    epochs = [epoch(data, seed) for seed in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(f"u:q{i}|a:a{i}|" for i in range(40))
    assert epochs[0] != epochs[1]
    assert epoch(streamed(cwd), 1) == epochs[1]
    assert data.report.num_conversations == 40 and not data.report.complete
    assert data.report.lines()[0].startswith("s: 40 conversations of 40 so far, 40 examples")


def test_a_stream_counts_its_first_epoch_whatever_its_number(cwd: Path) -> None:
    data = streamed(cwd)
    for number in (7_000_003, 7_000_004, 0):
        epoch(data, number)
        assert data.report.num_conversations == 40
    resumed = streamed(cwd)
    resumed.set_epoch(7_000_003)
    resumed.get_batch(8)
    assert resumed.report.num_conversations == 4


def test_a_streamed_batch_is_a_function_of_epoch_and_index(cwd: Path) -> None:
    data = streamed(cwd)
    data.set_epoch(1)
    batches = [texts(data.get_batch(index)) for index in range(10)]
    fresh = streamed(cwd)
    fresh.set_epoch(1)
    for index in (7, 8, 2, 2, 9, 0):
        assert texts(fresh.get_batch(index)) == batches[index]


def test_a_stream_that_is_too_short_or_too_small(cwd: Path) -> None:
    data = streamed(cwd, count=6)
    data.get_batch(0)
    with pytest.raises(DataValidationError, match="length=40 is more than the number of rows"):
        data.get_batch(1)
    with pytest.raises(ConfigurationError, match="batch_size=4 with length=3"):
        streamed(cwd, length=3)


def test_streaming_through_a_function_of_the_user(cwd: Path) -> None:
    import datasets

    stream = datasets.Dataset.from_list(rows(8)).to_iterable_dataset()
    data = StreamingSupervisedDatasetFromHFDataset(
        stream,
        batch_size=4,
        length=8,
        map_fn=lambda row: conversation_to_datum(row["messages"], LetterRenderer(), None),
        buffer_size=3,
    )
    assert sorted(epoch(data, 0)) == [f"u:q{i}|a:a{i}|" for i in range(8)]
