"""KL divergences between student and teacher over the teacher's k most probable tokens.

p: the teacher's probabilities of its k tokens, q the same renormalized to sum 1, s: the student's
probabilities of the same k tokens, under its full distribution. All in nats, [N] from [N, K].
"""

from __future__ import annotations

import numpy as np
import torch

from tinker_cookbook.distillation.soft_targets import TopK

# The probability of all other tokens is 1 minus a sum, which in float32 is exact to about 1e-7.
MIN_REST = 1e-6


def forward_kl(teacher: TopK, student: np.ndarray) -> np.ndarray:
    """KL(q || s) = sum q (log q - log s).

    With k = vocabulary this is the forward KL. With fewer tokens the gradient differs by at most
    2 * `teacher.left_out` in the sum over the student's logits: see `TopK.probabilities`.

    student: logprobs of the teacher's tokens.
    """
    return (teacher.probabilities * (teacher.log_probabilities - student)).sum(axis=1)


def reverse_kl(teacher: TopK, student: torch.Tensor) -> torch.Tensor:
    """sum s (log s - log p) + r (log r - log u), where r and u are the student's and the teacher's
    probability of all tokens outside the k, taken as one token.

    With k = vocabulary this is KL(student || teacher). With fewer tokens it is a lower bound (the
    log-sum inequality): probability outside the k is pushed to the teacher's u, but how the student
    distributes it there does not matter. r and u below MIN_REST count as MIN_REST.

    student: logprobs of the teacher's tokens, float64; the result has their gradient.
    """
    logprobs = torch.from_numpy(teacher.logprobs).to(student)
    rest = (1 - student.exp().sum(dim=1)).clamp(min=MIN_REST)
    teacher_rest = torch.from_numpy(teacher.left_out).to(student).clamp(min=MIN_REST)
    within = (student.exp() * (student - logprobs)).sum(dim=1)
    return within + rest * (rest / teacher_rest).log()
