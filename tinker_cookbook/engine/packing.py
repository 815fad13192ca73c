"""Packing: training sequences -> passes without padding, each within a token budget.

A prefix that several sequences share is computed once. The sequences are sorted by their tokens, so
sequences with a common prefix are neighbours, and the longest common prefixes (LCPs) of neighbours
determine the whole prefix tree: one segment per span of tokens that the same sequences share, laid
out depth first. Sharing requires equal input tokens only. Targets may differ, and usually do at the
last shared token, so the head is computed once per distinct (tree token, target), while loss inputs
(weights, advantages) remain per sequence.

Sequences of several requests may go into the same pass; requests never share a prefix.

Shapes: T tokens of the tree, D head entries (distinct pairs of a tree token and its targets), N
tokens of the sequences before sharing, K targets per token.
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
from tinker_cookbook.engine.losses import SEQUENCE_INDEX
from tinker_cookbook.engine.requests import TrainSequence

# Sharing a span computes its tokens once in every layer but costs a few extra attention calls;
# below this many tokens the calls cost more than they save.
MIN_SHARED_TOKENS = 16
# A family (sequences with a common prefix) may exceed the budget by this factor to stay in one
# pass: split over two passes, its shared prefix would be computed twice.
FAMILY_BUDGET_FACTOR = 2


@dataclass(frozen=True)
class PackedBatch:
    """The sequences of one request in one pass.

    request: index of the request. sequence_indices: which of its sequences, in packed order.
    """

    request: int
    sequence_indices: list[int]
    segments: list[Segment]
    tokens: torch.Tensor  # int64 [T]
    positions: torch.Tensor  # int64 [T], from 0 in each sequence
    head_tokens: torch.Tensor | None  # int64 [D]: tree token of each head entry; None: D = T
    targets: torch.Tensor  # int64 [D] or [D, K]
    head_index: torch.Tensor | None  # int64 [N], ascending: head entry of each token; None: N = D
    inputs: dict[str, torch.Tensor]  # loss inputs, float32 [N] or [N, K]; and SEQUENCE_INDEX
    flat_index: np.ndarray  # int64 [N]: place of each token in the concatenated sequences

    def split(self, values: np.ndarray, request: Sequence[TrainSequence]) -> Iterator[np.ndarray]:
        """Undo the reordering: values [N] -> one array per sequence of `sequence_indices`."""
        flat = np.empty_like(values)
        flat[self.flat_index] = values
        stops = np.cumsum([request[i].length for i in self.sequence_indices])
        # copies, so that a result does not keep the whole pass's array alive
        yield from (part.copy() for part in np.split(flat, stops[:-1]))


@dataclass(frozen=True)
class Pass:
    """One forward through the model: batches of different requests, concatenated."""

    parts: list[PackedBatch]

    @cached_property
    def spans(self) -> list[slice]:
        """The tokens of each part within the pass."""
        stops = np.cumsum([len(part.tokens) for part in self.parts]).tolist()
        return [slice(b - len(part.tokens), b) for part, b in zip(self.parts, stops)]

    @property
    def tokens(self) -> torch.Tensor:
        return _concatenate([part.tokens for part in self.parts])

    @property
    def positions(self) -> torch.Tensor:
        return _concatenate([part.positions for part in self.parts])

    @property
    def segments(self) -> list[Segment]:
        segments: list[Segment] = []
        for part, span in zip(self.parts, self.spans):
            segments += shift_segments(part.segments, span.start, len(segments))
        return segments


def _concatenate(tensors: list[torch.Tensor]) -> torch.Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)


def shift_segments(segments: Sequence[Segment], tokens: int, index: int) -> list[Segment]:
    """Move segments `tokens` tokens further on; `index` is the new index of the first one."""
    return [
        Segment(s.start + tokens, s.stop + tokens, None if s.parent is None else s.parent + index)
        for s in segments
    ]


def consecutive_segments(lengths: Sequence[int]) -> list[Segment]:
    """Consecutive segments of the given lengths that share nothing."""
    stops = np.cumsum(lengths).tolist()
    return [Segment(stop - length, stop) for stop, length in zip(stops, lengths, strict=True)]


def token_positions(segments: Sequence[Segment]) -> np.ndarray:
    """Position of every token within its own sequence, int64 [T]."""
    depths: list[int] = []  # position of each segment's first token; parents precede children
    for segment in segments:
        parent = segment.parent
        depths.append(
            segment.num_cached
            if parent is None
            else depths[parent] + segments[parent].stop - segments[parent].start
        )
    return np.concatenate([d + np.arange(s.stop - s.start) for d, s in zip(depths, segments)])


def pack(
    requests: Sequence[Sequence[TrainSequence]], budget: int, device: torch.device
) -> Iterator[Pass]:
    """Pack the sequences of several requests into passes of at most `budget` tokens.

    Each pass is built when it is asked for. `plan_passes` says when a pass may exceed the budget.
    """
    tokens = [[sequence.tokens for sequence in sequences] for sequences in requests]
    for members in plan_passes(tokens, budget):
        by_request: dict[int, list[int]] = {}
        for request, index in members:
            by_request.setdefault(request, []).append(index)
        yield Pass(
            [
                _pack_request(requests[request], request, indices, device)
                for request, indices in sorted(by_request.items())
            ]
        )


def plan_passes(
    requests: Sequence[Sequence[np.ndarray]], budget: int
) -> list[list[tuple[int, int]]]:
    """Assign every (request, sequence) to a pass, family by family, large ones first.

    The budget counts tokens of the prefix tree, not of the sequences. A pass exceeds it in two
    cases: a single sequence above the budget, and a family above the budget but within
    FAMILY_BUDGET_FACTOR budgets, each in a pass of its own. Any other family fills the rest of the
    last pass and continues in the next ones; its prefix is computed once in each of them.
    """
    families: list[list[tuple[int, int]]] = []
    for request, tokens in enumerate(requests):
        previous = None
        for index in _lexicographic_order(tokens):
            # in sorted order, a sequence shares most with its neighbour: comparing with that one
            # alone finds where a family ends
            if previous is not None and _shareable_prefix(tokens[previous], tokens[index]):
                families[-1].append((request, index))
            else:
                families.append([(request, index)])
            previous = index
    # Large families first, so that small ones fill what is left of a pass. The indices break ties,
    # so that the plan depends on the requests alone.
    families.sort(key=lambda f: (-sum(len(requests[r][i]) for r, i in f), f))
    passes: list[list[tuple[int, int]]] = []
    room = 0  # tokens left in the last pass
    for family in families:
        sequences = [requests[request][index] for request, index in family]
        lengths = [len(tokens) for tokens in sequences]
        lcps = _neighbour_lcps(sequences)
        tree_tokens = _count_tree_tokens(lengths, lcps)
        if len(sequences) > 1 and budget < tree_tokens <= FAMILY_BUDGET_FACTOR * budget:
            passes.append(family)
            room = 0  # it is above the budget already: nothing may be added
            continue
        start = 0
        while start < len(sequences):
            count = _count_fitting(lengths[start:], lcps[start:], room)
            if not count:
                passes.append([])
                room = budget
                # at least one: a sequence is never cut, however long it is
                count = max(_count_fitting(lengths[start:], lcps[start:], room), 1)
            stop = start + count
            passes[-1] += family[start:stop]
            room -= _count_tree_tokens(lengths[start:stop], lcps[start:stop])
            start = stop
    return passes


def _count_fitting(lengths: Sequence[int], lcps: Sequence[int], room: int) -> int:
    """Count how many of the first sequences fit into `room` tokens; may be too few.

    The exact size takes a walk over the tree, so the search starts from a lower bound on the size
    (as if every common token were shared), which gives the largest count that can fit. While the
    true size is too large, the count shrinks in proportion, not by one: overlaps that are too short
    to be shared can make the bound far too low.
    """
    # the first sequence's neighbour is not in this pass, so its own LCP does not count
    lower_bounds = np.cumsum(lengths) - np.cumsum([0, *lcps[1:]])
    count = int(np.searchsorted(lower_bounds, room, side="right"))
    while count > 1 and (size := _count_tree_tokens(lengths[:count], lcps[:count])) > room:
        count = max(min(count - 1, count * room // size), 1)
    return count


def _lexicographic_order(sequences: Sequence[np.ndarray]) -> list[int]:
    """Indices that sort the sequences by their tokens."""
    # big-endian bytes compare like the numbers, so the sort compares bytes, not lists of tokens
    keys = [tokens.astype(">u4").tobytes() for tokens in sequences]
    return sorted(range(len(sequences)), key=lambda i: (keys[i], i))


def common_prefix_length(one: np.ndarray, other: np.ndarray) -> int:
    """Tokens that two sequences have in common at their start."""
    length = min(len(one), len(other))
    differ = np.flatnonzero(one[:length] != other[:length])
    return int(differ[0]) if len(differ) else length


def _shareable_prefix(one: np.ndarray, other: np.ndarray) -> int:
    """The common prefix length of two sequences, or 0 if sharing it does not pay."""
    common = common_prefix_length(one, other)
    return common if common >= MIN_SHARED_TOKENS else 0


def _neighbour_lcps(sequences: Sequence[np.ndarray]) -> list[int]:
    """LCP array of sorted sequences: entry i is the shareable prefix of sequences i - 1 and i."""
    return [0, *(_shareable_prefix(a, b) for a, b in pairwise(sequences))]


def _pack_request(
    sequences: Sequence[TrainSequence], request: int, indices: list[int], device: torch.device
) -> PackedBatch:
    members = [sequences[i] for i in indices]
    lcps = _neighbour_lcps([sequence.tokens for sequence in members])
    if not any(lcps):  # equal lengths side by side: attention takes them as one batched call
        order = sorted(range(len(members)), key=lambda i: (-members[i].length, indices[i]))
        indices, members = [indices[i] for i in order], [members[i] for i in order]

    def tensor(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).to(device, non_blocking=True)

    flat_inputs = {
        key: np.concatenate([sequence.inputs[key].astype(np.float32) for sequence in members])
        for key in members[0].inputs
    }
    flat_inputs[SEQUENCE_INDEX] = np.repeat(indices, [sequence.length for sequence in members])
    targets = np.concatenate([sequence.targets for sequence in members])
    if any(lcps):
        tree = _PrefixTree([sequence.tokens for sequence in members], lcps)
        segments, tokens = tree.segments, tree.tokens
        # Sequences that share a token mostly share its target too (the next shared token). One
        # head entry per distinct (tree token, targets) spares the vocabulary product for the rest.
        tree_index = np.concatenate(tree.token_indices)  # [N]
        keys = np.concatenate([tree_index[:, None], targets.reshape(len(targets), -1)], axis=1)
        unique, head_index = np.unique(keys, axis=0, return_inverse=True)
        head_index = head_index.reshape(-1)
        # Loss tokens are sorted by head entry, so that a chunk of entries is read by one slice of
        # them: the head computes the loss chunk by chunk.
        flat_index = np.argsort(head_index, kind="stable")
        head_tokens = tensor(unique[:, 0].copy())
        targets = unique[:, 1:].reshape(len(unique), *targets.shape[1:])
        head_index = tensor(head_index[flat_index])
    else:
        segments = consecutive_segments([sequence.length for sequence in members])
        tokens = np.concatenate([sequence.tokens for sequence in members])
        flat_index, head_tokens, head_index = np.arange(len(tokens)), None, None
    return PackedBatch(
        request=request,
        sequence_indices=indices,
        segments=segments,
        tokens=tensor(tokens),
        positions=tensor(token_positions(segments)),
        head_tokens=head_tokens,
        targets=tensor(np.ascontiguousarray(targets)),
        head_index=head_index,
        inputs={key: tensor(array[flat_index]) for key, array in flat_inputs.items()},
        flat_index=flat_index,
    )


class PrefixTrees:
    """One prefix tree per group of sequences, laid out one after another.

    `token_indices[i]` are the tokens of sequence i within the layout; `spans[g]` are the tokens
    [start, stop) of group g. Sequences of different groups share nothing.
    """

    def __init__(self, sequences: Sequence[np.ndarray], groups: Sequence[int]) -> None:
        self.segments: list[Segment] = []
        self.token_indices: list[np.ndarray] = [np.empty(0, np.int64)] * len(sequences)
        self.spans: list[tuple[int, int]] = []
        pieces, length = [], 0
        for group in range(max(groups) + 1):
            members = [i for i, member_group in enumerate(groups) if member_group == group]
            members = [members[i] for i in _lexicographic_order([sequences[i] for i in members])]
            group_sequences = [sequences[i] for i in members]
            tree = _PrefixTree(group_sequences, _neighbour_lcps(group_sequences))
            self.segments += shift_segments(tree.segments, length, len(self.segments))
            for index, token_indices in zip(members, tree.token_indices):
                self.token_indices[index] = token_indices + length
            pieces.append(tree.tokens)
            self.spans.append((length, length + len(tree.tokens)))
            length += len(tree.tokens)
        self.tokens = np.concatenate(pieces)


class _SharedSpan(NamedTuple):
    """Tokens [depth, stop) that the sorted sequences [low, high) share.

    `parent` is the index of the span that they continue.
    """

    low: int
    high: int
    depth: int
    stop: int
    parent: int | None


def _shared_spans(lengths: Sequence[int], lcps: Sequence[int]) -> list[_SharedSpan]:
    """The prefix tree of sorted sequences, depth first, from their lengths and LCP array.

    A branch is shared only if it is at least MIN_SHARED_TOKENS long, counted from where it starts.
    So two sequences may share up to MIN_SHARED_TOKENS - 1 tokens less than they have in common.
    """
    spans: list[_SharedSpan] = []
    # an explicit stack, since a conversation trained turn by turn makes a tree of any depth
    stack = _split_branches(0, len(lengths), 0, None, lcps)
    while stack:
        low, high, depth, parent = stack.pop()
        # the smallest LCP between neighbours is what all of [low, high) have in common
        stop = lengths[low] if high - low == 1 else min(lcps[low + 1 : high])
        if stop > depth:  # empty if a sequence ends exactly where the others branch
            spans.append(_SharedSpan(low, high, depth, stop, parent))
        if high - low > 1:
            stack += _split_branches(low, high, stop, len(spans) - 1, lcps)
    return spans


def _split_branches(
    low: int, high: int, depth: int, parent: int | None, lcps: Sequence[int]
) -> list[tuple[int, int, int, int | None]]:
    """Split the sequences [low, high), which share `depth` tokens, into those that share more.

    The last branch comes first: they go onto a stack, which returns them in sorted order.
    """
    cuts = [i for i in range(low + 1, high) if lcps[i] - depth < MIN_SHARED_TOKENS]
    return [(a, b, depth, parent) for a, b in pairwise([low, *cuts, high])][::-1]


def _count_tree_tokens(lengths: Sequence[int], lcps: Sequence[int]) -> int:
    return sum(span.stop - span.depth for span in _shared_spans(lengths, lcps))


class _PrefixTree:
    """The prefix tree of sorted sequences as segments, depth first.

    `token_indices[i]` are the tree tokens that sequence i consists of, in order.
    """

    def __init__(self, sequences: Sequence[np.ndarray], lcps: Sequence[int]) -> None:
        self.segments: list[Segment] = []
        parts: list[list[np.ndarray]] = [[np.empty(0, np.int64)] for _ in sequences]
        pieces, start = [], 0
        for span in _shared_spans([len(tokens) for tokens in sequences], lcps):
            stop = start + span.stop - span.depth
            self.segments.append(Segment(start, stop, span.parent))
            pieces.append(sequences[span.low][span.depth : span.stop])
            span_indices = np.arange(start, stop)
            for index in range(span.low, span.high):
                parts[index].append(span_indices)
            start = stop
        self.tokens = np.concatenate(pieces)
        self.token_indices = [np.concatenate(part) for part in parts]
