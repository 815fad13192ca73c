"""Shared prefixes are found, computed once, and change no number."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tinker_cookbook.engine import packing
from tinker_cookbook.engine.attention import attention_parts, visible_key_spans
from tinker_cookbook.engine.lora import LoraSpec
from tinker_cookbook.engine.losses import LOSSES
from tinker_cookbook.engine.packing import pack, plan_passes
from tinker_cookbook.engine.requests import TrainSequence
from tinker_cookbook.engine.testing import (
    TOLERANCE,
    VOCAB,
    batch_with_everything,
    gradients,
    group,
    make_trainer,
    row_of,
    with_inputs,
)

CPU = torch.device("cpu")


def check_batch(rows: list[TrainSequence], budget: int) -> int:
    """Read every sequence back from the tree, and compare; returns the tokens of all passes."""
    seen, computed = [], 0
    for each in pack([rows], budget, CPU):
        (batch,) = each.parts
        seen += batch.sequence_indices
        computed += len(batch.tokens)
        head = batch.head_tokens
        at = torch.arange(len(batch.tokens)) if head is None else head
        used = at if batch.head_index is None else at[batch.head_index]
        targets = batch.targets if batch.head_index is None else batch.targets[batch.head_index]
        columns = {
            "tokens": batch.tokens[used],
            "positions": batch.positions[used],
            "targets": targets,
            "weights": batch.inputs["weights"],
            "sequence": batch.inputs["sequence_index"],
            "tree token": used,
        }
        parts = {k: list(batch.split(v.numpy(), rows)) for k, v in columns.items()}
        for number, index in enumerate(batch.sequence_indices):
            row = rows[index]
            assert np.array_equal(parts["tokens"][number], row.tokens)
            assert np.array_equal(parts["positions"][number], np.arange(row.length))
            assert np.array_equal(parts["targets"][number], row.targets)
            assert np.array_equal(parts["weights"][number], row.inputs["weights"])
            assert (parts["sequence"][number] == index).all()
            last = next(s for s in batch.segments if s.start <= used_last(parts, number) < s.stop)
            spans = visible_key_spans(batch.segments, last)
            path = np.concatenate([np.arange(a, b) for a, b in spans])
            assert np.array_equal(parts["tree token"][number], path[: row.length])
    assert sorted(seen) == list(range(len(rows)))
    return computed


def used_last(parts: dict, number: int) -> int:
    return int(parts["tree token"][number][-1])


@pytest.mark.parametrize("budget", [10_000, 200, 64, 1])
def test_sequences_can_be_read_back(budget: int) -> None:
    rows = batch_with_everything()
    computed = check_batch(rows, budget)
    given_tokens = sum(row.length for row in rows)
    assert computed < 0.6 * given_tokens if budget == 10_000 else computed <= given_tokens


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_sequences_can_be_read_back(data: st.DataObject) -> None:
    stems = data.draw(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=50), max_size=4))
    rows = []
    for _ in range(data.draw(st.integers(1, 8))):
        stem = data.draw(st.sampled_from(stems or [[1]]))
        cut = data.draw(st.integers(0, len(stem)))
        tail = data.draw(st.lists(st.integers(0, 2), min_size=2, max_size=40))
        rows.append(row_of(np.array(stem[:cut] + tail)))
    check_batch(rows, data.draw(st.sampled_from([10_000, 60])))


def test_every_token_attends_to_its_ancestors_and_nothing_else() -> None:
    (only,) = pack([batch_with_everything()], 10_000, CPU)
    (batch,) = only.parts
    sees = np.zeros((len(batch.tokens), len(batch.tokens)), dtype=int)
    for part in attention_parts(batch.segments):
        if not part.causal:
            sees[part.q0 : part.q1, part.k0 : part.k1] += 1
            continue
        size = (part.q1 - part.q0) // part.count
        for start in range(part.q0, part.q1, size):
            sees[start : start + size, start : start + size] += np.tri(size, dtype=int)
    for segment in batch.segments:
        path = np.concatenate(
            [np.arange(*span) for span in visible_key_spans(batch.segments, segment)]
        )
        for cell in range(segment.start, segment.stop):
            expected = np.zeros(len(batch.tokens), dtype=int)
            expected[path[: np.flatnonzero(path == cell)[0] + 1]] = 1
            assert np.array_equal(sees[cell], expected)


def test_passes_keep_to_the_budget() -> None:
    rng = np.random.default_rng(0)
    prompt = rng.integers(0, VOCAB, 100)
    rows = group(rng, prompt, (20,) * 30)
    passes = plan_passes([[row.tokens for row in rows]], 300)
    assert sorted(i for each in passes for _, i in each) == list(range(30))
    assert [len(each) for each in passes] == [
        10,
        10,
        10,
    ]  # 119 tokens, then 19 per sequence
    for each in pack([rows], 300, CPU):
        (batch,) = each.parts
        assert len(batch.tokens) <= 300


def test_a_family_stays_together_up_to_twice_the_budget() -> None:
    rng = np.random.default_rng(0)
    rows = group(rng, rng.integers(0, VOCAB, 100), (50,) * 6) + group(
        rng, rng.integers(0, 9, 30), (9,)
    )
    tokens = [row.tokens for row in rows]  # a family of 149 + 5 x 49 tokens, and a sequence of 38
    assert sorted(map(len, plan_passes([tokens], 394))) == [1, 6]
    assert sorted(map(len, plan_passes([tokens], 200))) == [1, 6]
    assert sorted(map(len, plan_passes([tokens], 196))) == [1, 1, 1, 1, 1, 2]  # 394 > 2 x 196


def keeps_to_the_budget(tokens: list[list[int]], budget: int) -> list[int]:
    """Check that only single sequences and whole families exceed the budget.

    Returns the tokens of each pass.
    """
    rows = [row_of(np.array([*row, 0])) for row in tokens]
    families: dict[tuple[int, ...], list[int]] = {}
    for index, row in enumerate(tokens):
        if len(row) >= packing.MIN_SHARED_TOKENS:
            families.setdefault(tuple(row[: packing.MIN_SHARED_TOKENS]), []).append(index)
    found, seen = [], []
    for each in pack([rows], budget, CPU):
        chosen = sorted(index for part in each.parts for index in part.sequence_indices)
        found.append(len(each.tokens))
        seen += chosen
        if found[-1] > budget and len(chosen) > 1:
            assert found[-1] <= 2 * budget
            assert chosen in families.values()
    assert sorted(seen) == list(range(len(tokens)))
    return found


def test_overlaps_too_short_to_be_shared_count_for_every_sequence() -> None:
    rng = np.random.default_rng(0)
    stem = rng.integers(0, VOCAB, 55).tolist()
    rows = [[*stem, own] for own in range(200)] + [[*stem[:40], VOCAB]]
    found = keeps_to_the_budget(rows, 512)
    assert max(found) <= 512 and len(found) <= 8  # 16 per sequence in the last one's pass


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_pass_of_several_sequences_exceeds_the_budget(data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    rows: list[list[int]] = []
    for _ in range(data.draw(st.integers(1, 40))):
        stem = rows[rng.integers(len(rows))] if rows and rng.random() < 0.9 else []
        cut = int(rng.integers(len(stem) + 1)) if rng.random() < 0.5 else len(stem)
        rows.append(stem[:cut] + rng.integers(0, 3, rng.integers(1, 30)).tolist())
    keeps_to_the_budget(rows, data.draw(st.sampled_from([20, 60, 150, 400])))


def no_sharing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "MIN_SHARED_TOKENS", 1_000_000)


@pytest.mark.parametrize("unembed", [True, False])
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("family", ["tiny_qwen3", "tiny_llama"])
def test_sharing_changes_no_number(
    family: str,
    name: str,
    unembed: bool,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    device: str,
) -> None:
    spec = LoraSpec(rank=4, train_unembed=unembed)
    trainer = make_trainer(request.getfixturevalue(family), spec, device, head_chunk=16)
    rows = with_inputs(batch_with_everything(), name)
    if "logprobs" in LOSSES[name].inputs:
        plain = [dataclasses.replace(r, inputs={"weights": np.ones(r.length)}) for r in rows]
        rng = np.random.default_rng(3)
        for row, lp in zip(rows, trainer.forward(plain, "cross_entropy", None).logprobs):
            row.inputs["logprobs"][:] = lp + rng.normal(0, 0.3, row.length)  # type: ignore[index]
    shared = trainer.forward_backward(rows, name, None)
    shared_grads = gradients(trainer)
    no_sharing(monkeypatch)
    plain = trainer.forward_backward(rows, name, None)
    plain_grads = gradients(trainer)
    worst = max(np.abs(a - b).max() for a, b in zip(shared.logprobs, plain.logprobs))
    for key, grad in plain_grads.items():
        worst = max(worst, (grad - shared_grads[key]).abs().max().item())
    assert worst <= TOLERANCE
    assert shared.metrics["loss:sum"] == pytest.approx(plain.metrics["loss:sum"], abs=1e-4)


def test_custom_loss_and_several_targets_over_shared_prefixes(
    tiny_qwen3: str, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    trainer = make_trainer(tiny_qwen3, LoraSpec(rank=4), device, head_chunk=16)
    rows = batch_with_everything()
    rng = np.random.default_rng(5)
    wide = []
    for row in rows:
        targets = np.stack([row.targets, rng.integers(0, VOCAB, row.length)], axis=1)
        weights = rng.normal(size=targets.shape).astype(np.float32) / 50
        wide.append(TrainSequence(row.tokens, targets, {"weights": weights}))

    def function(logprobs: list[torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
        return torch.stack([lp.mean() * i for i, lp in enumerate(logprobs)]).logsumexp(0), {}

    outcomes = []
    for _ in range(2):
        custom = trainer.forward_backward_custom(rows, function)
        grads = gradients(trainer)
        several = trainer.forward_backward(wide, "cross_entropy", None)
        outcomes.append([*custom.logprobs, *several.logprobs])
        outcomes[-1] += [g.numpy() for g in grads.values()]
        outcomes[-1] += [g.numpy() for g in gradients(trainer).values()]
        no_sharing(monkeypatch)
    assert max(np.abs(a - b).max() for a, b in zip(*outcomes)) <= TOLERANCE
