"""Data sets whose batches keep the datums of a row together, e.g. those of a pair."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from tinker_cookbook.supervised.datasets import IndexedRows, LazyRows, RenderedRows, RenderRow
from tinker_cookbook.supervised.types import SupervisedDataset

T = TypeVar("T")


def make_dataset(
    rows: IndexedRows[T],
    render: RenderRow[T],
    *,
    render_up_front: bool,
    batch_size: int | None,
    shuffle_seed: int,
    max_length: int | None,
    name: str,
    unit: str,
    source_formats: Sequence[str] = (),
) -> SupervisedDataset:
    """A data set whose batches hold all datums of a row or none, and whose size counts rows.

    render_up_front: render all rows now, and leave those without a datum out of the batches.
    batch_size None: a test set, in one unshuffled batch, so that no row is dropped.
    """
    size, seed = (max(1, len(rows)), None) if batch_size is None else (batch_size, shuffle_seed)
    if render_up_front:
        return RenderedRows(
            rows,
            render,
            batch_size=size,
            max_length=max_length,
            shuffle_seed=seed,
            name=name,
            unit=unit,
            keep_together=True,
        )
    return LazyRows(
        rows,
        render,
        batch_size=size,
        shuffle_seed=seed,
        name=name,
        max_length=max_length,
        forms=source_formats,
        unit=unit,
    )
