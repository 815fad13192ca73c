"""Rows -> passes: no padding, longest rows together, at most a budget of tokens in each pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from tinker_cookbook.engine.attention import Segment
from tinker_cookbook.engine.losses import ROW
from tinker_cookbook.engine.rows import TrainRow


@dataclass(frozen=True)
class PackedBatch:
    """One pass. `rows[i]` is the index in the request of the row at `segments[i]`."""

    rows: list[int]
    segments: list[Segment]
    tokens: torch.Tensor  # int64 [T]
    positions: torch.Tensor  # int64 [T], counted from 0 in each row
    targets: torch.Tensor  # int64 [T] or [T, K]
    inputs: dict[str, torch.Tensor]  # float32 per loss input, shaped like targets; and `losses.ROW`


def lay_out(lengths: Sequence[int]) -> list[Segment]:
    """Segments of these lengths, one behind the other."""
    stops = np.cumsum(lengths).tolist()
    return [Segment(stop - length, stop) for stop, length in zip(stops, lengths, strict=True)]


def positions_of(segments: Sequence[Segment]) -> np.ndarray:
    """Position of every row within its sequence (parentless segments), int64 [T]."""
    return np.concatenate([np.arange(s.stop - s.start) for s in segments])


def split_by_budget(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Indices of rows per pass, longest first. A row above the budget gets a pass of its own."""
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    passes: list[list[int]] = []
    room = 0
    for index in order:
        if not passes or lengths[index] > room:
            passes.append([])
            room = budget
        passes[-1].append(index)
        room -= lengths[index]
    return passes


def pack(rows: Sequence[TrainRow], budget: int, device: torch.device) -> Iterator[PackedBatch]:
    """The passes of a request, each made when it is needed."""
    for indices in split_by_budget([row.length for row in rows], budget):
        chosen = [rows[i] for i in indices]
        segments = lay_out([row.length for row in chosen])

        def tensor(arrays: list[np.ndarray]) -> torch.Tensor:
            return torch.from_numpy(np.concatenate(arrays)).to(device, non_blocking=True)

        yield PackedBatch(
            rows=indices,
            segments=segments,
            tokens=tensor([row.tokens for row in chosen]),
            positions=tensor([positions_of(segments)]),
            targets=tensor([row.targets for row in chosen]),
            inputs={
                ROW: tensor([np.full(rows[i].length, i) for i in indices]),
                **{
                    key: tensor([row.inputs[key].astype(np.float32) for row in chosen])
                    for key in chosen[0].inputs
                },
            },
        )
