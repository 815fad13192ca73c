"""What a bundled task consists of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from recipes.prompts import Conversation
from tinker_cookbook.supervised.exact_match import IsRight


@dataclass(frozen=True)
class Task:
    """A long prompt and questions that it helps with.

    questions: to sample replies to. held_out: other questions, each with its right reply.
    is_right: (reply, right reply) -> whether the reply counts as right.
    """

    prompt: str
    questions: Sequence[Conversation]
    held_out: Sequence[Conversation]
    is_right: IsRight
