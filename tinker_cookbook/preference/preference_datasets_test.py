"""Builders of comparison data sets: splits, readers, identity, and rows that are left out."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chz
import datasets
import pytest

from tinker_cookbook.exceptions import ConfigurationError, DataFormatError
from tinker_cookbook.preference.comparison_datasets import ComparisonDatasetBuilder, ComparisonRows
from tinker_cookbook.preference.comparison_rows import Row
from tinker_cookbook.preference.preference_datasets import (
    ComparisonBuilderFromJsonl,
    HubComparisons,
)
from tinker_cookbook.preference.types import Comparison, LabeledComparison
from tinker_cookbook.renderers import Message
from tinker_cookbook.supervised.datasets import Rendered
from tinker_cookbook.utils.plain_data import plain

Pair = dict[str, Any]


def pairs(count: int, start: int = 0) -> list[Pair]:
    numbers = range(start, start + count)
    return [{"prompt": f"q{i}", "chosen": f"good{i}", "rejected": f"bad{i}"} for i in numbers]


def write(path: Path, rows: list[Any]) -> str:
    opened: Callable[..., Any] = gzip.open if path.suffix == ".gz" else open
    with opened(path, "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return str(path)


def prompts(rows: Any) -> list[str]:
    return [rows[index]["prompt"] for index in range(len(rows))]


def test_a_jsonl_file_is_read_with_line_numbers(tmp_path: Path) -> None:
    train = write(tmp_path / "train.jsonl", pairs(3))
    test = write(tmp_path / "test.jsonl", [{"comparison": None}, *pairs(1, start=9)])
    builder = ComparisonBuilderFromJsonl(train_path=train, test_path=test)
    rows, held_out = builder.get_train_and_test_datasets()
    assert prompts(rows) == ["q0", "q1", "q2"] and held_out is not None
    labeled = builder.example_to_labeled_comparison(rows[1])
    assert labeled is not None and labeled.chosen == [Message(role="assistant", content="good1")]
    split, test_split = builder.open_splits()
    assert (split.name, split.render_up_front) == (train, True)
    assert test_split is not None and test_split.name == f"{train} (test)"
    seen = test_split.render_with(lambda labeled: Rendered([]))(held_out[0])
    assert seen.skipped[0].startswith("found an empty object; expected the keys")
    assert ComparisonBuilderFromJsonl(train_path=train).open_splits()[1] is None


def test_a_file_that_is_missing_or_of_no_known_format(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="train_path="):
        ComparisonBuilderFromJsonl(train_path=str(tmp_path / "no.jsonl")).open_splits()
    path = write(tmp_path / "chats.jsonl", [{"messages": []}])
    with pytest.raises(
        DataFormatError,
        match=r"data set .*chats\.jsonl: .*chats\.jsonl:1: found 'messages'; expected the keys",
    ):
        ComparisonBuilderFromJsonl(train_path=path).open_splits()
    test = {"test_path": str(tmp_path / "no.jsonl")}
    good = write(tmp_path / "pairs.jsonl", pairs(1))
    with pytest.raises(ConfigurationError, match="test_path="):
        ComparisonBuilderFromJsonl(train_path=good, **test).open_splits()


def test_the_identity_of_local_data_is_its_content(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / "pairs.jsonl", pairs(3))
    a, b = (str(tmp_path / folder / "pairs.jsonl") for folder in "ab")
    for key, builder in (("train_path", ComparisonBuilderFromJsonl), ("path", HubComparisons)):
        identity = plain(builder(**{key: a}))["identity"]
        assert identity == plain(builder(**{key: b}))["identity"] and set(identity) == {key}
    write(tmp_path / "b" / "pairs.jsonl", pairs(4))
    assert plain(HubComparisons(path=a))["identity"] != plain(HubComparisons(path=b))["identity"]


# Splits of hub and local data


@pytest.fixture
def directory(tmp_path: Path) -> str:
    write(tmp_path / "train.jsonl.gz", pairs(30))
    write(tmp_path / "validation.jsonl.gz", pairs(12, start=100))
    return str(tmp_path)


def shuffled_prompts(rows: list[Pair]) -> list[str]:
    """In the order that the Tinker cookbook gets from `datasets` with seed 0."""
    return list(datasets.Dataset.from_list(rows).shuffle(seed=0)["prompt"])


def test_rows_are_held_out_of_the_shuffled_training_split(directory: str) -> None:
    train, test = HubComparisons(path=directory, test_size=5).get_train_and_test_datasets()
    assert test is not None
    assert prompts(test) == shuffled_prompts(pairs(30))[:5]
    assert sorted(prompts(train) + prompts(test)) == sorted(f"q{i}" for i in range(30))
    other, _ = HubComparisons(
        path=directory, shuffle_seed=1, test_size=0
    ).get_train_and_test_datasets()
    assert sorted(prompts(other)) == sorted(f"q{i}" for i in range(30))
    assert prompts(other)[5:] != prompts(train)
    _, by_default = HubComparisons(path=directory).get_train_and_test_datasets()
    assert by_default is not None and prompts(by_default) == prompts(test)[:3]  # a tenth


@pytest.mark.parametrize(("size", "expected"), [(None, 12), (0, 12), (4, 4), (50, 12)])
def test_a_test_split_is_limited(directory: str, size: int | None, expected: int) -> None:
    builder = HubComparisons(path=directory, test_split="validation", test_size=size)
    train, test = builder.get_train_and_test_datasets()
    assert test is not None and (len(train), len(test)) == (30, expected)
    if size == 4:
        assert prompts(test) == shuffled_prompts(pairs(12, start=100))[:4]


@chz.chz
class WithTestSplit(HubComparisons):
    test_split: str | None = chz.field(default="validation", doc="")

    def default_test_size(self, num_rows: int) -> int:
        return 10


def test_a_single_file_has_no_test_split(tmp_path: Path, directory: str) -> None:
    path = write(tmp_path / "all.jsonl", pairs(40))
    for size, expected in ((None, 4), (7, 7), (0, None)):
        train, test = WithTestSplit(path=path, test_size=size).get_train_and_test_datasets()
        assert (None if test is None else len(test)) == expected
        assert len(train) == 40 - (expected or 0)
    _, test = WithTestSplit(path=directory).get_train_and_test_datasets()
    assert test is not None and len(test) == 10
    with pytest.raises(ConfigurationError, match=r"test_size=40: .*all\.jsonl has only 40 rows"):
        WithTestSplit(path=path, test_size=40).get_train_and_test_datasets()
    assert (
        HubComparisons(path=path).renders_up_front()
        and not HubComparisons(path=directory).renders_up_front()
    )


def test_data_that_cannot_be_found(directory: str) -> None:
    with pytest.raises(ConfigurationError, match=r"no split 'test'; found train, validation"):
        HubComparisons(path=directory, test_split="test").open_splits()
    with pytest.raises(ConfigurationError, match=r"path=.*no\.jsonl"):
        HubComparisons(path=f"{directory}/no.jsonl").open_splits()


# Builders of users


@chz.chz
class Ranked(ComparisonDatasetBuilder):
    """Rows in a format of its own: the better answer first, or None."""

    def get_train_and_test_datasets(self) -> ComparisonRows:
        return [{"ask": "q", "answers": ["x", "y"]}, {"ask": "q", "answers": None}], None

    def example_to_labeled_comparison(self, example: Row) -> LabeledComparison | None:
        answers: Any = example["answers"]
        if answers is None:
            return None
        x, y = ([Message(role="assistant", content=text)] for text in answers)
        prompt = [Message(role="user", content=str(example["ask"]))]
        return LabeledComparison(Comparison(prompt, x, y), "A")


@chz.chz
class RankedFile(HubComparisons):
    """A known builder that is derived to read another format."""

    def example_to_labeled_comparison(self, example: Row) -> LabeledComparison | None:
        return Ranked().example_to_labeled_comparison(example)


def test_a_derived_builder_reads_a_format_of_its_own(tmp_path: Path) -> None:
    rows = Ranked().get_train_and_test_datasets()[0]
    path = write(tmp_path / "ranked.jsonl", [rows[0], rows[1]])
    seen: list[LabeledComparison] = []

    def render(labeled: LabeledComparison) -> Rendered:
        seen.append(labeled)
        return Rendered([])

    for builder in (Ranked(), RankedFile(path=path)):
        split, test = builder.open_splits()
        assert test is None and split.source_formats == []
        results = [split.render_with(render)(split.rows[index]) for index in range(2)]
        assert [dict(result.notes) for result in results if result.notes] == [
            {("excluded", "row"): 1}
        ]
    assert seen == [Ranked().example_to_labeled_comparison(rows[0])] * 2


def test_the_base_class_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="is an abstract base class"):
        ComparisonDatasetBuilder().open_splits()
