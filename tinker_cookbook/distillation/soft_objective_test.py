"""The soft-target objective: its metrics, and how often the teacher is asked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tinker

from tinker_cookbook.distillation.soft_objective import (
    SoftTargetEvaluator,
    SoftTargetObjective,
    TopKTeacher,
    soft_target_metrics,
)
from tinker_cookbook.distillation.soft_targets import TopK
from tinker_cookbook.distillation.teacher import TeacherConfig
from tinker_cookbook.sequences import Sequence, to_datum
from tinker_cookbook.service import EngineConfig, connect
from tinker_cookbook.supervised.nll_evaluator import NLLEvaluator
from tinker_cookbook.tokenizer_utils import get_tokenizer

TEXTS = ("What is 1 + 2?", "The answer is 3.", "It is a truth universally acknowledged")
K = 5


def datums() -> list[tinker.Datum]:
    tokens = [get_tokenizer("nano").encode(text) for text in TEXTS]
    weights = [[0.0, 0.0, *[0.5 + i] * (len(each) - 2)] for i, each in enumerate(tokens)]
    return [to_datum(Sequence(*pair)) for pair in zip(tokens, weights)]


def test_metrics_by_hand() -> None:
    """Two trained positions, with weights 1 and 3, and one that is not trained."""
    datum = to_datum(Sequence([5, 6, 7, 8], [0, 0, 1, 3]))
    p = np.array([[0.9, 0.05], [0.6, 0.2], [0.3, 0.1]])
    s = np.array([[0.1, 0.1], [0.5, 0.25], [0.6, 0.1]])
    best = TopK(np.array([[1, 2], [3, 4], [5, 6]]), np.log(p).astype(np.float32))
    metrics = soft_target_metrics([datum], [best], [np.log(s)])
    kl = [
        0.75 * np.log(0.75 / 0.5) + 0.25 * np.log(0.25 / 0.25),
        0.75 * np.log(0.75 / 0.6) + 0.25 * np.log(0.25 / 0.1),
    ]
    cross_entropy = [
        -0.75 * np.log(0.5) - 0.25 * np.log(0.25),
        -0.75 * np.log(0.6) - 0.25 * np.log(0.1),
    ]
    assert metrics == {
        "forward_kl": pytest.approx((kl[0] + 3 * kl[1]) / 4),
        "soft_cross_entropy": pytest.approx((cross_entropy[0] + 3 * cross_entropy[1]) / 4),
        "left_out_mass": pytest.approx((0.2 + 3 * 0.6) / 4),
    }


def test_a_probability_that_underflows_counts_as_zero() -> None:
    best = TopK(np.array([[1, 2]]), np.array([[0.0, -800.0]], np.float32))
    datum = to_datum(Sequence([5, 6], [0, 1]))
    metrics = soft_target_metrics([datum], [best], [np.log([[0.5, 0.1]])])
    assert metrics["forward_kl"] == pytest.approx(np.log(2))


async def test_a_student_that_is_the_teacher(tmp_path: Path) -> None:
    """KL(q || p) = -log(1 - left_out), as q is p restricted to its top k."""
    service = connect(None, EngineConfig(num_threads=1), store_dir=tmp_path)
    client = await service.create_lora_training_client("nano", rank=2, seed=0)
    teacher = TopKTeacher(service, TeacherConfig(base_model="nano"), K)
    objective = SoftTargetObjective(teacher, get_tokenizer("nano"))
    batches = [datums(), datums()[:1]]
    futures = [await objective.submit(client, batch) for batch in batches]  # two in flight
    for batch, losses in zip(batches, futures, strict=True):
        outputs = [await loss for loss in losses]
        metrics = objective.metrics(batch, outputs)
        weights = np.concatenate([d.loss_fn_inputs["weights"].to_numpy() for d in batch])
        left_out = np.concatenate([each.left_out for each in await teacher.score(batch)])
        expected = np.average(-np.log1p(-left_out), weights=weights)
        assert metrics["forward_kl"] == pytest.approx(expected, abs=1e-5)
        assert metrics["left_out_mass"] == pytest.approx(np.average(left_out, weights=weights))
        assert metrics["num_loss_tokens"] == np.count_nonzero(weights)
        # the loss is the sum over positions, the metric their mean
        mean = outputs[0].metrics["loss:sum"] / weights.sum()
        assert metrics["soft_cross_entropy"] == pytest.approx(mean, rel=1e-5)


async def test_held_out_data_is_scored_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = connect(None, EngineConfig(num_threads=1), store_dir=tmp_path)
    client = await service.create_lora_training_client("nano", rank=2, seed=0)
    teacher = TopKTeacher(service, TeacherConfig(base_model="nano"), K)
    objective = SoftTargetObjective(teacher, get_tokenizer("nano"))
    hard, soft = objective.evaluators(datums())
    assert isinstance(hard, NLLEvaluator) and isinstance(soft, SoftTargetEvaluator)
    before = await soft(client)
    assert set(before) == {"test/forward_kl", "test/soft_cross_entropy", "test/left_out_mass"}

    async def refuse(data: list[tinker.Datum]) -> list[TopK]:
        raise AssertionError("the teacher was asked again")

    monkeypatch.setattr(teacher, "score", refuse)
    assert await soft(client) == before
    assert (await hard(client)).keys() == {"test/nll", "test/bpb"}
