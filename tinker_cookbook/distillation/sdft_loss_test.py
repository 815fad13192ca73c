"""The divergences of self-distillation against float64 computations over full distributions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tinker_cookbook.distillation.sdft_loss import forward_kl, reverse_kl
from tinker_cookbook.distillation.soft_targets import TopK

VOCABULARY, POSITIONS = 11, 4


@pytest.fixture
def logits() -> tuple[np.ndarray, np.ndarray]:
    """Of the teacher and of the student, float64 [POSITIONS, VOCABULARY]."""
    rng = np.random.default_rng(0)
    return rng.normal(scale=2, size=(2, POSITIONS, VOCABULARY))


def softmax(values: np.ndarray) -> np.ndarray:
    exp = np.exp(values - values.max(axis=1, keepdims=True))
    return exp / exp.sum(axis=1, keepdims=True)


def top_k(logits: np.ndarray, k: int) -> TopK:
    tokens = np.argsort(-logits, axis=1)[:, :k]
    return TopK(tokens, np.take_along_axis(np.log(softmax(logits)), tokens, axis=1))


def student_logprobs(logits: torch.Tensor, teacher: TopK) -> torch.Tensor:
    return logits.log_softmax(dim=1).gather(1, torch.from_numpy(teacher.tokens))


def reverse_with_gradient(teacher: TopK, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The divergence at each position, and the gradient of their sum by the student's logits."""
    leaf = torch.from_numpy(logits.copy()).requires_grad_()
    values = reverse_kl(teacher, student_logprobs(leaf, teacher))
    values.sum().backward()
    assert leaf.grad is not None
    return values.detach().numpy(), leaf.grad.numpy()


def reverse_gradient(s: np.ndarray, p: np.ndarray) -> np.ndarray:
    """Of sum s (log s - log p) by the logits of s: s_j (log s_j - log p_j - KL)."""
    gap = np.log(s) - np.log(p)
    return s * (gap - (s * gap).sum(axis=1, keepdims=True))


def test_with_the_whole_vocabulary_they_are_the_divergences(
    logits: tuple[np.ndarray, np.ndarray],
) -> None:
    p, s = map(softmax, logits)
    teacher = top_k(logits[0], VOCABULARY)
    student = student_logprobs(torch.from_numpy(logits[1]), teacher).numpy()
    expected = (p * np.log(p / s)).sum(axis=1)
    np.testing.assert_allclose(forward_kl(teacher, student), expected, rtol=1e-12)
    values, gradient = reverse_with_gradient(teacher, logits[1])
    np.testing.assert_allclose(values, (s * np.log(s / p)).sum(axis=1), rtol=1e-12)
    # the tokens outside are none, so their clamped probability has no gradient
    np.testing.assert_allclose(gradient, reverse_gradient(s, p), atol=1e-12)


def test_forward_with_fewer_tokens(logits: tuple[np.ndarray, np.ndarray]) -> None:
    p, s = map(softmax, logits)
    teacher = top_k(logits[0], 4)
    q = np.zeros_like(p)
    np.put_along_axis(q, teacher.tokens, teacher.probabilities, axis=1)
    student = student_logprobs(torch.from_numpy(logits[1]), teacher).numpy()
    kept = q > 0
    ratio = np.divide(q, s, where=kept, out=np.ones_like(q))
    expected = (q * np.log(ratio)).sum(axis=1)
    np.testing.assert_allclose(forward_kl(teacher, student), expected, rtol=1e-12)
    # the stated bias: of the gradient s - q instead of s - p
    np.testing.assert_allclose(
        np.abs((s - q) - (s - p)).sum(axis=1), 2 * teacher.left_out, rtol=1e-12
    )


def test_reverse_with_fewer_tokens_takes_the_others_as_one(
    logits: tuple[np.ndarray, np.ndarray],
) -> None:
    p, s = map(softmax, logits)
    teacher = top_k(logits[0], 4)
    within = [np.take_along_axis(each, teacher.tokens, axis=1) for each in (p, s)]
    p5, s5 = (np.column_stack([each, 1 - each.sum(axis=1)]) for each in within)
    values, gradient = reverse_with_gradient(teacher, logits[1])
    np.testing.assert_allclose(values, (s5 * np.log(s5 / p5)).sum(axis=1), rtol=1e-9)
    # a lower bound of the full divergence
    assert (values > 0).all() and (values <= (s * np.log(s / p)).sum(axis=1)).all()
    # by hand: the logits outside share the gradient of their token in proportion to their s
    merged = reverse_gradient(s5, p5)
    expected = s / s5[:, -1:] * merged[:, -1:]
    np.put_along_axis(expected, teacher.tokens, merged[:, :-1], axis=1)
    np.testing.assert_allclose(gradient, expected, rtol=1e-8, atol=1e-12)


def test_reverse_pulls_probability_back_from_tokens_that_the_teacher_leaves_out() -> None:
    """Without a term for them, the lowest loss would be all probability outside of the k."""
    teacher = top_k(np.array([[4.0, 3.0, -9.0, -9.0]]), 2)
    _, gradient = reverse_with_gradient(teacher, np.array([[0.0, 0.0, 5.0, 0.0]]))
    assert gradient[0, 2] > 0 > gradient[0, :2].max()


def test_rounding_of_a_teacher_without_a_rest() -> None:
    """float32 logprobs may sum to more than 1: no logarithm of 0 or below."""
    logprobs = np.log(softmax(np.array([[20.0, 1.0, 0.0]]))).astype(np.float32) + 1e-7
    teacher = TopK(np.array([[0, 1, 2]]), logprobs.astype(np.float64))
    values, gradient = reverse_with_gradient(teacher, np.array([[20.0, 1.0, 0.0]]))
    np.testing.assert_allclose(values, 0, atol=1e-6)
    np.testing.assert_allclose(gradient, 0, atol=1e-6)
