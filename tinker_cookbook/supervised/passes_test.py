"""Parts of a batch that fit into a pass."""

from __future__ import annotations

import tinker

from tinker_cookbook.sequences import Sequence, to_datum
from tinker_cookbook.supervised.passes import split_into_passes


def datum(length: int, trained: int) -> tinker.Datum:
    return to_datum(Sequence(range(length + 1), [0] * (length + 1 - trained) + [1] * trained))


def test_parts_hold_whole_pairs() -> None:
    batch = [datum(length, 1) for length in (3, 4, 2, 2, 9, 9, 1, 1)]
    lengths = [
        [d.model_input.length for d in part] for part in split_into_passes(batch, 11, unit=2)
    ]
    assert lengths == [[3, 4, 2, 2], [9, 9], [1, 1]]
    assert list(split_into_passes(batch, None, unit=2)) == [batch]
