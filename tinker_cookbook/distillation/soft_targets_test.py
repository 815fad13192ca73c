"""Soft targets against float64: scores, loss, adapter gradients, and the bias of the top k."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import tinker
import torch

from tinker_cookbook import models
from tinker_cookbook.distillation.soft_targets import (
    TopK,
    check_topk,
    score_top_k,
    to_soft_datum,
)
from tinker_cookbook.engine.head import HeadLogprobs
from tinker_cookbook.engine.lora import LoraSpec
from tinker_cookbook.engine.losses import get_loss
from tinker_cookbook.engine.testing import PeftReference, make_trainer, on_cpu, transformers_model
from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.renderers import Message, TrainOnWhat, get_renderer
from tinker_cookbook.sequences import as_numpy, from_datum
from tinker_cookbook.service import EngineConfig, connect
from tinker_cookbook.service.convert import train_sequences
from tinker_cookbook.supervised.data import conversation_to_datum
from tinker_cookbook.tokenizer_utils import get_tokenizer

VOCABULARY = 2048  # of nano
K = 20
# fp32 against float64, relative to the largest gradient; measured: 1e-6
TOLERANCE = 1e-5


def example(question: str, answer: str) -> tinker.Datum:
    renderer = get_renderer("qwen3_instruct", get_tokenizer("nano"), model_name="nano")
    messages = [Message(role="user", content=question), Message(role="assistant", content=answer)]
    return conversation_to_datum(messages, renderer, None, TrainOnWhat.LAST_ASSISTANT_MESSAGE)


@pytest.fixture(scope="module")
def data() -> list[tinker.Datum]:
    """Three replies to one prompt, which the engine computes once, and two others. The teacher is
    uncertain about the prose."""
    return [
        example("What is 47 + 5?", "52"),
        example("What is 47 + 5?", "<think>\n7 + 5 = 12.\n</think>\n\n52"),
        example("What is 47 + 5?", "The answer is 53."),
        example("Add 3 and 9.", "It is a truth that a single man must be in want of a wife."),
        example("Count from 2 to 5.", "2, 3, 4, 5"),
    ]


def weights_of(datum: tinker.Datum) -> np.ndarray:
    return as_numpy(datum.loss_fn_inputs["weights"])


@dataclass(frozen=True, eq=False)
class Teacher:
    """nano in float64: log p of all tokens in place of the targets, [N, V] for each datum."""

    logprobs: list[torch.Tensor]


@pytest.fixture(scope="module")
def teacher(data: list[tinker.Datum]) -> Teacher:
    model = transformers_model(models.load_path("nano")).double()
    with torch.no_grad():
        inputs = [torch.tensor([datum.model_input.to_ints()]) for datum in data]
        return Teacher([model(tokens).logits[0].log_softmax(-1) for tokens in inputs])


async def score(data: Sequence[tinker.Datum], k: int) -> list[TopK]:
    service = connect(None, EngineConfig(num_threads=1))
    client = await service.create_sampling_client(base_model="nano")
    return await score_top_k(client, [from_datum(datum).tokens.tolist() for datum in data], k)


@pytest.mark.parametrize("k", [K, VOCABULARY])
async def test_scores_are_those_of_the_teacher(
    data: list[tinker.Datum], teacher: Teacher, k: int
) -> None:
    for each, exact in zip(await score(data, k), teacher.logprobs, strict=True):
        best = exact.topk(k)
        np.testing.assert_allclose(each.logprobs, best.values, atol=2e-5)
        if k == K:
            left_out = 1 - best.values.exp().sum(-1).numpy()
            np.testing.assert_allclose(each.left_out, left_out, atol=5e-6)
            q = (best.values - best.values.logsumexp(-1, keepdim=True)).exp()
            np.testing.assert_allclose(each.probabilities, q, atol=1e-5)
        else:
            assert (np.sort(each.tokens) == np.arange(VOCABULARY)).all()
            assert each.left_out.max() < 1e-5


async def test_the_whole_vocabulary_gives_loss_and_gradient_of_the_full_distribution(
    data: list[tinker.Datum], teacher: Teacher, tmp_path: Path
) -> None:
    """An adapter of rank 4 on all layers, with the same in peft in float64 as the reference."""
    path = models.load_path("nano")
    trainer = make_trainer(path, LoraSpec(rank=4, train_unembed=True))
    reference = PeftReference(trainer, tmp_path)
    reference.model.double()
    loss = torch.zeros((), dtype=torch.float64)
    for datum, log_p in zip(data, teacher.logprobs, strict=True):
        tokens = torch.tensor([datum.model_input.to_ints()])
        log_s = reference.model(tokens).logits[0].log_softmax(-1)
        position_weights = torch.from_numpy(weights_of(datum))
        loss = loss - (position_weights * (log_p.exp() * log_s).sum(-1)).sum()
    loss.backward()

    best = await score(data, VOCABULARY)
    soft = [to_soft_datum(*pair) for pair in zip(data, best, strict=True)]
    result = trainer.forward_backward(train_sequences(soft), "cross_entropy", None)
    assert result.metrics["loss:sum"] == pytest.approx(loss.item(), rel=TOLERANCE)
    ours = on_cpu(trainer.grads)
    assert set(ours) == set(reference.parameters)
    theirs = {name: p.grad for name, p in reference.parameters.items() if p.grad is not None}
    largest = max(grad.abs().max().item() for grad in theirs.values())
    for name, grad in theirs.items():
        assert (ours[name] - grad).abs().max().item() <= TOLERANCE * largest, name
        assert grad.abs().max().item() > 1e-4 * largest, name


def logit_gradients(logits: torch.Tensor, targets: np.ndarray, weights: np.ndarray) -> torch.Tensor:
    """d loss / d logits [N, V] of the engine's cross-entropy, in fp32.

    With an identity as the unembedding, hidden states are logits.
    """
    head = HeadLogprobs(torch.eye(logits.shape[1]), chunk=16)
    inputs = {"weights": torch.from_numpy(weights.astype(np.float32))}
    loss = get_loss("cross_entropy", None)
    targets_tensor = torch.from_numpy(targets.astype(np.int64))
    return head.backward(logits.float(), targets_tensor, inputs, loss, None).hidden


async def test_the_bias_of_the_top_k(data: list[tinker.Datum], teacher: Teacher) -> None:
    """sum_v |gradient with the top k - gradient with all| = 2 * left_out, at each position."""
    generator = torch.Generator().manual_seed(0)
    num_biased = 0
    for each, log_p in zip(await score(data, K), teacher.logprobs, strict=True):
        student = 2 * torch.randn(log_p.shape, generator=generator, dtype=torch.float64)
        with_top_k = logit_gradients(student, each.tokens, each.probabilities)
        exact = student.clone().requires_grad_()
        (-(log_p.exp() * exact.log_softmax(-1)).sum()).backward()
        assert exact.grad is not None
        difference = (with_top_k - exact.grad).abs().sum(-1).numpy()
        np.testing.assert_allclose(difference, 2 * each.left_out, atol=2e-5)
        num_biased += int((each.left_out > 0.01).sum())
    assert num_biased > 20  # otherwise nothing was compared


async def test_the_loss_is_lowest_where_the_student_is_q(data: list[tinker.Datum]) -> None:
    (best,) = await score(data[1:2], K)
    minimum = torch.full((len(best.tokens), VOCABULARY), -80.0)  # a probability of e^-80
    tokens = torch.from_numpy(best.tokens.astype(np.int64))
    minimum.scatter_(1, tokens, torch.from_numpy(best.log_probabilities).float())
    assert logit_gradients(minimum, best.tokens, best.probabilities).abs().max() < 1e-6

    def cross_entropy(logits: torch.Tensor) -> np.ndarray:
        log_s = logits.double().log_softmax(-1).gather(1, tokens).numpy()
        return -(best.probabilities * log_s).sum(axis=1)

    entropy = -(best.probabilities * best.log_probabilities).sum(axis=1)
    np.testing.assert_allclose(cross_entropy(minimum), entropy, atol=1e-5)
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        other = minimum + 0.1 * torch.randn(minimum.shape, generator=generator)
        assert (cross_entropy(other) > entropy).all()


async def test_the_engines_loss_is_that_of_numpy(
    data: list[tinker.Datum], teacher: Teacher
) -> None:
    """Through the client, with K = 20 and a student that is the teacher."""
    service = connect(None, EngineConfig(num_threads=1))
    client = await service.create_lora_training_client("nano", rank=4, seed=0)
    best = await score(data, K)
    soft = [to_soft_datum(*pair) for pair in zip(data, best, strict=True)]
    result = await client.forward_backward(soft, "cross_entropy")
    expected = 0.0
    for datum, each, log_s, output in zip(
        data, best, teacher.logprobs, result.loss_fn_outputs, strict=True
    ):
        picked = np.take_along_axis(log_s.numpy(), each.tokens.astype(np.int64), axis=1)
        trained = weights_of(datum) != 0
        logprobs = as_numpy(output["logprobs"])
        assert logprobs.shape == (len(weights_of(datum)), K)
        np.testing.assert_allclose(logprobs[trained], picked[trained], atol=2e-5)
        expected -= float((weights_of(datum)[:, None] * each.probabilities * picked).sum())
    assert result.metrics["loss:sum"] == pytest.approx(expected, rel=1e-6)


async def test_untrained_positions_have_equal_targets(data: list[tinker.Datum]) -> None:
    (best,) = await score(data[:1], K)
    inputs = to_soft_datum(data[0], best).loss_fn_inputs
    targets, weights = (inputs[name].to_numpy() for name in ("target_tokens", "weights"))
    trained = weights_of(data[0]) != 0
    assert (targets[~trained] == 0).all() and (weights[~trained] == 0).all()
    assert (targets[trained] == best.tokens[trained]).all()
    sums = weights[trained].sum(axis=1)
    np.testing.assert_allclose(sums, weights_of(data[0])[trained], rtol=1e-6)


def test_no_more_tokens_than_the_vocabulary_has() -> None:
    check_topk(2048, "nano")
    with pytest.raises(ConfigurationError, match="topk=2049: nano has 2048 tokens; set topk=2048"):
        check_topk(2049, "nano")
