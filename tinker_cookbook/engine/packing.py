"""Rows -> passes: nothing padded, what rows share at their beginning computed once, each pass
within a budget of tokens. Requests of several runs go into the same passes and share nothing.

Rows are sorted by their tokens, so rows with a common beginning are neighbours, and the longest
common prefixes of neighbours give the tree: a segment for each stretch of tokens that the same rows
share, depth first. Sharing needs equal input tokens only. Targets may differ, and do at the last
shared token: the head is computed once for each different (position in the tree, target), and what
the rows ask of it (weights, advantages) stays each row's own.

Shapes: T tokens of the tree, D head rows (different pairs of a tree token and its targets), N
tokens of the pass's rows as they were given, K targets per token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch

from tinker_cookbook.engine.attention import Segment
from tinker_cookbook.engine.losses import ROW
from tinker_cookbook.engine.requests import TrainSequence

# A shared stretch saves its tokens' passes through every layer and costs a few attention calls
# more; below this many tokens it does not pay.
SHORTEST_SHARED = 16
FAMILY = 2  # budgets that a family may take to stay in one pass


@dataclass(frozen=True)
class PackedBatch:
    """The rows of one request that go into one pass: which request, which of its rows."""

    request: int
    rows: list[int]
    segments: list[Segment]
    tokens: torch.Tensor  # int64 [T]
    positions: torch.Tensor  # int64 [T], counted from 0 in each row
    head_tokens: torch.Tensor | None  # int64 [D]: which of the T; None: all, in order
    targets: torch.Tensor  # int64 [D] or [D, K]
    uses: torch.Tensor | None  # int64 [N]: which of the D, ascending; None: each once, in order
    inputs: dict[str, torch.Tensor]  # float32 [N] or [N, K] per loss input; and `losses.ROW`
    places: np.ndarray  # int64 [N]: where each of the N stands in the rows laid end to end

    def split(self, values: np.ndarray, request: Sequence[TrainSequence]) -> Iterator[np.ndarray]:
        """Values of the N, in the order of `inputs`, as one array for each of `rows`."""
        flat = np.empty_like(values)
        flat[self.places] = values
        stops = np.cumsum([request[i].length for i in self.rows])
        yield from (part.copy() for part in np.split(flat, stops[:-1]))


@dataclass(frozen=True)
class Pass:
    """What goes through the model at once: parts of different requests, one behind the other."""

    parts: list[PackedBatch]

    @cached_property
    def spans(self) -> list[slice]:
        """The rows of each part among those of the pass."""
        stops = np.cumsum([len(part.tokens) for part in self.parts]).tolist()
        return [slice(b - len(part.tokens), b) for part, b in zip(self.parts, stops)]

    @property
    def tokens(self) -> torch.Tensor:
        return _joined([part.tokens for part in self.parts])

    @property
    def positions(self) -> torch.Tensor:
        return _joined([part.positions for part in self.parts])

    @property
    def segments(self) -> list[Segment]:
        joined: list[Segment] = []
        for part, span in zip(self.parts, self.spans):
            joined += moved(part.segments, span.start, len(joined))
        return joined


def _joined(tensors: list[torch.Tensor]) -> torch.Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)


def moved(segments: Sequence[Segment], rows: int, first: int) -> list[Segment]:
    """Segments that come to lie `rows` rows and `first` segments further on."""
    return [
        Segment(s.start + rows, s.stop + rows, None if s.parent is None else s.parent + first)
        for s in segments
    ]


def lay_out(lengths: Sequence[int]) -> list[Segment]:
    """Segments of these lengths, one behind the other, that share nothing."""
    stops = np.cumsum(lengths).tolist()
    return [Segment(stop - length, stop) for stop, length in zip(stops, lengths, strict=True)]


def positions_of(segments: Sequence[Segment]) -> np.ndarray:
    """Position of every row within its sequence, int64 [T]."""
    depth = []
    for segment in segments:
        parent = segment.parent
        depth.append(
            segment.before
            if parent is None
            else depth[parent] + segments[parent].stop - segments[parent].start
        )
    return np.concatenate([d + np.arange(s.stop - s.start) for d, s in zip(depth, segments)])


def pack(
    requests: Sequence[Sequence[TrainSequence]], budget: int, device: torch.device
) -> Iterator[Pass]:
    """The passes of several requests, each made when it is needed."""
    for chosen in plan_passes([[row.tokens for row in rows] for rows in requests], budget):
        by_request: dict[int, list[int]] = {}
        for request, index in chosen:
            by_request.setdefault(request, []).append(index)
        yield Pass(
            [
                _pack(requests[request], request, indices, device)
                for request, indices in sorted(by_request.items())
            ]
        )


def plan_passes(
    requests: Sequence[Sequence[np.ndarray]], budget: int
) -> list[list[tuple[int, int]]]:
    """(request, row) of each pass: families that share a beginning together, large ones first.

    A row above the budget gets a pass of its own, and so does a family up to FAMILY times the
    budget: two passes would compute twice what it shares. A larger one begins anew in the next
    pass. Every other pass keeps to the budget, counted in tokens of the tree that is laid out.
    """
    families: list[list[tuple[int, int]]] = []
    for request, tokens in enumerate(requests):
        before = None
        for index in _sorted(tokens):
            if before is not None and _common(tokens[before], tokens[index]):
                families[-1].append((request, index))
            else:
                families.append([(request, index)])
            before = index
    families.sort(key=lambda f: (-sum(len(requests[r][i]) for r, i in f), f))
    passes: list[list[tuple[int, int]]] = []
    room = 0
    for family in families:
        rows = [requests[request][index] for request, index in family]
        lengths = [len(row) for row in rows]
        commons = [0, *(_common(a, b) for a, b in pairwise(rows))]
        if len(rows) > 1 and budget < _size(lengths, commons) <= FAMILY * budget:
            passes.append(family)
            room = 0
            continue
        start = 0
        while start < len(rows):
            count = _fitting(lengths[start:], commons[start:], room)
            if not count:
                passes.append([])
                room = budget
                count = max(_fitting(lengths[start:], commons[start:], room), 1)
            stop = start + count
            passes[-1] += family[start:stop]
            room -= _size(lengths[start:stop], commons[start:stop])
            start = stop
    return passes


def _fitting(lengths: Sequence[int], commons: Sequence[int], room: int) -> int:
    """How many of the first rows can be laid out in `room` tokens; at times one or two less."""
    fewest = np.cumsum(lengths) - np.cumsum([0, *commons[1:]])  # if all that is common were shared
    count = int(np.searchsorted(fewest, room, side="right"))
    while count > 1 and (size := _size(lengths[:count], commons[:count])) > room:
        count = max(min(count - 1, count * room // size), 1)
    return count


def _sorted(tokens: Sequence[np.ndarray]) -> list[int]:
    """Row indices in the order of their tokens: big-endian bytes compare like the numbers."""
    keys = [row.astype(">u4").tobytes() for row in tokens]
    return sorted(range(len(tokens)), key=lambda i: (keys[i], i))


def common_beginning(one: np.ndarray, other: np.ndarray) -> int:
    """Tokens that two rows share at their beginning."""
    length = min(len(one), len(other))
    differ = np.flatnonzero(one[:length] != other[:length])
    return int(differ[0]) if len(differ) else length


def _common(one: np.ndarray, other: np.ndarray) -> int:
    """Tokens that two rows share at their beginning; 0 where sharing does not pay."""
    common = common_beginning(one, other)
    return common if common >= SHORTEST_SHARED else 0


def _pack(
    rows: Sequence[TrainSequence], request: int, indices: list[int], device: torch.device
) -> PackedBatch:
    chosen = [rows[i] for i in indices]
    commons = [0, *(_common(a.tokens, b.tokens) for a, b in pairwise(chosen))]
    if not any(commons):  # equal lengths side by side: the attention takes them in one call
        order = sorted(range(len(chosen)), key=lambda i: (-chosen[i].length, indices[i]))
        indices, chosen = [indices[i] for i in order], [chosen[i] for i in order]

    def tensor(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).to(device, non_blocking=True)

    flat_inputs = {
        key: np.concatenate([row.inputs[key].astype(np.float32) for row in chosen])
        for key in chosen[0].inputs
    }
    flat_inputs[ROW] = np.repeat(indices, [row.length for row in chosen])
    targets = np.concatenate([row.targets for row in chosen])
    if any(commons):
        tree = _Tree([row.tokens for row in chosen], commons)
        segments, tokens = tree.segments, tree.tokens
        cells = np.concatenate(tree.cells)  # [N]: which of the T
        keys = np.concatenate([cells[:, None], targets.reshape(len(targets), -1)], axis=1)
        unique, uses = np.unique(keys, axis=0, return_inverse=True)
        uses = uses.reshape(-1)
        places = np.argsort(uses, kind="stable")
        head_tokens = tensor(unique[:, 0].copy())
        targets = unique[:, 1:].reshape(len(unique), *targets.shape[1:])
        uses = tensor(uses[places])
    else:
        segments = lay_out([row.length for row in chosen])
        tokens = np.concatenate([row.tokens for row in chosen])
        places, head_tokens, uses = np.arange(len(tokens)), None, None
    return PackedBatch(
        request=request,
        rows=indices,
        segments=segments,
        tokens=tensor(tokens),
        positions=tensor(positions_of(segments)),
        head_tokens=head_tokens,
        targets=tensor(np.ascontiguousarray(targets)),
        uses=uses,
        inputs={key: tensor(array[places]) for key, array in flat_inputs.items()},
        places=places,
    )


class Forest:
    """Rows laid out with what they share computed once; rows of different groups share nothing.

    `cells[i]` are the tokens of row i among the T, `spans[g]` the rows [start, stop) of group g.
    """

    def __init__(self, rows: Sequence[np.ndarray], groups: Sequence[int]) -> None:
        self.segments: list[Segment] = []
        self.cells: list[np.ndarray] = [np.empty(0, np.int64)] * len(rows)
        self.spans: list[tuple[int, int]] = []
        pieces, length = [], 0
        for group in range(max(groups) + 1):
            members = [i for i, each in enumerate(groups) if each == group]
            members = [members[i] for i in _sorted([rows[i] for i in members])]
            own = [rows[i] for i in members]
            tree = _Tree(own, [0, *(_common(a, b) for a, b in pairwise(own))])
            self.segments += moved(tree.segments, length, len(self.segments))
            for index, cells in zip(members, tree.cells):
                self.cells[index] = cells + length
            pieces.append(tree.tokens)
            self.spans.append((length, length + len(tree.tokens)))
            length += len(tree.tokens)
        self.tokens = np.concatenate(pieces)


class _Stretch(NamedTuple):
    """Tokens [depth, stop) of rows [low, high), which follow those of the stretch `parent`."""

    low: int
    high: int
    depth: int
    stop: int
    parent: int | None


def _stretches(lengths: Sequence[int], commons: Sequence[int]) -> list[_Stretch]:
    """The tree of sorted rows, depth first; `commons[i]` tokens are common to rows i - 1 and i.

    A stretch is shared if it is long enough below the branch it starts from: what two rows share in
    the tree may be up to SHORTEST_SHARED - 1 tokens less than what is common to them.
    """
    found: list[_Stretch] = []
    groups = _groups(0, len(lengths), 0, None, commons)  # a stack: talks may be nested deeply
    while groups:
        low, high, depth, parent = groups.pop()
        stop = lengths[low] if high - low == 1 else min(commons[low + 1 : high])
        if stop > depth:  # or a row ends where the others branch
            found.append(_Stretch(low, high, depth, stop, parent))
        if high - low > 1:
            groups += _groups(low, high, stop, len(found) - 1, commons)
    return found


def _groups(
    low: int, high: int, depth: int, parent: int | None, commons: Sequence[int]
) -> list[tuple[int, int, int, int | None]]:
    """Rows [low, high) share their first `depth` tokens: those that share more, the last first."""
    cuts = [i for i in range(low + 1, high) if commons[i] - depth < SHORTEST_SHARED]
    return [(a, b, depth, parent) for a, b in pairwise([low, *cuts, high])][::-1]


def _size(lengths: Sequence[int], commons: Sequence[int]) -> int:
    """Tokens of the tree of sorted rows."""
    return sum(each.stop - each.depth for each in _stretches(lengths, commons))


class _Tree:
    """Segments of sorted rows, depth first, and for each row its cells: which tree tokens it is."""

    def __init__(self, rows: Sequence[np.ndarray], commons: Sequence[int]) -> None:
        self.segments: list[Segment] = []
        parts: list[list[np.ndarray]] = [[np.empty(0, np.int64)] for _ in rows]
        pieces, start = [], 0
        for each in _stretches([len(row) for row in rows], commons):
            stop = start + each.stop - each.depth
            self.segments.append(Segment(start, stop, each.parent))
            pieces.append(rows[each.low][each.depth : each.stop])
            own = np.arange(start, stop)
            for index in range(each.low, each.high):
                parts[index].append(own)
            start = stop
        self.tokens = np.concatenate(pieces)
        self.cells = [np.concatenate(part) for part in parts]
