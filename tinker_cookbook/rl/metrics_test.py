"""Gaps between logprobs by hand, whole and in parts."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import tinker
import torch

from tinker_cookbook.exceptions import DataValidationError
from tinker_cookbook.rl.metrics import (
    LogprobGap,
    SampleTrainGap,
    compute_kl_sample_train,
    compute_post_kl,
    discounted_future_sum_vectorized,
    incorporate_kl_penalty,
)
from tinker_cookbook.rl.signals import ReferenceKL
from tinker_cookbook.rl.testing import FormulaModel, trajectory, turn
from tinker_cookbook.rl.trajectories import TrainingGroup
from tinker_cookbook.rl.types import TrajectoryGroup
from tinker_cookbook.sequences import Sequence, to_datum


def make_data(
    count: int = 7, seed: int = 0
) -> tuple[list[tinker.Datum], list[np.ndarray], list[tuple[float, float]]]:
    """Datums of different lengths, the trainer's logprobs of them, and (sampled, trained) of the
    tokens that count."""
    rng = np.random.default_rng(seed)
    data, logprobs, pairs = [], [], []
    for _ in range(count):
        n = int(rng.integers(3, 12))
        mask = rng.random(n) < 0.5
        mask[-1] = True
        sampled = np.where(mask, -rng.exponential(1.0, n), 0.0).astype(np.float32)
        trained = (sampled + rng.normal(0, 0.3, n)).astype(np.float32)
        data.append(to_datum(Sequence(rng.integers(1, 9, n), mask, sampled, np.zeros(n))))
        logprobs.append(trained[1:])
        pairs += [(float(sampled[t]), float(trained[t])) for t in range(1, n) if mask[t]]
    return data, logprobs, pairs


def by_hand(pairs: list[tuple[float, float]]) -> dict[str, float]:
    n = len(pairs)
    return {
        "optim/kl_sample_train_v1": sum(s - t for s, t in pairs) / n,
        "optim/kl_sample_train_v2": sum((s - t) ** 2 for s, t in pairs) / n / 2,
        "optim/entropy": -sum(s for s, _ in pairs) / n,
        "optim/logprob_gap_mean": sum(abs(s - t) for s, t in pairs) / n,
        "optim/logprob_gap_max": max(abs(s - t) for s, t in pairs),
    }


def test_by_hand_from_any_kind_of_array() -> None:
    data, logprobs, pairs = make_data()
    expected = {key: pytest.approx(value, rel=1e-9) for key, value in by_hand(pairs).items()}
    assert compute_kl_sample_train(data, logprobs) == expected
    assert compute_kl_sample_train(data, [torch.from_numpy(each) for each in logprobs]) == expected
    tensors = [tinker.TensorData.from_numpy(each) for each in logprobs]
    assert compute_kl_sample_train(data, tensors) == expected


def test_parts_of_a_step_give_the_figures_of_the_whole_step() -> None:
    """Of very different sizes, so that a mean of means would show."""
    data, logprobs, pairs = make_data(20)
    gap = SampleTrainGap()
    gap.add(data[:1], logprobs[:1])
    gap.add([], [])
    gap.add(data[1:], logprobs[1:])
    assert gap.metrics() == {key: pytest.approx(v, rel=1e-9) for key, v in by_hand(pairs).items()}
    assert gap.num_tokens == len(pairs)
    first = compute_kl_sample_train(data[:1], logprobs[:1])["optim/entropy"]
    rest = compute_kl_sample_train(data[1:], logprobs[1:])["optim/entropy"]
    assert (first + rest) / 2 != pytest.approx(gap.entropy, rel=1e-3)


def test_v1_and_v2_estimate_the_divergence_of_two_distributions() -> None:
    """Exact over three tokens: v1 is KL(p || q) in the mean, v2 near it where p is near q."""
    p, q = (0.5, 0.3, 0.2), (0.45, 0.33, 0.22)
    exact = sum(a * math.log(a / b) for a, b in zip(p, q))
    counts = [round(1000 * a) for a in p]
    tokens = [i for i, count in enumerate(counts) for _ in range(count)]
    random.Random(0).shuffle(tokens)
    sampled = [0.0] + [math.log(p[i]) for i in tokens]
    datum = to_datum(Sequence([1, *tokens], [0] + [1] * 1000, sampled, np.zeros(1001)))
    gap = LogprobGap()
    gap.add([datum], [[math.log(q[i]) for i in tokens]])
    assert gap.kl_v1 == pytest.approx(exact, abs=1e-6)
    assert gap.kl_v2 == pytest.approx(exact, rel=0.05)
    assert gap.entropy == pytest.approx(-sum(a * math.log(a) for a in p), abs=1e-6)


def test_what_is_not_a_number_is_never_lost() -> None:
    data, logprobs, _ = make_data()
    logprobs[0] = np.full_like(logprobs[0], np.nan)
    gap = SampleTrainGap()
    gap.add(data, logprobs)
    assert all(math.isnan(v) for k, v in gap.metrics().items() if k != "optim/entropy")
    gap.add(*make_data(seed=1)[:2])  # and later numbers do not hide it
    assert math.isnan(gap.max) and math.isnan(gap.mean)


def test_nothing_trained() -> None:
    gap = SampleTrainGap()
    assert gap.metrics() == {} and math.isnan(gap.mean) and gap.max == 0
    assert gap.metrics(num_sampled_tokens=0) == {}
    assert gap.metrics(num_sampled_tokens=12) == {"optim/frac_masked": 1.0}


def test_frac_masked_counts_all_sampled_tokens() -> None:
    group = TrainingGroup.from_group(
        TrajectoryGroup(
            [trajectory(turn([1], [2, 3, 4]), turn([1, 2, 3, 4, 5], [6], trainable=False))],
            [0.0],
            [{}],
        )
    )
    left_out = TrainingGroup.from_group(
        TrajectoryGroup([trajectory(turn([1], [2, 3, 4, 5]))], [0], [{}])
    )
    gap = SampleTrainGap()
    datums = group.datums()
    gap.add(datums, [[0.0] * datum.model_input.length for datum in datums])
    sampled = group.num_sampled_tokens + left_out.num_sampled_tokens
    assert gap.metrics(sampled)["optim/frac_masked"] == pytest.approx(5 / 8)


def test_shapes_that_do_not_match_are_refused() -> None:
    data, logprobs, _ = make_data(2)
    with pytest.raises(DataValidationError, match="2 datums, but logprobs of 1"):
        SampleTrainGap().add(data, logprobs[:1])
    with pytest.raises(DataValidationError, match=r"datum 1 has \d+ targets, but logprobs of"):
        SampleTrainGap().add(data, [logprobs[0], logprobs[1][:-1]])


def model_pairs(data: list[tinker.Datum]) -> list[list[tuple[float, float]]]:
    """(sampled, Model's) of the tokens that count, datum by datum."""
    pairs = []
    for datum in data:
        tokens = [*datum.model_input.to_ints(), datum.loss_fn_inputs["target_tokens"].tolist()[-1]]
        sampled, mask = (datum.loss_fn_inputs[k].tolist() for k in ("logprobs", "mask"))
        pairs.append(
            [
                (sampled[t - 1], FormulaModel().logprob(tokens, t))
                for t in range(1, len(tokens))
                if mask[t - 1]
            ]
        )
    return pairs


async def test_post_kl_by_hand() -> None:
    data, _, _ = make_data()
    flat = [d for pairs in model_pairs(data) for d in pairs]
    expected = by_hand(flat)
    assert await compute_post_kl(data, FormulaModel()) == {
        "kl_pre_post_v1": pytest.approx(expected["optim/kl_sample_train_v1"], rel=1e-6),
        "kl_pre_post_v2": pytest.approx(expected["optim/kl_sample_train_v2"], rel=1e-6),
    }
    assert await compute_post_kl([], FormulaModel()) == {}


async def test_the_penalty_on_datums_is_that_of_the_signal() -> None:
    rng = np.random.default_rng(0)
    members = [
        trajectory(
            turn([1, 2], [3, 4], (-rng.exponential(1.0, 2)).tolist()),
            turn([1, 2, 3, 4, 5], [6, 7], (-rng.exponential(1.0, 2)).tolist()),
        )
        for _ in range(3)
    ]
    group = TrainingGroup.from_group(TrajectoryGroup(members, [0.0] * 3, [{}] * 3))
    for (row,) in group.advantages_G:
        row[group.sequences_G[0][0].loss_mask] = 0.5
    data = group.datums()
    signal = ReferenceKL(FormulaModel(), coef=0.7, discount=0.9)
    await signal.prepare(group)
    expected = signal.add([group])
    assert await incorporate_kl_penalty(data, FormulaModel(), 0.7, 0.9) == pytest.approx(expected)
    for datum, wanted in zip(data, group.datums()):
        found, right = (d.loss_fn_inputs["advantages"].to_numpy() for d in (datum, wanted))
        assert found.dtype == np.float32 and np.abs(found - right).max() < 1e-6
        assert np.abs(found).max() > 0.5
    assert await incorporate_kl_penalty([], FormulaModel(), 0.7, 0.9) == {}


def test_the_known_name_of_the_discounted_sum() -> None:
    assert discounted_future_sum_vectorized(np.array([1.0, 2.0, 4.0]), 0.5).tolist() == [3, 4, 4]
