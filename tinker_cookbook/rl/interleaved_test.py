"""Mixes of data sets: proportions, order, and that batch i depends on i alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import chz
import pytest

from tinker_cookbook.cli_utils import parse
from tinker_cookbook.exceptions import ConfigurationError, DataValidationError
from tinker_cookbook.rl.interleaved import InterleavedRLDataset, InterleavedRLDatasetBuilder
from tinker_cookbook.rl.types import RLDataset, RLDatasetBuilder


class Numbered(RLDataset):
    """Its groups are their own names: a0, a1, ..."""

    def __init__(self, name: str, size: int, batch: int) -> None:
        self.groups: list[Any] = [f"{name}{i}" for i in range(size)]
        self.batch = batch
        self.asked: list[int] = []

    def get_batch(self, index: int) -> Sequence[Any]:
        self.asked.append(index)
        assert 0 <= index < len(self)
        return self.groups[index * self.batch : (index + 1) * self.batch]

    def __len__(self) -> int:
        return -(-len(self.groups) // self.batch)


def everything(mix: RLDataset) -> list[list[Any]]:
    return [list(mix.get_batch(i)) for i in range(len(mix))]


def test_proportions_in_every_batch() -> None:
    mix = InterleavedRLDataset([Numbered("a", 90, 4), Numbered("b", 300, 7)], [3, 1], 8)
    batches = everything(mix)
    assert len(batches) == 15
    assert [Counter(name[0] for name in batch) for batch in batches] == [{"a": 6, "b": 2}] * 15
    assert [name for batch in batches for name in batch if name[0] == "a"] == [
        f"a{i}" for i in range(90)
    ]
    assert [name for batch in batches for name in batch if name[0] == "b"] == [
        f"b{i}" for i in range(30)
    ]


def test_without_weights_all_is_used_once() -> None:
    mix = InterleavedRLDataset([Numbered("a", 10, 4), Numbered("b", 25, 5), Numbered("c", 5, 9)])
    batches = everything(mix)
    assert [len(batch) for batch in batches] == [4] * 10
    assert Counter(name for batch in batches for name in batch).most_common(1)[0][1] == 1
    assert Counter(name[0] for batch in batches for name in batch) == {"a": 10, "b": 25, "c": 5}
    halves = [
        Counter(name[0] for batch in half for name in batch) for half in (batches[:5], batches[5:])
    ]
    for counts in halves:
        assert abs(counts["b"] - 12.5) < 1 and abs(counts["c"] - 2.5) < 1


def test_each_is_spread_evenly() -> None:
    """a in the middle of the line, b at 1/8, 3/8, 5/8 and 7/8 of it."""
    mix = InterleavedRLDataset([Numbered("a", 1, 1), Numbered("b", 4, 1)])
    names = [name for batch in everything(mix) for name in batch]
    assert names == ["b0", "b1", "a0", "b2", "b3"]


@pytest.mark.parametrize("weights", [[0.3, 0.7], [1e6, 1e-3], [1, 3.3]])
def test_nothing_twice_and_nothing_that_is_not_there(weights: list[float]) -> None:
    mix = InterleavedRLDataset([Numbered("a", 11, 3), Numbered("b", 13, 4)], weights, 1)
    names = [name for batch in everything(mix) for name in batch]
    assert len(set(names)) == len(names)
    ends = [sum(name[0] == letter for name in names) for letter in "ab"]
    assert ends[0] == 11 or ends[1] == 13


def test_a_batch_depends_on_its_number_alone() -> None:
    def mix() -> InterleavedRLDataset:
        return InterleavedRLDataset([Numbered("a", 50, 4), Numbered("b", 30, 6)], [1, 1], 5)

    in_order = everything(mix())
    backwards = mix()
    assert [list(backwards.get_batch(i)) for i in reversed(range(len(in_order)))][::-1] == in_order


def test_batches_of_the_sources_are_built_about_once() -> None:
    source = Numbered("a", 60, 6)
    everything(InterleavedRLDataset([source, Numbered("b", 60, 6)]))
    assert len(source.asked) == 10 + 2  # and twice to see how many groups there are


def test_refused() -> None:
    a, b = Numbered("a", 5, 2), Numbered("b", 5, 2)
    with pytest.raises(ConfigurationError, match=r"weights=\[1\]"):
        InterleavedRLDataset([a, b], [1])
    with pytest.raises(ConfigurationError, match=r"weights=\[1, 0\]"):
        InterleavedRLDataset([a, b], [1, 0])
    with pytest.raises(DataValidationError, match=r"\[5, 0\] groups"):
        InterleavedRLDataset([a, Numbered("b", 0, 2)])
    with pytest.raises(DataValidationError, match=r"10 groups.*groups_per_batch=11"):
        InterleavedRLDataset([a, b], None, 11)


@chz.chz
class Letters(RLDatasetBuilder):
    name: str = "a"
    size: int = 6
    tested: bool = True

    async def __call__(self) -> tuple[RLDataset, RLDataset | None]:
        test = Numbered(self.name.upper(), 5, 2) if self.tested else None
        return Numbered(self.name, self.size, 2), test


@chz.chz
class Config:
    data: RLDatasetBuilder


async def test_from_the_command_line() -> None:
    words = (
        "data=InterleavedRLDatasetBuilder data.builders.0=Letters data.builders.1=Letters"
        " data.builders.1.name=b data.builders.1.size=12 data.weights=1,2 data.groups_per_batch=3"
    )
    train, test = await parse(Config, words.split()).data()
    assert [sorted(name[0] for name in batch) for batch in everything(train)] == [list("abb")] * 6
    assert test is not None
    assert everything(test) == [
        ["A0", "A1"],
        ["A2", "A3"],
        ["A4"],
        ["B0", "B1"],
        ["B2", "B3"],
        ["B4"],
    ]
    untested = InterleavedRLDatasetBuilder(builders=[Letters(tested=False), Letters(tested=False)])
    assert (await untested())[1] is None
